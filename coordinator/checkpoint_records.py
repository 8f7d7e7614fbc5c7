"""Checkpoints of sites' logs in the store, in the order in which they came, and what contradicts them.

Columns are explained in ``schema.sql``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.events import RoundRef

from .store import Store


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint that goes on from the one before it; see table ``checkpoints``."""

    checkpoint: Checkpoint
    given: GivenCheckpoint

    def write(self, db: sqlite3.Connection) -> None:
        one = self.checkpoint
        db.execute(
            "INSERT INTO checkpoints (site, key_id, size, run_id, round, attempt, hash, proof, signed) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                one.site, one.key_id, one.size, one.run, one.round, one.attempt,
                one.hash.hex(), self.given.proof_bytes, self.given.signed.to_bytes(),
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class ConflictRow:
    """A checkpoint that was refused, as evidence; see table ``checkpoint_conflicts``."""

    held: Checkpoint
    other: Checkpoint
    signed: SignedStatement
    came_ms: int

    def write(self, db: sqlite3.Connection) -> None:
        """Again changes nothing."""
        db.execute(
            "INSERT OR IGNORE INTO checkpoint_conflicts VALUES (?, ?, ?, ?, ?)",
            (
                self.other.site, self.held.hash.hex(), self.other.hash.hex(),
                self.signed.to_bytes(), self.came_ms,
            ),
        )  # fmt: skip


class CheckpointRecords:
    """The tables ``checkpoints`` and ``checkpoint_conflicts``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def newest(self, site: str, key_id: str) -> GivenCheckpoint | None:
        """The newest of the log of this site and key."""
        rows = self._store.query(
            "SELECT signed, proof FROM checkpoints WHERE (site, key_id) = (?, ?) "
            "ORDER BY seq DESC LIMIT 1",
            site, key_id,
        )  # fmt: skip
        return GivenCheckpoint.stored(*rows[0]) if rows else None

    def newest_of(self, site: str) -> GivenCheckpoint | None:
        """The one that came last from this site, under whatever key."""
        rows = self._store.query(
            "SELECT signed, proof FROM checkpoints WHERE site = ? ORDER BY seq DESC LIMIT 1", site
        )
        return GivenCheckpoint.stored(*rows[0]) if rows else None

    def of_each_log(self, site: str) -> list[GivenCheckpoint]:
        """The newest of each log that this site has kept, one a key; the one that came last is the last."""
        rows = self._store.query(
            "SELECT signed, proof FROM checkpoints WHERE seq IN "
            "(SELECT MAX(seq) FROM checkpoints WHERE site = ? GROUP BY key_id) ORDER BY seq",
            site,
        )
        return [GivenCheckpoint.stored(*row) for row in rows]

    def of_attempt(self, run_id: str, ref: RoundRef, site: str, key_id: str) -> str:
        """The hash of what a site gave for an attempt; empty if it has given none."""
        rows = self._store.query(
            "SELECT hash FROM checkpoints "
            "WHERE (run_id, round, attempt, site, key_id) = (?, ?, ?, ?, ?)",
            run_id, ref.round, ref.attempt, site, key_id,
        )  # fmt: skip
        return str(rows[0][0]) if rows else ""

    def place(self, checkpoint_hash: str) -> tuple[str, int] | None:
        """Site and position of a checkpoint; later ones of a site have higher positions."""
        rows = self._store.query(
            "SELECT site, seq FROM checkpoints WHERE hash = ?", checkpoint_hash
        )
        return (str(rows[0][0]), int(rows[0][1])) if rows else None

    def between(self, site: str, first: int, last: int) -> list[int]:
        """Positions of a site's checkpoints from ``first`` to ``last``, both included, in order."""
        rows = self._store.query(
            "SELECT seq FROM checkpoints WHERE site = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            site, first, last,
        )  # fmt: skip
        return [int(seq) for (seq,) in rows]

    def given(self, seq: int) -> GivenCheckpoint:
        """The checkpoint at a position that there is."""
        rows = self._store.query("SELECT signed, proof FROM checkpoints WHERE seq = ?", seq)
        return GivenCheckpoint.stored(*rows[0])

    def conflicts(self, site: str) -> list[SignedStatement]:
        """What was refused of a site's checkpoints."""
        rows: Sequence[Any] = self._store.query(
            "SELECT signed FROM checkpoint_conflicts WHERE site = ? ORDER BY came_ms", site
        )
        return [SignedStatement.from_bytes(signed) for (signed,) in rows]
