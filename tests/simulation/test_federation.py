"""Whole runs with injected faults, against sums that are computed without any of our machinery."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.run_loop import RESTART_GRACE_MS
from fedpalm.errors import (
    HashMismatchError,
    NotOnRosterError,
    PlanNotApprovedError,
    ProtocolError,
    ResourceError,
    StaleRoundError,
    StateError,
)
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.plan import Plan
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.machine import RoundState
from fedpalm.rounds.run import AbortRun, Resume, Run, RunState

from .federation import (
    RUN,
    Killed,
    SimulatedFederation,
    oracle_step,
    rehearsal_plan,
)


def expected(plan: Plan, survivors: dict[int, tuple[str, ...]] | None = None) -> np.ndarray:
    """The model after all rounds, if these sites survived (else all)."""
    vector = rehearsal_vector(plan.model_layout, plan.draft.seed)
    for number in range(1, plan.draft.rounds + 1):
        vector = oracle_step(plan, number, vector, (survivors or {}).get(number, plan.roster))
    return vector


@pytest.fixture
def simulate(tmp_path: Path):  # type: ignore[no-untyped-def]
    made: list[SimulatedFederation] = []

    def make(plan: Plan, name: str = "home", seed: int = 0) -> SimulatedFederation:
        made.append(SimulatedFederation(tmp_path / name, plan, random.Random(seed)))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


def test_an_undisturbed_run_computes_the_exact_sums(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=5, rounds=4)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_the_order_of_deliveries_changes_no_bit(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=7, rounds=2)
    hashes = set()
    for seed in range(4):
        federation = simulate(plan, name=f"order-{seed}", seed=seed)
        federation.start()
        federation.connect(*random.Random(seed).sample(plan.roster, 7))
        federation.play()
        hashes.add(federation.run.model_hash)
    assert len(hashes) == 1


def test_a_run_of_many_sites_and_more_than_one_block(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=40, rounds=1, parameters=(1 << 16) + 5)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    federation.play()
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_sites_that_drop_out_are_left_out_of_the_sum_and_nothing_else(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=5, rounds=2, quorum=3)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    for site in plan.roster[1:4]:
        federation.deliver(site)
    federation.disconnect(plan.roster[0], plan.roster[4])
    federation.deadline()
    federation.sum_up()
    federation.connect(plan.roster[0], plan.roster[4])
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    np.testing.assert_array_equal(federation.model(), expected(plan, {1: plan.roster[1:4]}))


def test_a_straggler_after_the_deadline_changes_nothing(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=1)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    late = federation.payload(plan.roster[2])
    federation.deliver(plan.roster[0])
    federation.deliver(plan.roster[1])
    federation.deadline()
    with pytest.raises(StaleRoundError):
        federation.deliver(plan.roster[2], late)
    federation.sum_up()
    with pytest.raises(StaleRoundError):
        federation.deliver(plan.roster[2], late)
    np.testing.assert_array_equal(federation.model(), expected(plan, {1: plan.roster[:2]}))


def test_a_repeated_update_gets_the_same_receipt_and_counts_once(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=2)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    site = plan.roster[0]
    first = federation.deliver(site)
    federation.clock.advance(7)
    assert federation.deliver(site) == first
    federation.kill()
    assert federation.deliver(site) == first
    federation.connect()
    federation.play()
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_a_second_update_of_other_bytes_is_refused_and_the_first_counts(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=1)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    federation.deliver(plan.roster[0])
    with pytest.raises(StateError, match="already delivered"):
        federation.deliver(plan.roster[0], bytes(len(federation.payload(plan.roster[0]))))
    federation.play()
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_an_update_that_is_not_of_this_round_is_refused_by_name(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=2)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    payload = federation.payload(plan.roster[0])
    good = federation.claim(plan.roster[0], payload)
    check = federation.conductor.updates.check
    for changed, error in (
        ({"payload_bytes": len(payload) - 4}, ProtocolError),
        ({"plan_hash": "00" * 32}, HashMismatchError),
        ({"model_hash": "00" * 32}, HashMismatchError),
        ({"ref": RoundRef(2, 1)}, StaleRoundError),
        ({"ref": RoundRef(1, 2)}, StaleRoundError),
        ({"site": "mallory"}, NotOnRosterError),
    ):
        with pytest.raises(error):
            check(type(good)(**{**good.__dict__, **changed}))
    assert check(good) is None


@pytest.mark.parametrize("moment", ["before_sum", "after_sum"])
def test_a_kill_around_the_sum_forms_the_same_sum_again(simulate, moment: str) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=4, rounds=3)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    setattr(federation, f"kill_{moment}", True)
    with pytest.raises(Killed):
        federation.play()
    federation.kill()
    assert federation.run.current.state == "aggregating"
    federation.connect()
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_a_restart_gives_sites_time_to_come_back_before_a_deadline_counts(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=1)
    federation = simulate(plan)
    federation.start()
    federation.connect()
    federation.clock.advance(10_000)
    federation.kill()
    assert federation.timer is not None
    assert federation.timer[2] == round(federation.clock.now() * 1000) + RESTART_GRACE_MS
    federation.connect()
    federation.play()
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_a_run_without_sites_pauses_after_its_attempts_and_resumes(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=1)
    federation = simulate(plan)
    federation.start()
    for _ in range(plan.draft.max_attempts):
        federation.deadline()
    assert federation.run.state is RunState.PAUSED
    assert "0 of 3 sites joined" in federation.run.reason
    federation.kill()
    federation.connect()
    assert federation.asked() == []
    federation.conductor.feed(RUN, Resume(0))
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    assert federation.run.current.ref == RoundRef(1, 4)
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_a_full_disk_pauses_before_anybody_trains_and_names_the_figures(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=2)
    federation = simulate(plan)
    federation.connect()
    federation.free_bytes = 100
    federation.start()
    assert federation.run.state is RunState.PAUSED
    needed = 3 * 4 * 98 + 2 * 4 * 97
    assert f"needs {needed} bytes, 100 are free" in federation.run.reason
    assert federation.asked() == []
    federation.free_bytes = 1 << 40
    federation.conductor.feed(RUN, Resume(0))
    for site in plan.roster:
        federation.join(site)
    federation.play()
    np.testing.assert_array_equal(federation.model(), expected(plan))


@pytest.fixture
def full_once(simulate, monkeypatch: pytest.MonkeyPatch) -> SimulatedFederation:  # type: ignore[no-untyped-def]
    """A run whose cohort is stored, and whose next step was not: the disk was full for a moment."""
    federation: SimulatedFederation = simulate(rehearsal_plan(sites=2, rounds=2))
    stored, failed = federation.records.save, []

    def save(run_id: str, run: Run, *rest: Any) -> None:
        if run.current is not None and run.current.state is RoundState.COLLECTING and not failed:
            failed.append(run)
            raise ResourceError("the disk is full")
        stored(run_id, run, *rest)

    monkeypatch.setattr(federation.records, "save", save)
    federation.start()
    federation.connect()
    assert failed
    assert federation.run.current.state is RoundState.COHORT_SEALED
    return federation


def test_a_step_that_could_not_be_stored_is_done_later(full_once: SimulatedFederation) -> None:
    full_once.postponed.popleft()()
    assert full_once.run.current.state is RoundState.COLLECTING
    full_once.play()
    np.testing.assert_array_equal(full_once.model(), expected(full_once.plan))


def test_a_postponed_step_of_a_run_that_was_aborted_is_forgotten(
    full_once: SimulatedFederation,
) -> None:
    full_once.conductor.feed(RUN, AbortRun("by command"))
    full_once.postponed.popleft()()
    assert full_once.run.state is RunState.ABORTED


def test_a_site_that_is_revoked_in_a_round_is_not_in_its_sum_and_not_waited_for_later(  # type: ignore[no-untyped-def]
    simulate,
) -> None:
    plan = rehearsal_plan(sites=4, rounds=2)
    federation = simulate(plan)
    federation.connect()
    federation.start()
    gone, *rest = plan.roster
    for site in (gone, *rest[:2]):
        federation.deliver(site)
    federation.revoke(gone)
    federation.revoke(gone)
    federation.deliver(rest[2])
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    assert federation.conductor.answered(RUN, "approve") == rest
    left = {1: tuple(rest), 2: tuple(rest)}
    np.testing.assert_array_equal(federation.model(), expected(plan, left))


def test_a_site_that_takes_its_approval_back_in_a_round_is_out_until_it_approves_anew(  # type: ignore[no-untyped-def]
    simulate,
) -> None:
    plan = rehearsal_plan(sites=4, rounds=3)
    federation = simulate(plan)
    federation.connect()
    federation.start()
    gone, *rest = plan.roster
    late = federation.payload(gone)
    federation.decide(gone, "refuse")
    with pytest.raises(PlanNotApprovedError):
        federation.deliver(gone, late)
    with pytest.raises(PlanNotApprovedError):
        federation.join(gone)
    federation.kill()
    federation.connect()
    assert gone not in federation.asked()
    for site in rest:
        federation.deliver(site)
    federation.sum_up()
    assert federation.run.current.cohort == tuple(rest)
    federation.decide(gone, "approve")
    federation.play()
    left = {1: tuple(rest), 2: tuple(rest)}
    np.testing.assert_array_equal(federation.model(), expected(plan, left))


def test_fewer_sites_than_the_quorum_abort_the_attempt_at_once_and_a_readmission_goes_on(  # type: ignore[no-untyped-def]
    simulate,
) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    federation = simulate(plan)
    federation.connect()
    federation.start()
    federation.deliver(plan.roster[0])
    federation.revoke(plan.roster[1])
    assert federation.run.current.ref == RoundRef(1, 2)
    federation.readmit(plan.roster[1])
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    np.testing.assert_array_equal(federation.model(), expected(plan))


def test_a_site_that_refuses_and_approves_again_cannot_pause_the_run(simulate) -> None:  # type: ignore[no-untyped-def]
    plan = rehearsal_plan(sites=3, rounds=2)
    federation = simulate(plan)
    federation.connect()
    federation.start()
    *rest, fickle = plan.roster
    federation.deliver_all()
    assert federation.run.current.state is RoundState.AGGREGATING
    federation.decide(fickle, "refuse")
    federation.decide(fickle, "approve")
    assert (federation.run.current.ref, federation.run.failures) == (RoundRef(1, 2), 1)
    assert federation.run.current.cohort == tuple(rest)
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    np.testing.assert_array_equal(federation.model(), expected(plan, {1: tuple(rest)}))


FAULTS = ("connect", "drop", "deliver", "repeat", "kill", "sum", "wait")
MEMBERSHIP = ("revoke", "readmit", "refuse", "approve")
ACTIONS = st.lists(
    st.tuples(st.sampled_from((*FAULTS, *MEMBERSHIP)), st.integers(0, 3)), max_size=40
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS, seed=st.integers(0, 2**16))
def test_no_sequence_of_faults_changes_what_the_survivors_add_up_to(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]], seed: int
) -> None:
    plan = rehearsal_plan(sites=4, rounds=2)
    federation = SimulatedFederation(
        tmp_path_factory.mktemp("faults") / "home", plan, random.Random(seed)
    )
    federation.start()
    survivors: dict[int, tuple[str, ...]] = {}

    def sum_up() -> None:
        if federation.sums:
            effect = federation.sums[0]
            before = federation.run.model_hash
            federation.sum_up()
            if federation.run.model_hash != before:
                assert not set(effect.survivors) & out
                survivors[effect.ref.round] = effect.survivors

    out: set[str] = set()
    for action, index in actions:
        site = plan.roster[index]
        if federation.run.state is not RunState.RUNNING:
            break
        out = set(federation.run.expelled)
        if action == "connect":
            federation.connect(site)
        elif action == "drop":
            federation.disconnect(site)
        elif action in ("deliver", "repeat"):
            try:
                federation.deliver(site)
            except (StaleRoundError, NotOnRosterError, PlanNotApprovedError):
                continue
        elif action == "revoke":
            federation.revoke(site)
        elif action == "readmit":
            federation.readmit(site)
        elif action in ("refuse", "approve") and site not in federation.revoked:
            federation.decide(site, action)
        elif action == "kill":
            federation.kill()
        elif action == "sum":
            sum_up()
        elif federation.timer is not None:
            federation.deadline()
    if federation.run.state is RunState.PAUSED:
        federation.conductor.feed(RUN, Resume(0))
    federation.kill()
    federation.revoked.clear()
    for site in plan.roster:
        federation.decide(site, "approve")
    federation.connect()
    out = set()
    while not federation.run.over:
        federation.deliver_all()
        if federation.sums:
            sum_up()
        else:
            federation.deadline()
            federation.connect()
    assert federation.run.state is RunState.COMPLETED
    np.testing.assert_array_equal(federation.model(), expected(plan, survivors))
    federation.store.close()
