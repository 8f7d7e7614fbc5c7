"""The table of accuracy by epsilon: what a run is, that it can be had again, and that it is done once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from fedpalm.benchmark.dp_plot import plot_utility
from fedpalm.benchmark.dp_utility import (
    Cell,
    UtilityConfig,
    against,
    cells_of,
    measure,
    run_cell,
    strangers,
    training_people,
)
from fedpalm.cli.bench_dp import assign, tables, verdict
from fedpalm.errors import ConfigError
from fedpalm.methods.pretrain import PublicPalms

TINY = UtilityConfig.model_validate(
    {
        "sites": 2,
        "people": 3,
        "strangers": 3,
        "images": 2,
        "rounds": 1,
        "epsilons": [8.0, math.inf, 0.0],
        "resamples": 20,
        "training": {
            "privacy": {"unit": "subject", "sampling_rate": 1.0, "steps": 1, "trains": "expert"}
        },
        "public": PublicPalms(sensors=2, people=2, images=2, rounds=1).model_dump(),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPALM_CACHE", str(tmp_path_factory.mktemp("cache")))
        training_people.cache_clear()
        strangers.cache_clear()
        yield tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def results(folder):
    for cell in cells_of(TINY):
        run_cell(cell, folder)
    said: list[str] = []
    found = measure(TINY, folder, 1, said.append)
    assert said == []  # all of it was there
    return found


def test_a_table_has_every_start_with_every_epsilon(results):
    assert [(one["start"], one["epsilon"]) for one in results] == [
        (start, epsilon)
        for start in ("warm", "cold")
        for epsilon in ("0.0", "8.0", "inf", "ordinary")
    ]


def test_noise_is_chosen_for_epsilon_and_nothing_is_called_private(results):
    for one in results:
        assert one["randomness"] == "seeded: not private"
        if one["epsilon"] == "8.0":
            assert 7.5 < one["charged"] <= 8.0
        else:
            assert one["charged"] in (0.0, None)


def test_a_run_can_be_had_again_bit_for_bit(results, folder, tmp_path):
    cell = Cell(TINY, "cold", 8.0)
    again = run_cell(cell, tmp_path)
    first = json.loads((folder / f"{cell.name}.json").read_text())
    for one in (again, first):
        one.pop("seconds")
    assert json.loads(json.dumps(again)) == first


def test_noise_and_start_reach_the_model(results):
    assert len({json.dumps(one["sites"]) for one in results}) == len(results)


def test_nobody_who_trains_is_a_stranger(folder):
    train, others = training_people(TINY), strangers(TINY)
    for site, images in train.items():
        assert images.classes == TINY.people
        seen = {image.tobytes() for image in images.images}
        for trial in others.values():
            every = np.concatenate([trial.gallery, trial.probe])
            assert not seen & {image.tobytes() for image in every}, site


def test_the_name_of_a_run_changes_with_what_can_change_it():
    names = {Cell(TINY, start, epsilon).name for start in ("cold", "warm") for epsilon in (1, 8)}
    other = TINY.model_copy(update={"rounds": 2})
    assert len(names | {Cell(other, "cold", 1).name}) == 5
    fewer = TINY.model_copy(update={"epsilons": (1.0,)})
    assert Cell(fewer, "cold", 1).name in names


def test_the_plan_is_one_that_sites_could_be_asked_to_approve():
    draft = Cell(TINY, "warm", 8.0).draft()
    assert draft.privacy.unit == "subject" and draft.privacy.population == TINY.people
    assert not draft.reproducible and draft.training.contrast_weight == 0.0


@pytest.mark.parametrize("epsilons", [(), (-1.0,), (math.nan,)])
def test_an_epsilon_is_0_or_more(epsilons):
    with pytest.raises(ValidationError, match="epsilon"):
        UtilityConfig(epsilons=epsilons)


def test_table_plot_and_verdict_come_from_the_results(results, tmp_path):
    above = {
        base: {start: against(results, start, base) for start in ("cold", "warm")}
        for base in ("inf", "ordinary")
    }
    warm = {one["epsilon"]: one for one in results if one["start"] == "warm"}
    expected = warm["8.0"]["mean"]["eer"] - warm["inf"]["mean"]["eer"]
    assert above["inf"]["warm"]["8.0"]["eer"] == pytest.approx(expected)
    found = {"results": results, "above": above, "plot": "p"}
    assert ("reached" in verdict(found).splitlines()[0]) == (expected <= 0.02)
    assert len(tables(found).renderables) == 3
    plot_utility(results, tmp_path / "dp.png")
    assert (tmp_path / "dp.png").stat().st_size > 10_000


def test_settings_are_told_by_key():
    training = TINY.training.model_dump()
    assign(training, "steps=5")
    assign(training, "trains=all")
    assign(training, "training.learning_rate=0.01")
    assert training["privacy"]["steps"] == 5 and training["privacy"]["trains"] == "all"
    assert training["learning_rate"] == 0.01
    with pytest.raises(ConfigError, match="no such setting"):
        assign(training, "colour=1")
