"""One expert, sealed by one site to all others that signed: the only form in which closed-set weights go.

Two parts, in this order. The **sealed expert**: safetensors under AES-256-GCM with a content key of its
own, a header in the clear, the hash of each wrapped key, and the sender's Ed25519 signature over all of it.
The **wrapped keys**: the content key to each recipient by HPKE base mode (RFC 9180; ML-KEM-768 + X25519,
HKDF-SHA256, AES-256-GCM) with the header's hash and the recipient's name as ``info``. A site lets its
wrapped keys go only when it has verified the sealed expert of every other signer; its signature fixed them
before.

A content key seals one message and is forgotten, so the nonce is zero; AES-GCM binds no key, so the header
names a commitment to it. Sealing and opening take a :class:`Sanction`: there are no keys to pass in from
elsewhere.

Bytes: magic (4) | header length (4) | header, canonical JSON | hash of the wrapped key (32) of each
recipient | ciphertext length (8) | ciphertext | signature (64); integers big-endian.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import safetensors
import safetensors.numpy
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..canonical import canonical_json, domain_hash
from ..errors import (
    DuplicateExpertError,
    EgressRefusedError,
    FedPalmError,
    IdentityError,
    IntegrityError,
    ReplayedExpertError,
    SealedExpertError,
    SwappedExpertError,
    WrongRecipientError,
)
from ..layout import CLOSED_SET_EXPERT, FloatVector, Layout
from ..pki.hybrid import SEAL_BYTES, HybridKey, hybrid_key_id, seal
from ..pki.keys import SigningKey
from ..pki.signing import SIGNATURE_BYTES, sign, verify
from ..pki.statement import HexHash, Label
from ..plan import MAX_SITES
from .consent import Sanction, commit
from .terms import ExchangeTerms

MAGIC = b"FPX2"
SIGNATURE_DOMAIN = "sealed-expert/v2"
MAX_EXPERT_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024
WRAPPED_BYTES = 32 + SEAL_BYTES
_TAG_BYTES = 16
_FRAME_BYTES = 4 + 4 + 8 + _TAG_BYTES + SIGNATURE_BYTES
_HEADER_BYTES, _RECIPIENT_BYTES = 1024, 160
"""Of a header at most: what is there once, and a recipient."""
_MOST_BYTES = MAX_EXPERT_BYTES + MAX_HEADER_BYTES + 32 * MAX_SITES + _FRAME_BYTES
_NONCE = bytes(12)
_INFO_LABEL = b"fedpalm/expert-key/v2\x00"


class Recipient(BaseModel):
    """A site that can open a sealed expert, and the fingerprint of the key that it will do so with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    site: Label
    key_id: HexHash


class SealedHeader(BaseModel):
    """What a sealed expert says of itself in the clear.

    ``salt`` opens the sender's commitment to ``expert_hash``; ``plaintext_bytes`` is the length of the
    safetensors file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    federation: Label
    run: Label
    exchange_id: Label
    sanction: HexHash
    plan_hash: HexHash
    sender: Label
    recipients: tuple[Recipient, ...] = Field(min_length=1, max_length=MAX_SITES)
    layout_hash: HexHash
    salt: HexHash
    expert_hash: HexHash
    plaintext_bytes: Annotated[int, Field(gt=0, le=MAX_EXPERT_BYTES)]
    key_commitment: HexHash

    @cached_property
    def encoded(self) -> bytes:
        """Canonical JSON: signed, and associated data of the ciphertext."""
        return canonical_json(self.model_dump(mode="json"))

    def position(self, recipient: str) -> int:
        """Where a recipient stands. Raises WrongRecipientError: it is none."""
        for at, one in enumerate(self.recipients):
            if one.site == recipient:
                return at
        raise WrongRecipientError(
            f"the expert of {self.sender} is not sealed to {recipient}", safe="it was not opened"
        )


@dataclass(frozen=True)
class SealedExpert:
    """Header, hashes of the wrapped keys by recipient, ciphertext, and the signature over all three."""

    header: SealedHeader
    key_hashes: tuple[bytes, ...]
    ciphertext: bytes
    signature: bytes

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name the whole."""
        return domain_hash("sealed-expert-hash/v2", self.to_bytes())

    def to_bytes(self) -> bytes:
        header = self.header.encoded
        return b"".join(
            (
                MAGIC,
                len(header).to_bytes(4, "big"),
                header,
                *self.key_hashes,
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
        if len(data) > _MOST_BYTES or data[:4] != MAGIC:
            raise SealedExpertError(
                "not a sealed expert: too long, or of another format or version"
            )
        header_end = 8 + int.from_bytes(data[4:8], "big")
        if header_end > 8 + MAX_HEADER_BYTES:
            raise SealedExpertError("not a sealed expert: its header is too long")
        header = _parse_header(data[8:header_end])
        keys_end = header_end + 32 * len(header.recipients)
        ciphertext_at = keys_end + 8
        ciphertext_end = ciphertext_at + int.from_bytes(data[keys_end:ciphertext_at], "big")
        if (
            len(data) != ciphertext_end + SIGNATURE_BYTES
            or ciphertext_end - ciphertext_at != header.plaintext_bytes + _TAG_BYTES
        ):
            raise SealedExpertError("not a sealed expert: its lengths do not add up")
        return cls(
            header,
            tuple(data[at : at + 32] for at in range(header_end, keys_end, 32)),
            data[ciphertext_at:ciphertext_end],
            data[ciphertext_end:],
        )


WrappedKeys = Mapping[str, bytes]
"""The content key of one sealed expert, wrapped for each recipient: WRAPPED_BYTES bytes by site."""


def max_sealed_bytes(layout: Layout, sites: int) -> int:
    """The most bytes that a sealed expert of this layout has where so many sites sign."""
    plaintext = _plaintext(layout, np.zeros(layout.size, np.float32))
    recipients = (32 + _RECIPIENT_BYTES) * (sites - 1)
    return len(plaintext) + _FRAME_BYTES + _HEADER_BYTES + recipients


def expert_hash(layout: Layout, expert: FloatVector) -> str:
    """Hex of 32 bytes that name an expert: its layout and its little-endian float32 bytes."""
    return domain_hash("expert/v1", layout.hash, expert.astype("<f4").tobytes()).hex()


def seal_expert(
    expert: FloatVector,
    layout: Layout,
    sanction: Sanction,
    *,
    sender: str,
    salt: bytes,
    signing_key: SigningKey,
) -> tuple[SealedExpert, dict[str, bytes]]:
    """Seal a site's expert to every other signer. Store both results before either is sent.

    Args:
        expert: (P,) float32 of ``layout``, whose tensors are all ``closed_set.expert.*``.
        salt: what the sender's commitment was made with.
        signing_key: the sender's own, as in its consent.
    Raises:
        EgressRefusedError: the layout holds anything but an expert, or is not the agreed one.
        LayoutMismatchError, NonFiniteUpdateError: the vector does not fit, or holds NaN or infinity.
        NotOnRosterError: the sender has not signed.
        SealedExpertError: another's key, more than the cap.
        SwappedExpertError: not the expert that the sender committed to.
    """
    _check_layout(layout, sanction)
    plaintext = _plaintext(layout, expert)
    party = sanction.party(sender)
    if party.signing_key != signing_key.public_key():
        raise SealedExpertError(f"the signing key is not the one that {sender} consented with")
    if len(plaintext) > MAX_EXPERT_BYTES:
        raise SealedExpertError(f"an expert has at most {MAX_EXPERT_BYTES} bytes")
    content_key = secrets.token_bytes(32)
    header = SealedHeader(
        **_expected(sanction, sender),
        salt=salt.hex(),
        expert_hash=expert_hash(layout, expert),
        plaintext_bytes=len(plaintext),
        key_commitment=_key_commitment(content_key),
    )
    _check_commitment(header, sanction, sender)
    wrapped = {
        other: seal(content_key, sanction.party(other).recipient_key, _info(header, other))
        for other in sanction.others(sender)
    }
    key_hashes = tuple(_wrapped_hash(wrapped[one.site]) for one in header.recipients)
    ciphertext = AESGCM(content_key).encrypt(_NONCE, plaintext, header.encoded)
    signature = sign(signing_key, SIGNATURE_DOMAIN, _signed_bytes(header, key_hashes, ciphertext))
    return SealedExpert(header, key_hashes, ciphertext, signature), wrapped


def sealed_bytes(
    layout: Layout, terms: ExchangeTerms, *, sender: str, recipients: Sequence[str]
) -> int:
    """How many bytes a sealed expert has: names and shapes decide it, and nothing that is secret.

    Args:
        recipients: the other signers.
    """
    plaintext = len(_plaintext(layout, np.zeros(layout.size, np.float32)))
    any_hash = "0" * 64
    header = SealedHeader(
        federation=terms.federation,
        run=terms.run,
        exchange_id=terms.exchange_id,
        sanction=any_hash,
        plan_hash=any_hash,
        sender=sender,
        recipients=tuple(Recipient(site=site, key_id=any_hash) for site in recipients),
        layout_hash=any_hash,
        salt=any_hash,
        expert_hash=any_hash,
        plaintext_bytes=plaintext,
        key_commitment=any_hash,
    )
    return _FRAME_BYTES + len(header.encoded) + 32 * len(recipients) + plaintext


def verify_sealed(
    sealed: SealedExpert, layout: Layout, sanction: Sanction, *, sender: str, now: float
) -> None:
    """Check signature, header, commitment, in this order: all that can be known without a key.

    The coordinator, which has none, does it before it relays, and every signer before it lets its own keys
    go.

    Raises:
        SealedExpertError: not signed by ``sender``.
        ReplayedExpertError, SwappedExpertError, WrongRecipientError: signed, but not for this.
        SanctionExpiredError: too late.
        EgressRefusedError, NotOnRosterError: as in :func:`seal_expert`.
    """
    _check_layout(layout, sanction)
    sanction.terms.require_alive(now)
    header = sealed.header
    try:
        verify(
            sanction.party(sender).signing_key,
            SIGNATURE_DOMAIN,
            _signed_bytes(header, sealed.key_hashes, sealed.ciphertext),
            sealed.signature,
        )
    except IdentityError:
        raise SealedExpertError(
            f"the sealed expert is not signed by {sender}", safe="it was not opened"
        ) from None
    for name, value in _expected(sanction, sender).items():
        if getattr(header, name) != value:
            raise _ERROR_OF.get(name, ReplayedExpertError)(
                f"the sealed expert of {sender} has another {name} than this exchange",
                safe="it was not opened",
            )
    _check_commitment(header, sanction, sender)


def refuse_duplicates(sealed: Iterable[SealedExpert]) -> None:
    """Raises DuplicateExpertError: two sites announce the same expert."""
    seen: dict[str, str] = {}
    for one in sealed:
        first = seen.setdefault(one.header.expert_hash, one.header.sender)
        if first != one.header.sender:
            raise DuplicateExpertError(
                f"{first} and {one.header.sender} announce the same expert",
                safe="no key was sent, and nothing was opened",
                next_step="ask both sites; somebody else's expert is worth nothing as one's own",
            )


def verify_wrapped(sealed: SealedExpert, recipient: str, wrapped: bytes) -> None:
    """Check a wrapped key against the sender's signature, without any key.

    Raises:
        WrongRecipientError: it is not the one that the sender signed for this recipient.
    """
    at = sealed.header.position(recipient)
    if len(wrapped) != WRAPPED_BYTES or _wrapped_hash(wrapped) != sealed.key_hashes[at]:
        raise WrongRecipientError(
            f"the wrapped key is not the one that {sealed.header.sender} signed for {recipient}",
            safe="nothing was opened",
        )


def open_expert(
    sealed: SealedExpert,
    wrapped: bytes,
    layout: Layout,
    sanction: Sanction,
    *,
    sender: str,
    recipient: str,
    key: HybridKey,
    now: float,
) -> FloatVector:
    """Open what ``sender`` sealed to ``recipient``.

    In this order: signature, header, commitment, wrapped key, content key, decryption, layout, hash.

    Args:
        wrapped: the content key, wrapped for the recipient.
        key: the recipient's private key, whose public half is in its consent.
        now: seconds since the Unix epoch.
    Returns:
        (P,) float32 of ``layout``.
    Raises:
        SealedExpertError and its kinds, SanctionExpiredError: another sender, recipient, key, sanction,
            plan or layout, any altered byte, or a content that is not the announced one. No plaintext is
            released.
        EgressRefusedError, NotOnRosterError: as in :func:`seal_expert`.
    """
    verify_sealed(sealed, layout, sanction, sender=sender, now=now)
    verify_wrapped(sealed, recipient, wrapped)
    header = sealed.header
    try:
        content_key = key.open(wrapped, _info(header, recipient))
    except IntegrityError as error:
        raise WrongRecipientError(
            f"the key of {sender}'s expert cannot be opened with this site's key for the exchange",
            safe="nothing of it was used",
        ) from error
    if len(content_key) != 32 or _key_commitment(content_key) != header.key_commitment:
        raise SealedExpertError(
            f"the key of {sender}'s expert is not the one that it committed to",
            safe="nothing of it was used",
        )
    try:
        plaintext = AESGCM(content_key).decrypt(_NONCE, sealed.ciphertext, header.encoded)
    except InvalidTag:
        raise SealedExpertError(
            f"the expert of {sender} does not open", safe="nothing of it was used"
        ) from None
    expert = _strictly(plaintext, layout, sender)
    if expert_hash(layout, expert) != header.expert_hash:
        raise SwappedExpertError(
            f"the expert of {sender} is not the one that its header announces",
            safe="nothing of it was used",
        )
    return expert


def _plaintext(layout: Layout, expert: FloatVector) -> bytes:
    """An expert as safetensors: the same bytes for the same values."""
    saved: bytes = safetensors.numpy.save(dict(layout.unflatten(expert)))
    return saved


def _strictly(plaintext: bytes, layout: Layout, sender: str) -> FloatVector:
    """Safetensors of exactly the layout, finite, in the one form that :func:`seal_expert` writes."""
    try:
        tensors = safetensors.numpy.load(plaintext)
        vector = layout.flatten(tensors)
        again = _plaintext(layout, vector)
    except (FedPalmError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise SealedExpertError(
            f"the expert of {sender} does not fit its layout: {error}",
            safe="nothing of it was used",
        ) from error
    if again != plaintext:
        raise SealedExpertError(
            f"the expert of {sender} carries more than its tensors", safe="nothing of it was used"
        )
    return vector


def _check_layout(layout: Layout, sanction: Sanction) -> None:
    if not layout.only(CLOSED_SET_EXPERT):
        raise EgressRefusedError(
            f"an exchange carries {CLOSED_SET_EXPERT}* tensors and nothing else",
            safe="nothing was sealed or opened",
        )
    if layout.hash.hex() != sanction.terms.layout_hash:
        raise EgressRefusedError(
            "the sites agreed on another expert layout", safe="nothing was sealed or opened"
        )


def _check_commitment(header: SealedHeader, sanction: Sanction, sender: str) -> None:
    opened = commit(header.plan_hash, sender, bytes.fromhex(header.salt), header.expert_hash)
    if opened != sanction.party(sender).consent.commitment:
        raise SwappedExpertError(
            f"the expert of {sender} is not the one that it committed to in its consent",
            safe="it was not opened, and nothing was sent",
        )


def _expected(sanction: Sanction, sender: str) -> dict[str, Any]:
    """Every header field that follows from the sanction and the sender."""
    terms = sanction.terms
    return {
        "federation": terms.federation,
        "run": terms.run,
        "exchange_id": terms.exchange_id,
        "sanction": sanction.hash.hex(),
        "plan_hash": terms.plan_hash,
        "sender": sender,
        "recipients": tuple(
            Recipient(site=other, key_id=hybrid_key_id(sanction.party(other).recipient_key).hex())
            for other in sanction.others(sender)
        ),
        "layout_hash": terms.layout_hash,
    }


_ERROR_OF: dict[str, type[SealedExpertError]] = {
    "sender": SwappedExpertError,
    "recipients": WrongRecipientError,
}


def _key_commitment(content_key: bytes) -> str:
    return domain_hash("content-key-commitment/v1", content_key).hex()


def _wrapped_hash(wrapped: bytes) -> bytes:
    return domain_hash("wrapped-key/v1", wrapped)


def _info(header: SealedHeader, recipient: str) -> bytes:
    return _INFO_LABEL + domain_hash("sealed-header/v2", header.encoded, recipient.encode())


def _signed_bytes(header: SealedHeader, key_hashes: tuple[bytes, ...], ciphertext: bytes) -> bytes:
    return domain_hash(
        SIGNATURE_DOMAIN,
        header.encoded,
        b"".join(key_hashes),
        domain_hash("ciphertext/v2", ciphertext),
    )


def _parse_header(data: bytes) -> SealedHeader:
    try:
        header = SealedHeader.model_validate_json(data)
    except (ValidationError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "nested too deep"
        raise SealedExpertError(f"the header of a sealed expert is malformed: {why}") from None
    if header.encoded != data:
        raise SealedExpertError("the header of a sealed expert is not in canonical form")
    return header
