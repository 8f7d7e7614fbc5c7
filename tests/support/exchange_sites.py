"""Honest sites and an honest relay, each with nothing but what it has stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedpalm.exchange import machine as hub
from fedpalm.exchange.consent import Sanction
from fedpalm.exchange.machine import ExchangeMachine
from fedpalm.exchange.sealing import (
    SealedExpert,
    expert_hash,
    open_expert,
    refuse_duplicates,
    seal_expert,
    verify_sealed,
    verify_wrapped,
)
from fedpalm.exchange.site import (
    AllVerified,
    Approved,
    ExpertSealed,
    ExpertsOpened,
    Input,
    SiteExchange,
    SiteState,
)
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.layout import FloatVector
from fedpalm.pki.statement import SignedStatement
from tests.support.exchange import LAYOUT, Member, authority


def anchors() -> Any:
    return authority().authority.anchors


class Site:
    """What a site does when it is asked: it loads, checks, steps, stores at once, and then answers."""

    def __init__(self, member: Member) -> None:
        self.member, self.name = member, member.name
        self.stored: dict[str, Any] | None = None
        self.consent: SignedStatement | None = None
        self.consents: Sequence[SignedStatement] = ()
        self.sealed = b""
        self.wrapped: Mapping[str, bytes] = {}
        self.others: Mapping[str, bytes] = {}
        self.experts: dict[str, FloatVector] = {}
        self.sealings = 0
        self.revealed = False

    @property
    def exchange(self) -> SiteExchange:
        return SiteExchange.from_json(json.loads(json.dumps(self.stored)))

    @property
    def state(self) -> SiteState | None:
        return self.exchange.state if self.stored else None

    def step(self, event: Input) -> None:
        self.stored = self.exchange.step(event).to_json()

    def asked(self, terms: ExchangeTerms) -> None:
        earlier = [self.exchange] if self.stored else []
        self.stored = SiteExchange.propose(terms, self.name, earlier).to_json()

    def approve(self) -> None:
        said = self.member.says(self.exchange.terms)
        self.step(Approved(said.hash))
        self.consent = self.member.consent(self.exchange.terms)

    def sanction(self, consents: Sequence[SignedStatement], now: float) -> Sanction:
        return Sanction(consents, self.exchange.terms, anchors(), now=now)

    def seal(self, consents: Sequence[SignedStatement], now: float) -> bytes:
        """Its sealed expert: made once, and read back ever after."""
        if self.state is SiteState.APPROVED:
            sanction = self.sanction(consents, now)
            key = self.member.identity.signing_key
            sealed, wrapped = seal_expert(
                self.member.expert,
                LAYOUT,
                sanction,
                sender=self.name,
                salt=self.member.salt,
                signing_key=key,
            )
            self.step(ExpertSealed(sanction, sealed.hash))
            self.consents, self.sealed, self.wrapped = list(consents), sealed.to_bytes(), wrapped
            self.sealings += 1
        return self.sealed

    def reveal(self, others: Mapping[str, bytes], now: float) -> Mapping[str, bytes]:
        """Its wrapped keys, once the sealed expert of every other signer is here and verified."""
        if self.state is SiteState.SEALED:
            sanction = self.sanction(self.consents, now)
            found = {name: SealedExpert.from_bytes(data) for name, data in others.items()}
            for sender, sealed in found.items():
                verify_sealed(sealed, LAYOUT, sanction, sender=sender, now=now)
            refuse_duplicates([SealedExpert.from_bytes(self.sealed), *found.values()])
            self.step(AllVerified({name: sealed.hash for name, sealed in found.items()}))
            self.others, self.revealed = dict(others), True
        return self.wrapped if self.revealed else {}

    def open(self, keys: Mapping[str, bytes], now: float) -> bool:
        """Whether it has everybody's expert; opened all at once or not at all."""
        if self.state is SiteState.REVEALED:
            sanction = self.sanction(self.consents, now)
            opened = {
                sender: open_expert(
                    SealedExpert.from_bytes(data),
                    keys.get(sender, b""),
                    LAYOUT,
                    sanction,
                    sender=sender,
                    recipient=self.name,
                    key=self.member.key,
                    now=now,
                )
                for sender, data in self.others.items()
            }
            self.step(
                ExpertsOpened({name: expert_hash(LAYOUT, one) for name, one in opened.items()})
            )
            self.experts = opened
        return self.state is SiteState.COMPLETED


class Relay:
    """An honest coordinator: it verifies what it can without any key, stores, and steps its machine."""

    def __init__(self, terms: ExchangeTerms) -> None:
        self.stored = ExchangeMachine(terms, "ada").to_json()
        self.consents: dict[str, SignedStatement] = {}
        self.sealed: dict[str, bytes] = {}
        self.keys: dict[str, dict[str, bytes]] = {}

    @property
    def machine(self) -> ExchangeMachine:
        return ExchangeMachine.from_json(json.loads(json.dumps(self.stored)))

    def step(self, event: hub.Input) -> tuple[hub.Effect, ...]:
        after, effects = self.machine.step(event)
        self.stored = after.to_json()
        return effects

    def agreed(self) -> list[SignedStatement]:
        """The consents of those who sign."""
        return [self.consents[site] for site in self.machine.signers]

    def of_others(self, site: str) -> dict[str, bytes]:
        return {name: data for name, data in self.sealed.items() if name != site}

    def keys_for(self, site: str) -> dict[str, bytes]:
        return {sender: keys[site] for sender, keys in self.keys.items() if site in keys}

    def take_consent(self, site: str, signed: SignedStatement) -> tuple[hub.Effect, ...]:
        effects = self.step(hub.ConsentGiven(site, signed.hash))
        self.consents.setdefault(site, signed)
        return effects

    def take_sealed(self, site: str, data: bytes, now: float) -> tuple[hub.Effect, ...]:
        sealed = SealedExpert.from_bytes(data)
        sanction = Sanction(self.agreed(), self.machine.terms, anchors(), now=now)
        verify_sealed(sealed, LAYOUT, sanction, sender=site, now=now)
        others = [SealedExpert.from_bytes(one) for one in self.of_others(site).values()]
        refuse_duplicates([sealed, *others])
        effects = self.step(hub.ExpertSealed(site, sealed.hash))
        self.sealed.setdefault(site, data)
        return effects

    def take_keys(self, site: str, wrapped: Mapping[str, bytes]) -> tuple[hub.Effect, ...]:
        sealed = SealedExpert.from_bytes(self.sealed[site])
        assert set(wrapped) == {one.site for one in sealed.header.recipients}
        for recipient, key in wrapped.items():
            verify_wrapped(sealed, recipient, key)
        effects = self.step(hub.KeysSent(site))
        self.keys[site] = dict(wrapped)
        return effects
