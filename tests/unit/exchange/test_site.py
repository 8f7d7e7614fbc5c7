"""A site's half: its own yes, once; its own sealing, once; its keys last."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from fedpalm.errors import (
    ConsentError,
    IllegalTransitionError,
    IntegrityError,
    NotOnRosterError,
    RefusedError,
    SanctionRolledBackError,
)
from fedpalm.exchange import site as site_exchange
from fedpalm.exchange.consent import Sanction
from fedpalm.exchange.site import (
    TABLE,
    AllVerified,
    Approved,
    CancelNoted,
    Declined,
    ExpertSealed,
    ExpertsOpened,
    SiteExchange,
    SiteState,
)
from fedpalm.pki.hybrid import HybridKey
from tests.support.exchange import Group, changed_in

S = SiteState
SEALED_HASH = b"n" * 32
VERIFIED = {"east": b"e" * 32, "west": b"w" * 32}
OPENED = {"east": "11" * 32, "west": "22" * 32}


def asked(group: Group) -> SiteExchange:
    return SiteExchange.propose(group.terms, "north", [])


def own_yes(sanction: Sanction) -> Approved:
    return Approved(sanction.party("north").consent.hash)


@pytest.fixture
def at(group: Group, sanction: Sanction) -> dict[SiteState, SiteExchange]:
    """One exchange in each state, reached by inputs only."""
    approved = asked(group).step(own_yes(sanction))
    sealed = approved.step(ExpertSealed(sanction, SEALED_HASH))
    revealed = sealed.step(AllVerified(VERIFIED))
    return {
        S.ASKED: asked(group),
        S.APPROVED: approved,
        S.SEALED: sealed,
        S.REVEALED: revealed,
        S.COMPLETED: revealed.step(ExpertsOpened(OPENED)),
        S.DECLINED: approved.step(Declined("no")),
        S.CANCELLED: approved.step(CancelNoted("over")),
    }


# --- the table ---------------------------------------------------------------------------------------

AFTER = {
    (S.ASKED, Approved): S.APPROVED,
    (S.APPROVED, ExpertSealed): S.SEALED,
    (S.SEALED, AllVerified): S.REVEALED,
    (S.REVEALED, ExpertsOpened): S.COMPLETED,
    **{(s, Declined): S.DECLINED for s in (S.ASKED, S.APPROVED, S.SEALED, S.REVEALED, S.DECLINED)},
    **{(s, CancelNoted): S.CANCELLED for s in (S.ASKED, S.APPROVED, S.SEALED, S.REVEALED)},
    **{(s, CancelNoted): s for s in (S.COMPLETED, S.DECLINED, S.CANCELLED)},
}


def inputs(sanction: Sanction) -> list[site_exchange.Input]:
    return [
        own_yes(sanction),
        Declined("no"),
        ExpertSealed(sanction, SEALED_HASH),
        AllVerified(VERIFIED),
        ExpertsOpened(OPENED),
        CancelNoted("over"),
    ]


def test_every_row_of_the_table_is_told_here(sanction):
    assert set(AFTER) == set(TABLE)
    assert {type(event) for event in inputs(sanction)} == set(get_args(site_exchange.Input))


@pytest.mark.parametrize("state", S)
def test_each_input_leads_where_it_is_told_to_or_is_an_error_that_names_both(at, sanction, state):
    assert at[state].state is state
    for event in inputs(sanction):
        if (state, type(event)) in AFTER:
            assert at[state].step(event).state is AFTER[state, type(event)]
            continue
        with pytest.raises(IllegalTransitionError) as caught:
            at[state].step(event)
        assert type(event).__name__ in caught.value.what and state.value in caught.value.what


# --- yes, and no -------------------------------------------------------------------------------------


def test_a_yes_is_recorded_with_the_consent_that_was_signed(group, sanction):
    approved = asked(group).step(own_yes(sanction))
    assert approved.consent_hash == sanction.party("north").consent.hash


def test_there_is_no_second_yes(at):
    for state in set(S) - {S.ASKED}:
        with pytest.raises(IllegalTransitionError):
            at[state].step(Approved(b"x" * 32))


def test_a_no_and_a_cancel_end_what_is_open_and_keep_their_reason(at):
    for state in (S.ASKED, S.APPROVED, S.SEALED, S.REVEALED):
        declined = at[state].step(Declined("no"))
        assert (declined.state, declined.reason) == (S.DECLINED, "no")
        cancelled = at[state].step(CancelNoted("over"))
        assert (cancelled.state, cancelled.reason) == (S.CANCELLED, "over")


# --- sealed once -------------------------------------------------------------------------------------


def test_nothing_is_sealed_without_this_sites_own_yes_or_twice(at, sanction):
    for state in set(S) - {S.APPROVED}:
        with pytest.raises(IllegalTransitionError):
            at[state].step(ExpertSealed(sanction, SEALED_HASH))


@pytest.mark.parametrize("change", [{"exchange_id": "trial-1-x2"}, {"number": 2}, {"purpose": "x"}])
def test_nothing_is_sealed_under_a_sanction_of_other_terms(at, group, change):
    with pytest.raises(ConsentError, match="not the one that this site consented to"):
        at[S.APPROVED].step(ExpertSealed(group.other(**change).sanction(), SEALED_HASH))


def test_nothing_is_sealed_under_a_sanction_with_another_yes_of_this_site(at, group):
    renewed = group.other(replace(group.members["north"], key=HybridKey.generate()))
    with pytest.raises(ConsentError, match="not the one that this site consented to"):
        at[S.APPROVED].step(ExpertSealed(renewed.sanction(), SEALED_HASH))


def test_nothing_is_sealed_under_a_sanction_that_this_site_has_not_signed(group):
    free = group.other(without_refusers=True)
    consent = free.members["north"].says(free.terms)
    approved = SiteExchange.propose(free.terms, "north", []).step(Approved(consent.hash))
    others = free.sanction(free.consents("east", "west"))
    with pytest.raises(ConsentError, match="consented to"):
        approved.step(ExpertSealed(others, SEALED_HASH))


def test_it_keeps_what_it_sealed_for_whom_and_under_what(at, sanction):
    sealed = SiteExchange.from_json(at[S.SEALED].to_json())
    assert sealed.sanction == sanction.hash and sealed.sealed == SEALED_HASH
    assert sealed.signers == sanction.signers and sealed.others == ("east", "west")


def test_the_sites_that_refused_are_not_among_the_others(group):
    free = group.other(without_refusers=True)
    sanction = free.sanction(free.consents("east", "north"))
    sealed = (
        SiteExchange.propose(free.terms, "north", [])
        .step(own_yes(sanction))
        .step(ExpertSealed(sanction, SEALED_HASH))
    )
    assert sealed.others == ("east",)
    with pytest.raises(RefusedError):
        sealed.step(AllVerified(VERIFIED))
    revealed = sealed.step(AllVerified({"east": b"e" * 32}))
    assert revealed.step(ExpertsOpened({"east": "11" * 32})).state is S.COMPLETED


# --- all or none -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [(), ("east",), ("east", "north", "west"), ("east", "south"), ("east", "west", "south")],
)
def test_the_experts_of_all_other_signers_are_verified_or_none(at, names):
    with pytest.raises(RefusedError, match="every other signer"):
        at[S.SEALED].step(AllVerified(dict.fromkeys(names, b"x" * 32)))


@pytest.mark.parametrize("names", [(), ("north",), ("east", "south"), ("east", "west", "south")])
def test_what_is_opened_is_of_signers_and_not_nothing(at, names):
    with pytest.raises(RefusedError, match="one at least"):
        at[S.REVEALED].step(ExpertsOpened(dict.fromkeys(names, "33" * 32)))


def test_an_expert_that_does_not_open_costs_nobody_elses(at):
    opened = at[S.REVEALED].step(ExpertsOpened({"east": "33" * 32}, "west: it does not open"))
    assert (opened.state, opened.reason) == (S.COMPLETED, "west: it does not open")
    assert SiteExchange.from_json(opened.to_json()) == opened


def test_the_keys_go_only_after_all_were_verified(at):
    assert not at[S.SEALED].verified
    assert at[S.REVEALED].verified == VERIFIED
    with pytest.raises(IllegalTransitionError):
        at[S.SEALED].step(ExpertsOpened(OPENED))
    assert at[S.COMPLETED].opened == OPENED


# --- one exchange for a plan, and never back to an older one -----------------------------------------


def terms_with(group: Group, **changes: Any) -> Any:
    return changed_in(group.terms, **changes)


def test_a_proposal_that_comes_again_finds_the_exchange_as_it_is(group, at):
    for exchange in at.values():
        assert SiteExchange.propose(group.terms, "north", [exchange]) is exchange


@pytest.mark.parametrize(
    "change",
    [
        {"plan_hash": "00" * 32},
        {"roster": ("east", "north")},
        {"expires_ms": 2**52},
        {"purpose": "another"},
        {"number": 2},
        {"without_refusers": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_known_exchange_with_other_terms_is_refused(group, at, change):
    with pytest.raises(SanctionRolledBackError, match="other terms"):
        SiteExchange.propose(terms_with(group, **change), "north", [at[S.CANCELLED]])


@pytest.mark.parametrize("state", [S.ASKED, S.APPROVED])
def test_later_terms_end_what_is_open_and_not_sealed_and_earlier_ones_do_not(group, at, state):
    later = terms_with(group, exchange_id="trial-1-x2", number=2)
    assert SiteExchange.propose(later, "north", [at[state]]).state is S.ASKED
    assert at[state].superseded_by(later)
    newer = replace(at[state], terms=terms_with(group, number=3))
    assert not newer.superseded_by(later)
    with pytest.raises(SanctionRolledBackError, match="releases the experts once"):
        SiteExchange.propose(later, "north", [newer])


@pytest.mark.parametrize("state", [S.SEALED, S.REVEALED, S.COMPLETED])
def test_a_plan_whose_expert_is_sealed_gets_no_second_exchange(group, at, state):
    second = terms_with(group, exchange_id="trial-1-x2", number=2)
    with pytest.raises(SanctionRolledBackError, match="releases the experts once"):
        SiteExchange.propose(second, "north", [at[state]])


@pytest.mark.parametrize("ending", [Declined("no"), CancelNoted("over")])
@pytest.mark.parametrize("state", [S.SEALED, S.REVEALED])
def test_a_plan_whose_expert_was_sealed_gets_no_second_exchange_even_if_it_was_called_off(
    group, at, state, ending
):
    ended = SiteExchange.from_json(at[state].step(ending).to_json())
    second = terms_with(group, exchange_id="trial-1-x2", number=2)
    with pytest.raises(SanctionRolledBackError, match="releases the experts once"):
        SiteExchange.propose(second, "north", [ended])


@pytest.mark.parametrize("state", [S.DECLINED, S.CANCELLED])
def test_an_exchange_called_off_before_sealing_is_proposed_anew_with_a_higher_number(
    group, at, state
):
    second = terms_with(group, exchange_id="trial-1-x2", number=2)
    assert SiteExchange.propose(second, "north", [at[state]]).state is S.ASKED
    for number in (1, 2):
        ended = replace(at[state], terms=terms_with(group, number=2))
        again = terms_with(group, exchange_id="trial-1-x0", number=number)
        with pytest.raises(SanctionRolledBackError, match=f"has number {number}"):
            SiteExchange.propose(again, "north", [ended])


def test_an_older_exchange_is_not_taken_up_again_once_a_newer_one_is_known(group, at):
    newer = SiteExchange.propose(
        terms_with(group, exchange_id="trial-1-x2", number=2), "north", [at[S.CANCELLED]]
    )
    for known in (newer, newer.step(Declined("no"))):
        for earlier in ([at[S.CANCELLED], known], [known, at[S.CANCELLED]]):
            with pytest.raises(SanctionRolledBackError):
                SiteExchange.propose(group.terms, "north", earlier)
            assert SiteExchange.propose(newer.terms, "north", earlier) is known


def test_another_plan_has_its_own_exchange(group, at):
    other = terms_with(group, exchange_id="trial-2-x1", plan_hash="00" * 32)
    assert SiteExchange.propose(other, "north", [at[S.COMPLETED]]).terms == other


def test_a_site_that_is_not_on_the_roster_takes_no_part(group):
    with pytest.raises(NotOnRosterError):
        SiteExchange.propose(group.terms, "south", [])


# --- what is stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", S)
def test_an_exchange_survives_the_store(at, state):
    again = SiteExchange.from_json(json.loads(json.dumps(at[state].to_json())))
    assert again == at[state]


HASH = "00" * 32
ORDER = (S.ASKED, S.APPROVED, S.SEALED, S.REVEALED, S.COMPLETED)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        *((a, {"state": b.value}) for a in ORDER for b in ORDER if a is not b),
        (S.ASKED, {"site": "south"}),
        (S.APPROVED, {"consent_hash": ""}),
        (S.APPROVED, {"opened": {"east": HASH}}),
        (S.APPROVED, {"signers": ["east", "north"]}),
        (S.APPROVED, {"sanction": HASH}),
        (S.SEALED, {"consent_hash": ""}),
        (S.SEALED, {"sanction": ""}),
        (S.SEALED, {"sealed": ""}),
        (S.SEALED, {"signers": ["north"]}),
        (S.SEALED, {"signers": ["east", "west"]}),
        (S.SEALED, {"signers": ["east", "north", "south"]}),
        (S.REVEALED, {"verified": {"east": HASH}}),
        (S.COMPLETED, {"opened": {}}),
        (S.COMPLETED, {"opened": {"east": HASH}}),
        (S.SEALED, {"state": "open"}),
        (S.SEALED, {"verified": []}),
        (S.SEALED, {"terms": None}),
    ],
    ids=str,
)
def test_a_stored_state_that_its_records_do_not_support_is_not_loaded(at, state, change):
    with pytest.raises(IntegrityError):
        SiteExchange.from_json({**at[state].to_json(), **change})
