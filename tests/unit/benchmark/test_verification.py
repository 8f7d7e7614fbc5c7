"""One verification with all experts, and what measuring it reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from fedpalm.benchmark import verification
from fedpalm.benchmark.verification import (
    LIMIT,
    NAIVE,
    POOL,
    WAYS,
    Bench,
    check,
    interval_of_median,
)
from fedpalm.cli.app import commands
from fedpalm.errors import IntegrityError

TINY = ("bench", "verify", "--experts", "3", "--batch", "1", "--batch", "6", "--threads", "1",
        "--repeats", "1")  # fmt: skip


@pytest.mark.parametrize("batch", [1, 6])
def test_every_way_gives_the_same_templates_and_scores(batch):
    bench = Bench(3, 1)
    images = verification.site_images(batch).images
    enrolled = bench.verify(NAIVE, images[:1], np.zeros(1024, np.float32))[0][0]
    found = {way: bench.verify(way, images, enrolled) for way in WAYS}
    assert check({way: templates for way, (templates, _) in found.items()}) <= LIMIT
    for templates, scores in found.values():
        assert templates.shape == (batch, 1024) and scores.shape == (batch,)
        assert scores[0] == pytest.approx(1, abs=1e-4)


def test_all_experts_take_part():
    bench = Bench(5, 1)
    assert len(bench.experts) == 5 and bench.names[-1] == "_global"


def test_another_template_is_told():
    one = np.zeros((1, 4), np.float32)
    for other in (one + np.float32(2 * LIMIT), one * np.float32(np.nan)):
        with pytest.raises(IntegrityError, match="differ"):
            check({NAIVE: one, POOL: other})


def test_the_interval_of_a_median_is_that_of_the_binomial():
    # Table of the sign test: the 6th and the 16th of 21 values, 1st and 6th of 6; fewer give their range.
    assert interval_of_median([float(one) for one in range(1, 22)]) == (6, 16)
    assert interval_of_median([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1, 6)
    assert interval_of_median([2.0, 1.0]) == (1, 2)
    assert interval_of_median([2.0]) == (2, 2)


def test_the_command_prints_figures_that_fit_together():
    done = CliRunner().invoke(commands, [*TINY, "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert [(one["batch"], one["grouped"]) for one in figures["cases"]] == [(1, True), (6, False)]
    for case in figures["cases"]:
        ways, ratios = case["ways"], case["times_faster"]
        assert tuple(ways) == WAYS and set(ratios) == set(WAYS) - {POOL}
        latency = ways[POOL]["latency_s"]["median"]
        assert ways[POOL]["images_per_s"] == pytest.approx(case["batch"] / latency)
        expected = ways[NAIVE]["latency_s"]["median"] / latency
        assert ratios[NAIVE]["median"] == pytest.approx(expected)
    one, other = figures["cases"]
    assert one["target"] == 1.3
    assert one["target_met"] == (one["times_faster"][NAIVE]["median"] >= 1.3)
    assert other["target"] is None and other["target_met"] is None


def test_the_command_tells_people_the_ways_and_the_target():
    done = CliRunner().invoke(commands, TINY)
    assert done.exit_code == 0
    assert all(way in done.stdout for way in WAYS) and "Target: 1.3" in done.stdout


def test_ways_that_disagree_end_the_command_with_10(monkeypatch):
    monkeypatch.setattr(verification, "LIMIT", -1.0)
    assert CliRunner().invoke(commands, TINY).exit_code == IntegrityError.exit_code
