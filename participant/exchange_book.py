"""Exchanges as the site stores them: the state machine, and the bytes that go with its steps."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from fedpalm.exchange.consent import SignedConsent
from fedpalm.exchange.site import SiteExchange, SiteState
from fedpalm.pki.hybrid import HybridKey

from .store import SiteStore


class ExchangeBook:
    """Rows of the ``exchanges`` table; what changes takes the caller's transaction."""

    def __init__(self, store: SiteStore) -> None:
        self._store = store

    def get(self, exchange_id: str) -> SiteExchange | None:
        """Raises IntegrityError: the stored machine is malformed."""
        row = self._row(exchange_id)
        return SiteExchange.from_json(json.loads(row["machine"])) if row else None

    def all(self) -> list[SiteExchange]:
        """Oldest first."""
        rows = self._store.rows("SELECT machine FROM exchanges ORDER BY proposed_ms, rowid")
        return [SiteExchange.from_json(json.loads(row["machine"])) for row in rows]

    def put(self, db: sqlite3.Connection, exchange: SiteExchange) -> None:
        """Insert or replace the machine; a new state has a new answer, or none."""
        db.execute(
            "INSERT INTO exchanges (exchange_id, run_id, machine, state, proposed_ms) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (exchange_id) "
            "DO UPDATE SET machine = excluded.machine, state = excluded.state",
            (
                exchange.terms.exchange_id,
                exchange.terms.run,
                json.dumps(exchange.to_json()),
                exchange.state.value,
                self._store.now_ms(),
            ),
        )

    # --- the answer -------------------------------------------------------------------------------

    def put_consent(
        self, db: sqlite3.Connection, exchange_id: str, consent: SignedConsent, key_file: str
    ) -> None:
        db.execute(
            "UPDATE exchanges SET consent = ?, key_file = ?, answered = 0 WHERE exchange_id = ?",
            (consent.to_bytes(), key_file, exchange_id),
        )

    def consent(self, exchange_id: str) -> SignedConsent | None:
        """This site's own signed yes."""
        row = self._row(exchange_id)
        return SignedConsent.from_bytes(row["consent"]) if row and row["consent"] else None

    def set_answered(self, exchange_id: str, answered: bool) -> None:
        """Whether the coordinator has this site's present answer."""
        with self._store.transaction() as db:
            db.execute(
                "UPDATE exchanges SET answered = ? WHERE exchange_id = ?", (answered, exchange_id)
            )

    def set_delivered(self, exchange_id: str, refusal: bool) -> None:
        """The coordinator has this yes or no; a no given after that yes left is still to be sent."""
        with self._store.transaction() as db:
            db.execute(
                "UPDATE exchanges SET answered = 1 WHERE exchange_id = ? AND (state = ?) = ?",
                (exchange_id, SiteState.DECLINED.value, refusal),
            )

    def unanswered(self) -> list[str]:
        """Exchanges whose answer was given here and has not reached the coordinator."""
        answers = (SiteState.APPROVED.value, SiteState.DECLINED.value)
        rows = self._store.rows(
            "SELECT exchange_id FROM exchanges WHERE answered = 0 AND state IN (?, ?)", *answers
        )
        return [row["exchange_id"] for row in rows]

    # --- sealing and opening ----------------------------------------------------------------------

    def put_agreed(
        self, db: sqlite3.Connection, exchange_id: str, consents: Iterable[SignedConsent]
    ) -> None:
        agreed = json.dumps([consent.to_bytes().decode() for consent in consents])
        db.execute("UPDATE exchanges SET agreed = ? WHERE exchange_id = ?", (agreed, exchange_id))

    def agreed(self, exchange_id: str) -> list[SignedConsent]:
        """The consents under which this site sealed."""
        row = self._row(exchange_id)
        texts = json.loads(row["agreed"]) if row and row["agreed"] else []
        return [SignedConsent.from_bytes(text.encode()) for text in texts]

    def key(self, exchange_id: str) -> HybridKey | None:
        """The recipient key, until it is erased.

        Raises:
            KeyFileError: missing, or open to others.
            VaultError: the vault cannot be unlocked, or this is not what it sealed.
        """
        row = self._row(exchange_id)
        if row is None or row["key_file"] is None:
            return None
        return HybridKey.from_private_bytes(self._store.read_private(row["key_file"]))

    def is_closed(self, exchange_id: str) -> bool:
        """Whether the coordinator has said that it is over."""
        row = self._row(exchange_id)
        return row is not None and bool(row["closed"])

    def close(self, db: sqlite3.Connection, exchange_id: str) -> None:
        """The coordinator says that it is over: key and sealed experts go."""
        db.execute("UPDATE exchanges SET closed = 1 WHERE exchange_id = ?", (exchange_id,))
        self.drop_files(db, exchange_id, sealed=True)

    def drop_files(self, db: sqlite3.Connection, exchange_id: str, *, sealed: bool) -> None:
        """Let go of the recipient key, and with ``sealed`` of the sealed experts, too.

        The files are erased by the next :meth:`SiteStore.remove_orphans`.
        """
        db.execute("UPDATE exchanges SET key_file = NULL WHERE exchange_id = ?", (exchange_id,))
        if sealed:
            db.execute(
                "UPDATE sealed_experts SET file = NULL WHERE exchange_id = ?", (exchange_id,)
            )

    def _row(self, exchange_id: str) -> sqlite3.Row | None:
        return self._store.row("SELECT * FROM exchanges WHERE exchange_id = ?", exchange_id)
