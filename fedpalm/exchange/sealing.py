"""One expert, sealed by one site to one other: the only form in which closed-set weights leave a site.

HPKE base mode (RFC 9180; ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM) with the whole header as
``info``, and the sender's Ed25519 signature over header and ciphertext. Sealing and opening take an
:class:`Agreement`, so there are no keys to pass in from elsewhere.

Bytes: magic (4) | header length (4) | header, canonical JSON | ciphertext length (8) | ciphertext |
signature (64); integers big-endian.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ..canonical import canonical_json, domain_hash
from ..errors import (
    EgressRefusedError,
    FedPalmError,
    IdentityError,
    IntegrityError,
    SealedExpertError,
)
from ..layout import CLOSED_SET_EXPERT, FloatVector, Layout
from ..pki.hybrid import HybridKey, hybrid_key_id, seal
from ..pki.keys import SigningKey
from ..pki.signing import SIGNATURE_BYTES, sign, verify
from .consent import Agreement

MAGIC = b"FPX1"
SIGNATURE_DOMAIN = "sealed-expert/v1"
MAX_EXPERT_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 4096
HPKE_OVERHEAD_BYTES = 4096  # 1,120 bytes of KEM and a 16-byte tag, and room
MAX_CIPHERTEXT_BYTES = MAX_EXPERT_BYTES + HPKE_OVERHEAD_BYTES
SEAL_OVERHEAD_BYTES = HPKE_OVERHEAD_BYTES + MAX_HEADER_BYTES  # whole sealed expert over 4 P bytes
_INFO_LABEL = b"fedpalm/sealed-expert/v1\x00"


@dataclass(frozen=True)
class SealedHeader:
    """What a sealed expert says of itself in the clear. Hashes are 64 hex digits."""

    federation: str
    run: str
    exchange_id: str
    plan_hash: str
    sender: str
    recipient: str
    recipient_key_id: str
    layout_hash: str
    expert_hash: str
    expert_bytes: int

    @cached_property
    def encoded(self) -> bytes:
        """Canonical JSON: signed, and HPKE's ``info``."""
        return canonical_json({f.name: getattr(self, f.name) for f in fields(self)})


@dataclass(frozen=True)
class SealedExpert:
    """Header, ciphertext (KEM share, then AES-256-GCM) and the sender's signature over both."""

    header: SealedHeader
    ciphertext: bytes
    signature: bytes

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name the whole."""
        return domain_hash("sealed-expert-hash/v1", self.to_bytes())

    def to_bytes(self) -> bytes:
        header = self.header.encoded
        return b"".join(
            (
                MAGIC,
                len(header).to_bytes(4, "big"),
                header,
                len(self.ciphertext).to_bytes(8, "big"),
                self.ciphertext,
                self.signature,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedExpert:
        """Inverse of :meth:`to_bytes`; checks form and lengths, not truth.

        Raises:
            SealedExpertError: not exactly the bytes of one sealed expert.
        """
        if len(data) > MAX_CIPHERTEXT_BYTES + MAX_HEADER_BYTES + 80 or data[:4] != MAGIC:
            raise SealedExpertError(
                "not a sealed expert: too long, or of another format or version"
            )
        header_end = 8 + int.from_bytes(data[4:8], "big")
        ciphertext_at = header_end + 8
        ciphertext_end = ciphertext_at + int.from_bytes(data[header_end:ciphertext_at], "big")
        if (
            header_end > 8 + MAX_HEADER_BYTES
            or ciphertext_end > ciphertext_at + MAX_CIPHERTEXT_BYTES
            or len(data) != ciphertext_end + SIGNATURE_BYTES
        ):
            raise SealedExpertError("not a sealed expert: its lengths do not add up")
        return cls(
            _parse_header(data[8:header_end]),
            data[ciphertext_at:ciphertext_end],
            data[ciphertext_end:],
        )


def expert_hash(layout: Layout, expert: bytes) -> bytes:
    """32 bytes that name an expert: its layout and its little-endian float32 bytes."""
    return domain_hash("expert/v1", layout.hash, expert)


def seal_expert(
    expert: FloatVector,
    layout: Layout,
    agreement: Agreement,
    *,
    sender: str,
    recipient: str,
    signing_key: SigningKey,
) -> SealedExpert:
    """Seal a site's expert to one other site of the agreement. Store the result before it is sent.

    Args:
        expert: (P,) float32 of ``layout``, whose tensors are all ``closed_set.expert.*``.
        signing_key: the sender's own, as in its consent.
    Raises:
        EgressRefusedError: the layout holds anything but an expert, or is not the agreed one.
        LayoutMismatchError, NonFiniteUpdateError: the vector does not fit, or holds NaN or infinity.
        NotOnRosterError: sender or recipient is not a party.
        SealedExpertError: a site would seal to itself, with another's key, or more than the cap.
    """
    _check_layout(layout, agreement)
    layout.unflatten(expert)
    party = agreement.party(recipient)
    if sender == recipient:
        raise SealedExpertError(f"{sender} keeps its own expert; it is sealed to other sites only")
    if agreement.party(sender).signing_key != signing_key.public_key():
        raise SealedExpertError(f"the signing key is not the one that {sender} consented with")
    plaintext = expert.astype("<f4").tobytes()
    if len(plaintext) > MAX_EXPERT_BYTES:
        raise SealedExpertError(f"an expert has at most {MAX_EXPERT_BYTES} bytes")
    header = SealedHeader(
        **_expected(agreement, layout, sender, recipient),
        expert_hash=expert_hash(layout, plaintext).hex(),
    )
    ciphertext = seal(plaintext, party.recipient_key, _INFO_LABEL + header.encoded)
    signature = sign(signing_key, SIGNATURE_DOMAIN, _signed_bytes(header, ciphertext))
    return SealedExpert(header, ciphertext, signature)


def verify_sealed(
    sealed: SealedExpert, layout: Layout, agreement: Agreement, *, sender: str, recipient: str
) -> None:
    """Check signature, then header: all that a relay, which cannot open it, can and must do.

    Raises:
        SealedExpertError: not signed by ``sender``, or of another exchange, recipient or layout.
        EgressRefusedError, NotOnRosterError: as in :func:`seal_expert`.
    """
    _check_layout(layout, agreement)
    try:
        verify(
            agreement.party(sender).signing_key,
            SIGNATURE_DOMAIN,
            _signed_bytes(sealed.header, sealed.ciphertext),
            sealed.signature,
        )
    except IdentityError:
        raise SealedExpertError(
            f"the sealed expert is not signed by {sender}", safe="it was not opened"
        ) from None
    for name, value in _expected(agreement, layout, sender, recipient).items():
        if getattr(sealed.header, name) != value:
            raise SealedExpertError(
                f"the sealed expert of {sender} has another {name} than this exchange",
                safe="it was not opened",
            )


def open_expert(
    sealed: SealedExpert,
    layout: Layout,
    agreement: Agreement,
    *,
    sender: str,
    recipient: str,
    key: HybridKey,
) -> FloatVector:
    """Open what ``sender`` sealed to ``recipient``: signature, header, decryption, hash, in this order.

    Args:
        key: the recipient's private key, whose public half is in its consent.
    Returns:
        (P,) float32 of ``layout``.
    Raises:
        SealedExpertError: another sender, recipient, key, run, exchange, plan or layout, any altered
            byte, or a content that is not the announced one. No plaintext is released.
        EgressRefusedError, NotOnRosterError: as in :func:`seal_expert`.
    """
    verify_sealed(sealed, layout, agreement, sender=sender, recipient=recipient)
    header = sealed.header
    try:
        plaintext = key.open(sealed.ciphertext, _INFO_LABEL + header.encoded)
    except IntegrityError as error:
        raise SealedExpertError(
            f"the expert of {sender} cannot be opened with this site's key for the exchange",
            safe="nothing of it was used",
        ) from error
    if expert_hash(layout, plaintext).hex() != header.expert_hash:
        raise SealedExpertError(f"the expert of {sender} is not the one that its header announces")
    try:
        expert = np.frombuffer(plaintext, dtype="<f4").astype(np.float32)
        layout.unflatten(expert)
    except (FedPalmError, ValueError) as error:
        raise SealedExpertError(
            f"the expert of {sender} does not fit its layout: {error}"
        ) from error
    return expert


def _check_layout(layout: Layout, agreement: Agreement) -> None:
    if not layout.only(CLOSED_SET_EXPERT):
        raise EgressRefusedError(
            f"an exchange carries {CLOSED_SET_EXPERT}* tensors and nothing else",
            safe="nothing was sealed or opened",
        )
    if layout.hash != agreement.terms.layout_hash:
        raise EgressRefusedError(
            "the sites agreed on another expert layout", safe="nothing was sealed or opened"
        )


def _expected(agreement: Agreement, layout: Layout, sender: str, recipient: str) -> dict[str, Any]:
    """Every header field that follows from the agreement and the two ends."""
    terms = agreement.terms
    return {
        "federation": terms.federation,
        "run": terms.run,
        "exchange_id": terms.exchange_id,
        "plan_hash": terms.plan_hash.hex(),
        "sender": sender,
        "recipient": recipient,
        "recipient_key_id": hybrid_key_id(agreement.party(recipient).recipient_key).hex(),
        "layout_hash": layout.hash.hex(),
        "expert_bytes": 4 * layout.size,
    }


def _signed_bytes(header: SealedHeader, ciphertext: bytes) -> bytes:
    return domain_hash(SIGNATURE_DOMAIN, header.encoded, domain_hash("ciphertext/v1", ciphertext))


def _parse_header(data: bytes) -> SealedHeader:
    try:
        values = json.loads(data)
        header = SealedHeader(**values)
        for f in fields(header):
            if type(values[f.name]) is not (int if f.name == "expert_bytes" else str):
                raise ValueError(f"{f.name} is of another type")
        if header.encoded != data:
            raise ValueError("not in canonical form")
    except (ValueError, TypeError, RecursionError, FedPalmError) as error:
        raise SealedExpertError(f"the header of a sealed expert is malformed: {error}") from error
    return header
