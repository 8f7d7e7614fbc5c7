"""What sites say in the five steps of an attempt, and exactly what each of them signs.

Every signature covers the attempt's context (the hash of the manifest that all countersigned) and, from
the second step on, the hash of all keys: so nothing can be moved between attempts, rounds or key sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, TypeVar

from ..canonical import domain_hash
from ..errors import IdentityError, MaskingMessageError, ProtocolError
from ..pki.hybrid import SEAL_BYTES, hybrid_public_key, x25519_public_key
from ..pki.keys import SigningKey, VerifyingKey
from ..pki.signing import sign, verify
from .shamir import SECRET_BYTES, SHARE_BYTES
from .terms import SecAggTerms

SALT_BYTES = 16
HELD_BYTES = 2 * (SHARE_BYTES + SALT_BYTES)
"""A share of m and one of b, each with its salt."""

_SAFE = "it was left aside; nothing was revealed for it"


@dataclass(frozen=True)
class SiteKeys:
    """Step 1: the public keys of a site, and the hash of its b.

    ``agreement`` 32 bytes (X25519), ``escrow`` and ``transport`` 1,216 bytes (hybrid), ``seed_hash`` 32.
    """

    site: str
    agreement: bytes
    escrow: bytes
    transport: bytes
    seed_hash: bytes
    signature: bytes = b""

    DOMAIN: ClassVar[str] = "secagg-keys/v1"

    def message(self, context: bytes) -> bytes:
        return domain_hash(
            self.DOMAIN,
            context,
            self.site.encode(),
            self.agreement,
            self.escrow,
            self.transport,
            self.seed_hash,
        )


@dataclass(frozen=True)
class Box:
    """Step 2: what ``sender`` entrusts to ``recipient``.

    ``shares`` is sealed to the recipient's transport key: its shares of the sender's m and b, with their
    salts. ``pair`` is sealed to the recipient's escrow key: the pair secret, from the site of the pair
    that chooses it; empty in the other direction. The two hashes let the coordinator hold the recipient
    to these shares later.
    """

    sender: str
    recipient: str
    shares: bytes
    pair: bytes
    mask_share_hash: bytes
    seed_share_hash: bytes
    signature: bytes = b""

    DOMAIN: ClassVar[str] = "secagg-box/v1"

    def message(self, context: bytes) -> bytes:
        return domain_hash(
            self.DOMAIN,
            context,
            self.sender.encode(),
            self.recipient.encode(),
            self.shares,
            self.pair,
            self.mask_share_hash,
            self.seed_share_hash,
        )

    @property
    def pair_hash(self) -> bytes:
        """32 bytes of the sealed pair secret, which both seeds of the pair are bound to."""
        return domain_hash("secagg-pair-box/v1", self.pair)


@dataclass(frozen=True)
class MaskedInput:
    """Step 3: the SHA-256 of a site's masked vector, and the sites that it is masked with."""

    site: str
    masked_with: tuple[str, ...]
    payload_hash: bytes
    signature: bytes = b""

    DOMAIN: ClassVar[str] = "secagg-input/v1"

    def message(self, context: bytes) -> bytes:
        return domain_hash(
            self.DOMAIN, context, self.site.encode(), _names(self.masked_with), self.payload_hash
        )


@dataclass(frozen=True)
class Complaint:
    """Step 3, in place of a masked input: the boxes of these sites do not open, so ``site`` drops out."""

    site: str
    accused: tuple[str, ...]
    signature: bytes = b""

    DOMAIN: ClassVar[str] = "secagg-complaint/v1"

    def message(self, context: bytes) -> bytes:
        return domain_hash(self.DOMAIN, context, self.site.encode(), _names(self.accused))


@dataclass(frozen=True)
class Agreement:
    """Step 4: a site has seen these masked inputs, whole, from these survivors, and no others."""

    site: str
    masked_with: tuple[str, ...]
    survivors: tuple[str, ...]
    inputs_hash: bytes
    signature: bytes = b""

    DOMAIN: ClassVar[str] = "secagg-agreement/v1"

    def message(self, context: bytes) -> bytes:
        return domain_hash(
            self.DOMAIN,
            context,
            self.site.encode(),
            _names(self.masked_with),
            _names(self.survivors),
            self.inputs_hash,
        )

    @property
    def view(self) -> tuple[tuple[str, ...], tuple[str, ...], bytes]:
        """What must be the same at every site."""
        return self.masked_with, self.survivors, self.inputs_hash


class ShareKind(StrEnum):
    MASK = "mask"
    SEED = "seed"


@dataclass(frozen=True)
class OpenedShare:
    """A share of ``owner``'s secret with the salt of its hash."""

    owner: str
    kind: ShareKind
    share: bytes = field(repr=False)
    salt: bytes = field(repr=False)


@dataclass(frozen=True)
class Reveal:
    """Step 5: one share for each site, itself included: of b for a survivor, of m for one that dropped."""

    site: str
    shares: tuple[OpenedShare, ...]
    signature: bytes = b""

    DOMAIN: ClassVar[str] = "secagg-reveal/v1"

    def message(self, context: bytes) -> bytes:
        parts = [
            part
            for one in self.shares
            for part in (one.owner.encode(), one.kind.value.encode(), one.share, one.salt)
        ]
        return domain_hash(self.DOMAIN, context, self.site.encode(), *parts)


Signed = SiteKeys | Box | MaskedInput | Complaint | Agreement | Reveal
S = TypeVar("S", SiteKeys, Box, MaskedInput, Complaint, Agreement, Reveal)


def attempt_context(
    manifest_hash: bytes, terms_hash: bytes, signing_keys: Iterable[tuple[str, bytes]]
) -> bytes:
    """What step 1 signs under: the attempt, its terms, and whose signatures count.

    Args:
        signing_keys: site and Ed25519 public key (32 bytes) of the cohort, sorted. Two sites that were
            shown different certificates of a third sign under different contexts.
    """
    parts = [part for site, raw in signing_keys for part in (site.encode(), raw)]
    return domain_hash("secagg-attempt/v1", manifest_hash, terms_hash, *parts)


def keys_context(context: bytes, keys: Iterable[SiteKeys]) -> bytes:
    """What all later steps sign under: the attempt and every site's signed keys."""
    parts = [
        part
        for one in sorted(keys, key=lambda one: one.site)
        for part in (one.message(context), one.signature)
    ]
    return domain_hash("secagg-all-keys/v1", context, *parts)


def inputs_hash(context: bytes, inputs: Iterable[MaskedInput]) -> bytes:
    """32 bytes of all signed masked inputs."""
    parts = [
        part
        for one in sorted(inputs, key=lambda one: one.site)
        for part in (one.message(context), one.signature)
    ]
    return domain_hash("secagg-inputs/v1", context, *parts)


def share_hash(
    context: bytes, owner: str, holder: str, kind: ShareKind, share: bytes, salt: bytes
) -> bytes:
    """Salted hash of a share, published with its box."""
    return domain_hash(
        "secagg-share/v1",
        context,
        owner.encode(),
        holder.encode(),
        kind.value.encode(),
        share,
        salt,
    )


def signed(said: S, context: bytes, key: SigningKey) -> S:
    """The same with its signature."""
    return replace(said, signature=sign(key, said.DOMAIN, said.message(context)))


def check_keys(said: SiteKeys) -> None:
    """Raises MaskingMessageError: keys that nobody can use, whoever signed them."""
    try:
        x25519_public_key(said.agreement)
        hybrid_public_key(said.escrow)
        hybrid_public_key(said.transport)
    except ProtocolError as error:
        raise MaskingMessageError(f"{said.site}: {error.what}", safe=_SAFE) from error
    if len(said.seed_hash) != 32:
        raise MaskingMessageError(f"{said.site}: the hash of its seed has 32 bytes", safe=_SAFE)


def check_no_key_twice(keys: Iterable[SiteKeys]) -> None:
    """Raises MaskingMessageError: a key, or half of one, that stands for two sites or two purposes."""
    seen: set[bytes] = set()
    for one in keys:
        parts = (one.agreement, one.seed_hash, *_halves(one.escrow), *_halves(one.transport))
        if len({*parts}) < len(parts) or not seen.isdisjoint(parts):
            raise MaskingMessageError(f"the keys of {one.site} are used twice", safe=_SAFE)
        seen.update(parts)


def _halves(public: bytes) -> tuple[bytes, bytes]:
    return public[:-32], public[-32:]


def check_box(box: Box, terms: SecAggTerms) -> None:
    """Raises MaskingMessageError: a box that cannot hold what it should, whoever signed it."""
    if (
        box.sender == box.recipient
        or not {box.sender, box.recipient} <= set(terms.roster)
        or len(box.shares) != SEAL_BYTES + HELD_BYTES
        or len(box.pair) != _pair_bytes(box, terms)
        or (len(box.mask_share_hash), len(box.seed_share_hash)) != (32, 32)
    ):
        raise MaskingMessageError(
            f"the box of {box.sender[:63]} for {box.recipient[:63]} is not of its form", safe=_SAFE
        )


def _pair_bytes(box: Box, terms: SecAggTerms) -> int:
    chosen = terms.chooser(box.sender, box.recipient) == box.sender
    return SEAL_BYTES + SECRET_BYTES if chosen else 0


def check_signature(
    said: Signed, by: str, context: bytes, keys: Mapping[str, VerifyingKey]
) -> None:
    """Raises MaskingMessageError: not signed by ``by`` in this attempt."""
    if by not in keys:
        raise MaskingMessageError(f"{by[:63]} is not in this attempt's cohort", safe=_SAFE)
    try:
        verify(keys[by], said.DOMAIN, said.message(context), said.signature)
    except IdentityError:
        raise MaskingMessageError(
            f"the {said.DOMAIN} of {by} is not its own, or of another attempt", safe=_SAFE
        ) from None


def _names(sites: tuple[str, ...]) -> bytes:
    return domain_hash("secagg-names/v1", *(site.encode() for site in sites))
