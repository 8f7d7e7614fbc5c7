"""Sites that exchange their experts in memory: honest, or lying in whatever a test changes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel

from fedpalm.exchange import sealing
from fedpalm.exchange.consent import Consent, Coverage, Sanction, commit, new_salt
from fedpalm.exchange.sealing import (
    SealedExpert,
    SealedHeader,
    expert_hash,
    open_expert,
    seal_expert,
)
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.layout import FloatVector, Layout, TensorSpec
from fedpalm.pki import hybrid
from fedpalm.pki.authority import create_authority
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import Role
from fedpalm.pki.signing import sign
from fedpalm.pki.statement import SignedStatement, Statement
from tests.support.pki import TestAuthority

M = TypeVar("M", bound=BaseModel)
NOW = 1_800_000_000.0
EXPIRES_MS = round((NOW + 7 * 86_400) * 1000)
ROSTER = ("east", "north", "west")
LAYOUT = Layout(
    (TensorSpec("closed_set.expert.gabor.sigma", ()), TensorSpec("closed_set.expert.conv", (8, 5)))
)
PLAN_HASH = bytes(range(32)).hex()


@cache
def authority() -> TestAuthority:
    return TestAuthority.of(create_authority("palms", NOW)[0])


@cache
def identity(name: str, role: Role = Role.PARTICIPANT) -> TlsIdentity:
    return authority().enrol(role, name, now=NOW)


def expert_of(name: str) -> FloatVector:
    """(P,) float32, another for each name."""
    start = sum(name.encode())
    return np.linspace(-start, 1, LAYOUT.size, dtype=np.float32)


def make_terms(**changes: Any) -> ExchangeTerms:
    values: dict[str, Any] = {
        "federation": "palms",
        "run": "trial-1",
        "exchange_id": "trial-1-x1",
        "number": 1,
        "plan_hash": PLAN_HASH,
        "roster": ROSTER,
        "layout_hash": LAYOUT.hash.hex(),
        "without_refusers": False,
        "purpose": "verification at the clinics of the trial",
        "expires_ms": EXPIRES_MS,
    }
    return ExchangeTerms(**{**values, **changes})


@dataclass(frozen=True)
class Member:
    """A site, the key that it receives with, and the expert that it commits to."""

    name: str
    identity: TlsIdentity = field(repr=False)
    key: HybridKey = field(repr=False, default_factory=HybridKey.generate)
    salt: bytes = field(repr=False, default_factory=new_salt)
    announced: str = ""
    """Hash of the expert, if it is not the one of its name."""
    takes: str = ""
    """Whose expert it has, if it is not its own."""

    @property
    def expert(self) -> FloatVector:
        return expert_of(self.takes or self.name)

    @property
    def expert_hash(self) -> str:
        return self.announced or expert_hash(LAYOUT, self.expert)

    def says(self, terms: ExchangeTerms, **changes: Any) -> Consent:
        values: dict[str, Any] = {
            "federation": terms.federation,
            "terms": terms,
            "site": self.name,
            "recipient_key": self.key.public_bytes.hex(),
            "commitment": commit(terms.plan_hash, self.name, self.salt, self.expert_hash),
            "log_size": 12,
            "log_root": "ab" * 32,
            "privacy": Coverage(),
        }
        return Consent(**{**values, **changes})

    def consent(self, terms: ExchangeTerms, **changes: Any) -> SignedStatement:
        return signed_by(self.identity, self.says(terms, **changes))


def member(name: str, **changes: Any) -> Member:
    return Member(name, identity(name), **changes)


def signed_by(who: TlsIdentity, statement: Statement, domain: str = "") -> SignedStatement:
    """Signed by anybody, whoever the statement says it is of."""
    message = statement.to_bytes()
    signature = sign(who.signing_key, domain or statement.DOMAIN, message)
    return SignedStatement(message, signature, who.chain)


@dataclass(frozen=True)
class Group:
    """Sites and the terms that they say yes to; ``others`` makes another group with some of it changed."""

    terms: ExchangeTerms = field(default_factory=make_terms)
    members: Mapping[str, Member] = field(
        default_factory=lambda: {name: member(name) for name in ROSTER}
    )

    def other(self, *changed: Member, **terms: Any) -> Group:
        """Other terms, or other members in the place of those of the same name."""
        members = {**self.members, **{one.name: one for one in changed}}
        return Group(changed_in(self.terms, **terms), members)

    def consents(self, *names: str) -> list[SignedStatement]:
        return [self.members[name].consent(self.terms) for name in names or sorted(self.members)]

    def sanction(
        self, consents: Iterable[SignedStatement] | None = None, now: float = NOW
    ) -> Sanction:
        given = self.consents() if consents is None else consents
        return Sanction(given, self.terms, authority().authority.anchors, now=now)

    def seal(
        self, sanction: Sanction, sender: str = "north", **changes: Any
    ) -> tuple[SealedExpert, dict[str, bytes]]:
        one = self.members[sender]
        values: dict[str, Any] = {
            "sender": sender,
            "salt": one.salt,
            "signing_key": one.identity.signing_key,
        }
        expert = changes.pop("expert", one.expert)
        layout = changes.pop("layout", LAYOUT)
        return seal_expert(expert, layout, sanction, **{**values, **changes})

    def open(
        self, sanction: Sanction, sealed: SealedExpert, wrapped: bytes, **changes: Any
    ) -> FloatVector:
        """As east opens what north has sealed, unless it is changed."""
        recipient = changes.get("recipient", "east")
        values: dict[str, Any] = {
            "sender": "north",
            "recipient": recipient,
            "key": self.members.get(recipient, self.members["east"]).key,
            "now": NOW,
        }
        layout = changes.pop("layout", LAYOUT)
        return open_expert(sealed, wrapped, layout, sanction, **{**values, **changes})

    def signed_anew(self, sealed: SealedExpert, by: str = "north", **header: Any) -> SealedExpert:
        """What a dishonest sender makes: a header of its choice, or other parts, properly signed."""
        made = replace(sealed, header=changed_in(sealed.header, **header))
        return signed_sealed(made, self.members[by].identity)

    def sealed_content(
        self, sanction: Sanction, plaintext: bytes, sender: str = "north", **header: Any
    ) -> tuple[SealedExpert, dict[str, bytes]]:
        """Any content, encrypted, wrapped and signed by the book by a sender that wrote its own program.

        Its hash is the announced one; ``header`` changes what the header says.
        """
        one, key = self.members[sender], secrets.token_bytes(32)
        values: dict[str, Any] = {
            **sealing._expected(sanction, sender),
            "salt": one.salt.hex(),
            "expert_hash": one.expert_hash,
            "plaintext_bytes": len(plaintext),
            "key_commitment": sealing._key_commitment(key),
        }
        made = SealedHeader(**{**values, **header})
        ciphertext = AESGCM(key).encrypt(sealing._NONCE, plaintext, made.encoded)
        return self.with_keys(
            sanction, made, ciphertext, dict.fromkeys(sanction.others(sender), key)
        )

    def with_keys(
        self, sanction: Sanction, header: SealedHeader, ciphertext: bytes, keys: Mapping[str, bytes]
    ) -> tuple[SealedExpert, dict[str, bytes]]:
        """A content key for each recipient, wrapped, its hash signed."""
        wrapped = {
            to: hybrid.seal(key, sanction.party(to).recipient_key, sealing._info(header, to))
            for to, key in keys.items()
        }
        hashes = tuple(sealing._wrapped_hash(wrapped[to]) for to in wrapped)
        sealed = SealedExpert(header, hashes, ciphertext, bytes(64))
        return signed_sealed(sealed, self.members[header.sender].identity), wrapped


def changed_in(model: M, **changes: Any) -> M:
    """A new one: a copy would keep what the old one remembers of itself, its bytes and its hash."""
    fields = {name: getattr(model, name) for name in type(model).model_fields}
    return type(model)(**{**fields, **changes})


def signed_sealed(sealed: SealedExpert, who: TlsIdentity) -> SealedExpert:
    message = sealing._signed_bytes(sealed.header, sealed.key_hashes, sealed.ciphertext)
    return replace(sealed, signature=sign(who.signing_key, sealing.SIGNATURE_DOMAIN, message))


def plaintext_of(tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file."""
    return safetensors.numpy.save({n: np.asarray(t) for n, t in tensors.items()}, metadata)


class Spies:
    """Counts what comes near a plaintext: a key that is opened, a decryption, a parse.

    ``released`` has what was decrypted, ``used`` the keys that something was encrypted with.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.calls = {"key opened": 0, "decrypted": 0, "parsed": 0}
        self.released: list[bytes] = []
        self.used: list[bytes] = []
        spies = self

        class Watched:
            def __init__(self, key: bytes) -> None:
                self.key, self.real = key, AESGCM(key)

            def encrypt(self, *args: Any) -> bytes:
                spies.used.append(self.key)
                return self.real.encrypt(*args)

            def decrypt(self, *args: Any) -> bytes:
                spies.calls["decrypted"] += 1
                spies.released.append(self.real.decrypt(*args))
                return spies.released[-1]

        monkeypatch.setattr(sealing, "AESGCM", Watched)
        self._count(monkeypatch, HybridKey, "open", "key opened")
        self._count(monkeypatch, safetensors.numpy, "load", "parsed")

    def _count(self, monkeypatch: Any, owner: Any, name: str, what: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.calls[what] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    @property
    def total(self) -> int:
        return sum(self.calls.values())
