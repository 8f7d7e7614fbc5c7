"""Whom a member trusts, and how that changes: an anchor that is trusted hands trust on to the next one.

Anchors follow each other in time, and a site pins them oldest first. Whoever answers as the coordinator may
drop the oldest, which at worst shuts a site out, but never a newer one in favour of an older one: that may
have been replaced because its key was stolen. It can add one only with a handover: the new anchor's key and
hash, signed by the newest anchor that is pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from ..errors import IdentityError
from .profile import certificate_hash, check_ca, handed_to, is_issued_by

MAX_ANCHORS = 4
MAX_HANDOVERS = 4


@dataclass(frozen=True)
class TrustBundle:
    """A federation's trust anchors, oldest first, and the handovers that lead from each to the next.

    A handover may outlast the anchor that signed it in ``anchors``: for sites that come late.
    """

    anchors: tuple[x509.Certificate, ...]
    handovers: tuple[x509.Certificate, ...] = ()


def accept_trust(
    pinned: Sequence[x509.Certificate], offered: TrustBundle, federation: str, now: float
) -> tuple[x509.Certificate, ...]:
    """The anchors to pin from now on: those offered, if each is pinned or the newest pinned leads to it.

    Args:
        pinned: what the site trusts at present, oldest first.
        now: seconds since the Unix epoch.
    Raises:
        IdentityError: nothing or too much is offered; a pinned anchor is dropped for an older one; an
            anchor that nobody trusted has certified, one before those that hand over to it, or one that
            is no CA certificate of this federation now. What is pinned stays.
    """
    if not 1 <= len(offered.anchors) <= MAX_ANCHORS or len(offered.handovers) > MAX_HANDOVERS:
        raise _refused(
            f"{len(offered.anchors)} trust anchors and {len(offered.handovers)} handovers are offered"
        )
    if len(set(offered.anchors)) != len(offered.anchors):
        raise _refused("a trust anchor is offered twice")
    kept = [anchor for anchor in offered.anchors if anchor in pinned]
    if kept != list(pinned[len(pinned) - len(kept) :]):
        raise _refused("a trust anchor is dropped or put behind in favour of an older one")
    if kept != list(offered.anchors[: len(kept)]):
        raise _refused("a new trust anchor is offered as older than one that is pinned")
    vouched = _vouched(pinned, offered.handovers, federation, now)
    newest_step = 0
    for anchor in offered.anchors[len(kept) :]:
        found = vouched.get(certificate_hash(anchor))
        if found is None:
            raise _refused("a trust anchor is offered that no anchor of this site has certified")
        step, handover = found
        if step < newest_step:
            raise _refused("a trust anchor is offered before the one that hands over to it")
        newest_step = step
        # The hash says it all; that the key is the handover's, too, keeps chains through it meaningful.
        if handover.subject != anchor.subject or handover.public_key() != anchor.public_key():
            raise _refused("a handover is for another key than the trust anchor that it names")
        try:
            check_ca(anchor, federation, now)
        except IdentityError as error:
            raise _refused(f"a trust anchor is offered that cannot be one: {error.what}") from None
    return offered.anchors


def _vouched(
    pinned: Sequence[x509.Certificate],
    handovers: Sequence[x509.Certificate],
    federation: str,
    now: float,
) -> dict[bytes, tuple[int, x509.Certificate]]:
    """Handovers that lead from the newest pinned anchor on, in any order, by the anchor that each names.

    With each the number of steps that lead there. An older anchor has handed on already: what else its
    key signs now is not the federation's.
    """
    trusted = [anchor for anchor in pinned[-1:] if _holds(anchor, federation, now)]
    waiting = [one for one in handovers if _holds(one, federation, now)]
    found: dict[bytes, tuple[int, x509.Certificate]] = {}
    step = 0
    while signed := [one for one in waiting if any(_signed_by(one, by) for by in trusted)]:
        step += 1
        for handover in signed:
            waiting.remove(handover)
            found.setdefault(handed_to(handover), (step, handover))
            trusted.append(handover)
    return found


def _holds(certificate: x509.Certificate, federation: str, now: float) -> bool:
    try:
        check_ca(certificate, federation, now)
    except IdentityError:
        return False
    return True


def _signed_by(handover: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        handed_to(handover)
    except IdentityError:
        return False
    return is_issued_by(handover, by)


def _refused(what: str) -> IdentityError:
    return IdentityError(
        what,
        safe="the trust anchors that are pinned stay as they are",
        next_step="ask the operator for the fingerprints (fedpalm-coordinator ca show); a CA that "
        "was replaced without a handover is compared and installed by files: request, then install",
    )
