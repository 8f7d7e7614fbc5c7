"""What one site entrusts to another in step 2: how a box is sealed and opened, and the stream it leads to.

A box holds a share of each of the sender's two secrets and, in one direction of each pair, the pair
secret. If a box that its sender signed does not open, that is its sender's fault, or its recipient lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..canonical import domain_hash
from ..errors import IntegrityError, MaskingMessageError
from ..pki.hybrid import HybridKey, seal
from ..pki.keys import SigningKey
from .messages import HELD_BYTES, SALT_BYTES, Box, ShareKind, SiteKeys, share_hash, signed
from .secrets import derive
from .shamir import SHARE_BYTES, is_share

_SAFE = "nothing was revealed; this site's update stays masked"


@dataclass(frozen=True)
class HeldShares:
    """What a peer entrusted to this site."""

    mask_share: bytes = field(repr=False)
    mask_salt: bytes = field(repr=False)
    seed_share: bytes = field(repr=False)
    seed_salt: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        return self.mask_share + self.mask_salt + self.seed_share + self.seed_salt

    @classmethod
    def from_bytes(cls, raw: bytes) -> HeldShares:
        """Raises MaskingMessageError for anything but two shares and two salts."""
        cut = SHARE_BYTES + SALT_BYTES
        made = cls(raw[:SHARE_BYTES], raw[SHARE_BYTES:cut], raw[cut:-SALT_BYTES], raw[-SALT_BYTES:])
        if len(raw) != HELD_BYTES or not (is_share(made.mask_share) and is_share(made.seed_share)):
            raise MaskingMessageError("a box does not hold two shares and two salts", safe=_SAFE)
        return made

    def without_mask_share(self) -> HeldShares:
        """A site's own: it survives in its own eyes, so nobody may ever have its share of its m."""
        return replace(self, mask_share=bytes(SHARE_BYTES), mask_salt=bytes(SALT_BYTES))

    def hash(self, context: bytes, owner: str, holder: str, kind: ShareKind) -> bytes:
        """32 bytes: what ``owner`` publishes of the share of one kind that it gives ``holder``."""
        share, salt = (
            (self.mask_share, self.mask_salt)
            if kind is ShareKind.MASK
            else (self.seed_share, self.seed_salt)
        )
        return share_hash(context, owner, holder, kind, share, salt)


def box_info(context: bytes, sender: str, recipient: str, purpose: str) -> bytes:
    """HPKE ``info`` of a box: it opens for this attempt, pair, direction and purpose alone."""
    return domain_hash(
        "secagg-box-info/v1", context, sender.encode(), recipient.encode(), purpose.encode()
    )


def seal_box(
    context: bytes,
    sender: str,
    recipient: SiteKeys,
    held: HeldShares,
    pair_secret: bytes | None,
    key: SigningKey,
) -> Box:
    """Seal ``held``, and the pair secret (32 bytes) where the sender chooses it, and sign the whole."""
    to = recipient.site
    box = Box(
        sender=sender,
        recipient=to,
        shares=seal(held.to_bytes(), recipient.transport, box_info(context, sender, to, "shares")),
        pair=b""
        if pair_secret is None
        else seal(pair_secret, recipient.escrow, box_info(context, sender, to, "pair")),
        mask_share_hash=held.hash(context, sender, to, ShareKind.MASK),
        seed_share_hash=held.hash(context, sender, to, ShareKind.SEED),
    )
    return signed(box, context, key)


def open_shares(context: bytes, box: Box, transport: HybridKey) -> HeldShares:
    """The shares in a box of the right form.

    Raises:
        MaskingMessageError: it does not open, or holds others than its hashes say.
    """
    info = box_info(context, box.sender, box.recipient, "shares")
    try:
        held = HeldShares.from_bytes(transport.open(box.shares, info))
    except (IntegrityError, MaskingMessageError) as error:
        raise MaskingMessageError(f"the box of {box.sender}: {error.what}", safe=_SAFE) from None
    found = [held.hash(context, box.sender, box.recipient, kind) for kind in ShareKind]
    if found != [box.mask_share_hash, box.seed_share_hash]:
        raise MaskingMessageError(f"the box of {box.sender} holds another share", safe=_SAFE)
    return held


def open_pair(context: bytes, box: Box, escrow: HybridKey) -> bytes:
    """r, 32 bytes, from the box of the site that chose it.

    Raises:
        MaskingMessageError: it does not open.
    """
    info = box_info(context, box.sender, box.recipient, "pair")
    try:
        return escrow.open(box.pair, info)
    except IntegrityError:
        raise MaskingMessageError(
            f"the pair secret that {box.sender} gave {box.recipient} does not open", safe=_SAFE
        ) from None


def pair_stream(
    context: bytes, chooser: SiteKeys, other: SiteKeys, agreed: bytes, secret: bytes, box: Box
) -> bytes:
    """seed_ij, 32 bytes: X25519 and the pair secret together, bound to both sites and the box.

    Args:
        chooser: keys of the site of the pair that chooses its secret (:meth:`SecAggTerms.chooser`).
        other: keys of the other.
        agreed: X25519 of both, 32 bytes.
        secret: r_ij, 32 bytes.
        box: the chooser's to the other, which carried r_ij.
    """
    return derive(
        agreed + secret,
        "pair-mask",
        context,
        chooser.site.encode(),
        other.site.encode(),
        chooser.agreement,
        other.agreement,
        other.escrow,
        box.pair_hash,
    )
