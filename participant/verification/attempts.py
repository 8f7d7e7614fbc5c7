"""How often somebody may be tried for: the log of attempts, rates and lock-outs.

An attempt counts as failed before its image is looked at; a match takes that back. So nobody gets more
tries by asking many times at once, or by cutting the power. A refused attempt is decided from these rows
alone: it tells nothing of the image. After ``max_failures`` failures in a row each further one doubles
the pause (NIST SP 800-63B, 5.2.3).

Names are in no row: a subject is an HMAC under a key that the vault derives.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from fedpalm.errors import (
    DataError,
    LockedOutError,
    NotFoundError,
    TooManyAttemptsError,
)

from ..config import VerificationSettings
from ..store import SiteStore

MINUTE_MS, DAY_MS = 60_000, 86_400_000
_MOST_DOUBLINGS = 20

Kind = Literal["verify", "identify"]


class Outcome(StrEnum):
    """How an attempt ended."""

    OPEN = "open"
    MATCH = "match"
    NON_MATCH = "non_match"
    NOT_ACQUIRED = "not_acquired"
    FAILED = "failed"


@dataclass
class Attempt:
    """One that was let in; whoever compares sets ``outcome``."""

    seq: int
    subject: bytes | None
    outcome: Outcome = Outcome.OPEN


class Attempts:
    """The tables ``verification_attempts``, ``verification_locks`` and ``verification_counts``."""

    def __init__(self, store: SiteStore, settings: VerificationSettings) -> None:
        self._store, self._settings = store, settings

    @contextmanager
    def attempt(self, kind: Kind, subject: str | None, caller: str = "") -> Iterator[Attempt]:
        """Let an attempt in, and store how it ends; what ends with an error is no one's failure.

        Raises:
            LockedOutError: too many for this person have failed.
            TooManyAttemptsError: within this minute there were as many as the site allows.
        """
        mark = None if subject is None else self._mark(subject)
        attempt = self._begin(kind, mark, caller)
        try:
            yield attempt
        except DataError:
            attempt.outcome = Outcome.NOT_ACQUIRED
            raise
        except Exception:
            attempt.outcome = Outcome.FAILED
            raise
        finally:
            if attempt.outcome is not Outcome.OPEN:
                self._end(kind, attempt)

    def locked_until_ms(self, subject: str) -> int | None:
        """Until when nothing is tried for this person; None: something may be."""
        row = self._store.row(
            "SELECT locked_until_ms FROM verification_locks WHERE subject = ?", self._mark(subject)
        )
        until = 0 if row is None else int(row["locked_until_ms"])
        return until if until > self._store.now_ms() else None

    def unlock(self, subject: str) -> None:
        """Forget the failures of a person; what was tried before does not count in their rate.

        Raises:
            NotFoundError: no attempt has failed.
        """
        mark = self._mark(subject)
        with self._store.transaction() as db:
            done = db.execute("DELETE FROM verification_locks WHERE subject = ?", (mark,))
            if not done.rowcount:
                raise NotFoundError(
                    f"no attempt for {subject!r} has failed since the last match",
                    safe="nothing was changed",
                    next_step="fedpalm-participant subjects lists who is locked out; after too many "
                    "attempts, try again in a minute",
                )
            db.execute("UPDATE verification_attempts SET excused = 1 WHERE subject = ?", (mark,))

    def erase(self, db: sqlite3.Connection, subject: str) -> int:
        """Delete every row about a person; how many attempts there were."""
        mark = self._mark(subject)
        db.execute("DELETE FROM verification_locks WHERE subject = ?", (mark,))
        return db.execute("DELETE FROM verification_attempts WHERE subject = ?", (mark,)).rowcount

    def count(self, db: sqlite3.Connection, what: str) -> None:
        """One more of ``what``, in the caller's transaction."""
        db.execute(
            "INSERT INTO verification_counts VALUES (?, 1) "
            "ON CONFLICT (what) DO UPDATE SET n = n + 1",
            (what,),
        )

    def tell(self, *what: str) -> None:
        """:meth:`count` in a transaction of its own."""
        with self._store.transaction() as db:
            for one in what:
                self.count(db, one)

    def counts(self) -> dict[str, int]:
        """How often what has happened."""
        query = "SELECT what, n FROM verification_counts ORDER BY what"
        return {row["what"]: row["n"] for row in self._store.rows(query)}

    # --- inside -----------------------------------------------------------------------------------

    def _begin(self, kind: Kind, subject: bytes | None, caller: str) -> Attempt:
        now = self._store.now_ms()
        with self._store.transaction() as db:
            refusal = self._refusal(db, subject, caller, now)
            if refusal is not None:
                self.count(db, f"refused_{refusal.code}")
            else:
                attempt = self._let_in(db, kind, subject, caller, now)
        # Outside: the count of a refusal is to be stored, too.
        if refusal is not None:
            raise refusal
        return attempt

    def _let_in(
        self, db: sqlite3.Connection, kind: Kind, subject: bytes | None, caller: str, now: int
    ) -> Attempt:
        oldest = now - self._settings.keep_attempts_days * DAY_MS
        db.execute("DELETE FROM verification_attempts WHERE at_ms < ?", (oldest,))
        if subject is not None:
            self._charge(db, subject, now)
        row = db.execute(
            "INSERT INTO verification_attempts (at_ms, kind, subject, caller, outcome) "
            "VALUES (?, ?, ?, ?, 'open')",
            (now, kind, subject, caller),
        )
        return Attempt(int(row.lastrowid or 0), subject)

    def _refusal(
        self, db: sqlite3.Connection, subject: bytes | None, caller: str, now: int
    ) -> TooManyAttemptsError | LockedOutError | None:
        limits = self._settings
        # A lock first: it lasts, and a person can lift it, which waiting for a rate does not tell.
        locked = db.execute(
            "SELECT 1 FROM verification_locks WHERE subject = ? AND locked_until_ms > ?",
            (subject, now),
        ).fetchone()
        if locked is not None:
            return LockedOutError(
                "too many attempts for this person have failed",
                safe="the image was not looked at",
                next_step="wait, or have somebody at the site look into it: fedpalm-participant unlock "
                "SUBJECT",
            )
        # A clock that was set back makes this stricter, never looser.
        recent = "SELECT COUNT(*) AS n FROM verification_attempts WHERE at_ms > ?"
        asked: list[tuple[str, str, tuple[object, ...], int]] = [
            ("at this site", "", (), limits.attempts_per_minute)
        ]
        if subject is not None:
            where, most = " AND subject = ? AND excused = 0", limits.subject_attempts_per_minute
            asked.append(("for this person", where, (subject,), most))
        if caller:
            where, most = " AND caller = ?", limits.application_attempts_per_minute
            asked.append(("by this application", where, (caller,), most))
        for whose, where, values, most in asked:
            if db.execute(recent + where, (now - MINUTE_MS, *values)).fetchone()["n"] >= most:
                return TooManyAttemptsError(
                    f"there were too many attempts {whose} within the last minute",
                    safe="the image was not looked at",
                    next_step="try again in a minute",
                )
        return None

    def _charge(self, db: sqlite3.Connection, subject: bytes, now: int) -> None:
        row = db.execute(
            "SELECT failures FROM verification_locks WHERE subject = ?", (subject,)
        ).fetchone()
        failures = 1 + (0 if row is None else int(row["failures"]))
        until = 0
        if failures >= self._settings.max_failures:
            doublings = min(failures - self._settings.max_failures, _MOST_DOUBLINGS)
            pause_ms = min(int(self._settings.lockout_s * 1000) << doublings, DAY_MS)
            until = now + pause_ms
        db.execute(
            "INSERT OR REPLACE INTO verification_locks VALUES (?, ?, ?)", (subject, failures, until)
        )

    def _end(self, kind: Kind, attempt: Attempt) -> None:
        with self._store.transaction() as db:
            db.execute(
                "UPDATE verification_attempts SET outcome = ? WHERE seq = ?",
                (attempt.outcome.value, attempt.seq),
            )
            self.count(db, f"{kind}_{attempt.outcome.value}")
            if attempt.subject is None:
                return
            if attempt.outcome is Outcome.MATCH:
                db.execute("DELETE FROM verification_locks WHERE subject = ?", (attempt.subject,))
            elif attempt.outcome is not Outcome.NON_MATCH:
                self._take_back(db, attempt.subject)

    def _take_back(self, db: sqlite3.Connection, subject: bytes) -> None:
        """An image that could not be used, or an error here, is not a failure of the person."""
        db.execute(
            "UPDATE verification_locks SET failures = failures - 1, locked_until_ms = "
            "CASE WHEN failures - 1 >= ? THEN locked_until_ms ELSE 0 END WHERE subject = ?",
            (self._settings.max_failures, subject),
        )
        db.execute("DELETE FROM verification_locks WHERE subject = ? AND failures <= 0", (subject,))

    def _mark(self, subject: str) -> bytes:
        key = self._store.vault.derive("verification/attempts")
        return hmac.digest(key, subject.encode(), "sha256")
