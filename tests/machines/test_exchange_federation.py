"""Whole exchanges in memory: real sealing, over a network that drops, repeats, reorders and restarts; and
under a coordinator that shows each site whatever it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedpalm.errors import (
    DuplicateExpertError,
    FedPalmError,
    IllegalTransitionError,
    NotOnRosterError,
    RefusedError,
    ReplayedExpertError,
    SanctionExpiredError,
    SanctionRolledBackError,
    SealedExpertError,
    WrongRecipientError,
)
from fedpalm.exchange import machine as hub
from fedpalm.exchange import site as member
from fedpalm.exchange.machine import ExchangeState
from fedpalm.exchange.site import SiteState
from tests.support.exchange import EXPIRES_MS, NOW, ROSTER, expert_of, make_terms
from tests.support.exchange import member as make_member
from tests.support.exchange_sites import Relay, Site

TOO_LATE = EXPIRES_MS / 1000 + 1
MEMBERS = {name: make_member(name) for name in (*ROSTER, "south")}


@dataclass(frozen=True)
class ToSite:
    """An instruction; the site fetches from the coordinator what it needs for it."""

    site: str
    what: type[hub.Effect]


@dataclass(frozen=True)
class ToRelay:
    """What a site has sent; ``arrives`` is what the coordinator does with it."""

    arrives: Callable[[], tuple[hub.Effect, ...]]


class Federation(RuleBasedStateMachine):
    """Every process keeps only what it stored; messages in flight may be lost or come twice."""

    def __init__(self) -> None:
        super().__init__()
        self.sites = {name: Site(MEMBERS[name]) for name in ROSTER}
        self.flying: list[ToSite | ToRelay] = []
        self.called_off = False
        self.now = NOW

    @initialize(without=st.booleans())
    def operator_proposes(self, without: bool) -> None:
        self.terms = make_terms(without_refusers=without)
        self.relay = Relay(self.terms)

    # --- processes

    def send(self, effects: Iterable[hub.Effect]) -> None:
        self.flying += [
            ToSite(one.site, type(one)) for one in effects if not isinstance(one, hub.EraseSealed)
        ]

    def to_relay(self, message: ToRelay, *, killed: bool = False) -> None:
        before = self.relay.machine
        try:
            effects = message.arrives()
        except (IllegalTransitionError, NotOnRosterError, RefusedError, SanctionExpiredError):
            # Nothing that an honest site sends is refused but what comes too late, or takes back a no.
            assert before.ended or before.refused or self.now > NOW, before.state
            return
        if not killed:
            self.send(effects)

    def to_site(self, message: ToSite) -> None:
        site, relay = self.sites[message.site], self.relay
        if message.what is hub.AskConsent:
            site.asked(self.terms)
            self.answer(site)
        elif message.what is hub.TellClosed and site.stored:
            site.step(member.CancelNoted("over"))
        elif site.stored and site.state not in (SiteState.DECLINED, SiteState.CANCELLED):
            self.work(site, message.what, relay)

    def work(self, site: Site, what: type[hub.Effect], relay: Relay) -> None:
        name = site.name
        try:
            if what is hub.AskSealed:
                data = site.seal(relay.agreed(), self.now)
                self.flying.append(ToRelay(lambda: relay.take_sealed(name, data, self.now)))
            elif what is hub.AskKeys and site.sealed:
                if wrapped := site.reveal(relay.of_others(name), self.now):
                    self.flying.append(ToRelay(lambda: relay.take_keys(name, wrapped)))
            elif (
                what is hub.DeliverKeys
                and site.revealed
                and site.open(relay.keys_for(name), self.now)
            ):
                self.flying.append(ToRelay(lambda: relay.step(hub.ExpertsOpened(name))))
        except SanctionExpiredError:
            assert self.now > NOW
        except FedPalmError:
            # The relay of an old instruction: an exchange that is over has nothing to fetch.
            assert relay.machine.ended

    def answer(self, site: Site) -> None:
        """What a site sends until it has arrived, and again when it is asked again."""
        name, relay = site.name, self.relay
        if site.state is SiteState.DECLINED:
            self.flying.append(ToRelay(lambda: relay.step(hub.ConsentRefused(name, "no"))))
        elif site.consent is not None and site.state is not SiteState.CANCELLED:
            consent = site.consent
            self.flying.append(ToRelay(lambda: relay.take_consent(name, consent)))

    def deliver(self, message: ToSite | ToRelay) -> None:
        if isinstance(message, ToSite):
            self.to_site(message)
        else:
            self.to_relay(message)

    # --- what can happen

    @rule(name=st.sampled_from(ROSTER))
    def people_say_yes(self, name: str) -> None:
        if self.sites[name].state is SiteState.ASKED:
            self.sites[name].approve()

    @rule(name=st.sampled_from(ROSTER), sure=st.integers(0, 9))
    def people_say_no(self, name: str, sure: int) -> None:
        over = (None, SiteState.COMPLETED, SiteState.DECLINED, SiteState.CANCELLED)
        if sure == 0 and self.sites[name].state not in over:
            self.called_off = True
            self.sites[name].step(member.Declined("no"))

    @rule(sure=st.integers(0, 9))
    def operator_cancels(self, sure: int) -> None:
        cancel = hub.CancelRequested("ada", "wrong plan")
        if self.relay.machine.state in (ExchangeState.DELIVERING, ExchangeState.COMPLETED):
            with pytest.raises(IllegalTransitionError):
                self.relay.step(cancel)
        elif sure == 0:
            self.called_off = True
            self.send(self.relay.step(cancel))

    @rule()
    @precondition(lambda self: self.relay.machine.state is ExchangeState.PROPOSED)
    @precondition(lambda self: self.terms.without_refusers and len(self.relay.machine.signers) > 1)
    def operator_closes_the_answers(self) -> None:
        self.send(self.relay.step(hub.AnswersClosed("ada")))

    @rule(sure=st.integers(0, 19))
    def it_expires(self, sure: int) -> None:
        if sure == 0:
            self.now = TOO_LATE
            self.called_off = True

    @rule()
    @precondition(lambda self: self.now > NOW and not self.relay.machine.ended)
    def the_coordinators_clock_ticks(self) -> None:
        self.send(self.relay.step(hub.TimeOver()))

    @rule(data=st.data(), keep=st.booleans())
    @precondition(lambda self: self.flying)
    def a_message_arrives(self, data: st.DataObject, keep: bool) -> None:
        at = data.draw(st.integers(0, len(self.flying) - 1))
        self.deliver(self.flying[at] if keep else self.flying.pop(at))

    @rule(data=st.data())
    @precondition(lambda self: self.flying)
    def a_message_is_lost(self, data: st.DataObject) -> None:
        self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))

    @rule(data=st.data())
    @precondition(lambda self: self.flying)
    def a_message_is_stored_but_its_effects_are_killed(self, data: st.DataObject) -> None:
        message = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        if isinstance(message, ToRelay):
            self.to_relay(message, killed=True)

    @rule()
    def the_coordinator_restarts(self) -> None:
        self.send(self.relay.machine.outstanding())

    @rule(name=st.sampled_from(ROSTER))
    def a_site_connects_again(self, name: str) -> None:
        asked = self.relay.machine.outstanding()
        self.send(one for one in asked if getattr(one, "site", None) == name)
        if self.sites[name].state in (SiteState.APPROVED, SiteState.DECLINED):
            self.answer(self.sites[name])

    # --- what must hold whatever happens

    @invariant()
    def a_site_seals_at_most_once_and_only_after_every_answer(self) -> None:
        for site in self.sites.values():
            assert site.sealings <= 1
            if site.sealings:
                machine = self.relay.machine
                assert set(machine.signers) | set(machine.refused) == set(ROSTER)
                assert site.exchange.signers == machine.signers

    @invariant()
    def no_key_leaves_before_every_sealed_expert_is_stored(self) -> None:
        relay = self.relay
        if any(site.revealed for site in self.sites.values()):
            assert set(relay.sealed) == set(relay.machine.signers)
        for site in self.sites.values():
            if site.revealed:
                assert dict(site.others) == relay.of_others(site.name)

    @invariant()
    def what_was_opened_is_what_its_sender_committed_to(self) -> None:
        for site in self.sites.values():
            assert all((one == expert_of(name)).all() for name, one in site.experts.items())

    @invariant()
    def nobody_receives_who_does_not_release(self) -> None:
        for site in self.sites.values():
            if site.experts:
                assert site.name in self.relay.keys and site.sealings == 1

    @invariant()
    def a_receipt_means_that_a_signer_has_every_expert(self) -> None:
        machine = self.relay.machine
        for name in machine.delivered:
            assert {*self.sites[name].experts, name} == set(machine.signers)

    @invariant()
    def once_the_keys_are_out_nobody_ends_it_for_another(self) -> None:
        """A signer is done by its own receipt or its own no, or because the time is over."""
        machine = self.relay.machine
        if machine.revealed and machine.revealed == set(machine.signers):
            assert machine.ended == (not machine.undone)
            for name in machine.failed:
                assert self.sites[name].state is SiteState.DECLINED or self.now > NOW

    def teardown(self) -> None:
        """Once the network behaves and everybody who is asked says yes, all comes to its end."""
        if not hasattr(self, "relay"):
            return
        for _ in range(12):
            self.the_coordinator_restarts()
            for name in ROSTER:
                self.people_say_yes(name)
                self.a_site_connects_again(name)
            while self.flying:
                self.deliver(self.flying.pop(0))
            if self.now > NOW and not self.relay.machine.ended:
                self.the_coordinators_clock_ticks()
        machine = self.relay.machine
        assert machine.ended
        assert machine.state is ExchangeState.COMPLETED or self.called_off
        if machine.state is ExchangeState.COMPLETED:
            assert {self.sites[name].state for name in machine.delivered} == {SiteState.COMPLETED}
            assert self.called_off or machine.delivered == set(machine.signers)
        held = b"".join([*self.relay.sealed.values(), *self.relay.of_others("").values()])
        for name in ROSTER:
            plain = expert_of(name).tobytes()
            assert not any(plain[at : at + 8] in held for at in range(0, len(plain) - 8, 8))


Federation.TestCase.settings = settings(max_examples=20, stateful_step_count=45)
TestExchangeFederation = Federation.TestCase


# --- a coordinator that lies ----------------------------------------------------------------------------


class LyingCoordinator(RuleBasedStateMachine):
    """It shows any site any consents, sealed experts and keys that there are, in any order and place."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = make_terms(without_refusers=True, roster=tuple(sorted(MEMBERS)))
        self.sites = {name: Site(MEMBERS[name]) for name in sorted(MEMBERS)}
        self.now = NOW
        for site in self.sites.values():
            site.asked(self.terms)
            site.approve()

    names = st.sampled_from(sorted(MEMBERS))
    groups = st.sets(names, min_size=2)

    def sealed(self) -> dict[str, bytes]:
        return {name: site.sealed for name, site in self.sites.items() if site.sealed}

    @initialize(views=st.lists(groups, min_size=1, max_size=2))
    def it_chooses_its_stories(self, views: list[set[str]]) -> None:
        """Whom it says the signers are, to one half of the sites and to the other."""
        self.views = [sorted(view) for view in views]

    @rule(name=names, data=st.data())
    def it_shows_a_site_some_of_the_consents(self, name: str, data: st.DataObject) -> None:
        view = data.draw(st.sampled_from(self.views))
        consents = [self.sites[one].consent for one in view]
        with suppress(FedPalmError):
            self.sites[name].seal(consents, self.now)

    @rule(view=st.integers(0, 1))
    def it_tells_one_story_to_all(self, view: int) -> None:
        consents = [self.sites[one].consent for one in self.views[view % len(self.views)]]
        for site in self.sites.values():
            with suppress(FedPalmError):
                site.seal(consents, self.now)

    @rule()
    def it_passes_on_every_sealed_expert(self) -> None:
        there = self.sealed()
        for site in self.sites.values():
            with suppress(FedPalmError):
                site.reveal({o: there[o] for o in site.exchange.others if o in there}, self.now)

    @rule(name=names, data=st.data())
    def it_shows_a_site_some_sealed_experts(self, name: str, data: st.DataObject) -> None:
        there, site = self.sealed(), self.sites[name]
        if not there:
            return
        true = {one: there[one] for one in site.exchange.others if one in there}
        shown = true
        if data.draw(st.booleans()):
            pool = st.sampled_from(sorted(there.values()))
            shown = {one: data.draw(pool) for one in data.draw(st.sets(self.names))}
        with suppress(FedPalmError):
            site.reveal(shown, self.now)

    @rule(name=names, swap=st.booleans())
    def it_hands_out_keys(self, name: str, swap: bool) -> None:
        site = self.sites[name]
        keys = {s.name: s.wrapped.get(name, b"") for s in self.sites.values() if s.revealed}
        if swap and len(keys) > 1:
            keys = dict(
                zip(keys, [*list(keys.values())[1:], *list(keys.values())[:1]], strict=True)
            )
        with suppress(FedPalmError):
            site.open(keys, self.now)

    @rule(name=names, number=st.integers(1, 3))
    def it_proposes_again(self, name: str, number: int) -> None:
        again = make_terms(
            without_refusers=True,
            roster=self.terms.roster,
            exchange_id=f"trial-1-y{number}",
            number=number,
        )
        site = self.sites[name]
        if site.exchange.superseded_by(again):
            # Later terms end what was never sealed: then there is nothing here to look at any more.
            assert number > self.terms.number and not site.exchange.sealed
            return
        with pytest.raises(SanctionRolledBackError):
            site.asked(again)

    @invariant()
    def keys_leave_only_if_all_signers_sealed_under_one_sanction(self) -> None:
        for site in self.sites.values():
            if site.revealed:
                mine = site.exchange
                theirs = [self.sites[name].exchange for name in mine.others]
                assert {one.sanction for one in theirs} == {mine.sanction}
                assert {one.signers for one in theirs} == {mine.signers}

    @invariant()
    def a_site_opens_what_was_committed_to_by_those_who_signed_with_it(self) -> None:
        for site in self.sites.values():
            assert site.sealings <= 1
            assert set(site.experts) in (set(), set(site.exchange.others))
            assert all((one == expert_of(name)).all() for name, one in site.experts.items())


LyingCoordinator.TestCase.settings = settings(max_examples=30, stateful_step_count=25)
TestLyingCoordinator = LyingCoordinator.TestCase


def sealed_under(groups: Mapping[str, Iterable[str]]) -> dict[str, Site]:
    """Each site, having sealed under the consents of the group that it was shown."""
    terms = make_terms(without_refusers=True, roster=tuple(sorted(MEMBERS)))
    sites = {name: Site(MEMBERS[name]) for name in sorted(MEMBERS)}
    for site in sites.values():
        site.asked(terms)
        site.approve()
    for name, group in groups.items():
        sites[name].seal([sites[one].consent for one in group], NOW)
    return sites


def test_two_sets_of_consents_for_two_groups_cost_no_honest_site_its_key():
    """To some it says that south refused, to the others that nobody did."""
    everybody = sorted(MEMBERS)
    few = ["east", "north", "west"]
    sites = sealed_under({"east": few, "north": few, "west": everybody, "south": everybody})
    for site in sites.values():
        shown = {name: sites[name].sealed for name in site.exchange.others}
        with pytest.raises((ReplayedExpertError, WrongRecipientError)):
            site.reveal(shown, NOW)
        assert not site.revealed and site.state is SiteState.SEALED


def test_two_groups_that_know_nothing_of_each_other_exchange_among_themselves():
    sites = sealed_under(
        {name: pair for pair in (["east", "north"], ["south", "west"]) for name in pair}
    )
    for site in sites.values():
        (other,) = site.exchange.others
        assert set(site.reveal({other: sites[other].sealed}, NOW)) == {other}
    strangers = {"west": sites["west"].wrapped["south"]}
    with pytest.raises(SealedExpertError):
        sites["east"].open(strangers, NOW)


@pytest.mark.parametrize("withheld", ["north", "west"])
def test_a_withheld_expert_costs_no_site_its_key(withheld: str):
    sites = sealed_under({name: sorted(MEMBERS) for name in MEMBERS})
    shown = {name: one.sealed for name, one in sites.items() if name not in ("east", withheld)}
    with pytest.raises(RefusedError, match="every other signer"):
        sites["east"].reveal(shown, NOW)
    shown[withheld] = sites["south"].sealed
    with pytest.raises(SealedExpertError, match=f"not signed by {withheld}"):
        sites["east"].reveal(shown, NOW)
    assert not sites["east"].revealed


def test_a_site_that_is_left_out_of_the_consents_that_it_is_shown_seals_nothing():
    sites = sealed_under({})
    others = [sites[name].consent for name in ("north", "south", "west")]
    with pytest.raises(NotOnRosterError, match="east has not signed"):
        sites["east"].seal(others, NOW)
    assert sites["east"].state is SiteState.APPROVED


def test_a_copier_is_found_before_any_honest_key_leaves():
    """West has learned the hash of north's expert, commits to it, and seals it as its own."""
    terms = make_terms()
    sites = {name: Site(MEMBERS[name]) for name in ROSTER}
    sites["west"] = Site(replace(MEMBERS["west"], takes="north"))
    for site in sites.values():
        site.asked(terms)
        site.approve()
    consents = [site.consent for site in sites.values()]
    for site in sites.values():
        site.seal(consents, NOW)
    for name in ("east", "north"):
        shown = {one: sites[one].sealed for one in sites[name].exchange.others}
        with pytest.raises(DuplicateExpertError, match=r"north and west|west and north"):
            sites[name].reveal(shown, NOW)
        assert not sites[name].revealed


def test_after_the_expiry_no_site_seals_reveals_or_opens():
    sites = sealed_under({name: sorted(MEMBERS) for name in ("north", "south", "west")})
    consents = [site.consent for site in sites.values()]
    with pytest.raises(SanctionExpiredError):
        sites["east"].seal(consents, TOO_LATE)
    sites["east"].seal(consents, NOW)
    for site in sites.values():
        shown = {name: sites[name].sealed for name in site.exchange.others}
        with pytest.raises(SanctionExpiredError):
            site.reveal(shown, TOO_LATE)
        site.reveal(shown, NOW)
    keys = {name: site.wrapped.get("east", b"") for name, site in sites.items()}
    with pytest.raises(SanctionExpiredError):
        sites["east"].open(keys, TOO_LATE)
    assert sites["east"].open(keys, NOW)
