from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedpalm.errors import IdentityError
from fedpalm.pki.authority import Authority, create_authority, save_authority
from fedpalm.pki.custody import retire_anchor, rotate_root
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import TlsKey, new_signing_key, new_tls_key
from fedpalm.pki.profile import (
    certificate_hash,
    handover_certificate,
    issuing_certificate,
    root_certificate,
)
from fedpalm.pki.request import create_request
from fedpalm.pki.signing import verify_chain
from fedpalm.pki.trust import TrustBundle, accept_trust

NOW = 1_700_000_000.0
DAY_S = 86_400.0


@dataclass(frozen=True)
class Root:
    key: TlsKey
    certificate: x509.Certificate


def root(federation: str = "palms", now: float = NOW) -> Root:
    key = new_tls_key()
    return Root(key, root_certificate(federation, key, now))


def handover(later: Root, earlier: Root, now: float = NOW) -> x509.Certificate:
    return handover_certificate("palms", later.certificate, earlier.certificate, earlier.key, now)


FIRST, SECOND, THIRD, STRANGER = root(), root(), root(), root()


def accept(pinned: list[Root], anchors: list[Root], *handovers: x509.Certificate, now: float = NOW):
    bundle = TrustBundle(tuple(one.certificate for one in anchors), handovers)
    return accept_trust([one.certificate for one in pinned], bundle, "palms", now)


def test_what_is_pinned_already_needs_no_handover():
    assert accept([FIRST], [FIRST]) == (FIRST.certificate,)


def test_an_anchor_is_accepted_that_a_pinned_one_hands_over_to():
    both = (FIRST.certificate, SECOND.certificate)
    assert accept([FIRST], [FIRST, SECOND], handover(SECOND, FIRST)) == both


def test_a_site_that_slept_through_the_overlap_follows_a_handover_of_a_retired_anchor():
    assert accept([FIRST], [SECOND], handover(SECOND, FIRST)) == (SECOND.certificate,)


@pytest.mark.parametrize("order", [1, -1])
def test_a_site_that_slept_through_two_rotations_follows_both_handovers(order: int):
    links = [handover(SECOND, FIRST), handover(THIRD, SECOND)][::order]
    assert accept([FIRST], [THIRD], *links) == (THIRD.certificate,)


def test_an_anchor_that_is_not_offered_any_more_is_dropped():
    assert accept([FIRST, SECOND], [SECOND]) == (SECOND.certificate,)


@pytest.mark.parametrize("links", [(), ("known",)])
def test_a_newer_anchor_is_not_dropped_in_favour_of_an_older_one(links: tuple[str, ...]):
    """The older one may have been replaced because its key was stolen."""
    handovers = [handover(SECOND, FIRST)] if links else []
    with pytest.raises(IdentityError, match="favour of an older one"):
        accept([FIRST, SECOND], [FIRST], *handovers)
    with pytest.raises(IdentityError, match="favour of an older one"):
        accept([FIRST, SECOND, THIRD], [FIRST, THIRD], *handovers)


def test_anchors_keep_their_order_so_that_the_next_bundle_cannot_drop_the_newer_one():
    with pytest.raises(IdentityError, match="favour of an older one"):
        accept([FIRST, SECOND], [SECOND, FIRST])
    with pytest.raises(IdentityError, match="older than one that is pinned"):
        accept([FIRST], [SECOND, FIRST], handover(SECOND, FIRST))
    with pytest.raises(IdentityError, match="before the one that hands over"):
        accept([FIRST], [THIRD, SECOND], handover(SECOND, FIRST), handover(THIRD, SECOND))


def test_an_older_anchor_that_has_handed_over_hands_over_to_nobody_else():
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST, SECOND], [STRANGER], handover(STRANGER, FIRST))
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST, SECOND], [FIRST, SECOND, STRANGER], handover(STRANGER, FIRST))
    both = (SECOND.certificate, THIRD.certificate)
    assert accept([FIRST, SECOND], [SECOND, THIRD], handover(THIRD, SECOND)) == both


def test_an_anchor_without_a_handover_is_refused():
    with pytest.raises(IdentityError, match="no anchor of this site has certified"):
        accept([FIRST], [FIRST, STRANGER])


def test_a_handover_signed_by_somebody_else_counts_for_nothing():
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST], [FIRST, SECOND], handover(SECOND, STRANGER))


def test_a_handover_that_only_copies_the_name_of_a_pinned_anchor_counts_for_nothing():
    forged = handover_certificate(
        "palms", STRANGER.certificate, FIRST.certificate, STRANGER.key, NOW
    )
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST], [FIRST, STRANGER], forged)


def test_a_handover_for_one_anchor_is_none_for_another():
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST], [FIRST, STRANGER], handover(SECOND, FIRST))


def test_a_handover_is_for_one_certificate_not_for_every_one_of_its_key():
    longer = Root(SECOND.key, root_certificate("palms", SECOND.key, NOW + DAY_S))
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST], [FIRST, longer], handover(SECOND, FIRST), now=NOW + DAY_S)


def test_two_handovers_that_vouch_for_each_other_alone_are_refused():
    ring = handover(SECOND, THIRD), handover(THIRD, SECOND)
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST], [FIRST, SECOND], *ring)


def test_a_retired_anchor_does_not_come_back():
    with pytest.raises(IdentityError, match="older than one that is pinned"):
        accept([SECOND], [FIRST, SECOND], handover(SECOND, FIRST))
    with pytest.raises(IdentityError, match="certified"):
        accept([SECOND], [SECOND, FIRST], handover(SECOND, FIRST))


def test_an_issuing_ca_cannot_hand_trust_on():
    issuing_key = new_tls_key()
    issuing = issuing_certificate(
        "palms", issuing_key.public_key(), FIRST.certificate, FIRST.key, NOW
    )
    stolen = handover_certificate("palms", STRANGER.certificate, issuing, issuing_key, NOW)
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST], [FIRST, STRANGER], stolen, issuing)


def test_a_leaf_cannot_hand_trust_on(federation, site):
    forged = handover_certificate("palms", STRANGER.certificate, site.leaf, site.tls_key, NOW)
    offered = TrustBundle((STRANGER.certificate,), (forged, site.leaf))
    with pytest.raises(IdentityError, match="certified"):
        accept_trust(federation.authority.anchors, offered, "palms", NOW)


def test_an_anchor_of_another_federation_is_refused_even_with_a_handover():
    other = root("prints")
    made = handover_certificate("palms", other.certificate, FIRST.certificate, FIRST.key, NOW)
    with pytest.raises(IdentityError, match="prints"):
        accept([FIRST], [FIRST, other], made)


def test_an_expired_anchor_hands_nothing_on():
    late = NOW + 3651 * DAY_S
    fresh = root(now=late)
    made = handover_certificate("palms", fresh.certificate, FIRST.certificate, FIRST.key, NOW)
    with pytest.raises(IdentityError, match="certified"):
        accept([FIRST], [fresh], made, now=late)


def test_an_anchor_that_is_not_valid_yet_is_refused():
    early = root(now=NOW + DAY_S)
    with pytest.raises(IdentityError, match="begins"):
        accept([FIRST], [FIRST, early], handover(early, FIRST))


@pytest.mark.parametrize(
    ("anchors", "links"), [([], 0), ([FIRST] * 2, 0), ([FIRST] * 5, 0), ([FIRST], 5)]
)
def test_a_bundle_with_nothing_or_too_much_in_it_is_refused(anchors: list[Root], links: int):
    with pytest.raises(IdentityError, match="offered"):
        accept([FIRST], anchors, *([handover(SECOND, FIRST)] * links))


def test_a_handover_that_names_the_anchor_but_holds_another_key_is_refused(monkeypatch):
    """Whoever holds the older root could make one; nothing should be built on it."""
    monkeypatch.setattr(
        "fedpalm.pki.profile.certificate_hash", lambda _: certificate_hash(SECOND.certificate)
    )
    crooked = handover(THIRD, FIRST)
    monkeypatch.undo()
    with pytest.raises(IdentityError, match="another key"):
        accept([FIRST], [FIRST, SECOND], crooked)


# --- what the overlap is for -------------------------------------------------------------------------


@dataclass(frozen=True)
class Rotation:
    before: Authority
    during: Authority
    after: Authority


@pytest.fixture(scope="module")
def rotation(tmp_path_factory: pytest.TempPathFactory) -> Rotation:
    folder: Path = tmp_path_factory.mktemp("rotation") / "ca"
    before, root_key = create_authority("palms", NOW)
    save_authority(folder, before, root_key)
    return Rotation(before, rotate_root(folder, NOW), retire_anchor(folder))


def verifies(by: Authority, anchors: tuple[x509.Certificate, ...]) -> bool:
    who = Identity("palms", Role.COORDINATOR, "coordinator")
    leaf = by.issue(
        create_request(who, new_tls_key(), new_signing_key()),
        who,
        now=NOW,
        lifetime=timedelta(days=1),
    )
    try:
        verify_chain(leaf, by.chain(leaf)[1:], anchors, now=NOW, role=who.role, federation="palms")
    except IdentityError:
        return False
    return True


WHOSE: list[tuple[str, Callable[[Rotation], Authority]]] = [
    ("before", lambda r: r.before),
    ("during", lambda r: r.during),
    ("after", lambda r: r.after),
]


@pytest.mark.parametrize(
    ("issued", "pinned", "good"),
    [
        ("before", "before", True),
        ("before", "during", True),
        ("before", "after", False),
        ("during", "before", True),  # by the handover in the chain
        ("during", "during", True),
        ("during", "after", True),
        ("after", "before", False),
        ("after", "during", True),
        ("after", "after", True),
    ],
)
def test_who_is_believed_before_during_and_after_a_rotation_of_the_root(
    rotation: Rotation, issued: str, pinned: str, good: bool
):
    whose = dict(WHOSE)
    assert verifies(whose[issued](rotation), whose[pinned](rotation).anchors) is good


def test_what_the_ca_hands_out_during_and_after_a_rotation_is_accepted_by_sites(rotation: Rotation):
    for bundle in (rotation.during.trust, rotation.after.trust):
        assert accept_trust(rotation.before.anchors, bundle, "palms", NOW) == bundle.anchors
