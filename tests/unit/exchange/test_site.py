from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest

from fedpalm.errors import (
    ConsentError,
    IllegalTransitionError,
    IntegrityError,
    NotOnRosterError,
    RefusedError,
)
from fedpalm.exchange import site as site_exchange
from fedpalm.exchange.consent import Agreement
from fedpalm.exchange.site import (
    TABLE,
    Approved,
    CancelNoted,
    Declined,
    ExpertOpened,
    ExpertsSealed,
    SiteExchange,
    SiteState,
)
from fedpalm.pki.hybrid import HybridKey

from .conftest import World

HASHES = {"east": b"e" * 32, "west": b"w" * 32}


def asked(world: World) -> SiteExchange:
    return SiteExchange.propose(world.terms, "north", [])


def own_consent(world: World, agreement: Agreement) -> Approved:
    return Approved(agreement.party("north").consent_hash)


def exchanges(world: World, agreement: Agreement) -> dict[SiteState, SiteExchange]:
    """One exchange in each state, reached by inputs only."""
    approved = asked(world).step(own_consent(world, agreement))
    sealed = approved.step(ExpertsSealed(agreement, HASHES))
    half = sealed.step(ExpertOpened("east", b"1" * 32))
    return {
        SiteState.ASKED: asked(world),
        SiteState.APPROVED: approved,
        SiteState.SEALED: sealed,
        SiteState.COMPLETED: half.step(ExpertOpened("west", b"2" * 32)),
        SiteState.DECLINED: approved.step(Declined("no")),
        SiteState.CANCELLED: approved.step(CancelNoted("over")),
    }


@pytest.fixture
def at(world: World, agreement: Agreement) -> dict[SiteState, SiteExchange]:
    return exchanges(world, agreement)


@pytest.fixture
def inputs(world: World, agreement: Agreement) -> list[site_exchange.Input]:
    return [
        own_consent(world, agreement),
        Declined("no"),
        ExpertsSealed(agreement, HASHES),
        ExpertOpened("east", b"1" * 32),
        CancelNoted("over"),
    ]


@pytest.mark.parametrize("state", SiteState)
def test_an_input_without_a_row_is_an_error_that_names_state_and_input(at, inputs, state):
    assert at[state].state is state
    assert {type(event) for event in inputs} == set(get_args(site_exchange.Input))
    for event in inputs:
        if (state, type(event)) not in TABLE:
            with pytest.raises(IllegalTransitionError) as caught:
                at[state].step(event)
            assert type(event).__name__ in caught.value.what and state.value in caught.value.what


def test_a_yes_is_recorded_with_the_consent_that_was_signed(world, agreement):
    approved = asked(world).step(own_consent(world, agreement))
    assert approved.state is SiteState.APPROVED
    assert approved.consent_hash == agreement.party("north").consent_hash


def test_a_second_yes_with_another_key_is_refused(at, agreement, world):
    approved = at[SiteState.APPROVED]
    assert approved.step(own_consent(world, agreement)) == approved
    with pytest.raises(RefusedError, match="another key"):
        approved.step(Approved(b"x" * 32))


def test_nothing_is_sealed_without_this_sites_own_yes(at, agreement):
    for state in set(SiteState) - {SiteState.APPROVED}:
        with pytest.raises(IllegalTransitionError):
            at[state].step(ExpertsSealed(agreement, HASHES))


def test_nothing_is_sealed_under_an_agreement_to_other_terms(at, world):
    other = world.variant(exchange_id="trial-0001-x2")
    with pytest.raises(ConsentError, match="not the one that this site consented to"):
        at[SiteState.APPROVED].step(ExpertsSealed(other, HASHES))


def test_nothing_is_sealed_under_an_agreement_with_another_yes_of_this_site(at, world):
    east, _, west = world.consents()
    renewed = replace(world.sites["north"], recipient_key=HybridKey.generate())
    other = world.agree([east, renewed.consent(world.terms), west])
    with pytest.raises(ConsentError, match="not the one that this site consented to"):
        at[SiteState.APPROVED].step(ExpertsSealed(other, HASHES))


@pytest.mark.parametrize("names", [(), ("east",), ("east", "north", "west"), ("east", "south")])
def test_a_site_seals_to_all_others_or_to_none(at, agreement, names: tuple[str, ...]):
    with pytest.raises(RefusedError, match="every other site"):
        at[SiteState.APPROVED].step(ExpertsSealed(agreement, dict.fromkeys(names, b"x" * 32)))


def test_a_site_seals_once_and_keeps_what_it_sealed_to_whom(at, agreement):
    sealed = at[SiteState.SEALED]
    with pytest.raises(IllegalTransitionError):
        sealed.step(ExpertsSealed(agreement, HASHES))
    assert SiteExchange.from_json(sealed.to_json()).sealed == HASHES


def test_the_exchange_is_complete_with_the_last_opened_expert(at):
    sealed = at[SiteState.SEALED]
    half = sealed.step(ExpertOpened("east", b"1" * 32))
    assert half.state is SiteState.SEALED
    assert half.step(ExpertOpened("east", b"1" * 32)) == half
    done = half.step(ExpertOpened("west", b"2" * 32))
    assert done.state is SiteState.COMPLETED
    assert done.opened == {"east": b"1" * 32, "west": b"2" * 32}


def test_a_second_different_expert_of_the_same_site_is_refused(at):
    half = at[SiteState.SEALED].step(ExpertOpened("east", b"1" * 32))
    with pytest.raises(RefusedError, match="another expert"):
        half.step(ExpertOpened("east", b"3" * 32))


@pytest.mark.parametrize("sender", ["north", "south"])
def test_an_expert_of_oneself_or_a_stranger_is_refused(at, sender: str):
    with pytest.raises(NotOnRosterError):
        at[SiteState.SEALED].step(ExpertOpened(sender, b"1" * 32))


def test_a_no_and_a_cancel_end_what_is_open_and_keep_their_reason(at):
    for state in (SiteState.ASKED, SiteState.APPROVED, SiteState.SEALED):
        declined = at[state].step(Declined("no"))
        assert (declined.state, declined.reason) == (SiteState.DECLINED, "no")
        cancelled = at[state].step(CancelNoted("over"))
        assert (cancelled.state, cancelled.reason) == (SiteState.CANCELLED, "over")


def test_a_cancel_does_not_undo_what_is_complete(at):
    assert at[SiteState.COMPLETED].step(CancelNoted("over")) == at[SiteState.COMPLETED]


# --- one exchange for a plan -------------------------------------------------------------------------


def test_a_proposal_that_comes_again_finds_the_exchange_as_it_is(world, at):
    for exchange in at.values():
        assert SiteExchange.propose(world.terms, "north", [exchange]) is exchange


@pytest.mark.parametrize("change", [{"plan_hash": bytes(32)}, {"roster": ("east", "north")}])
def test_a_known_exchange_id_with_other_terms_is_refused(world, at, change):
    with pytest.raises(RefusedError, match="other terms"):
        SiteExchange.propose(replace(world.terms, **change), "north", [at[SiteState.CANCELLED]])


@pytest.mark.parametrize(
    "state", [SiteState.ASKED, SiteState.APPROVED, SiteState.SEALED, SiteState.COMPLETED]
)
def test_a_plan_with_an_open_or_finished_exchange_gets_no_second_one(world, at, state):
    second = replace(world.terms, exchange_id="trial-0001-x2")
    with pytest.raises(RefusedError, match="releases the experts once"):
        SiteExchange.propose(second, "north", [at[state]])


@pytest.mark.parametrize("ending", [Declined("no"), CancelNoted("over")])
def test_a_plan_whose_experts_were_sealed_gets_no_second_exchange_even_if_it_was_called_off(
    world, at, ending
):
    ended = at[SiteState.SEALED].step(ending)
    second = replace(world.terms, exchange_id="trial-0001-x2")
    with pytest.raises(RefusedError, match="releases the experts once"):
        SiteExchange.propose(second, "north", [SiteExchange.from_json(ended.to_json())])


@pytest.mark.parametrize("state", [SiteState.DECLINED, SiteState.CANCELLED])
def test_an_exchange_called_off_before_sealing_can_be_proposed_anew(world, at, state):
    second = replace(world.terms, exchange_id="trial-0001-x2")
    assert SiteExchange.propose(second, "north", [at[state]]).state is SiteState.ASKED


def test_another_plan_has_its_own_exchange(world, at):
    other = replace(world.terms, exchange_id="trial-0002-x1", plan_hash=bytes(32))
    assert SiteExchange.propose(other, "north", [at[SiteState.COMPLETED]]).terms == other


def test_a_site_that_is_not_on_the_roster_takes_no_part(world):
    with pytest.raises(NotOnRosterError):
        SiteExchange.propose(world.terms, "south", [])


# --- what is stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", SiteState)
def test_an_exchange_survives_the_store(at, state):
    again = SiteExchange.from_json(json.loads(json.dumps(at[state].to_json())))
    assert again == at[state]


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (SiteState.ASKED, {"state": "approved"}),
        (SiteState.ASKED, {"site": "south"}),
        (SiteState.APPROVED, {"state": "sealed"}),
        (SiteState.APPROVED, {"opened": {"east": "00" * 32}}),
        (SiteState.SEALED, {"state": "completed"}),
        (SiteState.SEALED, {"consent_hash": ""}),
        (SiteState.SEALED, {"sealed": {"east": "00" * 32}}),
        (SiteState.COMPLETED, {"opened": {}}),
        (SiteState.SEALED, {"state": "open"}),
        (SiteState.SEALED, {"sealed": []}),
    ],
)
def test_a_stored_state_that_its_records_do_not_support_is_not_loaded(at, state, change):
    with pytest.raises(IntegrityError):
        SiteExchange.from_json({**at[state].to_json(), **change})
