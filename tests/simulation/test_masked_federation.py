"""Masked runs in memory: the right sum from whoever stays, whoever falls silent, and whoever dies when."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregate import change
from fedpalm.errors import StateError
from fedpalm.methods.contribution import codec_for
from fedpalm.rounds.events import RoundRef, TimerKind
from fedpalm.rounds.run import Pause, Resume, RunState
from fedpalm.secagg.messages import Complaint, signed
from fedpalm.secagg.unmasking import Step
from tests.simulation import masked
from tests.simulation.federation import RUN, Killed, encoded_update, oracle_step
from tests.simulation.masked import MaskedFederation, junk_for, masked_plan, wrong_own_share
from tests.support.masking_sites import over_the_wire

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
    """Every model is the one that plain signed sums over the unmasked integers give.

    Of a lost round it differs from the one before in the last bit of one value.
    """
    models, survivors = federation.records.models(RUN), committed(federation)
    assert sorted(survivors) == list(range(1, rounds + 1))
    assert len(set(models.values())) == len(models)
    shared = federation.model(models[0])
    for number in range(1, rounds + 1):
        before, shared = shared, federation.model(models[number])
        if number in federation.run.lost_rounds:
            assert survivors[number] == ()
            (changed,) = np.flatnonzero(shared != before)
            assert shared[changed] == np.nextafter(before[changed], np.float32(np.inf))
        else:
            wanted = oracle_step(federation.plan, number, before, survivors[number])
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


@pytest.mark.parametrize("step", STEPS[:4], ids=str)
def test_with_one_more_than_tolerated_the_attempt_ends_and_the_next_one_completes(
    simulate: Simulate, step: Step
) -> None:
    federation = simulate()
    federation.silent = dict.fromkeys((A, B), step)
    while federation.ref.attempt == 1:
        federation.play()
        federation.deadline()
    # Of agreements the threshold is enough: four of five, and three are here.
    (reason,) = federation.store.query("SELECT reason FROM attempts WHERE attempt = 1")[0]
    assert f"nothing came from {A}, {B}" in reason and "4" in reason
    assert federation.revealed == []
    federation.silent = {}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED and federation.run.lost_rounds == ()
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


@pytest.mark.parametrize("step", STEPS[:4], ids=str)
def test_a_site_that_is_revoked_is_left_out_until_its_masked_update_has_come(
    simulate: Simulate, step: Step
) -> None:
    federation = simulate()
    federation.play_to(step)
    first = federation.ref
    federation.revoke(C)
    assert (federation.ref != first) is (step is Step.AGREEMENTS)
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
    federation.play_to(Step.AGREEMENTS)
    federation.decide(C, "refuse")
    assert federation.ref == RoundRef(1, 2)
    assert federation.revealed == []
    federation.play_on()
    assert_exact(federation)


def test_what_sites_said_is_deleted_when_the_attempt_is_over(simulate: Simulate) -> None:
    federation = simulate(rounds=2)
    federation.silent = dict.fromkeys((A, B), Step.REVEALS)
    federation.play()
    federation.deadline()
    federation.sum_up()
    query = federation.store.query
    assert query("SELECT * FROM masking_messages") == query("SELECT * FROM masking_steps") == []
    assert query("SELECT masking_step, survivors FROM attempts WHERE round = 1") == [
        ("reveals", "[]")
    ]
    federation.silent = {}
    federation.play_on()
    assert query("SELECT * FROM masking_messages") == query("SELECT * FROM masking_steps") == []
    assert query("SELECT masking_step FROM attempts WHERE round = 2") == [("done",)]


# --- spent models, and sites that break the rules -------------------------------------------------


def reasons(federation: MaskedFederation) -> dict[tuple[int, int], str]:
    rows = federation.store.query("SELECT round, attempt, reason FROM attempts")
    return {(number, attempt): reason for number, attempt, reason in rows}


def cohorts(federation: MaskedFederation) -> list[tuple[str, ...]]:
    rows = federation.store.query("SELECT cohort FROM attempts ORDER BY round, attempt")
    return [tuple(json.loads(cohort)) for (cohort,) in rows]


def lose_a_round(federation: MaskedFederation) -> None:
    """Two of five fall silent after the shares were asked for; the changed model is still to be made."""
    federation.play_to(Step.REVEALS)
    federation.silent = dict.fromkeys((A, B), Step.REVEALS)
    federation.play()
    federation.deadline()


def test_too_few_reveals_cost_the_round_its_sum_and_the_run_goes_on_from_another_model(
    simulate: Simulate, caplog: pytest.LogCaptureFixture
) -> None:
    federation = simulate(rounds=3)
    lose_a_round(federation)
    federation.sum_up()
    federation.silent = {}
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    assert federation.run.lost_rounds == (1,) and federation.run.reason == ""
    assert committed(federation) == {1: (), 2: (A, B, C, D, E), 3: (A, B, C, D, E)}
    assert "reveals: 3 sites, 4 are needed" in reasons(federation)[1, 1]
    assert "round 1, attempt 1: gives no sum" in caplog.text
    assert_exact(federation, rounds=3)


def test_with_three_sites_a_crash_in_the_last_step_costs_the_round_and_not_the_run(
    simulate: Simulate,
) -> None:
    federation = simulate(sites=3, quorum=3, rounds=2)
    federation.play_to(Step.REVEALS)
    federation.silent = {C: Step.REVEALS}
    federation.play()
    federation.disconnect(C)
    federation.deadline()
    federation.silent = {}
    federation.play()
    assert federation.ref == RoundRef(2, 1)
    federation.connect(C)
    federation.play()
    assert federation.run.state is RunState.COMPLETED and federation.run.lost_rounds == (1,)
    assert_exact(federation, rounds=2)


def test_a_survivor_that_is_revoked_after_shares_were_asked_for_costs_the_round_its_sum(
    simulate: Simulate,
) -> None:
    federation = simulate(rounds=2)
    federation.play_to(Step.REVEALS)
    federation.revoke(C)
    federation.sum_up()
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED
    assert committed(federation) == {1: (), 2: (A, B, D, E)}
    assert_exact(federation, rounds=2)


def test_a_sum_without_any_weight_leaves_a_spent_model_and_is_no_sum(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = simulate(rounds=2)
    size = len(encoded_update(federation.plan, A, 1, federation.model()))
    with monkeypatch.context() as patch:
        patch.setattr(masked, "encoded_update", lambda *_: bytes(size))
        federation.play_to(Step.BOXES)
    federation.play()
    assert federation.run.lost_rounds == (1,)
    assert "weight 0 of 5 sites" in reasons(federation)[1, 1]
    assert_exact(federation, rounds=2)


def test_a_vector_of_garbage_costs_the_round_its_sum_and_is_never_a_model(
    simulate: Simulate,
) -> None:
    federation = simulate(rounds=2)
    federation.play_to(Step.BOXES)
    vector = np.frombuffer(federation.sites[federation.ref, E].payload, "<u4").copy()
    vector[:-1] = np.random.default_rng(0).integers(0, 2**32, len(vector) - 1, dtype=np.uint32)
    federation.sites[federation.ref, E].payload = vector.tobytes()
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED and federation.run.caught == set()
    assert federation.run.lost_rounds == (1,)
    assert "which one cannot be told" in reasons(federation)[1, 1]
    assert_exact(federation, rounds=2)


def test_a_sum_that_leads_back_to_a_spent_model_is_no_sum(simulate: Simulate) -> None:
    federation = simulate(rounds=2)
    federation.play_to(Step.REVEALS)
    while not federation.sums:
        federation.deliver_all()
    first = federation.run.model_hash
    with federation.store.transaction("another run") as db:
        db.execute("INSERT INTO spent_models VALUES (?, ?, ?)", ("ab" * 32, RUN, 7))
    federation.conductor.aggregated(RUN, federation.sums.popleft(), "ab" * 32)
    assert federation.run.model_hash == first
    federation.play()
    assert federation.run.state is RunState.COMPLETED and federation.run.lost_rounds == (1,)
    assert "the model of round 7" in reasons(federation)[1, 1]
    assert_exact(federation, rounds=2)


def test_a_changed_model_that_is_spent_is_changed_at_another_value(simulate: Simulate) -> None:
    federation = simulate(rounds=2)
    lose_a_round(federation)
    (effect,) = federation.sums
    models = federation.spool.model
    manifest_hash = federation.conductor.manifest_hash(RUN)
    usual = change(codec_for(federation.plan), models(effect.model_hash), manifest_hash, models)
    with federation.store.transaction("another run") as db:
        db.execute("INSERT INTO spent_models VALUES (?, ?, ?)", (usual, RUN, 7))
    federation.sum_up()
    assert federation.run.lost_rounds == (1,) and federation.run.model_hash != usual
    federation.silent = {}
    federation.play()
    assert_exact(federation, rounds=2)


@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
def test_a_spent_round_that_a_full_disk_stops_is_lost_at_the_resume(
    simulate: Simulate, restart: bool
) -> None:
    federation = simulate(rounds=2)
    federation.play_to(Step.REVEALS)
    federation.conductor.feed(RUN, Pause("full disk"))
    if restart:
        federation.kill()
        federation.connect()
    assert federation.run.state is RunState.PAUSED and not federation.sums
    federation.conductor.feed(RUN, Resume(round(federation.clock.now() * 1000)))
    federation.sum_up()
    federation.play()
    assert federation.run.state is RunState.COMPLETED and federation.run.lost_rounds == (1,)
    assert reasons(federation)[1, 1] == "full disk" and federation.ref == RoundRef(2, 1)
    assert_exact(federation, rounds=2)


@pytest.mark.parametrize("when", ["kill_before_sum", "kill_after_sum"])
def test_a_coordinator_that_dies_over_the_changed_model_makes_the_same_one(
    simulate: Simulate, when: str
) -> None:
    federation = simulate(rounds=2)
    lose_a_round(federation)
    setattr(federation, when, True)
    with pytest.raises(Killed):
        federation.play()
    made = {path.name for path in federation.spool.models.iterdir()}
    federation.silent = {}
    federation.kill()
    federation.sum_up()
    if when == "kill_after_sum":
        assert {path.name for path in federation.spool.models.iterdir()} == made
    federation.connect()
    federation.play()
    assert federation.run.lost_rounds == (1,)
    assert_exact(federation, rounds=2)


def test_a_site_whose_boxes_nobody_can_open_is_named_and_the_next_attempt_sums_the_rest(
    simulate: Simulate, caplog: pytest.LogCaptureFixture
) -> None:
    federation = simulate(rounds=2)
    federation.bent = {(E, Step.BOXES): junk_for(A, B, C, D)}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED
    assert federation.run.caught == {E} and federation.run.lost_rounds == ()
    assert cohorts(federation) == [(A, B, C, D, E), (A, B, C, D), (A, B, C, D)]
    assert f"{A} cannot open what {E} sent" in reasons(federation)[1, 1]
    assert f"{E} broke the rules of masking" in caplog.text
    assert_exact(federation, rounds=2)


def test_junk_for_a_few_ends_the_attempt_before_any_share_of_the_sum_is_given(
    simulate: Simulate,
) -> None:
    """Five of eight would be enough to go on, with a sum that could not be opened."""
    federation = simulate(sites=8)
    federation.bent = {(E, Step.BOXES): junk_for(A, B)}
    federation.play_on()
    assert federation.run.caught == {E} and federation.run.lost_rounds == ()
    assert federation.ref == RoundRef(1, 2)
    assert {ref for ref, _ in federation.revealed} == {RoundRef(1, 2)}
    assert_exact(federation)


def test_one_site_alone_gets_nobody_kept_out_and_drops_out_itself(simulate: Simulate) -> None:
    federation = simulate()
    federation.bent = {(E, Step.BOXES): junk_for(A)}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED and federation.run.caught == set()
    assert committed(federation) == {1: (B, C, D, E)}
    assert_exact(federation)


def test_one_liar_alone_gets_nobody_kept_out_where_no_liar_is_expected(
    simulate: Simulate,
) -> None:
    federation = simulate(colluders=0, rounds=2)
    federation.play_to(Step.INPUTS)
    liar = federation.sites[federation.ref, E]
    boxes = federation.conductor.masking.fetch(RUN, federation.ref, E, Step.BOXES)
    liar.say(Step.INPUTS, over_the_wire(boxes))
    lie = signed(Complaint(E, (A, B, C, D)), liar.state.context, liar.key)
    federation.conductor.masking.take(RUN, federation.ref, E, Step.INPUTS, [lie])
    federation.inbox[E].clear()
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED and federation.run.caught == set()
    assert committed(federation) == {1: (A, B, C, D), 2: (A, B, C, D, E)}


def test_a_site_that_gives_wrong_shares_is_named_and_the_next_round_sums_the_rest(
    simulate: Simulate,
) -> None:
    federation = simulate(rounds=2)
    federation.bent = {(A, Step.REVEALS): wrong_own_share}
    federation.silent = {E: Step.REVEALS}
    federation.play()
    federation.deadline()
    federation.sum_up()  # It cannot be opened,
    federation.sum_up()  # and the changed model is made.
    federation.silent = {}
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    assert federation.run.caught == {A} and federation.run.lost_rounds == (1,)
    assert f"the shares of {A} give another secret" in reasons(federation)[1, 1]
    assert committed(federation) == {1: (), 2: (B, C, D, E)}
    assert_exact(federation, rounds=2)


def test_with_too_few_left_without_those_caught_the_run_waits_for_its_operator(
    simulate: Simulate,
) -> None:
    federation = simulate(sites=3, quorum=3, rounds=2)
    federation.bent = {(C, Step.BOXES): junk_for(A, B)}
    federation.play_on()
    assert federation.run.state is RunState.PAUSED
    assert f"without {C}, caught" in federation.run.reason
    federation.bent = {}
    federation.conductor.feed(RUN, Resume(round(federation.clock.now() * 1000)))
    assert federation.run.caught == set()
    federation.play()
    assert federation.run.state is RunState.COMPLETED
    assert_exact(federation, rounds=2)


def test_no_masked_run_starts_from_a_model_that_is_spent(simulate: Simulate) -> None:
    federation = simulate(rounds=2)
    federation.play_to(Step.REVEALS)
    conductor, plan = federation.conductor, federation.plan
    with pytest.raises(StateError, match="round 1 of run simulated") as refused:
        conductor.create("another", plan)
    assert "fedpalm model init" in refused.value.next_step
    assert conductor.run_ids() == [RUN]
    federation.play()
    newest = plan.model_copy(update={"initial_model": federation.run.model_hash})
    conductor.create("another", newest)
