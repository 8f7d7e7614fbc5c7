"""Exchanges as the site stores them: the state machine, and the bytes that go with its steps."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedpalm.errors import IntegrityError
from fedpalm.exchange.consent import SALT_BYTES
from fedpalm.exchange.sealing import SealedExpert, WrappedKeys
from fedpalm.exchange.site import SiteExchange, SiteState
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.statement import SignedStatement

from .store import SiteStore


@dataclass(frozen=True)
class Secrets:
    """What a site keeps to itself of its consent: the key to receive with, the salt of its commitment."""

    key: HybridKey = field(repr=False)
    salt: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        return self.salt + self.key.private_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Secrets:
        """Inverse of :meth:`to_bytes`. Raises KeyFileError: of another length."""
        return cls(HybridKey.from_private_bytes(data[SALT_BYTES:]), data[:SALT_BYTES])


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

    def add(
        self, db: sqlite3.Connection, exchange: SiteExchange, proposal: SignedStatement
    ) -> None:
        """A proposal that is new here."""
        db.execute(
            "INSERT INTO exchanges (exchange_id, run_id, machine, state, proposal, proposed_ms) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                exchange.terms.exchange_id,
                exchange.terms.run,
                json.dumps(exchange.to_json()),
                exchange.state.value,
                proposal.to_bytes(),
                self._store.now_ms(),
            ),
        )

    def put(self, db: sqlite3.Connection, exchange: SiteExchange) -> None:
        """Replace the machine."""
        db.execute(
            "UPDATE exchanges SET machine = ?, state = ? WHERE exchange_id = ?",
            (json.dumps(exchange.to_json()), exchange.state.value, exchange.terms.exchange_id),
        )

    # --- the answer -------------------------------------------------------------------------------

    def put_consent(
        self, db: sqlite3.Connection, exchange_id: str, consent: SignedStatement, key_file: str
    ) -> None:
        db.execute(
            "UPDATE exchanges SET consent = ?, key_file = ?, answered = 0 WHERE exchange_id = ?",
            (consent.to_bytes(), key_file, exchange_id),
        )

    def consent(self, exchange_id: str) -> SignedStatement | None:
        """This site's own signed yes."""
        row = self._row(exchange_id)
        return SignedStatement.from_bytes(row["consent"]) if row and row["consent"] else None

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
        self,
        db: sqlite3.Connection,
        exchange_id: str,
        consents: Iterable[SignedStatement],
        wrapped: WrappedKeys,
    ) -> None:
        """What this site sealed under, and the keys that it keeps back."""
        db.execute(
            "UPDATE exchanges SET agreed = ?, wrapped = ? WHERE exchange_id = ?",
            (
                json.dumps([consent.to_bytes().decode() for consent in consents]),
                json.dumps({site: key.hex() for site, key in wrapped.items()}),
                exchange_id,
            ),
        )

    def agreed(self, exchange_id: str) -> list[SignedStatement]:
        """The consents under which this site sealed."""
        row = self._row(exchange_id)
        texts = json.loads(row["agreed"]) if row and row["agreed"] else []
        return [SignedStatement.from_bytes(text.encode()) for text in texts]

    def wrapped(self, exchange_id: str) -> dict[str, bytes]:
        """The wrapped keys of its expert by recipient; empty before it sealed and when it is over."""
        row = self._row(exchange_id)
        values = json.loads(row["wrapped"]) if row and row["wrapped"] else {}
        return {site: bytes.fromhex(key) for site, key in values.items()}

    def put_sealed(
        self, db: sqlite3.Connection, exchange_id: str, sealed: Mapping[str, bytes]
    ) -> dict[str, tuple[str, bytes]]:
        """Store sealed experts by sender; inside :meth:`SiteStore.files`. Returns file and SHA-256."""
        stored = {}
        for sender, data in sealed.items():
            digest = hashlib.sha256(data).digest()
            name = self._store.write_outgoing(exchange_id, "sealed", data)
            db.execute(
                "INSERT INTO sealed_experts VALUES (?, ?, ?, ?, ?)",
                (exchange_id, sender, digest, len(data), name),
            )
            stored[sender] = (name, digest)
        return stored

    def sealed(self, exchange_id: str) -> dict[str, SealedExpert]:
        """The stored sealed experts by sender.

        Raises:
            IntegrityError: a file is gone, or not what was stored.
        """
        found = {}
        for row in self._store.rows(
            "SELECT * FROM sealed_experts WHERE exchange_id = ? ORDER BY sender", exchange_id
        ):
            data = None
            if row["file"] is not None:
                path = self._store.home.state / row["file"]
                data = path.read_bytes() if path.exists() else None
            if data is None or hashlib.sha256(data).digest() != row["payload_hash"]:
                raise IntegrityError(
                    f"exchange {exchange_id}: the sealed expert of {row['sender']} is not here as it "
                    "was stored",
                    safe="nothing was sent",
                    next_step="restore the site's home from a backup, or ask for a new exchange",
                )
            found[row["sender"]] = SealedExpert.from_bytes(data)
        return found

    def secrets(self, exchange_id: str) -> Secrets | None:
        """What the consent was made with, until it is erased.

        Raises:
            KeyFileError: missing, or open to others.
            VaultError: the vault cannot be unlocked, or this is not what it sealed.
        """
        row = self._row(exchange_id)
        if row is None or row["key_file"] is None:
            return None
        return Secrets.from_bytes(self._store.read_private(row["key_file"]))

    def is_closed(self, exchange_id: str) -> bool:
        """Whether the coordinator has said that it is over."""
        row = self._row(exchange_id)
        return row is not None and bool(row["closed"])

    def close(self, db: sqlite3.Connection, exchange_id: str) -> None:
        """The coordinator says that it is over: key and sealed experts go."""
        db.execute("UPDATE exchanges SET closed = 1 WHERE exchange_id = ?", (exchange_id,))
        self.drop_files(db, exchange_id, sealed=True)

    def drop_files(self, db: sqlite3.Connection, exchange_id: str, *, sealed: bool) -> None:
        """Let go of the recipient key, and with ``sealed`` of sealed experts and wrapped keys, too.

        The files are erased by the next :meth:`SiteStore.remove_orphans`.
        """
        db.execute("UPDATE exchanges SET key_file = NULL WHERE exchange_id = ?", (exchange_id,))
        if sealed:
            db.execute(
                "UPDATE sealed_experts SET file = NULL WHERE exchange_id = ?", (exchange_id,)
            )
            db.execute("UPDATE exchanges SET wrapped = NULL WHERE exchange_id = ?", (exchange_id,))

    def _row(self, exchange_id: str) -> sqlite3.Row | None:
        return self._store.row("SELECT * FROM exchanges WHERE exchange_id = ?", exchange_id)
