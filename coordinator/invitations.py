"""One-time invitations: opened by the operator, claimed by a newcomer's request, decided by the operator.

A newcomer has no certificate, so all that is known of it is what it brings here. Whatever is wrong with
that, it hears the same words; the reason goes to the coordinator's log alone.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from cryptography import x509

from fedpalm.errors import InvitationError, NotFoundError, StateError
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.invitation import token_hash

from .registry import admit_in, cancel_invitations
from .store import Store, record_operator_event

ASK_AFTER_MS = 24 * 60 * 60 * 1000
"""So long after a decision a newcomer can still ask for it."""
STAY_MS = 60 * 1000
"""And so long after it was told first the listener stays open for it, since that answer may be lost."""


@dataclass(frozen=True)
class InvitationRow:
    """See table ``invitations``; the hash of the token stays there."""

    invitation_id: str
    site: str
    state: str
    created_ms: int
    expires_ms: int
    request: bytes | None
    claimed_ms: int
    chain: bytes | None
    reason: str
    decided_ms: int
    told_ms: int

    def answerable(self, now_ms: int) -> bool:
        """Whether a newcomer can still get an answer to it."""
        if self.state in ("open", "claimed"):
            return now_ms < self.expires_ms
        if self.state in ("issued", "rejected"):
            return now_ms < self.decided_ms + ASK_AFTER_MS
        return False


class InvitationRefusedError(InvitationError):
    """A claim that failed; ``why`` is for the coordinator's log and never travels."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            "the invitation cannot be used: it is unknown, used, over, or for another name",
            safe="nothing was issued",
            next_step="ask the operator for a new invitation",
        )


class Invitations:
    """The invitations of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- looking ----------------------------------------------------------------------------------

    def all(self) -> list[InvitationRow]:
        """Oldest first."""
        rows = self._store.query(f"{_INVITATIONS} ORDER BY created_ms, rowid")
        return [InvitationRow(*row) for row in rows]

    def wanted(self, now_ms: int) -> bool:
        """Whether somebody may still come: then the enrolment listener has to be open.

        For those who are decided about that is over a while after they were told, or with the first
        call under the new certificate.
        """
        rows = self._store.query(_WANTED, now_ms - STAY_MS)
        return any(InvitationRow(*row).answerable(now_ms) for row in rows)

    def waiting(self, now_ms: int) -> list[InvitationRow]:
        """Those whose request waits for the operator, the longest waiting first."""
        return sorted(
            (row for row in self.all() if row.state == "claimed" and row.answerable(now_ms)),
            key=lambda row: row.claimed_ms,
        )

    def waiting_for(self, site: str, now_ms: int) -> InvitationRow:
        """The one that waits for the operator's decision about this site.

        Raises:
            NotFoundError: nobody has come with an invitation for it, or the invitation has ended.
        """
        for row in self.waiting(now_ms):
            if row.site == site:
                return row
        raise NotFoundError(
            f"no request for site {site} waits for a decision",
            next_step="fedpalm-coordinator sites shows who waits; an invitation that has ended is "
            "followed by another: fedpalm-coordinator invite SITE",
        )

    # --- what the operator does -------------------------------------------------------------------

    def invite(
        self,
        invitation_id: str,
        site: str,
        token: bytes,
        *,
        created_ms: int,
        expires_ms: int,
        operator: str,
    ) -> None:
        """Open an invitation; one that the site had before is cancelled. Only the token's hash is kept."""
        with self._store.transaction("invitation") as db:
            cancel_invitations(db, site)
            db.execute(
                "INSERT INTO invitations (invitation_id, site, token_hash, state, created_ms, "
                "expires_ms) VALUES (?, ?, ?, 'open', ?, ?)",
                (invitation_id, site, token_hash(token), created_ms, expires_ms),
            )
            record_operator_event(db, created_ms, operator, "invite", site, invitation_id)

    def cancel(self, site: str, *, at_ms: int, operator: str) -> None:
        """Raises NotFoundError: the site has no invitation that is open or claimed."""
        with self._store.transaction("end of an invitation") as db:
            if not cancel_invitations(db, site):
                raise NotFoundError(f"site {site} has no invitation that could be cancelled")
            record_operator_event(db, at_ms, operator, "cancel invitation", site)

    def approve(
        self,
        seen: InvitationRow,
        leaf: x509.Certificate,
        chain_pem: bytes,
        *,
        at_ms: int,
        operator: str,
    ) -> None:
        """Admit the site under ``leaf`` and keep its chain for the newcomer: one transaction.

        Args:
            seen: the invitation as the operator saw it.
        Raises:
            StateError: it has changed since, or has ended.
        """
        with self._store.transaction("approval of a request") as db:
            self._require_unchanged(seen, at_ms)
            db.execute(
                "UPDATE invitations SET state = 'issued', chain = ?, decided_ms = ? "
                "WHERE invitation_id = ?",
                (chain_pem, at_ms, seen.invitation_id),
            )
            site = admit_in(db, leaf, at_ms)
            record_operator_event(db, at_ms, operator, "approve", site, seen.invitation_id)

    def reject(self, seen: InvitationRow, reason: str, *, at_ms: int, operator: str) -> None:
        """Raises StateError: the invitation has changed since it was seen, or has ended."""
        with self._store.transaction("rejection of a request") as db:
            self._require_unchanged(seen, at_ms)
            db.execute(
                "UPDATE invitations SET state = 'rejected', reason = ?, decided_ms = ? "
                "WHERE invitation_id = ?",
                (reason, at_ms, seen.invitation_id),
            )
            record_operator_event(db, at_ms, operator, "reject", seen.site, reason)

    # --- what a newcomer does ---------------------------------------------------------------------

    def claim(
        self, invitation_id: str, token: bytes, request: bytes, asks_for: Identity, now_ms: int
    ) -> tuple[InvitationRow, bool]:
        """Take the invitation for this request, or ask again with the same one.

        The first request that comes with the token has it; of two at once one is first. What is
        returned is stored: an answer that holds the decision may be given.

        Args:
            request: PEM; its signatures hold.
            asks_for: the identity that it names.
        Returns:
            The invitation, and whether this call has claimed it.
        Raises:
            InvitationRefusedError: always with the same words.
        """
        # Looked at before anything is locked: a stranger's guess holds up nobody.
        found = self._store.query(
            "SELECT token_hash FROM invitations WHERE invitation_id = ?", invitation_id
        )
        # An unknown invitation is compared with, too: the answer takes as long.
        right = hmac.compare_digest(found[0][0] if found else bytes(32), token_hash(token))
        if not found:
            raise InvitationRefusedError("no such invitation")
        if not right:
            raise InvitationRefusedError("the token is wrong")
        with self._store.transaction("claim of an invitation") as db:
            row = self._row(invitation_id)
            if asks_for.role is not Role.PARTICIPANT or asks_for.name != row.site:
                raise InvitationRefusedError(f"for site {row.site}, and the request is {asks_for}")
            if not row.answerable(now_ms):
                raise InvitationRefusedError(f"for site {row.site}, over ({row.state})")
            if row.state == "open":
                db.execute(
                    "UPDATE invitations SET state = 'claimed', request = ?, claimed_ms = ? "
                    "WHERE invitation_id = ?",
                    (request, now_ms, invitation_id),
                )
                return self._row(invitation_id), True
            if row.request != request:
                raise InvitationRefusedError(
                    f"for site {row.site}, claimed by another request already"
                )
            if row.state != "claimed" and not row.told_ms:
                db.execute(
                    "UPDATE invitations SET told_ms = ? WHERE invitation_id = ?",
                    (now_ms, invitation_id),
                )
            return row, False

    # --- inside -----------------------------------------------------------------------------------

    def _row(self, invitation_id: str) -> InvitationRow:
        (row,) = self._store.query(f"{_INVITATIONS} WHERE invitation_id = ?", invitation_id)
        return InvitationRow(*row)

    def _require_unchanged(self, seen: InvitationRow, now_ms: int) -> None:
        row = self._row(seen.invitation_id)
        if row != seen or row.state != "claimed" or not row.answerable(now_ms):
            raise StateError(
                f"the invitation for site {seen.site} has changed or ended since it was shown "
                f"({row.state})",
                safe="nothing was issued",
                next_step="fedpalm-coordinator sites shows who waits now",
            )


_INVITATIONS = (
    "SELECT invitation_id, site, state, created_ms, expires_ms, request, claimed_ms, chain, reason, "
    "decided_ms, told_ms FROM invitations"
)
_WANTED = f"""
{_INVITATIONS} WHERE state IN ('open', 'claimed')
OR (state IN ('issued', 'rejected') AND (told_ms = 0 OR told_ms > ?) AND NOT EXISTS (
    SELECT 1 FROM certificates WHERE role = 'participant' AND name = site
    AND issued_ms >= decided_ms AND (used_ms > 0 OR over_ms > 0)))
"""  # noqa: S608  (both parts stand here)
