"""A site's yes to an exchange, and the sanction that all of them together are.

A consent names the terms, commits to the expert that the site will release, and carries the key that it
will receive with, signed by the site's long-term key under a certificate of the pinned CA. So a
coordinator, which relays consents, can neither invent a yes nor put its own key in a site's place. A
:class:`Sanction` cannot exist unless every consent in it was verified, and sealing (``sealing.py``) takes
nothing else.

The commitment is H(label, plan, site, salt, expert): made before anything of another site's expert can be
seen, so that nobody chooses after seeing, and of no use under another site's name, so that nobody copies.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self

from cryptography import x509
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from ..canonical import canonical_json, domain_hash
from ..errors import ConsentError, FedPalmError, NotOnRosterError
from ..pki.hybrid import PUBLIC_BYTES, hybrid_public_key
from ..pki.identity import Identity, Role
from ..pki.keys import VerifyingKey
from ..pki.request import signing_key_of
from ..pki.statement import HexHash, Label, SignedStatement, Statement
from .terms import ExchangeTerms

SALT_BYTES = 32
Decimal = Annotated[str, StringConstraints(pattern=r"^[0-9][0-9.e+-]{0,31}$")]
"""A float as Python's repr writes it: floats have no place in what is signed."""


class Coverage(BaseModel):
    """What a site's log says of the privacy of its expert when it consents.

    ``none``: the training was not charged, and no noise covers the expert. Otherwise epsilon and delta of
    everything that the site's account of this unit was charged with by then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    unit: Literal["none", "record", "subject"] = "none"
    epsilon: Decimal | Literal[""] = ""
    delta: Decimal | Literal[""] = ""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        figures = (self.epsilon, self.delta)
        if self.unit == "none":
            if any(figures):
                raise ValueError("epsilon and delta of a training that was not charged")
        elif not all(isfinite(float(one or "nan")) and repr(float(one)) == one for one in figures):
            raise ValueError("epsilon and delta are finite, as Python writes them")
        return self


class Consent(Statement):
    """``site`` says yes to ``terms``.

    ``commitment`` binds it to one expert (:func:`commit`), ``recipient_key`` is the public half of the key
    that it will receive with, fresh for this exchange; its log had ``log_size`` entries of Merkle root
    ``log_root`` when it said so.
    """

    DOMAIN: ClassVar[str] = "exchange-consent/v2"

    terms: ExchangeTerms
    site: Label
    recipient_key: Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * PUBLIC_BYTES}}}$")]
    commitment: HexHash
    log_size: Annotated[int, Field(ge=0, lt=2**53)]
    log_root: HexHash
    privacy: Coverage

    @field_validator("recipient_key")
    @classmethod
    def _is_a_key(cls, key: str) -> str:
        try:
            hybrid_public_key(bytes.fromhex(key))
        except FedPalmError as error:
            raise ValueError(error.what) from None
        return key

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.PARTICIPANT, self.site)


def new_salt() -> bytes:
    """SALT_BYTES random bytes, secret until the expert is sealed."""
    return secrets.token_bytes(SALT_BYTES)


def commit(plan_hash: str, site: str, salt: bytes, expert_hash: str) -> str:
    """H(label, plan, site, salt, expert), hex: binds a site to an expert without showing it."""
    return domain_hash(
        "expert-commitment/v1",
        bytes.fromhex(plan_hash),
        site.encode(),
        salt,
        bytes.fromhex(expert_hash),
    ).hex()


@dataclass(frozen=True)
class Party:
    """A site whose consent holds: the keys to verify it by and to seal to it with."""

    site: str
    signing_key: VerifyingKey = field(repr=False)
    recipient_key: bytes = field(repr=False)
    consent: Consent = field(repr=False)


class Sanction:
    """Who releases to whom: the consents of all sites that sign, verified on construction.

    Recipients are signers: nobody receives who does not release.

    Args:
        consents: one of each site of ``terms.roster``, in any order; fewer, but two at least, where the
            terms go on without those who refuse.
        anchors: the pinned trust.
        now: seconds since the Unix epoch.
        of_record: they come from one's own store, and each was verified on its arrival: each is looked at
            as of when its certificate was last valid, since that may have ended meanwhile. ``anchors``
            may then be those of record. Never for what arrives. The terms expire by ``now`` all the same.
    Raises:
        ConsentError: a yes is missing, given twice, for other terms, not properly signed, or shares a
            key or a commitment with another site's.
        SanctionExpiredError: too late.
    """

    def __init__(
        self,
        consents: Iterable[SignedStatement],
        terms: ExchangeTerms,
        anchors: Sequence[x509.Certificate],
        *,
        now: float,
        of_record: bool = False,
    ) -> None:
        terms.require_alive(now)
        parties: dict[str, Party] = {}
        for signed in consents:
            at = signed.last_valid(now) if of_record else now
            party = verify_consent(signed, terms, anchors, now=at)
            if party.site in parties:
                raise _invalid(f"two consents of {party.site}")
            parties[party.site] = party
        check_together(terms, parties)
        self.terms = terms
        self.parties: Mapping[str, Party] = MappingProxyType(dict(sorted(parties.items())))

    @property
    def signers(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(self.parties)

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name the terms and every consent: what each sealed expert is signed under."""
        return sanction_hash(self.terms, self.parties)

    def others(self, site: str) -> tuple[str, ...]:
        """The signers without ``site``."""
        return tuple(other for other in self.parties if other != site)

    def party(self, site: str) -> Party:
        """The keys of a site. Raises NotOnRosterError for a name that has not signed."""
        if site not in self.parties:
            raise NotOnRosterError(f"{site} has not signed this exchange")
        return self.parties[site]


def check_together(terms: ExchangeTerms, parties: Mapping[str, Party]) -> None:
    """Whether consents that hold one by one are a sanction together.

    Raises:
        ConsentError: a yes is missing, fewer than two are there, or two sites share a key or a commitment.
    """
    missing = [site for site in terms.roster if site not in parties]
    if missing and not terms.without_refusers:
        raise _invalid(
            f"no consent of {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
            "every site of the roster has to say yes, as the plan has it",
        )
    if len(parties) < 2:
        raise _invalid("fewer than two sites consent: there is nobody to exchange with")
    for what, used in (
        ("recipient key", {party.recipient_key for party in parties.values()}),
        ("signing key", {p.signing_key.public_bytes_raw() for p in parties.values()}),
        ("commitment", {party.consent.commitment for party in parties.values()}),
    ):
        if len(used) != len(parties):
            raise _invalid(f"two sites use the same {what}")


def sanction_hash(terms: ExchangeTerms, parties: Mapping[str, Party]) -> bytes:
    """:attr:`Sanction.hash` of consents that were verified in another way than a :class:`Sanction` does."""
    consents = {site: party.consent.hash.hex() for site, party in parties.items()}
    return domain_hash(
        "exchange-sanction/v1",
        canonical_json({"terms": terms.hash.hex(), "consents": consents}),
    )


def verify_consent(
    signed: SignedStatement,
    terms: ExchangeTerms,
    anchors: Sequence[x509.Certificate],
    *,
    now: float,
) -> Party:
    """Check one site's yes.

    Raises:
        ConsentError: it is for other terms, of a stranger, or not signed by the site that it names.
    """
    try:
        consent = Consent.open(signed, anchors, now=now)
    except FedPalmError as error:
        raise _invalid(f"a consent is not its site's own: {error.what}") from error
    if consent.terms != terms or consent.federation != terms.federation:
        raise _invalid(
            f"{consent.site} said yes to other terms than these (exchange "
            f"{consent.terms.exchange_id!r} of run {consent.terms.run!r})"
        )
    if consent.site not in terms.roster:
        raise _invalid(f"{consent.site} is not on the roster of this exchange")
    key = signing_key_of(signed.chain[0])
    return Party(consent.site, key, bytes.fromhex(consent.recipient_key), consent)


def _invalid(why: str, next_step: str = "") -> ConsentError:
    return ConsentError(why, safe="no expert was sealed", next_step=next_step)
