"""A site's yes to an exchange, and what all of them together allow.

A consent names the terms and carries the key that the site will receive with, signed by the site's
long-term key under a certificate of the pinned CA. So a coordinator, which relays consents, can neither
invent a yes nor put its own key in a site's place. An :class:`Agreement` cannot exist unless every
consent of the roster was verified, and sealing (``sealing.py``) takes nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..canonical import canonical_json, domain_hash
from ..errors import ConsentError, FedPalmError, IdentityError, NotOnRosterError, ProtocolError
from ..pki.hybrid import hybrid_public_key
from ..pki.identity import PARSE_ERRORS, Identity, Role
from ..pki.keys import SigningKey, VerifyingKey
from ..pki.request import signing_key_of
from ..pki.signing import MAX_INTERMEDIATES, sign, verify_signed_by
from .terms import ExchangeTerms

SIGNATURE_DOMAIN = "exchange-consent/v1"
MAX_CONSENT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Consent:
    """``site`` says yes to ``terms`` and will receive with ``recipient_key`` (public bytes).

    Raises:
        NotOnRosterError, ProtocolError: on construction.
    """

    terms: ExchangeTerms
    site: str
    recipient_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.site not in self.terms.roster:
            raise NotOnRosterError(f"{self.site} is not on the roster of this exchange")
        hybrid_public_key(self.recipient_key)

    @cached_property
    def signed_bytes(self) -> bytes:
        """Exactly what the site signs."""
        return canonical_json(self.to_json())

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name this consent."""
        return domain_hash(SIGNATURE_DOMAIN, self.signed_bytes)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "terms": self.terms.to_json(),
            "site": self.site,
            "recipient_key": self.recipient_key.hex(),
        }


@dataclass(frozen=True)
class SignedConsent:
    """A consent as it travels: with its signature and the certificates that say whose it is."""

    consent: Consent
    signature: bytes
    chain: tuple[x509.Certificate, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                **self.consent.to_json(),
                "signature": self.signature.hex(),
                "chain": [
                    base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
                    for certificate in self.chain
                ],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedConsent:
        """Inverse of :meth:`to_bytes`; checks form, not truth.

        Raises:
            ProtocolError, NotOnRosterError: not the bytes of a consent of this version.
        """
        if len(data) > MAX_CONSENT_BYTES:
            raise ProtocolError(f"a consent of {len(data)} bytes, the limit is {MAX_CONSENT_BYTES}")
        try:
            values = json.loads(data)
            ders = [base64.b64decode(text, validate=True) for text in values["chain"]]
            if len(ders) > MAX_INTERMEDIATES + 1:
                raise ProtocolError(f"a consent with {len(ders)} certificates")
            signed = cls(
                Consent(
                    terms=ExchangeTerms.from_json(values["terms"]),
                    site=values["site"],
                    recipient_key=bytes.fromhex(values["recipient_key"]),
                ),
                bytes.fromhex(values["signature"]),
                tuple(x509.load_der_x509_certificate(der) for der in ders),
            )
        except (*PARSE_ERRORS, KeyError, RecursionError) as error:
            raise ProtocolError(f"malformed consent: {error!r}") from error
        if signed.to_bytes() != data:
            raise ProtocolError("malformed consent: not in canonical form")
        return signed


@dataclass(frozen=True)
class Party:
    """A site whose consent holds: the keys to verify it by and to seal to it with."""

    site: str
    signing_key: VerifyingKey = field(repr=False)
    recipient_key: bytes = field(repr=False)
    consent_hash: bytes


class Agreement:
    """Every site of the roster has said yes to the same terms; verified on construction.

    Args:
        consents: exactly one of each site of ``terms.roster``, in any order.
        anchors: the pinned trust.
        now: seconds since the Unix epoch.
    Raises:
        ConsentError: a yes is missing, given twice, for other terms, not properly signed, or shares a
            key with another site's.
    """

    def __init__(
        self,
        consents: Iterable[SignedConsent],
        terms: ExchangeTerms,
        anchors: Sequence[x509.Certificate],
        *,
        now: float,
    ) -> None:
        parties: dict[str, Party] = {}
        for signed in consents:
            party = verify_consent(signed, terms, anchors, now=now)
            if party.site in parties:
                raise ConsentError(f"two consents of {party.site}", safe="no expert was sealed")
            parties[party.site] = party
        missing = [site for site in terms.roster if site not in parties]
        if missing:
            raise ConsentError(
                f"no consent of {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
                safe="no expert was sealed",
                next_step="every site of the roster has to say yes",
            )
        for keys in (
            {party.recipient_key for party in parties.values()},
            {party.signing_key.public_bytes_raw() for party in parties.values()},
        ):
            if len(keys) != len(parties):
                raise ConsentError("two sites use the same key", safe="no expert was sealed")
        self.terms = terms
        self.parties: Mapping[str, Party] = MappingProxyType(parties)

    def party(self, site: str) -> Party:
        """The keys of a site. Raises NotOnRosterError for any other name."""
        if site not in self.parties:
            raise NotOnRosterError(f"{site} is not on the roster of this exchange")
        return self.parties[site]


def sign_consent(
    consent: Consent, key: SigningKey, chain: tuple[x509.Certificate, ...]
) -> SignedConsent:
    """Sign a yes; record it durably before it is sent.

    Args:
        chain: the site's certificate and what lies between it and the anchor.
    """
    return SignedConsent(consent, sign(key, SIGNATURE_DOMAIN, consent.signed_bytes), chain)


def verify_consent(
    signed: SignedConsent, terms: ExchangeTerms, anchors: Sequence[x509.Certificate], *, now: float
) -> Party:
    """Check one site's yes.

    Raises:
        ConsentError: it is for other terms, or is not signed by the site that it names.
    """
    consent = signed.consent
    if consent.terms != terms:
        raise ConsentError(
            f"{consent.site} said yes to other terms than these (exchange "
            f"{consent.terms.exchange_id!r} of run {consent.terms.run!r})",
            safe="no expert was sealed",
        )
    try:
        signer = verify_signed_by(
            signed.chain,
            anchors,
            domain=SIGNATURE_DOMAIN,
            message=consent.signed_bytes,
            signature=signed.signature,
            now=now,
            role=Role.PARTICIPANT,
            federation=terms.federation,
        )
        if signer != Identity(terms.federation, Role.PARTICIPANT, consent.site):
            raise IdentityError(f"signed by {signer}")
    except FedPalmError as error:
        raise ConsentError(
            f"the consent of {consent.site} is not its own: {error.what}",
            safe="no expert was sealed",
        ) from error
    key = signing_key_of(signed.chain[0])
    return Party(consent.site, key, consent.recipient_key, consent.hash)


def verify_consents(
    consents: Iterable[SignedConsent],
    terms: ExchangeTerms,
    anchors: Sequence[x509.Certificate],
    *,
    now: float,
) -> Agreement:
    """All yeses of the roster, or a ConsentError: see :class:`Agreement`."""
    return Agreement(consents, terms, anchors, now=now)
