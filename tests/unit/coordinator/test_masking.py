"""What the coordinator takes, gives and refuses in the steps of a masked attempt."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.cli.view import run_json, run_text
from coordinator.exchange import ExchangeDesk
from coordinator.exchange_records import ExchangeRecords
from coordinator.status import run_status
from fedpalm.errors import (
    BadShareError,
    ConfigError,
    ContributionReuseError,
    IllegalTransitionError,
    MaskingError,
    MaskingMessageError,
    NotOnRosterError,
    ResourceError,
    StaleRoundError,
)
from fedpalm.pki.signing import sign
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.run import RunState
from fedpalm.secagg.messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    Reveal,
    SiteKeys,
    signed,
)
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.v1 import operator_pb2 as pb
from tests.simulation.federation import RUN, SimulatedFederation, identity, rehearsal_plan
from tests.simulation.masked import MaskedFederation, junk_for, masked_plan, wrong_own_share

A, B, C, D, E = (f"site-{number:03}" for number in range(5))
STEPS = [step for step in Step if step is not Step.DONE]
TALKED = [step for step in STEPS if step is not Step.INPUTS]
To = Callable[..., MaskedFederation]


@pytest.fixture
def at(tmp_path: Path) -> To:
    """A federation whose current attempt has come to a step."""

    def begin(step: Step, **settings: object) -> MaskedFederation:
        federation = MaskedFederation(tmp_path / "hub", masked_plan(**settings))  # type: ignore[arg-type]
        federation.connect()
        federation.start()
        federation.play_to(step)
        if step is Step.KEYS:
            federation.begin_all()
        return federation

    return begin


def rows(federation: MaskedFederation) -> list[tuple[object, ...]]:
    return federation.store.query("SELECT * FROM masking_messages ORDER BY step, site, recipient")


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_same_message_again_changes_nothing_and_is_fine_in_later_steps(
    at: To, step: Step
) -> None:
    federation = at(step)
    said = federation.say(A, step)
    stored = rows(federation)
    federation.send(A, step, said)
    assert rows(federation) == stored
    federation.silent = {B: Step.REVEALS}
    while federation.step is not Step.REVEALS:
        federation.play_to(STEPS[STEPS.index(federation.step) + 1])
    stored = rows(federation)
    federation.send(A, step, said)
    assert rows(federation) == stored


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_another_message_than_the_first_is_refused_and_the_attempt_goes_on(
    at: To, step: Step
) -> None:
    federation = at(step)
    said = federation.say(A, step)
    stored = rows(federation)
    site = federation.sites[federation.ref, A]
    other = tuple(replace(one, signature=sign(site.key, "another purpose", b"x")) for one in said)
    with pytest.raises((ContributionReuseError, StaleRoundError)):
        if step is Step.INPUTS:
            federation.conductor.masking.accept_input(RUN, federation.ref, other[0], ())  # type: ignore[arg-type]
        else:
            federation.conductor.masking.take(RUN, federation.ref, A, step, other)
    assert rows(federation) == stored
    federation.play()
    assert federation.run.state is RunState.COMPLETED and federation.ref == RoundRef(1, 1)


@pytest.mark.parametrize("step", TALKED, ids=str)
def test_a_message_of_one_site_is_not_taken_from_another_which_then_counts_as_dropped(
    at: To, step: Step
) -> None:
    federation = at(step)
    said = federation.answer(A, step)
    with pytest.raises(MaskingMessageError):
        federation.conductor.masking.take(RUN, federation.ref, B, step, said)
    assert B in federation.conductor.masking.attempt(RUN).awaited  # type: ignore[union-attr]
    federation.silent = {B: step}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED and federation.ref == RoundRef(1, 1)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_message_that_its_site_did_not_sign_is_refused(at: To, step: Step) -> None:
    federation = at(step)
    site = federation.sites[federation.ref, A]
    context = site.facts.context if step is Step.KEYS else site.state.context
    forged = [signed(one, context, identity(B).signing_key) for one in federation.answer(A, step)]
    stored = rows(federation)
    with pytest.raises(MaskingMessageError, match="not its own"):
        if step is Step.INPUTS:
            federation.conductor.masking.check_input(RUN, federation.ref, A, forged[0])  # type: ignore[arg-type]
        else:
            federation.conductor.masking.take(RUN, federation.ref, A, step, forged)
    assert rows(federation) == stored


@pytest.mark.parametrize("step", TALKED[:3], ids=str)
def test_a_message_that_comes_after_its_step_was_closed_is_refused(at: To, step: Step) -> None:
    federation = at(step)
    said = federation.answer(A, step)
    federation.silent = {A: step}
    federation.play_to(STEPS[STEPS.index(step) + 1])
    with pytest.raises(IllegalTransitionError, match=f"takes no {step.value}"):
        federation.conductor.masking.take(RUN, federation.ref, A, step, said)


def test_a_message_that_comes_before_its_step_is_open_is_refused(at: To) -> None:
    federation = at(Step.KEYS)
    early = (
        (Step.AGREEMENTS, Agreement(A, (A,), (A,), bytes(32), bytes(64))),
        (Step.REVEALS, Reveal(A, (), bytes(64))),
    )
    for step, said in early:
        with pytest.raises(IllegalTransitionError, match=f"step keys takes no {step.value}"):
            federation.conductor.masking.take(RUN, federation.ref, A, step, [said])


@pytest.mark.parametrize("step", TALKED, ids=str)
def test_a_message_of_another_kind_or_number_is_refused(at: To, step: Step) -> None:
    federation = at(step)
    said = list(federation.answer(A, step))
    take, ref = federation.conductor.masking.take, federation.ref
    other = SiteKeys(A, b"", b"", b"", b"") if step is not Step.KEYS else Reveal(A, ())
    for wrong in ([], [*said, said[0]], [other], [*said[:-1], other]):
        with pytest.raises(MaskingMessageError):
            take(RUN, ref, A, step, wrong)
    assert A in federation.conductor.masking.attempt(RUN).awaited  # type: ignore[union-attr]
    take(RUN, ref, A, step, said)


def test_some_boxes_are_no_boxes(at: To) -> None:
    federation = at(Step.BOXES)
    said = list(federation.answer(A, Step.BOXES))
    assert all(isinstance(one, Box) for one in said) and len(said) == 4
    with pytest.raises(MaskingMessageError, match="no box, or too many"):
        federation.conductor.masking.take(RUN, federation.ref, A, Step.BOXES, said[1:])
    assert not [row for row in rows(federation) if row[3] == "boxes"]


def test_a_masked_input_comes_with_its_vector_only(at: To) -> None:
    federation = at(Step.INPUTS)
    said = federation.answer(A, Step.INPUTS)
    with pytest.raises(MaskingMessageError, match="with its vector"):
        federation.conductor.masking.take(RUN, federation.ref, A, Step.INPUTS, said)


def test_only_the_cohort_of_the_current_attempt_is_heard(at: To) -> None:
    federation = at(Step.KEYS)
    desk, ref = federation.conductor.masking, federation.ref
    said = federation.answer(A, Step.KEYS)
    for other in (RoundRef(1, 2), RoundRef(2, 1)):
        with pytest.raises(StaleRoundError):
            desk.take(RUN, other, A, Step.KEYS, said)
        with pytest.raises(StaleRoundError):
            desk.fetch(RUN, other, A, Step.KEYS)
    with pytest.raises(NotOnRosterError):
        desk.take(RUN, ref, "stranger", Step.KEYS, said)
    federation.revoke(A)
    with pytest.raises(StaleRoundError, match="expelled"):
        desk.take(RUN, ref, A, Step.KEYS, said)


def test_a_run_without_masking_takes_no_masking_message(tmp_path: Path) -> None:
    federation = SimulatedFederation(tmp_path / "hub", rehearsal_plan(2, 1))
    federation.connect()
    federation.start()
    ref = federation.run.current.ref
    with pytest.raises(StaleRoundError, match="no masked attempt"):
        federation.conductor.masking.fetch(RUN, ref, A, Step.KEYS)
    claim = federation.claim(A, federation.payload(A))
    said = MaskedInput(A, (A, B), bytes.fromhex(claim.payload_hash), bytes(64))
    with pytest.raises(MaskingMessageError, match="is not masked"):
        federation.conductor.updates.check(replace(claim, masked=said))


# --- fetching -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_step_is_given_when_it_is_closed_and_reveals_to_nobody(at: To, step: Step) -> None:
    federation = at(step)
    fetch = federation.conductor.masking.fetch
    for other in STEPS:
        if STEPS.index(other) < STEPS.index(step):
            assert fetch(RUN, federation.ref, A, other)
        else:
            with pytest.raises(MaskingMessageError, match="is not closed"):
                fetch(RUN, federation.ref, A, other)


def test_when_all_is_done_reveals_are_given_to_no_site(at: To) -> None:
    federation = at(Step.REVEALS)
    for site in federation.asked():
        federation.follow(site)
    assert federation.step is Step.DONE
    with pytest.raises(MaskingMessageError, match="to no site"):
        federation.conductor.masking.fetch(RUN, federation.ref, A, Step.REVEALS)


def test_a_site_is_given_the_boxes_for_it_and_no_others(at: To) -> None:
    federation = at(Step.INPUTS)
    boxes = federation.conductor.masking.fetch(RUN, federation.ref, B, Step.BOXES)
    assert [(one.sender, one.recipient) for one in boxes if isinstance(one, Box)] == [
        (site, B) for site in (A, C, D, E)
    ]


@pytest.mark.parametrize("step", STEPS[:4], ids=str)
def test_a_site_that_dropped_out_in_a_step_is_given_nothing_of_it(at: To, step: Step) -> None:
    federation = at(Step.KEYS)
    federation.silent = {A: step}
    federation.play_to(STEPS[STEPS.index(step) + 1])
    with pytest.raises(MaskingMessageError, match="dropped out"):
        federation.conductor.masking.fetch(RUN, federation.ref, A, step)


# --- updates --------------------------------------------------------------------------------------


def test_an_update_that_is_not_masked_is_refused_under_a_masked_plan(at: To) -> None:
    federation = at(Step.KEYS)
    for step in (Step.KEYS, Step.INPUTS):
        federation.play_to(step)
        payload = federation.sites[federation.ref, A].payload
        with pytest.raises(MaskingMessageError, match="is masked, the update of site"):
            federation.conductor.updates.check(federation.claim(A, payload))


def test_a_masked_update_is_held_to_the_hash_that_its_site_signed(at: To) -> None:
    federation = at(Step.INPUTS)
    (said,) = federation.answer(A, Step.INPUTS)
    assert isinstance(said, MaskedInput)
    claim = federation.claim(A, federation.sites[federation.ref, A].payload)
    with pytest.raises(MaskingMessageError, match="signed another masked vector"):
        federation.conductor.updates.check(replace(claim, masked=said))
    (other,) = federation.answer(B, Step.INPUTS)
    with pytest.raises(MaskingMessageError, match="signed another masked vector"):
        federation.conductor.updates.check(replace(claim, masked=other))  # type: ignore[arg-type]


def test_a_masked_update_comes_in_its_step_only_and_its_receipt_is_given_again(at: To) -> None:
    federation = at(Step.INPUTS)
    (said,) = federation.answer(A, Step.INPUTS)
    (late,) = federation.answer(B, Step.INPUTS)
    assert isinstance(said, MaskedInput) and isinstance(late, MaskedInput)
    receipt = federation.upload(A, said)
    assert federation.upload(A, said) == receipt
    federation.silent = {B: Step.INPUTS}
    federation.play_to(Step.AGREEMENTS)
    assert federation.upload(A, said) == receipt
    with pytest.raises(IllegalTransitionError, match="takes no inputs"):
        federation.conductor.updates.check(federation.masked_claim(B, late))


# --- what goes wrong ------------------------------------------------------------------------------


def test_shares_that_open_another_secret_end_the_round_with_their_error(at: To) -> None:
    """All but its own share of each secret are held to hashes: with four of five, that one is needed."""
    federation = at(Step.REVEALS)
    federation.silent = {E: Step.REVEALS}
    for site in (B, C, D):
        federation.follow(site)
    (said,) = federation.answer(A, Step.REVEALS)
    assert isinstance(said, Reveal)
    bent = tuple(
        replace(one, share=one.share[:-1] + bytes([one.share[-1] ^ 1])) if one.owner == A else one
        for one in said.shares
    )
    site = federation.sites[federation.ref, A]
    lie = signed(replace(said, shares=bent), site.state.context, site.key)
    federation.conductor.masking.take(RUN, federation.ref, A, Step.REVEALS, [lie])
    federation.deadline()
    federation.sum_up()
    federation.sum_up()
    (reason,) = federation.store.query("SELECT reason FROM attempts WHERE attempt = 1")[0]
    assert f"the shares of {A} give another secret" in reason
    assert federation.run.lost_rounds == (1,) and federation.run.caught == {A}


def complained(federation: MaskedFederation) -> None:
    """A and B cannot open what E has sent them, and say so; the others say nothing yet."""
    federation.bent = {(E, Step.BOXES): junk_for(A, B)}
    federation.play_to(Step.INPUTS)
    for site in (A, B):
        federation.follow(site)


def test_a_complaint_is_stored_counts_as_an_answer_and_is_relayed_to_nobody(at: To) -> None:
    federation = at(Step.KEYS, sites=8)
    complained(federation)
    desk, ref = federation.conductor.masking, federation.ref
    assert desk.collection(RUN, ref).caught == (E,)  # type: ignore[union-attr]
    assert not {A, B} & desk.attempt(RUN).awaited  # type: ignore[union-attr]
    stored = rows(federation)
    federation.say(A, Step.INPUTS)
    assert rows(federation) == stored
    federation.kill()
    desk = federation.conductor.masking
    assert sorted(desk.collection(RUN, ref).complaints) == [A, B]  # type: ignore[union-attr]
    federation.connect()
    federation.silent = {E: Step.INPUTS}
    federation.play_on()
    assert federation.ref == RoundRef(1, 2)


def test_who_complains_of_one_that_is_not_caught_drops_out_of_the_attempt(at: To) -> None:
    federation = at(Step.KEYS, sites=8)
    federation.bent = {(E, Step.BOXES): junk_for(A)}
    federation.play_to(Step.AGREEMENTS)
    desk, ref = federation.conductor.masking, federation.ref
    with pytest.raises(MaskingMessageError, match="dropped out"):
        desk.fetch(RUN, ref, A, Step.INPUTS)
    assert {one.site for one in desk.fetch(RUN, ref, C, Step.INPUTS)} == set(  # type: ignore[union-attr]
        federation.plan.roster
    ) - {A}


def test_a_caught_site_ends_the_attempt_before_the_model_is_spent_even_if_it_masked_nothing(
    at: To,
) -> None:
    """Five of eight could go on, but what its boxes hold for them may open nothing at the end."""
    federation = at(Step.KEYS, sites=8)
    complained(federation)
    federation.silent = {E: Step.INPUTS}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED and federation.ref == RoundRef(1, 2)
    assert federation.run.caught == {E} and federation.run.lost_rounds == ()
    assert {ref for ref, _ in federation.revealed} == {RoundRef(1, 2)}


def test_nothing_but_a_complaint_comes_in_place_of_a_masked_vector(at: To) -> None:
    federation = at(Step.KEYS)
    complained(federation)
    (said,) = federation.answer(A, Step.INPUTS)
    assert isinstance(said, Complaint)
    take, ref = federation.conductor.masking.take, federation.ref
    for wrong in ([], [said, said], [Reveal(A, ())]):
        with pytest.raises(MaskingMessageError):
            take(RUN, ref, A, Step.INPUTS, wrong)
    with pytest.raises(MaskingMessageError, match="not its own"):
        take(RUN, ref, C, Step.INPUTS, [said])


def test_the_step_that_asks_for_shares_spends_the_model_in_the_same_transaction(
    at: To, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = at(Step.AGREEMENTS)
    model, spent = federation.run.model_hash, federation.records.masking.spent
    save = federation.records.save
    full = ResourceError("full disk")

    def fail(*arguments: object) -> None:
        raise full

    monkeypatch.setattr(federation.records, "save", fail)
    for site in federation.asked():
        federation.follow(site)
    assert federation.step is Step.AGREEMENTS and spent(model) is None
    assert not federation.run.current.spent and not federation.revealed
    monkeypatch.setattr(federation.records, "save", save)
    federation.postponed.popleft()()
    assert federation.step is Step.REVEALS and federation.run.current.spent
    assert spent(model) == (RUN, 1)


def test_a_wrong_share_costs_its_giver_its_place_and_not_the_attempt(at: To) -> None:
    federation = at(Step.REVEALS)
    (said,) = federation.answer(A, Step.REVEALS)
    assert isinstance(said, Reveal)
    bent = tuple(replace(one, share=bytes(33)) if one.owner == B else one for one in said.shares)
    site = federation.sites[federation.ref, A]
    lie = signed(replace(said, shares=bent), site.state.context, site.key)
    with pytest.raises(BadShareError):
        federation.conductor.masking.take(RUN, federation.ref, A, Step.REVEALS, [lie])
    federation.silent = {A: Step.REVEALS}
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED and federation.ref == RoundRef(1, 1)
    assert federation.run.caught == {A} and federation.run.lost_rounds == ()


DAMAGE = {
    "no message": "UPDATE masking_messages SET message = x'ffff' WHERE step = 'keys' AND site = 'site-001'",
    "another": "UPDATE masking_messages SET message = (SELECT message FROM masking_messages WHERE "
    "step = 'keys' AND site = 'site-000') WHERE step = 'keys' AND site = 'site-001'",
    "keys gone": "DELETE FROM masking_messages WHERE step = 'keys' AND site = 'site-001'",
    "a box gone": "DELETE FROM masking_messages WHERE step = 'boxes' AND site = 'site-001' "
    "AND recipient = 'site-003'",
    "all gone": "DELETE FROM masking_messages",
    "step": "UPDATE masking_steps SET step = 'keys'",
    "no step": "UPDATE masking_steps SET step = 'tea'",
    "step gone": "DELETE FROM masking_steps",
}


@pytest.mark.parametrize("sql", DAMAGE.values(), ids=DAMAGE)
def test_an_attempt_whose_messages_do_not_fit_together_is_aborted_and_said_so(
    at: To, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = at(Step.INPUTS)
    federation.store.query(sql)
    federation.kill()
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "does not fit together" in record.getMessage()
    assert federation.ref == RoundRef(1, 2)
    (reason,) = federation.store.query("SELECT reason FROM attempts WHERE attempt = 1")[0]
    assert "does not fit together" in reason
    federation.connect()
    federation.play_on()
    assert federation.run.state is RunState.COMPLETED
    assert federation.revealed and {ref for ref, _ in federation.revealed} == {RoundRef(1, 2)}


def test_a_sum_whose_messages_are_damaged_is_not_formed_after_a_restart(at: To) -> None:
    federation = at(Step.REVEALS)
    for site in federation.asked():
        federation.follow(site)
    assert federation.sums
    federation.store.query(
        "DELETE FROM masking_messages WHERE step = 'reveals' AND site > 'site-002'"
    )
    federation.kill()
    (effect,) = federation.sums
    assert effect.lost and "does not fit together" in federation.run.current.lost


def test_a_step_that_cannot_be_stored_as_closed_is_closed_later(
    at: To, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = at(Step.BOXES)
    write = federation.records.write

    def full(fact: object) -> None:
        if type(fact).__name__ == "MaskingStep":
            raise ResourceError("the disk is full")
        write(fact)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(federation.records, "write", full)
        for site in federation.asked():
            federation.follow(site)
    assert federation.step is Step.BOXES
    assert not any(one.HasField("masking") for one in federation.inbox[A])
    federation.postponed.popleft()()
    assert federation.step is Step.INPUTS
    federation.play()
    assert federation.run.state is RunState.COMPLETED


def test_a_sum_that_cannot_be_stored_as_ready_is_ready_later(
    at: To, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = at(Step.REVEALS)

    def full(*_: object) -> None:
        raise ResourceError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(federation.records, "save", full)
        for site in federation.asked():
            federation.follow(site)
    assert federation.step is Step.REVEALS and not federation.sums
    federation.postponed.popleft()()
    assert federation.step is Step.DONE and len(federation.sums) == 1
    federation.play()
    assert federation.run.state is RunState.COMPLETED


def test_a_message_that_cannot_be_stored_does_not_count(
    at: To, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = at(Step.KEYS)

    def full(fact: object) -> None:
        raise ResourceError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(ResourceError):
        patch.setattr(federation.records, "write", full)
        federation.say(A, Step.KEYS)
    assert A in federation.conductor.masking.attempt(RUN).awaited  # type: ignore[union-attr]
    federation.say(A, Step.KEYS)
    assert A not in federation.conductor.masking.attempt(RUN).awaited  # type: ignore[union-attr]


def test_an_attempt_below_the_plans_quorum_ends_before_anything_is_revealed(at: To) -> None:
    federation = at(Step.KEYS, quorum=5)
    federation.silent = {E: Step.INPUTS}
    while federation.ref == RoundRef(1, 1):
        federation.play()
        federation.deadline()
    (reason,) = federation.store.query("SELECT reason FROM attempts WHERE attempt = 1")[0]
    assert "inputs: 4 sites, masking needs 5" in reason and not federation.revealed


def test_a_timer_of_a_step_that_is_closed_closes_no_other(at: To) -> None:
    federation = at(Step.KEYS)
    assert federation.timer is not None
    ref, kind, _ = federation.timer
    federation.play_to(Step.INPUTS)
    federation.conductor.timer_rang(RUN, ref, kind)
    assert federation.step is Step.INPUTS
    federation.play()
    federation.conductor.timer_rang(RUN, ref, kind)
    assert federation.run.state is RunState.COMPLETED


# --- what is seen ---------------------------------------------------------------------------------


def status_of(federation: MaskedFederation) -> pb.RunStatus:
    exchanges = ExchangeDesk(
        ExchangeRecords(federation.store),
        federation.conductor,
        federation.spool,
        federation.clock,
        None,  # type: ignore[arg-type]
        tell=federation.instruct,
        changed=federation.changed,
        absent=frozenset,
        certified_until=dict,
    )
    return run_status(RUN, federation.conductor, exchanges)


def test_the_status_names_lost_rounds_and_who_was_caught(at: To) -> None:
    federation = at(Step.REVEALS, rounds=2)
    federation.bent = {(A, Step.REVEALS): wrong_own_share}
    federation.silent = {E: Step.REVEALS}
    federation.play()
    federation.deadline()
    while federation.ref.round == 1:
        federation.sum_up()
    shown = run_json(status_of(federation))
    assert (shown["lost_rounds"], shown["caught"]) == ([1], [A])
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(run_text(status_of(federation)))
    text = console.export_text()
    assert "without a sum  round 1" in text and f"kept out       {A}: broke the rules" in text


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_status_shows_the_step_and_its_deadline(at: To, step: Step) -> None:
    federation = at(step)
    status = status_of(federation)
    assert (status.masking, status.masking_step) == ("secagg", step.value)
    assert status.deadline_ms == federation.timer[2]  # type: ignore[index]
    federation.play()
    status = status_of(federation)
    assert (status.masking, status.masking_step) == ("secagg", "")


def test_the_log_names_survivors_and_who_dropped_out(
    at: To, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        federation = at(Step.KEYS)
        federation.silent = {B: Step.INPUTS}
        federation.play_on()
    text = caplog.text
    assert f"summing 4 masked updates: {A}, {C}, {D}, {E}; without {B}" in text
    for step in STEPS:
        without = f"; nothing came from {B}" if step is Step.INPUTS else ""
        assert f"{step.value} are in{without}\n" in text


def test_no_secret_share_is_in_the_log(at: To, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        federation = at(Step.REVEALS)
        federation.silent = {E: Step.REVEALS}
        said = [one for site in (A, B, C, D) for one in federation.say(site, Step.REVEALS)]
    for reveal in said:
        assert isinstance(reveal, Reveal)
        for one in reveal.shares:
            assert one.share.hex() not in caplog.text and repr(one.share) not in caplog.text


@pytest.mark.parametrize(("sites", "quorum"), [(2, 2), (5, 3)])
def test_a_plan_that_masking_cannot_work_with_makes_no_run(
    tmp_path: Path, sites: int, quorum: int
) -> None:
    with pytest.raises((ConfigError, MaskingError)):
        MaskedFederation(tmp_path / "hub", masked_plan(sites=sites, quorum=quorum))
