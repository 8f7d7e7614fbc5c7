from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest

from fedpalm.errors import IllegalTransitionError, IntegrityError, NotOnRosterError, RefusedError
from fedpalm.exchange import machine as exchange
from fedpalm.exchange.machine import (
    TABLE,
    AskConsent,
    AskSealed,
    CancelRequested,
    ConsentGiven,
    ConsentRefused,
    DeliverExperts,
    EraseSealed,
    ExchangeMachine,
    ExchangeState,
    ExpertsDelivered,
    ExpertSealed,
    Started,
    TellCancelled,
)
from fedpalm.exchange.terms import ExchangeTerms

ROSTER = ("east", "north", "west")
TERMS = ExchangeTerms("palms", "trial-0001", "trial-0001-x1", bytes(32), ROSTER, bytes(32))
PAIRS = [(s, r) for s in ROSTER for r in ROSTER if s != r]
INPUTS = (
    Started("ada"),
    ConsentGiven("north", b"c" * 32),
    ConsentRefused("north", "not this year"),
    ExpertSealed("north", "east", b"s" * 32),
    ExpertsDelivered("north"),
    CancelRequested("ada", "wrong plan"),
)


def run(machine: ExchangeMachine, *events: exchange.Input) -> ExchangeMachine:
    for event in events:
        machine, _ = machine.step(event)
    return machine


def digest(text: str) -> bytes:
    return text.encode().ljust(32, b".")


def consents() -> list[exchange.Input]:
    return [ConsentGiven(site, digest(site)) for site in ROSTER]


def seals() -> list[exchange.Input]:
    return [ExpertSealed(s, r, digest(s + r)) for s, r in PAIRS]


def machines() -> dict[ExchangeState, ExchangeMachine]:
    """One machine in each state, reached by inputs only."""
    proposed = ExchangeMachine(TERMS)
    consenting = run(proposed, Started("ada"))
    sealing = run(consenting, *consents())
    delivering = run(sealing, *seals())
    return {
        ExchangeState.PROPOSED: proposed,
        ExchangeState.CONSENTING: consenting,
        ExchangeState.SEALING: sealing,
        ExchangeState.DELIVERING: delivering,
        ExchangeState.COMPLETED: run(delivering, *map(ExpertsDelivered, ROSTER)),
        ExchangeState.CANCELLED: run(consenting, CancelRequested("ada", "wrong plan")),
    }


def test_the_machines_of_these_tests_are_in_the_states_they_stand_for():
    assert {state: machine.state for state, machine in machines().items()} == {
        state: state for state in ExchangeState
    }


@pytest.mark.parametrize(
    ("state", "event"),
    [(s, event) for s in ExchangeState for event in INPUTS if (s, type(event)) not in TABLE],
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


@pytest.mark.parametrize("state", [s for s in ExchangeState if s is not ExchangeState.SEALING])
def test_no_new_expert_is_accepted_outside_sealing(state: ExchangeState):
    before = machines()[state]
    try:
        after, effects = before.step(ExpertSealed("north", "east", digest("northeast")))
    except IllegalTransitionError:
        return
    assert state is ExchangeState.DELIVERING and (after, effects) == (before, ())


def test_no_number_of_consents_opens_sealing_without_an_operator():
    with pytest.raises(IllegalTransitionError):
        run(ExchangeMachine(TERMS), *consents())


@pytest.mark.parametrize("absent", ROSTER)
def test_sealing_waits_for_the_last_yes(absent: str):
    given = [event for event in consents() if event.site != absent]
    machine = run(machines()[ExchangeState.CONSENTING], *given, *given)
    assert machine.state is ExchangeState.CONSENTING
    assert machine.outstanding() == (AskConsent(absent),)
    machine, effects = machine.step(ConsentGiven(absent, digest(absent)))
    assert machine.state is ExchangeState.SEALING
    assert effects == tuple(AskSealed(site) for site in ROSTER)


@pytest.mark.parametrize(
    "state", [ExchangeState.CONSENTING, ExchangeState.SEALING, ExchangeState.DELIVERING]
)
def test_a_refusal_cancels_and_erases_what_was_stored(state: ExchangeState):
    machine, effects = machines()[state].step(ConsentRefused("west", "not this year"))
    assert machine.state is ExchangeState.CANCELLED
    reason = "west refused: not this year"
    assert effects == (EraseSealed(), *(TellCancelled(site, reason) for site in ROSTER))


def test_an_operator_can_cancel_until_all_is_delivered():
    for state, machine in machines().items():
        if state is ExchangeState.COMPLETED:
            with pytest.raises(IllegalTransitionError):
                machine.step(CancelRequested("ada", "too late"))
        else:
            cancelled, _ = machine.step(CancelRequested("ada", "wrong plan"))
            assert cancelled.state is ExchangeState.CANCELLED


def test_delivery_begins_with_the_last_expert_and_ends_with_the_last_confirmation():
    machine = machines()[ExchangeState.SEALING]
    *first, last = seals()
    machine = run(machine, *first)
    assert machine.outstanding() == (AskSealed("west"),)
    machine, effects = machine.step(last)
    assert effects == tuple(DeliverExperts(site) for site in ROSTER)
    machine = run(machine, ExpertsDelivered("north"), ExpertsDelivered("east"))
    assert machine.outstanding() == (DeliverExperts("west"),)
    machine, effects = machine.step(ExpertsDelivered("west"))
    assert (machine.state, effects) == (ExchangeState.COMPLETED, (EraseSealed(),))


def test_an_input_sent_again_changes_nothing():
    machine = machines()[ExchangeState.DELIVERING]
    for event in (*consents(), *seals()):
        assert machine.step(event) == (machine, ())
    machine = run(machine, ExpertsDelivered("north"))
    assert machine.step(ExpertsDelivered("north")) == (machine, ())


def test_a_second_different_consent_or_expert_is_refused():
    machine = run(machines()[ExchangeState.CONSENTING], ConsentGiven("north", digest("one")))
    with pytest.raises(RefusedError, match="differs"):
        machine.step(ConsentGiven("north", digest("two")))
    machine = run(machines()[ExchangeState.SEALING], ExpertSealed("north", "east", digest("one")))
    with pytest.raises(RefusedError, match="differs"):
        machine.step(ExpertSealed("north", "east", digest("two")))


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (ExchangeState.CONSENTING, ConsentGiven("south", b"")),
        (ExchangeState.CONSENTING, ConsentRefused("south", "")),
        (ExchangeState.SEALING, ExpertSealed("south", "east", b"")),
        (ExchangeState.SEALING, ExpertSealed("east", "south", b"")),
        (ExchangeState.DELIVERING, ExpertsDelivered("south")),
    ],
)
def test_a_stranger_is_refused_everywhere(state: ExchangeState, event: exchange.Input):
    with pytest.raises(NotOnRosterError):
        machines()[state].step(event)


def test_a_site_does_not_seal_to_itself():
    with pytest.raises(RefusedError, match="own site"):
        machines()[ExchangeState.SEALING].step(ExpertSealed("east", "east", b""))


# --- what is stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ExchangeState)
def test_a_machine_survives_the_store_with_what_it_still_has_to_do(state: ExchangeState):
    machine = machines()[state]
    again = ExchangeMachine.from_json(json.loads(json.dumps(machine.to_json())))
    assert again == machine
    assert again.outstanding() == machine.outstanding()


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (ExchangeState.PROPOSED, {"state": "sealing"}),
        (ExchangeState.PROPOSED, {"state": "consenting"}),
        (ExchangeState.CONSENTING, {"state": "sealing"}),
        (ExchangeState.CONSENTING, {"consents": {"south": "00" * 32}}),
        (ExchangeState.CONSENTING, {"sealed": [["east", "north", "00" * 32]]}),
        (ExchangeState.SEALING, {"state": "delivering"}),
        (ExchangeState.SEALING, {"sealed": [["east", "east", "00" * 32]]}),
        (ExchangeState.DELIVERING, {"state": "completed"}),
        (ExchangeState.DELIVERING, {"delivered": ["south"]}),
        (ExchangeState.DELIVERING, {"consents": {}}),
        (ExchangeState.SEALING, {"state": "open"}),
        (ExchangeState.SEALING, {"consents": None}),
        (ExchangeState.SEALING, {"sealed": [["east"]]}),
    ],
)
def test_a_stored_state_that_its_records_do_not_support_is_not_loaded(state, change):
    with pytest.raises(IntegrityError):
        ExchangeMachine.from_json({**machines()[state].to_json(), **change})


def test_the_records_of_a_machine_cannot_be_changed_from_outside():
    given = {"north": digest("north")}
    machine = replace(machines()[ExchangeState.CONSENTING], consents=given)
    given["east"] = digest("east")
    assert set(machine.consents) == {"north"}
    with pytest.raises(TypeError):
        machine.consents["east"] = digest("east")
