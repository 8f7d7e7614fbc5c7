"""Coordinator and sites together, over a network that drops, repeats, reorders and restarts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedpalm.errors import IllegalTransitionError
from fedpalm.exchange import machine as hub
from fedpalm.exchange import site as member
from fedpalm.exchange.consent import Agreement, Consent, SignedConsent, sign_consent
from fedpalm.exchange.machine import ExchangeMachine, ExchangeState
from fedpalm.exchange.site import SiteExchange, SiteState
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.pki.authority import create_authority
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import create_request

NOW = 1_700_000_000.0
ROSTER = ("east", "north", "west")
TERMS = ExchangeTerms("palms", "trial-0001", "trial-0001-x1", bytes(32), ROSTER, bytes(32))
AUTHORITY, _ = create_authority("palms", NOW)
OVER = (ExchangeState.COMPLETED, ExchangeState.CANCELLED)


def signed_consent(site: str) -> SignedConsent:
    identity, key = Identity("palms", Role.PARTICIPANT, site), new_signing_key()
    leaf = AUTHORITY.issue(create_request(identity, new_tls_key(), key), identity, now=NOW)
    consent = Consent(TERMS, site, HybridKey.generate().public_bytes)
    return sign_consent(consent, key, (leaf, AUTHORITY.issuing))


CONSENTS = {site: signed_consent(site) for site in ROSTER}


@dataclass(frozen=True)
class ToSite:
    site: str
    what: str


Message = ToSite | hub.Input


class Federation(RuleBasedStateMachine):
    """Every process keeps only what it stored; messages in flight may be lost or come twice."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ExchangeMachine(TERMS).to_json()
        self.sites: dict[str, dict[str, object]] = {}
        self.flying: list[Message] = []
        self.sealings = dict.fromkeys(ROSTER, 0)
        self.called_off = False

    # --- processes: load, step, store, then send

    def coordinator(self) -> ExchangeMachine:
        return ExchangeMachine.from_json(json.loads(json.dumps(self.store)))

    def site(self, name: str) -> SiteExchange:
        return SiteExchange.from_json(json.loads(json.dumps(self.sites[name])))

    def tell_coordinator(self, event: hub.Input, *, send: bool = True) -> None:
        before = self.coordinator()
        try:
            after, effects = before.step(event)
        except IllegalTransitionError:
            assert before.state in OVER, (before.state, event)
            return
        self.store = after.to_json()
        if send:
            self.send_from_coordinator(effects)

    def send_from_coordinator(self, effects: Iterable[hub.Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, hub.EraseSealed):
                self.flying.append(ToSite(effect.site, type(effect).__name__))

    def tell_site(self, name: str, *events: member.Input) -> SiteExchange:
        """Step in memory, store once."""
        exchange = self.site(name)
        for event in events:
            exchange = exchange.step(event)
        self.sites[name] = exchange.to_json()
        return exchange

    def answer(self, name: str) -> None:
        """What a site sends until it has arrived, and again when it is asked again."""
        exchange = self.site(name)
        if exchange.state is SiteState.DECLINED:
            self.flying.append(hub.ConsentRefused(name, exchange.reason))
        elif exchange.state in (SiteState.APPROVED, SiteState.SEALED, SiteState.COMPLETED):
            self.flying.append(hub.ConsentGiven(name, exchange.consent_hash))

    def receive(self, message: ToSite) -> None:
        """A site's driver: what it does with each thing the coordinator sends."""
        name = message.site
        if message.what == "AskConsent":
            earlier = [self.site(name)] if name in self.sites else []
            self.sites[name] = SiteExchange.propose(TERMS, name, earlier).to_json()
            self.answer(name)
        elif name not in self.sites:
            assert message.what == "TellCancelled"
        elif message.what == "TellCancelled":
            self.tell_site(name, member.CancelNoted("over"))
        elif message.what == "AskSealed":
            self.seal(name)
        elif message.what == "DeliverExperts":
            self.fetch(name)

    def seal(self, name: str) -> None:
        exchange = self.site(name)
        if exchange.state is SiteState.APPROVED:
            agreement = Agreement(CONSENTS.values(), TERMS, AUTHORITY.anchors, now=NOW)
            self.sealings[name] += 1
            hashes = {
                to: hashlib.sha256(f"{name}{to}{self.sealings[name]}".encode()).digest()
                for to in TERMS.others(name)
            }
            exchange = self.tell_site(name, member.ExpertsSealed(agreement, hashes))
        if exchange.state is SiteState.SEALED:
            for to in TERMS.others(name):
                self.flying.append(hub.ExpertSealed(name, to, exchange.sealed[to]))

    def fetch(self, name: str) -> None:
        exchange = self.site(name)
        if exchange.state is SiteState.SEALED:
            opened = (
                member.ExpertOpened(sender, hashlib.sha256(sender.encode()).digest())
                for sender in TERMS.others(name)
            )
            exchange = self.tell_site(name, *opened)
        if exchange.state is SiteState.COMPLETED:
            self.flying.append(hub.ExpertsDelivered(name))

    def deliver(self, message: Message) -> None:
        if isinstance(message, ToSite):
            self.receive(message)
        else:
            self.tell_coordinator(message)

    # --- what can happen

    @rule()
    @precondition(lambda self: self.coordinator().state is ExchangeState.PROPOSED)
    def operator_starts(self) -> None:
        self.tell_coordinator(hub.Started("ada"))

    @rule(name=st.sampled_from(ROSTER))
    def people_say_yes(self, name: str) -> None:
        if name in self.sites and self.site(name).state is SiteState.ASKED:
            self.tell_site(name, member.Approved(CONSENTS[name].consent.hash))

    @rule(name=st.sampled_from(ROSTER), sure=st.integers(0, 9))
    def people_say_no(self, name: str, sure: int) -> None:
        open_states = (SiteState.ASKED, SiteState.APPROVED, SiteState.SEALED)
        if sure == 0 and name in self.sites and self.site(name).state in open_states:
            self.called_off = True
            self.tell_site(name, member.Declined("no"))

    @rule(sure=st.integers(0, 9))
    def operator_cancels(self, sure: int) -> None:
        if sure == 0 and self.coordinator().state is not ExchangeState.COMPLETED:
            self.called_off = True
            self.tell_coordinator(hub.CancelRequested("ada", "wrong plan"))

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
        if not isinstance(message, ToSite):
            self.tell_coordinator(message, send=False)

    @rule()
    def the_coordinator_restarts(self) -> None:
        self.send_from_coordinator(self.coordinator().outstanding())

    @rule(name=st.sampled_from(ROSTER))
    def a_site_connects_again(self, name: str) -> None:
        asked = self.coordinator().outstanding()
        self.send_from_coordinator(one for one in asked if getattr(one, "site", None) == name)
        if name in self.sites and self.site(name).state in (SiteState.APPROVED, SiteState.DECLINED):
            self.answer(name)

    # --- what must hold whatever happens

    @invariant()
    def no_expert_without_an_operator_and_every_yes(self) -> None:
        machine = self.coordinator()
        sealed_somewhere = [name for name in self.sites if self.site(name).sealed]
        if machine.sealed or sealed_somewhere:
            assert machine.operator == "ada"
            assert set(machine.consents) == set(ROSTER)
            assert all(self.site(name).consent_hash for name in ROSTER)

    @invariant()
    def a_site_seals_at_most_once(self) -> None:
        assert all(count <= 1 for count in self.sealings.values())

    @invariant()
    def the_coordinator_holds_what_the_sites_sealed(self) -> None:
        for (sender, recipient), digest in self.coordinator().sealed.items():
            assert self.site(sender).sealed[recipient] == digest

    @invariant()
    def completed_means_that_every_site_has_every_expert(self) -> None:
        if self.coordinator().state is ExchangeState.COMPLETED:
            for name in ROSTER:
                assert set(self.site(name).opened) == set(TERMS.others(name))

    def teardown(self) -> None:
        """Once the network behaves and everybody who is asked says yes, all comes to its end."""
        if self.coordinator().state is ExchangeState.PROPOSED:
            return
        for _ in range(12):
            self.the_coordinator_restarts()
            for name in ROSTER:
                self.people_say_yes(name)
                self.a_site_connects_again(name)
            while self.flying:
                self.deliver(self.flying.pop(0))
        end = self.coordinator().state
        assert end is ExchangeState.COMPLETED or (self.called_off and end in OVER)
        if end is ExchangeState.COMPLETED:
            assert {self.site(name).state for name in ROSTER} == {SiteState.COMPLETED}


Federation.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestExchangeFederation = Federation.TestCase
