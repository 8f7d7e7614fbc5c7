"""The registry: who may call, from when, and until when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.registry import DAY_MS, OVERLAP_MS, RENEWALS_A_DAY, Registry
from coordinator.store import Store
from fedpalm.errors import (
    NotFoundError,
    RefusedError,
    ResourceError,
    RevokedError,
    StateError,
    UnavailableError,
)
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.transport.peer import Peer
from tests.support.pki import TestAuthority

NOW_MS = 1_700_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite3") as store:
        yield store


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)


@pytest.fixture(scope="module")
def ca() -> TestAuthority:
    return TestAuthority("trial")


def peer(member: TlsIdentity, *, name: str | None = None, role: Role | None = None) -> Peer:
    """The member as it calls, perhaps under a name or role that is not in its certificate."""
    said = member.identity
    return Peer(
        identity=Identity(said.federation, role or said.role, name or said.name),
        fingerprint=fingerprint(member.leaf),
        not_after=member.leaf.not_valid_after_utc.timestamp(),
    )


def successor(ca: TestAuthority, member: TlsIdentity) -> TlsIdentity:
    """The same identity and signing key with a fresh TLS key."""
    request = create_request(member.identity, new_tls_key(), member.signing_key)
    leaf = ca.authority.issue(request, member.identity, now=time.time())
    return ca.assemble(member.identity, leaf, b"", member.signing_key)


def admit(registry: Registry, member: TlsIdentity, at_ms: int = NOW_MS) -> None:
    """As `sites sign` does; a running coordinator hears of it at once."""
    site = member.identity.name
    registry.admit(
        member.leaf, breaks=registry.breaks(site), at_ms=at_ms, operator="olga", action="sign"
    )
    registry.breaks_carried(site, registry.breaks(site) or 0)


def test_a_member_may_call_and_a_valid_certificate_alone_is_not_enough(
    registry: Registry, ca: TestAuthority
) -> None:
    amber, other = ca.enrol(Role.PARTICIPANT, "amber"), ca.enrol(Role.PARTICIPANT, "amber")
    with pytest.raises(RefusedError, match="not in the coordinator's registry") as refusal:
        registry.authorise(peer(amber), NOW_MS)
    assert "invite" in refusal.value.next_step
    admit(registry, amber)
    registry.authorise(peer(amber), NOW_MS)
    with pytest.raises(RefusedError, match="not in the coordinator's registry"):
        registry.authorise(peer(other), NOW_MS)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.AUDITOR, Role.COORDINATOR])
def test_every_role_is_on_the_list_or_refused(
    registry: Registry, ca: TestAuthority, role: Role
) -> None:
    somebody = ca.enrol(role, "somebody")
    with pytest.raises(RefusedError):
        registry.authorise(peer(somebody), NOW_MS)
    registry.certificate_issued(somebody.leaf, NOW_MS)
    registry.authorise(peer(somebody), NOW_MS)


def test_a_fingerprint_lets_in_only_the_role_and_name_that_it_was_issued_for(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    for said in (peer(amber, name="birch"), peer(amber, role=Role.OPERATOR)):
        with pytest.raises(RefusedError):
            registry.authorise(said, NOW_MS)


def test_a_site_is_let_in_by_admission_and_nobody_else_is(
    registry: Registry, ca: TestAuthority
) -> None:
    with pytest.raises(RefusedError, match="by its admission"):
        registry.certificate_issued(ca.enrol(Role.PARTICIPANT, "amber").leaf, NOW_MS)
    with pytest.raises(RefusedError, match="only participants"):
        admit(registry, ca.enrol(Role.OPERATOR, "olga"))
    assert registry.sites() == []


def test_a_revoked_site_is_out_at_once_with_every_certificate_until_it_is_admitted_anew(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    newer = successor(ca, amber)
    registry.renewed(newer.leaf, NOW_MS)
    registry.revoke("amber", "stolen machine", at_ms=NOW_MS + 5, operator="olga")
    for one in (amber, newer):
        with pytest.raises(RevokedError) as refusal:
            registry.authorise(peer(one), NOW_MS + 5)
        assert refusal.value.next_step and "stolen" not in str(refusal.value)
    row = registry.site("amber")
    assert (row.state, row.active, row.revoked_ms, row.reason) == (
        "revoked", False, NOW_MS + 5, "stolen machine",
    )  # fmt: skip
    assert (registry.revoked_sites(), registry.active_sites()) == (
        frozenset({"amber"}),
        frozenset(),
    )
    with pytest.raises(StateError, match="already"):
        registry.revoke("amber", "again", at_ms=NOW_MS + 6, operator="olga")
    back = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, back, NOW_MS + 7)
    registry.authorise(peer(back), NOW_MS + 7)
    row = registry.site("amber")
    assert (row.state, row.revoked_ms, row.reason) == ("active", 0, "")
    with pytest.raises(RevokedError):
        registry.authorise(peer(amber), NOW_MS + 8)


def test_a_clock_that_is_set_back_does_not_let_a_revoked_or_replaced_certificate_in(
    registry: Registry, ca: TestAuthority
) -> None:
    amber, back = ca.enrol(Role.PARTICIPANT, "amber"), ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    admit(registry, back, NOW_MS + 100)
    with pytest.raises(RefusedError, match="another certificate has taken the place"):
        registry.authorise(peer(amber), NOW_MS)
    registry.revoke("amber", "", at_ms=NOW_MS + 200, operator="olga")
    with pytest.raises(RevokedError):
        registry.authorise(peer(back), NOW_MS)


def test_only_members_can_be_revoked(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="mallory"):
        registry.revoke("mallory", "", at_ms=NOW_MS, operator="olga")
    with pytest.raises(NotFoundError):
        registry.site("mallory")


def test_the_certificate_before_a_renewal_ends_an_hour_after_the_new_one_is_used(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    registry.authorise(peer(amber), NOW_MS)
    newer = successor(ca, amber)
    registry.renewed(newer.leaf, NOW_MS + 1)
    # The reply may be lost: without a call under the new certificate nothing has ended.
    registry.authorise(peer(amber), NOW_MS + 10 * OVERLAP_MS)
    assert registry.site("amber").fingerprint == fingerprint(amber.leaf)
    used = NOW_MS + 20 * OVERLAP_MS
    registry.authorise(peer(newer), used)
    registry.authorise(peer(newer), used + 5)
    registry.authorise(peer(amber), used + OVERLAP_MS - 1)
    with pytest.raises(RefusedError, match="another certificate has taken the place"):
        registry.authorise(peer(amber), used + OVERLAP_MS)
    registry.authorise(peer(newer), used + OVERLAP_MS)
    assert registry.site("amber").fingerprint == fingerprint(newer.leaf)


def test_a_call_with_an_older_certificate_never_ends_a_newer_one(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    late, newest = successor(ca, amber), successor(ca, amber)
    registry.renewed(late.leaf, NOW_MS + 1)
    registry.renewed(newest.leaf, NOW_MS + 2)
    registry.authorise(peer(late), NOW_MS + 3)
    registry.authorise(peer(newest), NOW_MS + 3 + 2 * OVERLAP_MS)
    with pytest.raises(RefusedError):
        registry.authorise(peer(amber), NOW_MS + 3 + 2 * OVERLAP_MS)


def test_another_signing_key_replaces_everything_at_once_and_a_signed_renewal_does_not(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    by_file = successor(ca, amber)
    admit(registry, by_file, NOW_MS + 1)
    registry.authorise(peer(amber), NOW_MS + 2)
    elsewhere = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, elsewhere, NOW_MS + 3)
    for one in (amber, by_file):
        with pytest.raises(RefusedError):
            registry.authorise(peer(one), NOW_MS + 3)
    registry.authorise(peer(elsewhere), NOW_MS + 3)


def test_a_renewal_keeps_the_signing_key_of_the_admission(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    key = amber.signing_key.public_key().public_bytes_raw()
    registry.require_renewal(amber.identity, key, NOW_MS)
    with pytest.raises(RefusedError, match="signing key"):
        registry.require_renewal(amber.identity, bytes(32), NOW_MS)
    with pytest.raises(RevokedError, match="other keys"):
        registry.renewed(ca.enrol(Role.PARTICIPANT, "amber").leaf, NOW_MS)


def test_a_revocation_that_comes_first_stops_a_renewal(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    newer = successor(ca, amber)
    registry.revoke("amber", "", at_ms=NOW_MS, operator="olga")
    with pytest.raises(RevokedError):
        registry.renewed(newer.leaf, NOW_MS + 1)
    with pytest.raises(RefusedError):
        registry.authorise(peer(newer), NOW_MS + 1)


def test_there_are_so_many_renewals_a_day_and_no_more(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    key = amber.signing_key.public_key().public_bytes_raw()
    for number in range(1, RENEWALS_A_DAY):
        registry.require_renewal(amber.identity, key, NOW_MS)
        registry.renewed(successor(ca, amber).leaf, NOW_MS + number)
    with pytest.raises(ResourceError, match=f"{RENEWALS_A_DAY} certificates"):
        registry.require_renewal(amber.identity, key, NOW_MS + RENEWALS_A_DAY)
    registry.require_renewal(amber.identity, key, NOW_MS + DAY_MS + 1)


def test_a_second_admission_keeps_the_history(registry: Registry, ca: TestAuthority) -> None:
    admit(registry, ca.enrol(Role.PARTICIPANT, "amber"))
    registry.site_seen("amber", 77, "1.2.3")
    registry.site_seen("amber", 78)
    admit(registry, ca.enrol(Role.PARTICIPANT, "amber"), NOW_MS + 5)
    row = registry.site("amber")
    assert (row.admitted_ms, row.last_seen_ms, row.software_version) == (NOW_MS + 5, 78, "1.2.3")
    assert [one.site for one in registry.sites()] == ["amber"]


def test_what_the_operator_ordered_is_on_record(
    store: Store, registry: Registry, ca: TestAuthority
) -> None:
    admit(registry, ca.enrol(Role.PARTICIPANT, "amber"))
    registry.revoke("amber", "left the study", at_ms=NOW_MS + 1, operator="oleg")
    rows = store.query("SELECT at_ms, operator, action, run_id, detail FROM operator_events")
    assert rows == [
        (NOW_MS, "olga", "sign", "amber", ""),
        (NOW_MS + 1, "oleg", "revoke", "amber", "left the study"),
    ]


def test_a_first_call_that_cannot_be_stored_is_refused(
    store: Store, registry: Registry, ca: TestAuthority, tmp_path: Path
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    store.query("PRAGMA busy_timeout = 1")
    with (
        Store.open(tmp_path / "store.sqlite3") as other,
        other.transaction("hold"),
        pytest.raises(ResourceError),
    ):
        registry.authorise(peer(amber), NOW_MS)
    registry.authorise(peer(amber), NOW_MS)


def test_a_site_breaks_with_its_past_by_revocation_and_new_admission_not_by_renewal(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    assert registry.breaks("amber") is None
    admit(registry, amber)
    registry.renewed(successor(ca, amber).leaf, NOW_MS + 1)
    admit(registry, successor(ca, amber))
    assert registry.breaks("amber") == 0
    registry.revoke("amber", "lost", at_ms=NOW_MS - 9, operator="olga")
    assert registry.breaks("amber") == 1
    admit(registry, ca.enrol(Role.PARTICIPANT, "amber"))
    admit(registry, ca.enrol(Role.PARTICIPANT, "amber"))
    assert registry.breaks("amber") == 3


def test_a_break_waits_in_the_store_until_it_was_carried_to_the_runs_and_no_call_passes_before(
    registry: Registry, ca: TestAuthority
) -> None:
    admit(registry, ca.enrol(Role.PARTICIPANT, "amber"))
    assert registry.new_breaks() == {} and registry.absent_sites() == frozenset()
    registry.revoke("amber", "lost", at_ms=NOW_MS, operator="olga")
    back = ca.enrol(Role.PARTICIPANT, "amber")
    registry.admit(back.leaf, breaks=1, at_ms=NOW_MS, operator="olga", action="sign")
    assert registry.new_breaks() == {"amber": 2} and registry.absent_sites() == {"amber"}
    with pytest.raises(UnavailableError, match="still in the runs"):
        registry.authorise(peer(back), NOW_MS)
    registry.breaks_carried("amber", 1)
    assert registry.new_breaks() == {"amber": 2}
    registry.breaks_carried("amber", 2)
    assert registry.new_breaks() == {}
    registry.authorise(peer(back), NOW_MS)


def test_nobody_is_admitted_on_a_decision_that_began_before_a_revocation(
    registry: Registry, ca: TestAuthority
) -> None:
    amber = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, amber)
    seen = registry.breaks("amber")
    registry.revoke("amber", "stolen", at_ms=NOW_MS, operator="oscar")
    with pytest.raises(StateError, match="since it was looked at"):
        registry.admit(
            successor(ca, amber).leaf, breaks=seen, at_ms=NOW_MS, operator="olga", action="sign"
        )
    assert not registry.site("amber").active
    stranger = ca.enrol(Role.PARTICIPANT, "birch")
    admit(registry, ca.enrol(Role.PARTICIPANT, "birch"))
    with pytest.raises(StateError):
        registry.admit(stranger.leaf, breaks=None, at_ms=NOW_MS, operator="olga", action="sign")


def test_the_signing_key_of_a_site_is_that_of_its_present_admission(
    registry: Registry, ca: TestAuthority
) -> None:
    def key_of(member: TlsIdentity) -> bytes:
        return member.signing_key.public_key().public_bytes_raw()

    first, second = (ca.enrol(Role.PARTICIPANT, "amber") for _ in range(2))
    assert registry.signing_key("amber") is None
    admit(registry, first)
    assert registry.signing_key("amber") == key_of(first)
    admit(registry, second)
    assert registry.signing_key("amber") == key_of(second)
    registry.revoke("amber", "lost", at_ms=NOW_MS, operator="olga")
    assert registry.signing_key("amber") is None


def test_a_clock_that_is_set_back_revives_no_overlap_from_before_a_revocation(
    registry: Registry, ca: TestAuthority
) -> None:
    old = ca.enrol(Role.PARTICIPANT, "amber")
    admit(registry, old)
    renewed = successor(ca, old)
    registry.renewed(renewed.leaf, NOW_MS)
    registry.authorise(peer(renewed), NOW_MS)
    registry.revoke("amber", "stolen", at_ms=NOW_MS + 2 * OVERLAP_MS, operator="olga")
    admit(registry, ca.enrol(Role.PARTICIPANT, "amber"), NOW_MS + 2 * OVERLAP_MS)
    for ended in (old, renewed):
        with pytest.raises(RevokedError):
            registry.authorise(peer(ended), NOW_MS + 1)


def test_certificates_end_with_their_trust_anchor_and_only_who_has_no_other_breaks_with_its_past(
    registry: Registry, ca: TestAuthority
) -> None:
    early, late, both = (ca.enrol(Role.PARTICIPANT, name) for name in ("early", "late", "both"))
    admit(registry, early, NOW_MS)
    admit(registry, both, NOW_MS)
    admit(registry, late, NOW_MS + 10)
    after = successor(ca, both)
    registry.renewed(after.leaf, NOW_MS + 10)
    registry.authorise(peer(after), NOW_MS + 11)
    registry.authorise(peer(both), NOW_MS + 12)
    registry.end_issued_before(NOW_MS + 10, NOW_MS + 20)
    registry.authorise(peer(late), NOW_MS + 20)
    registry.authorise(peer(after), NOW_MS + 20)
    for ended in (early, both):
        with pytest.raises(RefusedError, match="trust anchor of this certificate is retired"):
            registry.authorise(peer(ended), NOW_MS + 5)
    assert registry.new_breaks() == {"early": 1}


def test_a_stolen_operators_certificate_is_ended_without_an_overlap(
    registry: Registry, ca: TestAuthority
) -> None:
    stolen = ca.enrol(Role.OPERATOR, "olga")
    other = ca.enrol(Role.OPERATOR, "oscar")
    fresh = successor(ca, stolen)
    for member in (stolen, other, fresh):
        registry.certificate_issued(member.leaf, NOW_MS)
    registry.end_predecessors(fresh.leaf, NOW_MS + 1)
    registry.authorise(peer(fresh), NOW_MS + 1)
    registry.authorise(peer(other), NOW_MS + 1)
    with pytest.raises(RefusedError):
        registry.authorise(peer(stolen), NOW_MS + 1)
