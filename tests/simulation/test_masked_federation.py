"""Masked runs in memory: the right sum from whoever stays, whoever falls silent, and whoever dies when."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpalm.rounds.events import RoundRef, TimerKind
from fedpalm.rounds.run import RunState
from fedpalm.secagg.unmasking import Step
from tests.simulation.federation import RUN, Killed, oracle_step
from tests.simulation.masked import MaskedFederation, masked_plan

A, B, C, D, E = (f"site-{number:03}" for number in range(5))
Simulate = Callable[..., MaskedFederation]
STEPS = [step for step in Step if step is not Step.DONE]


@pytest.fixture
def simulate(tmp_path: Path) -> Simulate:
    def begin(seed: int = 0, **settings: object) -> MaskedFederation:
        plan = masked_plan(**settings)  # type: ignore[arg-type]
        federation = MaskedFederation(tmp_path / f"hub-{seed}", plan, random.Random(seed))
        federation.connect()
        federation.start()
        return federation

    return begin


def committed(federation: MaskedFederation) -> dict[int, tuple[str, ...]]:
    """Survivors of every round that was committed."""
    rows = federation.store.query(
        "SELECT round, survivors FROM attempts WHERE model_hash <> '' ORDER BY round"
    )
    return {number: tuple(json.loads(survivors)) for number, survivors in rows}


def assert_exact(federation: MaskedFederation, rounds: int = 1) -> None:
    """Every model is the one that plain signed sums over the unmasked integers give."""
    models, survivors = federation.records.models(RUN), committed(federation)
    assert sorted(survivors) == list(range(1, rounds + 1))
    shared = federation.model(models[0])
    for number in range(1, rounds + 1):
        wanted = oracle_step(federation.plan, number, shared, survivors[number])
        shared = federation.model(models[number])
        np.testing.assert_array_equal(shared, wanted)


def test_every_round_of_a_masked_run_is_the_exact_sum(simulate: Simulate) -> None:
    federation = simulate(rounds=3)
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    assert committed(federation) == dict.fromkeys((1, 2, 3), (A, B, C, D, E))
    assert_exact(federation, rounds=3)


def test_what_lies_in_the_spool_is_not_what_was_encoded(simulate: Simulate) -> None:
    federation = simulate()
    federation.play_to(Step.AGREEMENTS)
    spooled = [path.read_bytes() for path in federation.spool.root.rglob("site-*")]
    encoded = [one.payload for one in federation.sites.values()]
    assert len(spooled) == 5 and len(set(spooled)) == 5
    for vector in spooled:
        for other in encoded:
            same = np.frombuffer(vector, "<u4") == np.frombuffer(other, "<u4")
            assert same.mean() < 0.05


@pytest.mark.parametrize(
    ("silent", "survivors"),
    [
        ({C: Step.KEYS}, (A, B, D, E)),
        ({A: Step.BOXES}, (B, C, D, E)),
        ({E: Step.INPUTS}, (A, B, C, D)),
        ({B: Step.AGREEMENTS}, (A, B, C, D, E)),
        ({D: Step.REVEALS}, (A, B, C, D, E)),
    ],
    ids=["keys", "boxes", "inputs", "agreements", "reveals"],
)
def test_a_site_that_falls_silent_is_left_out_or_not_and_the_sum_is_exact(
    simulate: Simulate, silent: dict[str, Step], survivors: tuple[str, ...]
) -> None:
    federation = simulate()
    federation.silent = silent
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED
    assert committed(federation) == {1: survivors}
    assert federation.ref == RoundRef(1, 1)
    assert_exact(federation)


@pytest.mark.parametrize("seed", range(6))
def test_any_tolerated_pattern_of_silence_gives_the_exact_sum_of_the_rest(
    simulate: Simulate, seed: int
) -> None:
    federation = simulate(seed=seed, sites=8)
    chance = random.Random(seed)
    lost = chance.sample(sorted(federation.plan.roster), 3)
    federation.silent = {site: chance.choice(STEPS) for site in lost}
    federation.play_on()
    late = [site for site, step in federation.silent.items() if step in STEPS[3:]]
    (survivors,) = committed(federation).values()
    assert set(survivors) == set(federation.plan.roster) - set(lost) | set(late)
    assert federation.ref == RoundRef(1, 1)
    assert_exact(federation)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_with_one_more_than_tolerated_the_attempt_ends_and_the_next_one_completes(
    simulate: Simulate, step: Step
) -> None:
    federation = simulate()
    federation.silent = dict.fromkeys((A, B), step)
    while federation.ref.attempt == 1:
        federation.play()
        federation.deadline()
    # Of agreements and reveals the threshold is enough: four of five, and three are here.
    (reason,) = federation.store.query("SELECT reason FROM attempts WHERE attempt = 1")[0]
    assert f"nothing came from {A}, {B}" in reason and "4" in reason
    assert len(federation.revealed) == (3 if step is Step.REVEALS else 0)
    federation.silent = {}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED
    assert committed(federation) == {1: (A, B, C, D, E)}
    assert_exact(federation)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_coordinator_that_dies_with_a_step_half_done_goes_on_in_it(
    simulate: Simulate, step: Step
) -> None:
    federation = simulate()
    federation.play_to(step)
    for site in federation.asked()[:2]:
        federation.follow(site)
    before = federation.conductor.masking.collection(RUN, federation.ref)
    assert before is not None
    federation.kill()
    after = federation.conductor.masking.collection(RUN, federation.ref)
    assert after is not None
    assert (after.step, after.waiting_for) == (step, before.waiting_for)
    assert after.context == before.context
    federation.connect()
    federation.play()
    assert federation.run.state is RunState.COMPLETED and federation.ref == RoundRef(1, 1)
    assert_exact(federation)


@pytest.mark.parametrize("when", ["kill_before_sum", "kill_after_sum"])
def test_a_coordinator_that_dies_over_the_sum_opens_it_again(simulate: Simulate, when: str) -> None:
    federation = simulate()
    setattr(federation, when, True)
    with pytest.raises(Killed):
        federation.play()
    federation.kill()
    (effect,) = federation.sums
    assert effect.survivors == (A, B, C, D, E)
    federation.play()
    assert_exact(federation)


def test_a_step_that_was_complete_when_the_coordinator_died_is_closed_after_the_restart(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = simulate()
    federation.play_to(Step.BOXES)
    with monkeypatch.context() as patch:
        patch.setattr(type(federation.conductor.masking), "look", lambda *_: None)
        for site in federation.asked():
            federation.follow(site)
    assert federation.step is Step.BOXES
    federation.kill()
    assert federation.step is Step.INPUTS


def test_steps_have_the_timer_and_after_a_restart_time_to_come_back(simulate: Simulate) -> None:
    federation = simulate(masking_step_deadline_s=50)
    now_ms = round(federation.clock.now() * 1000)
    assert federation.timer == (federation.ref, TimerKind.MASKING, now_ms + 600_000)
    federation.play_to(Step.BOXES)
    assert federation.timer == (federation.ref, TimerKind.MASKING, now_ms + 50_000)
    assert federation.conductor.deadline_ms(RUN) == now_ms + 50_000
    federation.kill()
    assert federation.timer == (federation.ref, TimerKind.MASKING, now_ms + 60_000)


def test_a_site_that_comes_back_hears_of_the_step_that_waits_for_it(simulate: Simulate) -> None:
    federation = simulate()
    federation.disconnect(A)
    federation.connect(A)
    kinds = [one.WhichOneof("kind") for one in federation.inbox[A]]
    assert kinds.count("train") == 1 and "masking" not in kinds
    for step in STEPS[1:]:
        federation.play_to(step)
        federation.disconnect(A)
        federation.connect(A)
        kinds = [one.WhichOneof("kind") for one in federation.inbox[A]]
        assert kinds.count("masking") == 1 and "train" not in kinds
        federation.follow(A)
        federation.disconnect(A)
        federation.connect(A)
        if federation.run.current.state == "collecting" and federation.step is step:
            assert not {"masking", "train"} & {o.WhichOneof("kind") for o in federation.inbox[A]}
    federation.play()
    assert_exact(federation)


def test_a_site_that_comes_back_too_late_for_keys_is_asked_for_nothing(simulate: Simulate) -> None:
    federation = simulate()
    federation.silent = {A: Step.KEYS}
    federation.play_to(Step.BOXES)
    federation.silent = {}
    federation.disconnect(A)
    federation.connect(A)
    assert {one.WhichOneof("kind") for one in federation.inbox[A]} == {"run_offer"}


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_site_that_is_revoked_is_left_out_until_its_masked_update_has_come(
    simulate: Simulate, step: Step
) -> None:
    federation = simulate()
    federation.play_to(step)
    first = federation.ref
    federation.revoke(C)
    delivered = step in (Step.AGREEMENTS, Step.REVEALS)
    assert (federation.ref != first) is delivered
    federation.play_on()
    assert committed(federation) == {1: (A, B, D, E)}
    assert_exact(federation)


def test_a_step_that_waits_for_a_revoked_site_alone_is_closed_at_once(simulate: Simulate) -> None:
    federation = simulate()
    federation.play_to(Step.INPUTS)
    for site in (A, B, D, E):
        federation.follow(site)
    assert federation.step is Step.INPUTS
    federation.revoke(C)
    assert federation.step is Step.AGREEMENTS


def test_a_site_that_refuses_the_plan_after_its_masked_update_ends_the_attempt(
    simulate: Simulate,
) -> None:
    federation = simulate()
    federation.play_to(Step.REVEALS)
    federation.decide(C, "refuse")
    assert federation.ref == RoundRef(1, 2)
    assert federation.revealed == []
    federation.play_on()
    assert_exact(federation)


def test_what_sites_said_is_deleted_when_the_attempt_is_over(simulate: Simulate) -> None:
    federation = simulate(rounds=2)
    federation.silent = dict.fromkeys((A, B), Step.REVEALS)
    while federation.ref == RoundRef(1, 1):
        federation.play()
        federation.deadline()
    query = federation.store.query
    assert query("SELECT * FROM masking_messages") == query("SELECT * FROM masking_steps") == []
    assert query("SELECT masking_step, survivors FROM attempts WHERE attempt = 1") == [
        ("reveals", "[]")
    ]
    federation.silent = {}
    federation.play_on()
    assert query("SELECT * FROM masking_messages") == query("SELECT * FROM masking_steps") == []
    assert query("SELECT masking_step FROM attempts WHERE round = 2") == [("done",)]
