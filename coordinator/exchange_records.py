"""Exchanges in the store: the machine's state, the consents it relays, receipts of ciphertexts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from fedpalm.exchange.consent import SignedConsent
from fedpalm.exchange.machine import ExchangeMachine

from .facts import Fact
from .store import Store


@dataclass(frozen=True)
class SealedRow:
    """A sealed expert that is durably stored; see table ``sealed_experts``."""

    exchange_id: str
    sender: str
    recipient: str
    payload_hash: str
    payload_bytes: int
    received_ms: int

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO sealed_experts VALUES (?, ?, ?, ?, ?, ?)",
            (
                self.exchange_id, self.sender, self.recipient,
                self.payload_hash, self.payload_bytes, self.received_ms,
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class ConsentRow:
    """A site's signed yes; see table ``consents``."""

    exchange_id: str
    signed: SignedConsent

    def write(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO consents VALUES (?, ?, ?)",
            (self.exchange_id, self.signed.consent.site, self.signed.to_bytes()),
        )


class ExchangeRecords:
    """The tables exchanges, consents and sealed_experts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self) -> list[ExchangeMachine]:
        """All exchanges, oldest first. Raises IntegrityError for a state its records do not support."""
        rows = self._store.query("SELECT state FROM exchanges ORDER BY created_ms, exchange_id")
        return [ExchangeMachine.from_json(json.loads(str(state))) for (state,) in rows]

    def save(self, machine: ExchangeMachine, at_ms: int, facts: Iterable[Fact] = ()) -> None:
        """Store a step, with what the input brought."""
        terms = machine.terms
        with self._store.transaction("advance of an exchange") as db:
            db.execute(
                "INSERT INTO exchanges VALUES (?, ?, ?, ?) "
                "ON CONFLICT (exchange_id) DO UPDATE SET state = excluded.state",
                (terms.exchange_id, terms.run, json.dumps(machine.to_json()), at_ms),
            )
            for fact in facts:
                fact.write(db)

    def consents(self, exchange_id: str) -> list[SignedConsent]:
        """All stored consents, by site."""
        rows = self._store.query(
            "SELECT consent FROM consents WHERE exchange_id = ? ORDER BY site", exchange_id
        )
        return [SignedConsent.from_bytes(bytes(consent)) for (consent,) in rows]

    def sealed(self, exchange_id: str, sender: str, recipient: str) -> SealedRow | None:
        """A sealed expert that came, if it did."""
        rows = self._store.query(
            "SELECT payload_hash, payload_bytes, received_ms FROM sealed_experts "
            "WHERE (exchange_id, sender, recipient) = (?, ?, ?)",
            exchange_id, sender, recipient,
        )  # fmt: skip
        for payload_hash, payload_bytes, received_ms in rows:
            return SealedRow(
                exchange_id, sender, recipient, payload_hash, payload_bytes, received_ms
            )
        return None
