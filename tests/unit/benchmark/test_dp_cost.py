"""The two ways of a private step that are held against each other train one model."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from fedpalm.benchmark import dp_cost
from fedpalm.benchmark.dp_cost import GRADIENT_LIMIT, WAYS, Bench, Load, check
from fedpalm.cli.app import commands
from fedpalm.errors import IntegrityError


@pytest.fixture(scope="module")
def bench():
    return Bench(Load(people=2, records=1))


def test_a_records_gradients_are_the_same_in_every_layer(bench):
    assert 0 < bench.difference() <= GRADIENT_LIMIT


def test_other_gradients_are_told_from_rounding(bench, monkeypatch):
    monkeypatch.setitem(
        bench.seen.GRAD_SAMPLERS,
        dp_cost.Scale,
        lambda layer, *seen: {layer.scale: 2 * dp_cost.scale_gradients(layer, *seen)[layer.scale]},
    )
    assert bench.difference() > 0.5


@pytest.mark.parametrize("difference", [2e-2, float("nan")])
def test_ways_that_differ_are_not_compared(difference):
    with pytest.raises(IntegrityError, match="not the same"):
        check(difference)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_moves_the_model_it_is_measured_on(bench, way):
    site = bench.theirs if way == dp_cost.OPACUS else bench.site
    before = site.learner.model.embedding.weight.detach().clone()
    WAYS[way](bench)
    assert (site.learner.model.embedding.weight != before).double().mean() > 0.99
    assert torch.isfinite(site.learner.model.embedding.weight).all()


def test_the_command_prints_the_figures_and_the_ratio():
    arguments = ["bench", "dp-cost", "--people", "2", "--records", "1", "--repeats", "1", "--json"]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert set(figures["step_s"]) == set(WAYS)
    ours, theirs = (figures["step_s"][way]["median"] for way in (dp_cost.OURS, dp_cost.OPACUS))
    assert figures["over_opacus"]["median"] == pytest.approx(ours / theirs)
