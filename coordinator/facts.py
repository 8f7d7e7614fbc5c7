"""What happened, as rows that are written in the transaction of the advance that they belong to.

Columns are explained in ``schema.sql``. A signed statement is stored before anybody is told of it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Protocol

from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.agreement import PlanAnswer
from fedpalm.rounds.events import RoundRef


class Fact(Protocol):
    """Something that happened."""

    def write(self, db: sqlite3.Connection) -> None: ...


@dataclass(frozen=True)
class UpdateRow:
    """An update that counts; see table ``updates``."""

    run_id: str
    ref: RoundRef
    site: str
    payload_hash: str
    payload_bytes: int
    received_ms: int

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self.run_id, self.ref.round, self.ref.attempt, self.site,
                self.payload_hash, self.payload_bytes, self.received_ms,
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class ReceiptRow:
    """A receipt as it was given; see table ``receipts``."""

    run_id: str
    site: str
    place: str
    signed: SignedStatement

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO receipts VALUES (?, ?, ?, ?)",
            (self.run_id, self.site, self.place, self.signed.to_bytes()),
        )


@dataclass(frozen=True)
class ManifestRow:
    """A link of a run's chain; see table ``manifests``."""

    run_id: str
    seq: int
    ref: RoundRef
    signed: SignedStatement

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO manifests VALUES (?, ?, ?, ?, ?)",
            (self.run_id, self.seq, self.ref.round, self.ref.attempt, self.signed.to_bytes()),
        )


@dataclass(frozen=True)
class AnswerRow:
    """A site's newest answer to a plan; see table ``plan_answers``."""

    answer: PlanAnswer
    signed: SignedStatement

    def write(self, db: sqlite3.Connection) -> None:
        answer = self.answer
        db.execute(
            "INSERT OR REPLACE INTO plan_answers VALUES (?, ?, ?, ?, ?)",
            (answer.run, answer.site, answer.number, answer.answer, self.signed.to_bytes()),
        )


@dataclass(frozen=True)
class AnswerGone:
    """A revoked site's answer is void: whoever comes back under its name is asked again."""

    run_id: str
    site: str

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM plan_answers WHERE (run_id, site) = (?, ?)", (self.run_id, self.site)
        )


@dataclass(frozen=True)
class CountersignatureRow:
    """A site's signature over a manifest; see table ``countersignatures``."""

    run_id: str
    ref: RoundRef
    site: str
    signed: SignedStatement

    def write(self, db: sqlite3.Connection) -> None:
        """Again changes nothing: there is one statement that a site can countersign with."""
        db.execute(
            "INSERT OR IGNORE INTO countersignatures VALUES (?, ?, ?, ?, ?)",
            (
                self.run_id, self.ref.round, self.ref.attempt, self.site,
                self.signed.to_bytes(),
            ),
        )  # fmt: skip
