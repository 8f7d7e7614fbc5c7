"""Runs in memory of sites with backbones of their own: each group by its survivors, or no sum at all."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.run import RunState
from fedpalm.secagg.unmasking import Step
from tests.simulation.federation import RUN, SimulatedFederation, oracle_step, rehearsal_plan
from tests.simulation.masked import MaskedFederation, masked_plan
from tests.simulation.test_masked_federation import assert_exact, committed

SITES = tuple(f"site-{number:03}" for number in range(7))
SIGNETS, RESNETS = SITES[:4], SITES[4:]
BACKBONES = dict.fromkeys(SIGNETS, "signet") | dict.fromkeys(RESNETS, "resnet")


@pytest.fixture
def federation(tmp_path: Path) -> MaskedFederation:
    """Seven sites under masking: four of one backbone, so that one may be away, and three of another."""
    plan = masked_plan(7, backbones=BACKBONES)
    made = MaskedFederation(tmp_path / "hub", plan, random.Random(3))
    made.connect()
    made.start()
    return made


def test_groups_are_averaged_over_those_who_have_them_inside_one_masked_sum(
    federation: MaskedFederation,
) -> None:
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    assert committed(federation) == {1: SITES}
    assert_exact(federation)


@pytest.mark.parametrize("step", [Step.KEYS, Step.BOXES, Step.INPUTS])
def test_a_group_that_can_spare_a_site_is_averaged_over_the_others(
    federation: MaskedFederation, step: Step
) -> None:
    federation.silent = {SIGNETS[1]: step}
    federation.play_on()
    assert committed(federation) == {1: tuple(one for one in SITES if one != SIGNETS[1])}
    assert federation.ref == RoundRef(1, 1)
    assert_exact(federation)


@pytest.mark.parametrize("step", [Step.KEYS, Step.BOXES, Step.INPUTS])
@pytest.mark.parametrize(
    "away", [RESNETS[:1], RESNETS[1:], SIGNETS[:2]], ids=["one", "two", "left"]
)
def test_a_group_short_of_survivors_is_asked_for_no_share_and_the_next_attempt_completes(
    federation: MaskedFederation, step: Step, away: tuple[str, ...]
) -> None:
    """Six or five sites would be enough for the sum over everybody."""
    federation.silent = dict.fromkeys(away, step)
    while federation.ref.attempt == 1:
        federation.play()
        federation.deadline()
    (reason,) = federation.store.query("SELECT reason FROM attempts WHERE attempt = 1")[0]
    group = "trunk.resnet" if away[0] in RESNETS else "trunk.signet"
    assert f"group {group}, its sum needs 3" in reason
    assert not federation.revealed
    assert not federation.store.query("SELECT 1 FROM attempts WHERE model_hash <> ''")
    federation.silent = {}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED
    assert_exact(federation)


def test_without_masking_a_group_that_nobody_came_of_keeps_its_values(tmp_path: Path) -> None:
    plan = rehearsal_plan(7, 1, backbones=BACKBONES)
    federation = SimulatedFederation(tmp_path / "hub", plan)
    federation.connect(*SIGNETS)
    federation.start()
    federation.deadline()
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    models = federation.records.models(RUN)
    before, after = federation.model(models[0]), federation.model(models[1])
    kept, moved = (group.span for group in plan.parameter_groups[:2])
    np.testing.assert_array_equal(before[kept], after[kept])
    assert (before[moved] != after[moved]).any()
    np.testing.assert_array_equal(after, oracle_step(plan, 1, before, SIGNETS))
