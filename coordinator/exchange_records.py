"""Exchanges in the store: the machine's state, and what sites said, sealed and sent in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedpalm.exchange.machine import ExchangeMachine
from fedpalm.pki.statement import SignedStatement

from .facts import Fact
from .store import Store


@dataclass(frozen=True)
class StoredExchange:
    """An exchange and the signed form of its terms."""

    machine: ExchangeMachine
    terms: SignedStatement


@dataclass(frozen=True)
class ConsentRow:
    """A site's signed yes; see table ``consents``."""

    exchange_id: str
    site: str
    signed: SignedStatement

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO consents VALUES (?, ?, ?)",
            (self.exchange_id, self.site, self.signed.to_bytes()),
        )


@dataclass(frozen=True)
class SealedRow:
    """A sealed expert that is durably stored; see table ``sealed_experts``."""

    exchange_id: str
    sender: str
    expert_hash: str
    payload_hash: str
    payload_bytes: int
    received_ms: int

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO sealed_experts VALUES (?, ?, ?, ?, ?, ?)",
            (
                self.exchange_id, self.sender, self.expert_hash,
                self.payload_hash, self.payload_bytes, self.received_ms,
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class KeyRow:
    """The key to the expert of ``sender``, wrapped for ``recipient``; see table ``expert_keys``."""

    exchange_id: str
    sender: str
    recipient: str
    wrapped: bytes

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO expert_keys VALUES (?, ?, ?, ?)",
            (self.exchange_id, self.sender, self.recipient, self.wrapped),
        )


@dataclass(frozen=True)
class ExpertReceiptRow:
    """What a site has opened; see table ``expert_receipts``."""

    exchange_id: str
    site: str
    signed: SignedStatement

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO expert_receipts VALUES (?, ?, ?)",
            (self.exchange_id, self.site, self.signed.to_bytes()),
        )


class ExchangeRecords:
    """The tables exchanges, consents, sealed_experts, expert_keys and expert_receipts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self) -> list[StoredExchange]:
        """All exchanges; those of a plan in their order.

        Raises:
            IntegrityError: a state that its records do not support.
        """
        rows = self._store.query("SELECT state, terms FROM exchanges ORDER BY plan_hash, number")
        return [
            StoredExchange(
                ExchangeMachine.from_json(json.loads(state)), SignedStatement.from_bytes(terms)
            )
            for state, terms in rows
        ]

    def propose(
        self, plan_hash: str, make: Callable[[int], StoredExchange], at_ms: int
    ) -> StoredExchange:
        """Store a new exchange of a plan under the next number, which no other ever has.

        Args:
            plan_hash: hex.
            make: the exchange of this number, with its signed terms.
        """
        with self._store.transaction("proposal of an exchange") as db:
            (last,) = db.execute(
                "SELECT coalesce(max(number), 0) FROM exchanges WHERE plan_hash = ?", (plan_hash,)
            ).fetchone()
            made = make(last + 1)
            terms = made.machine.terms
            db.execute(
                "INSERT INTO exchanges VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    terms.exchange_id, terms.run, plan_hash, terms.number,
                    made.terms.to_bytes(), json.dumps(made.machine.to_json()), at_ms,
                ),
            )  # fmt: skip
        return made

    def save(self, machine: ExchangeMachine, facts: Iterable[Fact] = ()) -> None:
        """Store a step, with what the input brought; with the last one its keys go."""
        exchange_id = machine.terms.exchange_id
        with self._store.transaction("advance of an exchange") as db:
            db.execute(
                "UPDATE exchanges SET state = ? WHERE exchange_id = ?",
                (json.dumps(machine.to_json()), exchange_id),
            )
            for fact in facts:
                fact.write(db)
            if machine.ended:
                db.execute("DELETE FROM expert_keys WHERE exchange_id = ?", (exchange_id,))

    def consents(self, exchange_id: str) -> dict[str, SignedStatement]:
        """All stored consents, by site."""
        rows = self._store.query(
            "SELECT site, signed FROM consents WHERE exchange_id = ? ORDER BY site", exchange_id
        )
        return {site: SignedStatement.from_bytes(signed) for site, signed in rows}

    def sealed(self, exchange_id: str) -> dict[str, SealedRow]:
        """The sealed experts that came, by sender."""
        rows = self._store.query(
            "SELECT exchange_id, sender, expert_hash, payload_hash, payload_bytes, received_ms "
            "FROM sealed_experts WHERE exchange_id = ? ORDER BY sender",
            exchange_id,
        )
        return {row[1]: SealedRow(*row) for row in rows}

    def keys(self, exchange_id: str, recipient: str) -> list[KeyRow]:
        """What is wrapped for one site, by sender."""
        rows = self._store.query(
            "SELECT exchange_id, sender, recipient, wrapped FROM expert_keys "
            "WHERE (exchange_id, recipient) = (?, ?) ORDER BY sender",
            exchange_id, recipient,
        )  # fmt: skip
        return [KeyRow(*row) for row in rows]

    def receipt(self, exchange_id: str, site: str) -> SignedStatement | None:
        """The site's receipt, if it came."""
        rows = self._store.query(
            "SELECT signed FROM expert_receipts WHERE (exchange_id, site) = (?, ?)",
            exchange_id, site,
        )  # fmt: skip
        return SignedStatement.from_bytes(rows[0][0]) if rows else None
