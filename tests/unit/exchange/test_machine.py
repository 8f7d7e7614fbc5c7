"""Every input in every state, and what random inputs never do to the coordinator's half."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import (
    FedPalmError,
    IllegalTransitionError,
    IntegrityError,
    NotOnRosterError,
    RefusedError,
)
from fedpalm.exchange import machine as exchange
from fedpalm.exchange.machine import (
    TABLE,
    AnswersClosed,
    AskConsent,
    AskKeys,
    AskSealed,
    CancelRequested,
    ConsentGiven,
    ConsentRefused,
    DeliverKeys,
    EraseSealed,
    ExchangeMachine,
    ExchangeState,
    ExpertSealed,
    ExpertsOpened,
    KeysSent,
    TellClosed,
    TimeOver,
)
from tests.support.exchange import ROSTER, make_terms

S = ExchangeState
EARLY = (S.PROPOSED, S.SEALING, S.REVEALING)
OPEN = (*EARLY, S.DELIVERING)
INPUTS = (
    ConsentGiven("north", b"c" * 32),
    ConsentRefused("north", "not this year"),
    ExpertSealed("north", b"s" * 32),
    KeysSent("north"),
    ExpertsOpened("north"),
    AnswersClosed("ada"),
    TimeOver(),
    CancelRequested("ada", "wrong plan"),
)


def digest(text: str) -> bytes:
    return text.encode().ljust(32, b".")


def proposed(**terms: object) -> ExchangeMachine:
    return ExchangeMachine(make_terms(**terms), "ada")


def run(machine: ExchangeMachine, *events: exchange.Input) -> ExchangeMachine:
    for event in events:
        machine, _ = machine.step(event)
    return machine


def consents(*sites: str) -> list[exchange.Input]:
    return [ConsentGiven(site, digest(f"yes {site}")) for site in sites or ROSTER]


def seals(*sites: str) -> list[exchange.Input]:
    return [ExpertSealed(site, digest(f"sealed {site}")) for site in sites or ROSTER]


def machines(**terms: object) -> dict[ExchangeState, ExchangeMachine]:
    """One machine in each state, reached by inputs only."""
    first = proposed(**terms)
    sealing = run(first, *consents())
    revealing = run(sealing, *seals())
    delivering = run(revealing, *map(KeysSent, ROSTER))
    return {
        S.PROPOSED: first,
        S.SEALING: sealing,
        S.REVEALING: revealing,
        S.DELIVERING: delivering,
        S.COMPLETED: run(delivering, *map(ExpertsOpened, ROSTER)),
        S.CANCELLED: run(sealing, CancelRequested("ada", "wrong plan")),
    }


def closed(completed: bool, reason: str) -> tuple[exchange.Effect, ...]:
    return (EraseSealed(), *(TellClosed(site, completed, reason) for site in ROSTER))


def test_the_machines_of_these_tests_are_in_the_states_they_stand_for():
    assert {state: machine.state for state, machine in machines().items()} == {s: s for s in S}


# --- the table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "event"),
    [(s, event) for s in S for event in INPUTS if (s, type(event)) not in TABLE],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_input_without_a_row_is_an_error_that_names_state_and_input(state, event):
    machine = machines()[state]
    with pytest.raises(IllegalTransitionError) as caught:
        machine.step(event)
    assert type(event).__name__ in caught.value.what and state.value in caught.value.what


def test_every_input_is_tried_and_has_a_row_somewhere():
    assert {type(event) for event in INPUTS} == set(get_args(exchange.Input))
    assert {event for _, event in TABLE} == set(get_args(exchange.Input))


# What each new input does in each state: None where it is refused for what it says, not for its kind.
AFTER: dict[tuple[ExchangeState, type[exchange.Input]], ExchangeState | None] = {
    (S.PROPOSED, ConsentGiven): S.PROPOSED,
    (S.SEALING, ConsentGiven): None,
    (S.REVEALING, ConsentGiven): None,
    (S.DELIVERING, ConsentGiven): None,
    (S.SEALING, ExpertSealed): S.SEALING,
    (S.REVEALING, ExpertSealed): None,
    (S.DELIVERING, ExpertSealed): None,
    (S.REVEALING, KeysSent): S.REVEALING,
    (S.DELIVERING, KeysSent): S.DELIVERING,
    (S.DELIVERING, ExpertsOpened): S.DELIVERING,
    (S.COMPLETED, ExpertsOpened): S.COMPLETED,
    (S.PROPOSED, AnswersClosed): None,
    (S.DELIVERING, ConsentRefused): S.DELIVERING,
    (S.COMPLETED, TimeOver): S.COMPLETED,
    **{(state, ConsentRefused): S.CANCELLED for state in (*EARLY, S.CANCELLED)},
    **{(state, CancelRequested): S.CANCELLED for state in (*EARLY, S.CANCELLED)},
    **{(state, TimeOver): S.CANCELLED for state in (*OPEN, S.CANCELLED)},
}


def test_every_row_of_the_table_is_told_here():
    assert set(AFTER) == set(TABLE)


@pytest.mark.parametrize(("row", "expected"), AFTER.items(), ids=lambda v: str(v)[:60])
def test_each_row_leads_where_it_is_told_to(row, expected):
    state, kind = row
    machine = machines()[state]
    event = next(one for one in INPUTS if type(one) is kind)
    if expected is None:
        with pytest.raises(RefusedError, match=r"differs|waits for every site"):
            machine.step(event)
    else:
        assert machine.step(event)[0].state is expected


# --- in order: yes, sealed, keys, opened -------------------------------------------------------------


@pytest.mark.parametrize("absent", ROSTER)
def test_sealing_waits_for_the_last_yes(absent: str):
    given = [event for event in consents() if event.site != absent]
    machine = run(proposed(), *given, *given)
    assert machine.state is S.PROPOSED
    assert machine.outstanding() == (AskConsent(absent),)
    machine, effects = machine.step(ConsentGiven(absent, digest(absent)))
    assert machine.state is S.SEALING and machine.signers == ROSTER
    assert effects == tuple(AskSealed(site) for site in ROSTER)


@pytest.mark.parametrize("absent", ROSTER)
def test_no_key_is_asked_for_or_taken_before_every_sealed_expert_is_stored(absent: str):
    machine = run(machines()[S.SEALING], *seals(*(s for s in ROSTER if s != absent)))
    assert machine.state is S.SEALING
    assert machine.outstanding() == (AskSealed(absent),)
    for site in ROSTER:
        with pytest.raises(IllegalTransitionError):
            machine.step(KeysSent(site))
    machine, effects = machine.step(*seals(absent))
    assert machine.state is S.REVEALING
    assert effects == tuple(AskKeys(site) for site in ROSTER)


@pytest.mark.parametrize("absent", ROSTER)
def test_no_key_is_delivered_before_all_keys_are_there(absent: str):
    sent = [KeysSent(site) for site in ROSTER if site != absent]
    machine = run(machines()[S.REVEALING], *sent, *sent)
    assert machine.state is S.REVEALING
    assert machine.outstanding() == (AskKeys(absent),)
    for site in ROSTER:
        with pytest.raises(IllegalTransitionError):
            machine.step(ExpertsOpened(site))
    machine, effects = machine.step(KeysSent(absent))
    assert machine.state is S.DELIVERING
    assert effects == tuple(DeliverKeys(site) for site in ROSTER)


def test_it_is_complete_with_the_last_receipt_and_everybody_is_told():
    machine = run(machines()[S.DELIVERING], ExpertsOpened("north"), ExpertsOpened("east"))
    assert machine.outstanding() == (DeliverKeys("west"),)
    machine, effects = machine.step(ExpertsOpened("west"))
    assert (machine.state, effects) == (S.COMPLETED, closed(True, ""))


# --- no, and over ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", EARLY)
@pytest.mark.parametrize("without", [False, True])
def test_before_the_keys_are_out_a_signers_no_ends_it_for_everybody(
    state: ExchangeState, without: bool
):
    if without and state is S.PROPOSED:
        return
    machine, effects = machines(without_refusers=without)[state].step(
        ConsentRefused("west", "not this year")
    )
    assert machine.state is S.CANCELLED
    assert effects == closed(False, "west refused: not this year")


def test_an_operator_can_cancel_until_the_keys_are_out():
    revealing = run(machines()[S.REVEALING], KeysSent("north"))
    for state, machine in [*machines().items(), (S.REVEALING, revealing)]:
        if state in (S.DELIVERING, S.COMPLETED):
            with pytest.raises(IllegalTransitionError):
                machine.step(CancelRequested("ada", "too late"))
        elif state is S.CANCELLED:
            assert machine.step(CancelRequested("bo", "again")) == (machine, ())
        else:
            cancelled, effects = machine.step(CancelRequested("bo", "enough"))
            assert cancelled.state is S.CANCELLED and effects == closed(False, "bo: enough")


# --- once the keys are out ---------------------------------------------------------------------------


def told(reason: str, **completed: bool) -> tuple[exchange.Effect, ...]:
    return (EraseSealed(), *(TellClosed(s, completed.get(s, True), reason) for s in ROSTER))


def test_who_says_no_once_the_keys_are_out_ends_it_for_nobody_else():
    no = ConsentRefused("west", "nothing opened")
    machine, effects = machines()[S.DELIVERING].step(no)
    assert (machine.state, effects) == (S.DELIVERING, ())
    assert machine.failed == {"west": "nothing opened"}
    assert machine.outstanding() == (DeliverKeys("east"), DeliverKeys("north"))
    assert machine.step(ConsentRefused("west", "again")) == (machine, ())
    with pytest.raises(RefusedError, match="west is out of this exchange"):
        machine.step(ExpertsOpened("west"))
    machine, effects = run(machine, ExpertsOpened("north")).step(ExpertsOpened("east"))
    assert machine.state is S.COMPLETED
    assert effects == told("west did not open: nothing opened", west=False)
    assert machine.step(no) == (machine, ())


def test_a_receipt_stands_against_a_later_no():
    machine = run(machines()[S.DELIVERING], ExpertsOpened("west"))
    with pytest.raises(RefusedError, match="its receipt stands"):
        machine.step(ConsentRefused("west", "no"))


def test_experts_that_did_not_open_are_recorded_and_named_at_the_end():
    machine = run(machines()[S.DELIVERING], ExpertsOpened("east", ("west",)))
    assert machine.missing == {"east": ("west",)} and "east" in machine.delivered
    assert run(machine, ExpertsOpened("east")) == machine
    machine, effects = run(machine, ExpertsOpened("north", ("west",))).step(ExpertsOpened("west"))
    assert machine.state is S.COMPLETED
    assert effects == told("east could not open west; north could not open west")


@pytest.mark.parametrize("missing", [("east", "north"), ("south",), ("west",)])
def test_who_has_opened_nothing_of_another_signer_has_no_receipt(missing: tuple[str, ...]):
    with pytest.raises(RefusedError, match="has opened no expert"):
        machines()[S.DELIVERING].step(ExpertsOpened("west", missing))


def test_what_was_not_opened_in_time_never_is_but_what_was_opened_stays():
    machine, effects = run(machines()[S.DELIVERING], ExpertsOpened("north")).step(TimeOver())
    assert machine.state is S.COMPLETED and machine.failed == {"east": "expired", "west": "expired"}
    reason = "east did not open: expired; west did not open: expired"
    assert effects == told(reason, east=False, west=False)


@pytest.mark.parametrize("last", [TimeOver(), ConsentRefused("west", "no")])
def test_it_is_not_completed_if_nobody_has_opened_anything(last: exchange.Input):
    given = [ConsentRefused(site, "no") for site in ("east", "north")]
    machine, effects = run(machines()[S.DELIVERING], *given).step(last)
    assert machine.state is S.CANCELLED and "east did not open: no" in machine.reason
    assert effects == closed(False, machine.reason)


# --- without those who refuse ------------------------------------------------------------------------


def test_answers_can_be_closed_once_two_have_said_yes():
    machine = run(proposed(without_refusers=True), *consents("east"))
    with pytest.raises(RefusedError, match="fewer than two"):
        machine.step(AnswersClosed("operator ada"))
    machine, effects = run(machine, *consents("north")).step(AnswersClosed("operator ada"))
    assert machine.state is S.SEALING and machine.signers == ("east", "north")
    assert machine.refused == {"west": "it had not answered when operator ada closed the answers"}
    out = TellClosed("west", False, "it goes on without this site")
    assert effects == (AskSealed("east"), AskSealed("north"), out)
    with pytest.raises(NotOnRosterError):
        machine.step(*consents("west"))


def test_answers_are_not_closed_where_every_site_must_say_yes():
    machine = run(proposed(), *consents("east", "north"))
    with pytest.raises(RefusedError, match="waits for every site") as caught:
        machine.step(AnswersClosed("operator ada"))
    assert "exchange cancel" in caught.value.next_step


def test_without_those_who_refuse_it_goes_on_once_everybody_has_answered():
    machine = run(proposed(without_refusers=True), *consents("east", "north"))
    machine = run(machine, ConsentRefused("west", "no"))
    assert machine.state is S.SEALING and machine.signers == ("east", "north")
    machine = run(machine, *seals("east", "north"), KeysSent("east"), KeysSent("north"))
    machine, effects = run(machine, ExpertsOpened("east")).step(ExpertsOpened("north"))
    assert machine.state is S.COMPLETED and effects == closed(True, "")


def test_a_refusal_before_the_others_answered_waits_for_them():
    machine, effects = proposed(without_refusers=True).step(ConsentRefused("west", "no"))
    assert (machine.state, effects) == (S.PROPOSED, ())
    assert machine.outstanding() == (AskConsent("east"), AskConsent("north"))


def test_a_yes_that_is_taken_back_before_all_answered_is_a_refusal():
    machine = run(proposed(without_refusers=True), *consents("north"), ConsentRefused("north", ""))
    assert "north" not in machine.consents
    with pytest.raises(RefusedError, match="has refused"):
        machine.step(ConsentGiven("north", digest("yes north")))
    assert run(machine, *consents("east", "west")).signers == ("east", "west")


def test_too_few_are_left():
    refusals = [ConsentRefused(site, "no") for site in ("north", "west")]
    machine, effects = run(proposed(without_refusers=True), *consents("east"), refusals[0]).step(
        refusals[1]
    )
    assert machine.state is S.CANCELLED
    assert effects == closed(False, "refused by north, west: too few are left")


@pytest.mark.parametrize("event", [seals("west")[0], KeysSent("west"), ExpertsOpened("west")])
def test_a_site_that_refused_takes_no_part(event: exchange.Input):
    machine = run(proposed(without_refusers=True), *consents("east", "north"))
    machine = run(machine, ConsentRefused("west", "no"))
    for reached in (
        machine,
        run(machine, *seals("east", "north")),
        run(machine, *seals("east", "north"), KeysSent("east"), KeysSent("north")),
    ):
        with pytest.raises((NotOnRosterError, IllegalTransitionError)):
            reached.step(event)
    with pytest.raises(RefusedError):
        machine.step(ConsentGiven("west", digest("late yes")))


def test_a_refusal_can_be_told_again_at_any_time():
    """The site is not sure that it arrived; it must not end what the others go on with."""
    refusal = ConsentRefused("west", "no")
    machine = run(proposed(without_refusers=True), refusal)
    for event in (
        *consents("east", "north"),
        *seals("east", "north"),
        KeysSent("east"),
        KeysSent("north"),
        ExpertsOpened("east"),
        ExpertsOpened("north"),
    ):
        assert machine.step(refusal) == (machine, ())
        machine = run(machine, event)
    assert machine.state is S.COMPLETED
    assert machine.step(ConsentRefused("west", "another reason")) == (machine, ())


# --- again, differently, by strangers ----------------------------------------------------------------


def test_an_input_sent_again_changes_nothing():
    machine = machines()[S.DELIVERING]
    for event in (*consents(), *seals(), *map(KeysSent, ROSTER)):
        assert machine.step(event) == (machine, ())
    machine = run(machine, ExpertsOpened("north"))
    assert machine.step(ExpertsOpened("north")) == (machine, ())


def test_a_second_different_consent_or_expert_is_refused():
    machine = run(proposed(), ConsentGiven("north", digest("one")))
    with pytest.raises(RefusedError, match="differs"):
        machine.step(ConsentGiven("north", digest("two")))
    machine = run(machines()[S.SEALING], ExpertSealed("north", digest("one")))
    with pytest.raises(RefusedError, match="differs"):
        machine.step(ExpertSealed("north", digest("two")))


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (S.PROPOSED, ConsentGiven("south", b"")),
        (S.PROPOSED, ConsentRefused("south", "")),
        (S.SEALING, ConsentGiven("south", b"")),
        (S.SEALING, ConsentRefused("south", "")),
        (S.SEALING, ExpertSealed("south", b"")),
        (S.REVEALING, KeysSent("south")),
        (S.DELIVERING, ExpertsOpened("south")),
        (S.COMPLETED, ExpertsOpened("south")),
        (S.CANCELLED, ConsentRefused("south", "")),
    ],
)
def test_a_stranger_is_refused_everywhere(state: ExchangeState, event: exchange.Input):
    with pytest.raises(NotOnRosterError):
        machines()[state].step(event)


# --- what is stored ----------------------------------------------------------------------------------


def stored(machine: ExchangeMachine) -> ExchangeMachine:
    return ExchangeMachine.from_json(json.loads(json.dumps(machine.to_json())))


@pytest.mark.parametrize("state", S)
def test_a_machine_survives_the_store_with_what_it_still_has_to_do(state: ExchangeState):
    machine = machines()[state]
    assert stored(machine) == machine
    assert stored(machine).outstanding() == machine.outstanding()


HASH = "00" * 32


@pytest.mark.parametrize(
    ("state", "change"),
    [
        *((a, {"state": b.value}) for a in OPEN for b in S if b not in (a, S.CANCELLED)),
        *((s, {"state": "cancelled"}) for s in OPEN),
        (S.PROPOSED, {"consents": {"south": HASH}}),
        (S.PROPOSED, {"consents": dict.fromkeys(ROSTER, HASH)}),
        (S.PROPOSED, {"refused": {"north": "no"}}),
        (S.PROPOSED, {"consents": {"north": HASH}, "sealed": {"north": HASH}}),
        (S.SEALING, {"sealed": {"south": HASH}}),
        (S.SEALING, {"sealed": dict.fromkeys(ROSTER, HASH)}),
        (S.SEALING, {"revealed": ["north"]}),
        (S.SEALING, {"consents": {"north": HASH, "east": HASH}}),
        (S.REVEALING, {"revealed": list(ROSTER)}),
        (S.REVEALING, {"delivered": ["north"]}),
        (S.REVEALING, {"sealed": {"north": HASH}}),
        (S.DELIVERING, {"delivered": ["south"]}),
        (S.DELIVERING, {"delivered": list(ROSTER)}),
        (S.DELIVERING, {"revealed": ["north"]}),
        (S.DELIVERING, {"consents": {}}),
        (S.DELIVERING, {"state": "cancelled", "reason": "by command"}),
        (S.DELIVERING, {"failed": {"south": "no"}}),
        (S.DELIVERING, {"failed": dict.fromkeys(ROSTER, "no")}),
        (S.DELIVERING, {"delivered": ["north"], "failed": {"north": "no"}}),
        (S.DELIVERING, {"missing": {"north": ["west"]}}),
        (S.DELIVERING, {"delivered": ["north"], "missing": {"north": []}}),
        (S.DELIVERING, {"delivered": ["north"], "missing": {"north": ["east", "west"]}}),
        (S.DELIVERING, {"delivered": ["north"], "missing": {"north": ["north"]}}),
        (S.DELIVERING, {"delivered": ["north"], "missing": {"north": ["west", "west"]}}),
        (S.REVEALING, {"failed": {"north": "no"}}),
        (S.COMPLETED, {"delivered": [], "failed": dict.fromkeys(ROSTER, "no")}),
        (S.COMPLETED, {"state": "cancelled", "reason": "by command"}),
        (S.COMPLETED, {"delivered": ["north"]}),
        (S.CANCELLED, {"reason": ""}),
        (S.CANCELLED, {"revealed": ["north"]}),
        (S.SEALING, {"state": "open"}),
        (S.SEALING, {"consents": None}),
        (S.SEALING, {"consents": {"north": "xyz"}}),
        (S.SEALING, {"sealed": [["east"]]}),
        (S.SEALING, {"terms": {}}),
    ],
    ids=str,
)
def test_a_stored_state_that_its_records_do_not_support_is_not_loaded(state, change):
    with pytest.raises(IntegrityError):
        ExchangeMachine.from_json({**machines()[state].to_json(), **change})


def test_the_records_of_a_machine_cannot_be_changed_from_outside():
    given = {"north": digest("north")}
    machine = replace(proposed(), consents=given)
    given["east"] = digest("east")
    assert set(machine.consents) == {"north"}
    with pytest.raises(TypeError):
        machine.consents["east"] = digest("east")  # type: ignore[index]


# --- whatever comes ----------------------------------------------------------------------------------

NAMES = st.sampled_from((*ROSTER, "south"))
DIGESTS = st.sampled_from((digest("one"), digest("two")))
EVENTS = st.one_of(
    st.builds(ConsentGiven, NAMES, DIGESTS),
    st.builds(ConsentRefused, NAMES, st.sampled_from(("no", ""))),
    st.builds(ExpertSealed, NAMES, DIGESTS),
    st.builds(KeysSent, NAMES),
    st.builds(ExpertsOpened, NAMES, st.sets(NAMES, max_size=2).map(tuple)),
    st.just(AnswersClosed("ada")),
    st.just(TimeOver()),
    st.just(CancelRequested("ada", "")),
)


def likely(machine: ExchangeMachine) -> list[exchange.Input]:
    """What the sites would say next: without these, random inputs hardly get past the first state."""
    return [
        {
            AskConsent: lambda site: ConsentGiven(site, digest(site)),
            AskSealed: lambda site: ExpertSealed(site, digest(site)),
            AskKeys: KeysSent,
            DeliverKeys: ExpertsOpened,
        }[type(effect)](effect.site)
        for effect in machine.outstanding()
        if not isinstance(effect, (EraseSealed, TellClosed))
    ]


@settings(max_examples=200)
@given(st.booleans(), st.lists(st.none() | EVENTS, max_size=30), st.randoms(use_true_random=False))
def test_random_inputs_never_break_what_must_hold(
    without: bool, events: Iterable[exchange.Input | None], rng
):
    machine = proposed(without_refusers=without)
    order = list(S)
    for event in events:
        if event is None:
            event = rng.choice(likely(machine) or [CancelRequested("ada", "")])
        try:
            after, effects = machine.step(event)
        except FedPalmError:
            assert stored(machine) == machine
            continue
        assert stored(after) == after
        assert stored(after).outstanding() == after.outstanding()
        # Never back, and nothing is told but on entering a state: then all that it waits for, once.
        assert order.index(after.state) >= order.index(machine.state)
        assert (after.state is machine.state) == (not effects)
        assert effects in ((), after.outstanding()) and len(set(effects)) == len(effects)
        if effects and not after.ended:
            asked = [one.site for one in effects if not isinstance(one, TellClosed)]
            assert asked == list(after.signers)
        if after.ended:
            assert len(after.outstanding()) == 1 + len(ROSTER)
        # What was recorded stays, but for a yes taken back while it is proposed.
        assert dict(machine.sealed).items() <= dict(after.sealed).items()
        assert machine.revealed <= after.revealed and machine.delivered <= after.delivered
        assert dict(machine.failed).items() <= dict(after.failed).items()
        if machine.state is not S.PROPOSED:
            assert after.signers == machine.signers and after.consents == machine.consents
        # Keys only when every expert is stored, receipts only when every key is.
        if after.sealed:
            assert len(after.signers) >= 2
            assert set(after.signers) | set(after.refused) == set(ROSTER)
        if after.revealed:
            assert set(after.sealed) == set(after.signers)
        if after.delivered or after.failed:
            assert after.revealed == set(after.signers)
        # Once the keys are out it is over for all only when each is done, by its own doing or in time.
        if after.revealed and after.revealed == set(after.signers):
            assert after.ended == (after.delivered | set(after.failed) == set(after.signers))
        assert (after.state is S.COMPLETED) <= bool(after.delivered)
        machine = after
