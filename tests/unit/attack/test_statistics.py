"""Each test on data that follows the law (p-values are spread evenly) and on data that does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedpalm.attack.findings import Finding, accused
from fedpalm.attack.statistics import (
    of_correlation,
    of_rate,
    of_scale,
    of_shape,
    of_spread,
)

REPEATS = 400


def _honest(name, rng):
    drawn = rng.random((30, 200)) < 0.2
    noise = rng.normal(0, 0.3, 500)
    return {
        "scale": lambda: of_scale(noise, 0.3),
        "shape": lambda: of_shape(noise, 0.3),
        "correlation": lambda: of_correlation(list(rng.normal(size=(4, 300))))[1],
        "rate": lambda: of_rate(drawn, 0.2),
        "sizes": lambda: of_spread(drawn, 0.2, 1),
        "people": lambda: of_spread(drawn, 0.2, 0),
    }[name]()


@pytest.mark.parametrize("name", ["scale", "shape", "correlation", "rate", "sizes", "people"])
def test_what_follows_the_law_is_accused_as_rarely_as_it_says(name):
    rng = np.random.default_rng(7)
    found = np.array([_honest(name, rng) for _ in range(REPEATS)])
    for level in (0.01, 0.05, 0.2):
        allowed = stats.binom(REPEATS, level).isf(1e-4)
        assert (found <= level).sum() <= allowed


def test_noise_of_another_scale_or_shape_is_seen():
    rng = np.random.default_rng(1)
    assert of_scale(rng.normal(0, 0.5, 200), 1.0) < 1e-9
    assert of_scale(np.zeros(200), 1.0) < 1e-9
    assert of_scale(rng.normal(0, 1.5, 200), 1.0) < 1e-9
    uniform = rng.uniform(-np.sqrt(3), np.sqrt(3), 4000)
    assert of_scale(uniform, 1.0) > 1e-9
    assert of_shape(uniform, 1.0) < 1e-9


def test_noise_that_comes_twice_is_seen():
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(2, 1000))
    assert of_correlation([one, other, one.copy()])[1] < 1e-9
    assert of_correlation([one, other, 0.5 * one + rng.normal(size=1000)])[1] < 1e-9
    assert of_correlation([np.zeros(1000), np.zeros(1000)])[1] == 1.0


def test_draws_that_are_not_poisson_are_seen():
    rng = np.random.default_rng(3)
    fixed = np.array([rng.permutation(200) < 40 for _ in range(30)])
    assert of_rate(fixed, 0.2) > 0.5
    assert of_spread(fixed, 0.2, 1) < 1e-9
    epochs = np.concatenate(
        [np.eye(5, dtype=bool)[rng.permutation(np.arange(200) % 5)].T for _ in range(6)]
    )
    assert of_spread(epochs, 0.2, 0) < 1e-9
    assert of_rate(rng.random((30, 200)) < 0.3, 0.2) < 1e-9


def _finding(p_value):
    return Finding("direct", "test", p_value, "", "")


def test_holm_accuses_by_rank():
    found = [_finding(p) for p in (0.2, 0.001, 0.02, 0.5)]
    assert [one.p_value for one in accused(found, 0.05)] == [0.001]
    assert [one.p_value for one in accused(found, 0.06)] == [0.001, 0.02]
    assert accused([_finding(1.0)] * 3, 0.05) == []


def test_all_tests_together_accuse_the_honest_as_rarely_as_asked():
    rng = np.random.default_rng(4)
    wrong = sum(bool(accused([_finding(p) for p in rng.random(8)], 0.05)) for _ in range(2000))
    assert wrong <= stats.binom(2000, 0.05).isf(1e-4)
