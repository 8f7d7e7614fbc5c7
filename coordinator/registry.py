"""Who belongs to the federation: sites, and every certificate that may call.

The table of certificates is an allow-list: what is not in it does not call, whoever signed it. Other
processes (the operator's commands) write the same tables; a running coordinator looks at them anew
whenever one has (``watch.py``). Columns are explained in ``schema.sql``.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from cryptography import x509

from fedpalm.errors import (
    NotFoundError,
    RefusedError,
    ResourceError,
    RevokedError,
    StateError,
    UnavailableError,
)
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role, identity_of
from fedpalm.pki.request import signing_key_of
from fedpalm.pki.validity import end_ms
from fedpalm.transport.peer import Peer

from .store import Store, record_operator_event

OVERLAP_MS = 60 * 60 * 1000
"""A renewed certificate goes on for so long after the first call with the one that follows it."""
DAY_MS = 24 * 60 * 60 * 1000
RENEWALS_A_DAY = 10


@dataclass(frozen=True)
class SiteRow:
    """A site that was admitted once, and the certificate that it uses (or else its newest)."""

    site: str
    state: str
    signing_key: bytes
    admitted_ms: int
    revoked_ms: int
    reason: str
    last_seen_ms: int
    software_version: str
    fingerprint: str
    expires_ms: int

    @property
    def active(self) -> bool:
        return self.state == "active"


class Registry:
    """Sites and certificates of a store.

    What an operator orders is recorded in ``operator_events`` in the same transaction.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- looking ----------------------------------------------------------------------------------

    def sites(self) -> list[SiteRow]:
        """All sites that were ever admitted, by name; a revoked one stays here as such."""
        return [SiteRow(*row) for row in self._store.query(f"{_SITES} ORDER BY s.site")]

    def site(self, site: str) -> SiteRow:
        """Raises NotFoundError for a site that was never admitted."""
        rows = self._store.query(f"{_SITES} WHERE s.site = ?", site)
        if not rows:
            raise _never_admitted(site)
        return SiteRow(*rows[0])

    def active_sites(self) -> frozenset[str]:
        return self._named("active")

    def revoked_sites(self) -> frozenset[str]:
        return self._named("revoked")

    def absent_sites(self) -> frozenset[str]:
        """Sites that cannot come: revoked, or about to leave their runs."""
        return self.revoked_sites() | frozenset(self.new_breaks())

    def certified_until(self) -> dict[str, int]:
        """When the present certificate of each site ends, ms since the Unix epoch."""
        return {row.site: row.expires_ms for row in self.sites()}

    def signing_key(self, site: str) -> bytes | None:
        """The present signing key of an active site (raw Ed25519, 32 bytes); None for any other name."""
        rows = self._store.query(
            "SELECT signing_key FROM sites WHERE site = ? AND state = 'active'", site
        )
        return bytes(rows[0][0]) if rows else None

    def breaks(self, site: str) -> int | None:
        """How often a site has broken with its past; None for one that was never admitted.

        Whoever decides about a site on what it was like compares this number before and after.
        """
        rows = self._store.query("SELECT breaks FROM sites WHERE site = ?", site)
        return rows[0][0] if rows else None

    def new_breaks(self) -> dict[str, int]:
        """The number of breaks of each site whose newest one has not been carried to the runs."""
        return dict(
            self._store.query(
                "SELECT site, breaks FROM sites WHERE breaks != breaks_carried ORDER BY site"
            )
        )

    def breaks_carried(self, site: str, breaks: int) -> None:
        """The runs and exchanges go on without what the site was before this many breaks."""
        with self._store.transaction("expulsion of a site") as db:
            db.execute("UPDATE sites SET breaks_carried = ? WHERE site = ?", (breaks, site))

    def authorise(self, peer: Peer, now_ms: int) -> None:
        """Let a caller pass whose certificate is in the registry and not over.

        The first call with a certificate gives the caller's earlier ones their end.

        Raises:
            RevokedError: the certificate or its site was revoked.
            RefusedError: the certificate is not in the registry, another has taken its place, or its
                trust anchor is retired.
            UnavailableError: what the site was before is still in the runs, for a moment.
            ResourceError: a first call that cannot be stored.
        """
        identity = peer.identity
        rows = self._store.query(
            "SELECT c.role, c.name, c.used_ms, c.over_ms, c.why_over, s.state, "
            "s.breaks != s.breaks_carried FROM certificates c "
            "LEFT JOIN sites s ON s.site = c.name WHERE c.fingerprint = ?",
            peer.fingerprint,
        )
        if not rows or rows[0][:2] != (identity.role.value, identity.name):
            raise RefusedError(
                f"{identity}: this certificate is not in the coordinator's registry",
                safe="nothing was changed",
                next_step="ask the operator for an invitation (fedpalm-coordinator invite SITE)",
            )
        _, _, used_ms, over_ms, why_over, site_state, uncarried = rows[0]
        # A clock that was set back brings nothing back but an overlap.
        over = bool(over_ms) and (why_over != "renewed" or now_ms >= over_ms)
        participant = identity.role is Role.PARTICIPANT
        if (over and why_over == "revoked") or (participant and site_state != "active"):
            raise RevokedError(
                f"{identity} was revoked by the operator",
                safe="what this site holds stays with it",
                next_step="talk to the operator; coming back takes a new invitation",
            )
        if over:
            gone = (
                "the trust anchor of this certificate is retired"
                if why_over == "retired"
                else "another certificate has taken the place of this one"
            )
            raise RefusedError(
                f"{identity}: {gone}",
                safe="nothing was changed",
                next_step="use the newer one; if it is lost, ask the operator for an invitation",
            )
        if participant and uncarried:
            raise UnavailableError(
                f"{identity} was admitted anew, and what it was before is still in the runs",
                safe="nothing was changed",
                next_step="try again in a moment",
            )
        if not used_ms:
            self._first_call(identity, peer.fingerprint, now_ms)

    # --- certificates -----------------------------------------------------------------------------

    def certificate_issued(self, leaf: x509.Certificate, at_ms: int) -> None:
        """Let a coordinator's, operator's or auditor's certificate in; sites are admitted.

        Raises:
            RefusedError: the certificate of a participant.
        """
        identity = identity_of(leaf)
        if identity.role is Role.PARTICIPANT:
            raise RefusedError(f"{identity}: a site is let in by its admission")
        with self._store.transaction("record of a certificate") as db:
            _insert_certificate(db, identity, leaf, at_ms)

    def admit(
        self,
        leaf: x509.Certificate,
        *,
        breaks: int | None,
        at_ms: int,
        operator: str,
        action: str,
        detail: str = "",
    ) -> None:
        """Let a site in under this certificate, or back in after a revocation.

        For a site that is active and keeps its signing key this is a renewal that travels as a file:
        its earlier certificates end after the first call with this one. Otherwise they are over now.

        Args:
            breaks: what :meth:`breaks` said when the operator began to decide.
            action: as in table ``operator_events``.
        Raises:
            RefusedError: the certificate is not a participant's.
            StateError: the site was revoked or admitted since then.
        """
        with self._store.transaction("admission of a site") as db:
            if self.breaks(name := identity_of(leaf).name) != breaks:
                raise StateError(
                    f"site {name} was revoked, or admitted by somebody else, since it was looked at",
                    safe="nothing was issued",
                    next_step="fedpalm-coordinator sites shows it as it is now",
                )
            site = admit_in(db, leaf, at_ms, renews=True)
            record_operator_event(db, at_ms, operator, action, site, detail)

    def require_renewal(self, identity: Identity, signing_key: bytes, now_ms: int) -> None:
        """Whether this caller may have one more certificate.

        Args:
            signing_key: raw bytes of the Ed25519 key that it would be bound to.
        Raises:
            RefusedError: for a site, another signing key than that of its admission.
            ResourceError: as many as there may be in a day were given already.
        """
        if (
            identity.role is Role.PARTICIPANT
            and self.site(identity.name).signing_key != signing_key
        ):
            raise RefusedError(
                f"{identity}: a renewal keeps the signing key of the admission",
                safe="nothing was issued",
                next_step="for another signing key, ask the operator for an invitation",
            )
        ((issued,),) = self._store.query(
            "SELECT count(*) FROM certificates WHERE role = ? AND name = ? AND issued_ms > ?",
            identity.role.value,
            identity.name,
            now_ms - DAY_MS,
        )
        if issued >= RENEWALS_A_DAY:
            raise ResourceError(
                f"{identity}: {issued} certificates were issued in a day, there are no more today",
                safe="the present certificate stays as it is",
                next_step="look in the site's log for why it asks again and again",
            )

    def renewed(self, leaf: x509.Certificate, at_ms: int) -> None:
        """Let the successor of a certificate in; the one before it ends after the first call with this.

        Raises:
            RevokedError: its site was revoked meanwhile.
        """
        identity = identity_of(leaf)
        with self._store.transaction("renewal of a certificate") as db:
            if identity.role is Role.PARTICIPANT:
                row = db.execute(
                    "SELECT state FROM sites WHERE site = ? AND signing_key = ?",
                    (identity.name, signing_key_of(leaf).public_bytes_raw()),
                ).fetchone()
                if row != ("active",):
                    raise RevokedError(
                        f"{identity} was revoked, or admitted with other keys, meanwhile",
                        safe="nothing was issued",
                        next_step="talk to the operator",
                    )
            _insert_certificate(db, identity, leaf, at_ms)

    def end_issued_before(self, moment_ms: int, at_ms: int) -> None:
        """End every certificate that was issued earlier than that: its trust anchor is retired.

        A site that is left without any is out of its runs, as if it had been admitted anew.
        """
        with self._store.transaction("retirement of a trust anchor") as db:
            _end_certificates(db, at_ms, "retired", "issued_ms < ?", moment_ms)
            db.execute(
                "UPDATE sites SET breaks = breaks + 1 WHERE state = 'active' AND EXISTS ("
                "SELECT 1 FROM certificates WHERE role = 'participant' AND name = site "
                "AND why_over = 'retired' AND over_ms = ?) AND NOT EXISTS ("
                "SELECT 1 FROM certificates WHERE role = 'participant' AND name = site "
                "AND (over_ms = 0 OR (why_over = 'renewed' AND over_ms > ?)))",
                (at_ms, at_ms),
            )

    def end_predecessors(self, leaf: x509.Certificate, at_ms: int) -> None:
        """End every other certificate of this one's name and role, without an overlap."""
        identity = identity_of(leaf)
        with self._store.transaction("end of earlier certificates") as db:
            _end_certificates(
                db, at_ms, "replaced", "role = ? AND name = ? AND fingerprint != ?",
                identity.role.value, identity.name, fingerprint(leaf),
            )  # fmt: skip

    # --- what happens to sites --------------------------------------------------------------------

    def revoke(self, site: str, reason: str, *, at_ms: int, operator: str) -> None:
        """Shut a site out at once, with all its certificates and open invitations.

        Raises:
            NotFoundError: it was never admitted.
            StateError: it is revoked already.
        """
        with self._store.transaction("revocation of a site") as db:
            row = db.execute("SELECT state FROM sites WHERE site = ?", (site,)).fetchone()
            if row is None:
                raise _never_admitted(site)
            if row == ("revoked",):
                raise StateError(f"site {site} is revoked already", safe="it stays shut out")
            db.execute(
                "UPDATE sites SET state = 'revoked', revoked_ms = ?, reason = ?, "
                "breaks = breaks + 1 WHERE site = ?",
                (at_ms, reason, site),
            )
            _end_certificates(db, at_ms, "revoked", _OF_SITE, site)
            cancel_invitations(db, site)
            record_operator_event(db, at_ms, operator, "revoke", site, reason)

    def site_seen(self, site: str, at_ms: int, software_version: str | None = None) -> None:
        """The site's connection began or ended."""
        with self._store.transaction("sighting of a site") as db:
            db.execute(
                "UPDATE sites SET last_seen_ms = ?, "
                "software_version = COALESCE(?, software_version) WHERE site = ?",
                (at_ms, software_version, site),
            )

    # --- inside -----------------------------------------------------------------------------------

    def _named(self, state: str) -> frozenset[str]:
        return frozenset(
            site for (site,) in self._store.query("SELECT site FROM sites WHERE state = ?", state)
        )

    def _first_call(self, identity: Identity, mark: str, now_ms: int) -> None:
        with self._store.transaction("first call with a certificate") as db:
            db.execute("UPDATE certificates SET used_ms = ? WHERE fingerprint = ?", (now_ms, mark))
            # Those that were issued later are successors of this one: theirs is the same right.
            db.execute(
                "UPDATE certificates SET over_ms = ?, why_over = 'renewed' "
                "WHERE role = ? AND name = ? AND over_ms = 0 AND rowid < "
                "(SELECT rowid FROM certificates WHERE fingerprint = ?)",
                (now_ms + OVERLAP_MS, identity.role.value, identity.name, mark),
            )


def admit_in(
    db: sqlite3.Connection, leaf: x509.Certificate, at_ms: int, *, renews: bool = False
) -> str:
    """Admission inside the caller's transaction; the site's name.

    Args:
        renews: earlier certificates of an active site with the same signing key get their overlap;
            otherwise they are over at once.
    Raises:
        RefusedError: the certificate is not a participant's.
    """
    identity = identity_of(leaf)
    if identity.role is not Role.PARTICIPANT:
        raise RefusedError(f"{identity}: only participants are admitted as sites")
    signing_key = signing_key_of(leaf).public_bytes_raw()
    before = db.execute(
        "SELECT state, signing_key FROM sites WHERE site = ?", (identity.name,)
    ).fetchone()
    replaces = not (renews and before == ("active", signing_key))
    if replaces:
        _end_certificates(db, at_ms, "replaced", _OF_SITE, identity.name)
    db.execute(
        "INSERT INTO sites (site, state, signing_key, admitted_ms) VALUES (?, 'active', ?, ?) "
        "ON CONFLICT (site) DO UPDATE SET state = 'active', signing_key = excluded.signing_key, "
        "admitted_ms = excluded.admitted_ms, revoked_ms = 0, reason = '', breaks = breaks + ?",
        (identity.name, signing_key, at_ms, int(replaces)),
    )
    _insert_certificate(db, identity, leaf, at_ms)
    cancel_invitations(db, identity.name)
    return identity.name


def cancel_invitations(db: sqlite3.Connection, site: str) -> int:
    """End what a site's invitations could still bring, inside the caller's transaction; how many."""
    return db.execute(
        "UPDATE invitations SET state = 'cancelled' "
        "WHERE site = ? AND state IN ('open', 'claimed')",
        (site,),
    ).rowcount


def _insert_certificate(
    db: sqlite3.Connection, identity: Identity, leaf: x509.Certificate, at_ms: int
) -> None:
    db.execute(
        "INSERT INTO certificates (fingerprint, role, name, serial, issued_ms, expires_ms) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (
            fingerprint(leaf),
            identity.role.value,
            identity.name,
            f"{leaf.serial_number:x}",
            at_ms,
            end_ms(leaf),
        ),
    )


_OF_SITE = "role = 'participant' AND name = ?"


def _end_certificates(
    db: sqlite3.Connection, at_ms: int, why: str, which: str, *values: object
) -> None:
    """End them now, and for good: an overlap is over even if the clock is set back after this.

    Args:
        which: SQL condition, with ``values`` for its question marks.
    """
    db.execute(
        "UPDATE certificates SET why_over = ?, "  # noqa: S608  (the conditions stand in this file)
        "over_ms = CASE over_ms WHEN 0 THEN ? ELSE min(over_ms, ?) END "
        f"WHERE ({which}) AND why_over IN ('', 'renewed')",
        (why, at_ms, at_ms, *values),
    )


def _never_admitted(site: str) -> NotFoundError:
    return NotFoundError(
        f"site {site} is not admitted to this federation",
        next_step="fedpalm-coordinator sites, or: fedpalm-coordinator invite SITE",
    )


_SITES = """
SELECT s.site, s.state, s.signing_key, s.admitted_ms, s.revoked_ms, s.reason, s.last_seen_ms,
       s.software_version, c.fingerprint, c.expires_ms
FROM sites s JOIN certificates c ON c.rowid = (
    SELECT rowid FROM certificates WHERE role = 'participant' AND name = s.site
    ORDER BY over_ms = 0 DESC, used_ms > 0 DESC, rowid DESC LIMIT 1)
"""
