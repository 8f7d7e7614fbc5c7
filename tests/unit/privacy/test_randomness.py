"""Noise has the distribution that the account assumes, is never drawn twice, and leaves no key behind."""

from __future__ import annotations

import copy
import math
import os
import pickle
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedpalm.privacy.randomness import SecretRandom, SeededRandom, _box_muller

UNLIKELY = 1e-9
"""A right source fails a bound about as often as this."""


def test_noise_is_gaussian_with_the_variance_that_was_asked_for():
    drawn = SeededRandom(1).normal((300, 1001), 3.0)
    assert drawn.dtype == torch.float64
    exact = drawn.numpy().ravel() / 3
    squares, freedom = float(exact @ exact), exact.size
    assert stats.chi2.ppf(UNLIKELY, freedom) < squares < stats.chi2.isf(UNLIKELY, freedom)
    assert stats.kstest(exact, "norm").pvalue > 1e-6
    assert abs(exact.sum()) / math.sqrt(freedom) < stats.norm.isf(UNLIKELY)


@pytest.mark.parametrize("apart", [1, 2, 1 << 14, 1 << 15])
def test_values_are_independent_at_every_distance_that_the_method_has(apart):
    exact = SeededRandom(2).normal((1 << 17,), 1.0).numpy()
    for one, other in ((exact[:-apart], exact[apart:]), (exact[:-apart] ** 2, exact[apart:] ** 2)):
        correlation = np.corrcoef(one, other)[0, 1]
        assert abs(correlation) * math.sqrt(len(one)) < stats.norm.isf(UNLIKELY)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,)])
def test_noise_has_the_shape_of_the_parameter(shape):
    assert SecretRandom().normal(shape, 1.0).shape == shape


@pytest.mark.parametrize("word", [0, 2**64 - 1, 2**11 - 1, 2**63])
def test_the_ends_of_the_uniforms_give_finite_noise(word):
    for axis in _box_muller(np.full(4, word, np.uint64)):
        assert torch.isfinite(axis).all()
        assert (axis.abs() < 8.6).all()


def test_people_are_drawn_with_the_rate_and_independently():
    randomness = SeededRandom(3)
    draws = np.array([randomness.chosen(50, 0.1) for _ in range(4000)])
    for how_many in (draws.sum(), draws[:, 0].sum(), draws[:, -1].sum()):
        trials = draws.size if how_many == draws.sum() else len(draws)
        assert stats.binomtest(int(how_many), trials, 0.1).pvalue > UNLIKELY
    # Poisson sampling: the number of people in a step is binomial, not fixed.
    sizes = draws.sum(axis=1)
    expected = stats.binom(50, 0.1).pmf(np.arange(11)) * len(sizes)
    seen = np.array([(sizes == size).sum() for size in range(11)])
    rest = [len(sizes) - seen.sum()], [len(sizes) - expected.sum()]
    assert stats.chisquare([*seen, *rest[0]], [*expected, *rest[1]]).pvalue > 1e-6
    both = (draws[:, 0] & draws[:, 1]).sum()
    assert stats.binomtest(int(both), len(draws), 0.01).pvalue > UNLIKELY


@given(st.integers(0, 20), st.floats(0, 1, exclude_min=True))
def test_a_rate_of_one_draws_everybody(count, rate):
    randomness = SeededRandom(4)
    assert randomness.chosen(count, 1.0).all()
    assert randomness.chosen(count, rate).shape == (count,)
    assert not randomness.chosen(count, 2.0**-70).any()


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 2**32))
def test_a_subset_holds_nothing_twice(count, size, seed):
    found = SeededRandom(seed).subset(count, size)
    assert len(set(found.tolist())) == len(found) == min(count, size)
    assert all(0 <= one < count for one in found)


def test_every_ordered_subset_is_alike_likely():
    randomness = SeededRandom(5)
    drawn = [tuple(randomness.subset(4, 2).tolist()) for _ in range(6000)]
    assert stats.chisquare([drawn.count(one) for one in permutations(range(4), 2)]).pvalue > 1e-6


def test_one_seed_gives_one_stream_and_no_draw_twice():
    one, other = SeededRandom(6), SeededRandom(6)
    first = one.normal((100,), 1.0)
    assert torch.equal(first, other.normal((100,), 1.0))
    assert not torch.isin(first, one.normal((100,), 1.0)).any()
    assert not torch.isin(first, SeededRandom(7).normal((100,), 1.0)).any()
    assert other.seed() != other.seed() == one.seed()


def test_no_secret_draw_is_like_another_in_or_between_sources():
    one, other = SecretRandom(), SecretRandom()
    drawn = torch.cat([source.normal((1000,), 1.0) for source in (one, other, one, other)])
    assert len(drawn.unique()) == 4000
    assert len({source.seed() for source in (one, other) for _ in range(50)}) == 100


def test_every_secret_draw_has_a_key_of_the_operating_system_and_keeps_none(monkeypatch, caplog):
    keys, draw = [], os.urandom

    def urandom(count):
        keys.append(draw(count))
        return keys[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    caplog.set_level(0)
    randomness = SecretRandom()
    randomness.normal((70_000,), 1.0)
    randomness.chosen(5, 0.5)
    randomness.subset(5, 2)
    randomness.seed()
    assert [len(key) for key in keys] == [48] * 4
    assert len(set(keys)) == 4
    assert vars(randomness) == {}
    assert not caplog.records


@pytest.mark.parametrize("keep", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_source_is_not_stored_or_copied(keep):
    with pytest.raises(TypeError, match="make another"):
        keep(SecretRandom())
