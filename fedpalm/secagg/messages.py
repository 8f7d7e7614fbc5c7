"""What sites say in the five steps of an attempt, and exactly what each of them signs.

Every signature covers the attempt's context (the hash of the manifest that all countersigned) and, from
the second step on, the hash of all keys: so nothing can be moved between attempts, rounds or key sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, TypeVar

from ..canonical import domain_hash
from ..errors import IdentityError, MaskingMessageError
from ..pki.keys import SigningKey, VerifyingKey
from ..pki.signing import sign, verify


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
    salts. ``pair`` is sealed to the recipient's escrow key: the pair secret, from the one that stands
    first in the roster; empty in the other direction. The two hashes let the coordinator hold the
    recipient to these shares later.
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
    share: bytes
    salt: bytes


@dataclass(frozen=True)
class Reveal:
    """Step 5: one share for each other site: of b for a survivor, of m for one that dropped."""

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


Signed = SiteKeys | Box | MaskedInput | Agreement | Reveal
S = TypeVar("S", SiteKeys, Box, MaskedInput, Agreement, Reveal)


def attempt_context(manifest_hash: bytes) -> bytes:
    """What step 1 signs under."""
    return domain_hash("secagg-attempt/v1", manifest_hash)


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


def check_signature(
    said: Signed, by: str, context: bytes, keys: Mapping[str, VerifyingKey]
) -> None:
    """Raises MaskingMessageError: not signed by ``by`` in this attempt."""
    if by not in keys:
        raise MaskingMessageError(f"{by[:63]} is not in this attempt's cohort")
    try:
        verify(keys[by], said.DOMAIN, said.message(context), said.signature)
    except IdentityError:
        raise MaskingMessageError(
            f"the {said.DOMAIN} of {by} is not its own, or of another attempt"
        ) from None


def _names(sites: tuple[str, ...]) -> bytes:
    return "\n".join(sites).encode()
