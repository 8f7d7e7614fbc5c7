"""The site's hash-chained, signed log in SQLite: one chain for what left, receipts and approvals."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from fedpalm.errors import ChainBrokenError
from fedpalm.ledger.bodies import Body, EntryKind
from fedpalm.ledger.chain import Head, append, verify_chain
from fedpalm.ledger.entries import Entry
from fedpalm.pki.keys import SigningKey, VerifyingKey

from .store import SiteStore

_PAGE = 1000


class SiteLog:
    """The ``log`` table, read and extended; triggers refuse to change or delete a row.

    Several processes of the site may append: the head is read inside the transaction that adds to it.
    """

    def __init__(self, store: SiteStore, key: SigningKey) -> None:
        self._store, self._key = store, key

    @property
    def public_key(self) -> VerifyingKey:
        return self._key.public_key()

    def append(self, db: sqlite3.Connection, kind: EntryKind, body: Body) -> Entry:
        """Sign and add an entry inside the caller's transaction (:meth:`SiteStore.transaction`).

        Raises:
            ProtocolError: the body is of no form that the kind knows.
        """
        last = db.execute("SELECT entry FROM log ORDER BY seq DESC LIMIT 1").fetchone()
        head = (
            Head.after(Entry.from_bytes(last["entry"])) if last else Head.genesis(self.public_key)
        )
        entry = append(head, kind, body, time_ms=self._store.now_ms(), key=self._key)
        db.execute("INSERT INTO log (seq, entry) VALUES (?, ?)", (entry.seq, entry.to_bytes()))
        return entry

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """All entries from seq ``start`` on, in order."""
        while True:
            page = self._store.rows(
                "SELECT seq, entry FROM log WHERE seq >= ? ORDER BY seq LIMIT ?", start, _PAGE
            )
            for row in page:
                yield Entry.from_bytes(row["entry"])
            if len(page) < _PAGE:
                return
            start = page[-1]["seq"] + 1

    def verify(self) -> Head:
        """Check every link and signature, and that no permission to send outlived its entry.

        Raises:
            ChainBrokenError: the log was altered, reordered or cut.
            ProtocolError: a row is no entry.
        """
        head = verify_chain(self.entries(), self.public_key)
        newest = self._store.row("SELECT MAX(seq) AS seq FROM releases")
        if newest is not None and newest["seq"] is not None and newest["seq"] >= head.size:
            raise ChainBrokenError(
                f"site log: it ends at entry {head.size - 1}, but entry {newest['seq']} was released",
                safe="the log was not extended",
                next_step="restore the site's home from a backup that holds the whole log",
            )
        return head
