"""Small sealed records of a site, such as its gallery, in ``site.sqlite3``.

A record is sealed together with its name; the row has an HMAC of the name as its key. One sealed root
record holds how many there are and a set hash over all rows: the XOR of HMAC(row) under a key that only the
vault has (Clarke et al. 2003, MSet-XOR-Hash; rows are distinct, and nobody else sees a value of it). It
changes in the transaction of every record, and ``vault.mark`` names the newest one.

What is found: a row that was altered, swapped, added, deleted, or put back as it was before; a database
that is older than the mark, or a mark than the database. What is not: the whole home, or database and mark,
put back as they were at one earlier moment. The set is looked through on first use and whenever another
connection has committed since.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpalm.canonical import canonical_json
from fedpalm.errors import ResourceError, VaultDamagedError, VaultError, VaultRolledBackError

from .vault import sealed_generation, vault_lock
from .vault_mark import NO_ROOT, Mark, read_mark, require_allowed, root_hash, write_mark

if TYPE_CHECKING:
    from .store import SiteStore

_ROOT = "items root"
_SAFE = "nothing was changed"
_RESTORE = "put the newest backup of the whole home in place (docs/guides/SITE.md, The vault)"


@dataclass(frozen=True)
class _Root:
    """``changes`` counts those of the set; ``epoch`` is the newest of the vault's header known here."""

    changes: int = 0
    count: int = 0
    rows: int = 0
    epoch: int = 0

    def to_bytes(self) -> bytes:
        values = {"changes": self.changes, "count": self.count, "epoch": self.epoch}
        return canonical_json({**values, "rows": self.rows.to_bytes(32, "big").hex()})

    @classmethod
    def from_bytes(cls, raw: bytes) -> _Root:
        values = json.loads(raw)
        return cls(values["changes"], values["count"], int(values["rows"], 16), values["epoch"])


class VaultItems:
    """The records of a store; made and kept by it."""

    def __init__(self, store: SiteStore) -> None:
        self._store, self._home = store, store.home
        self._keys: dict[str, bytes] = {}
        # The hash of the root before this transaction, once it has changed the set.
        self._before: str | None = None
        # SQLite's data_version at which the whole set was as it should be.
        self._looked_at: int | None = None
        # The root that a person looks at, and may accept, whatever the mark says.
        self._on_trial: str | None = None

    # --- reading ----------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> bytes | None:
        """The record, or None if there is none of that name.

        Raises:
            VaultDamagedError, VaultRolledBackError: it, or the set, is not what was stored.
        """
        with self.reading() as db:
            if self._checked(db) is None:
                return None
            key = self._key(kind, name)
            row = db.execute(_ONE, (kind, key)).fetchone()
            return self._opened(row)[1] if row else None

    def all(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Name and record of all of a kind, sorted by name; as they are at the moment of the call.

        Raises:
            VaultDamagedError, VaultRolledBackError: as for :meth:`get`.
        """
        with self.reading() as db:
            if self._checked(db) is None:
                return iter(())
            rows = db.execute("SELECT * FROM vault_items WHERE kind = ?", (kind,)).fetchall()
            return iter(sorted(self._opened(row) for row in rows))

    def count(self, kind: str | None = None) -> int:
        """How many rows there are, unlocked or not."""
        where = ("", ()) if kind is None else (" WHERE kind = ?", (kind,))
        (found,) = self._store.rows(f"SELECT COUNT(*) FROM vault_items{where[0]}", *where[1])[0]  # noqa: S608
        return int(found)

    def check(self) -> list[VaultError]:
        """Open every record, and hold the set against its root: everything that is wrong."""
        found: list[VaultError] = []
        with self.reading() as db:
            rows = db.execute("SELECT * FROM vault_items ORDER BY kind, key").fetchall()
            for row in rows if self.begun(db) else ():
                try:
                    self._opened(row)
                except VaultError as error:
                    found.append(error)
            try:
                self._looked_at = None
                self._checked(db)
            except VaultError as error:
                found.append(error)
        return found

    def begun(self, db: sqlite3.Connection) -> bool:
        """Whether there ever was a record; what says so may be an old database or a mark."""
        found = db.execute("SELECT 1 FROM vault_root").fetchone() is not None
        return found or self._home.vault_mark.exists()

    def check_root(self) -> None:
        """Hold header, mark and database against each other, without looking at the records.

        A mark that a crash left with two roots names one from here on.
        """
        with self.reading() as db:
            self._checked(db, rows=False)
        self._settle()

    def _settle(self) -> None:
        vault = self._store.vault
        mark = read_mark(self._home, vault)
        if mark is None or mark.prepared is None:
            return
        # Whoever holds the lock reads or commits; the next process that unlocks the vault settles it.
        with self._store.snapshot_lock() as db, vault_lock(self._home, wait=False) as held:
            mark, root = read_mark(self._home, vault), self._root_hash(db)
            if held and mark is not None and mark.prepared is not None and mark.allows(root):
                write_mark(self._home, vault, Mark(root))

    # --- another database than the mark's (vault_accept.py) ------------------------------------------

    def try_without_mark(self) -> tuple[str, str] | None:
        """Go by the database that is here, for this object alone, until :meth:`accept`.

        Returns:
            hashes of the root record that is here, and of the one that the mark names; NO_ROOT for none.
            None if they agree: then nothing is on trial.
        Raises:
            VaultError: the vault does not open, or header, mark or root record are damaged.
        """
        with self._store.snapshot_lock() as db:
            self._on_trial = here = self._root_hash(db)
        mark = read_mark(self._home, self._store.vault)
        if here == NO_ROOT if mark is None else mark.allows(here):
            self._on_trial = None
            return None
        return here, NO_ROOT if mark is None else mark.confirmed

    def accept(self) -> None:
        """Have the mark name the database on trial.

        Raises:
            VaultRolledBackError: it has changed since.
        """
        vault = self._store.vault
        with self._store.snapshot_lock() as db, vault_lock(self._home):
            here = self._root_hash(db)
            if here == self._on_trial:
                write_mark(self._home, vault, Mark(here))
            self._on_trial = None
            require_allowed(self._home, read_mark(self._home, vault), here)

    # --- writing, inside store.transaction() --------------------------------------------------------

    def put(self, db: sqlite3.Connection, kind: str, name: str, data: bytes) -> None:
        """Add a record, or replace the one of that name.

        Raises:
            VaultDamagedError, VaultRolledBackError: as for :meth:`get`; nothing is stored.
        """
        root, key = self._begin(db), self._key(kind, name)
        old = db.execute(_ONE, (kind, key)).fetchone()
        version, said = root.changes + 1, name.encode()
        plaintext = len(said).to_bytes(4, "big") + said + data
        sealed = self._store.vault.seal(_purpose(kind, key, version), plaintext)
        self._replace(db, root, old, (kind, key, version, sealed))

    def delete(self, db: sqlite3.Connection, kind: str, name: str) -> bool:
        """Remove a record; False if there is none.

        Its sealed bytes stay in the journal until :meth:`SiteStore.erase_freed`, and in backups. After a
        rotation nothing opens them any more.
        """
        root, key = self._begin(db), self._key(kind, name)
        old = db.execute(_ONE, (kind, key)).fetchone()
        if old is None:
            return False
        self._replace(db, root, old, None)
        return True

    def touch(self, db: sqlite3.Connection) -> None:
        """Seal the root record anew: it notes how often the vault's header was written."""
        self._write(db, self._begin(db))

    def reseal(self, db: sqlite3.Connection, most: int) -> int:
        """Seal up to ``most`` records under the newest data key; how many there were to do."""
        root, newest, done = self._begin(db), self._store.vault.header.newest, 0
        for row in db.execute("SELECT * FROM vault_items ORDER BY kind, key").fetchall():
            if done == most or sealed_generation(row["sealed"]) == newest:
                continue
            purpose = _purpose(row["kind"], row["key"], row["version"])
            again = self._store.vault.seal(purpose, self._store.vault.open(purpose, row["sealed"]))
            root = self._replace(db, root, row, (row["kind"], row["key"], row["version"], again))
            done += 1
        if not done:
            self._write(db, root)
        return done

    # --- the store's transactions -------------------------------------------------------------------

    @contextmanager
    def committing(self, db: sqlite3.Connection) -> Iterator[None]:
        """Around COMMIT: the mark names both roots before it, and the new one after it."""
        if self._before is None:
            yield
            return
        vault, root = self._store.vault, self._root_hash(db)
        with vault_lock(self._home):
            try:
                write_mark(self._home, vault, Mark(self._before, root))
            except OSError as error:
                raise ResourceError(
                    f"{self._home.vault_mark}: {error}", safe="nothing of this step was stored"
                ) from error
            self._store.on_step("vault mark prepared")
            yield
            self._before = None
            self._store.on_step("vault records committed")
            try:
                write_mark(self._home, vault, Mark(root))
            except OSError as error:
                raise ResourceError(
                    f"{self._home.vault_mark}: {error}", safe="the records are stored"
                ) from error
        self._store.on_step("vault mark confirmed")

    def undone(self) -> None:
        """The transaction was rolled back."""
        self._before = None

    # --- the set ----------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One moment of the database: no transaction that changes a record is committed meanwhile."""
        with self._store.snapshot_lock() as db:
            if db.in_transaction:
                yield db
                return
            if self.begun(db):
                _ = self._store.vault  # a person may have to be asked, while nobody waits
            with vault_lock(self._home, shared=True):
                db.execute("BEGIN")
                try:
                    yield db
                finally:
                    db.execute("ROLLBACK")

    def _checked(self, db: sqlite3.Connection, *, rows: bool = True) -> _Root | None:
        """The root, once header, mark and (where others have committed) all rows agree with it."""
        if not self.begun(db):
            if db.execute("SELECT 1 FROM vault_items").fetchone() is not None:
                raise _not_the_set("records without a root record were put there")
            return None
        found = db.execute("SELECT sealed FROM vault_root").fetchone()
        vault = self._store.vault
        if self._before is None:
            root_is = root_hash(found["sealed"]) if found else NO_ROOT
            if root_is != self._on_trial:
                require_allowed(self._home, read_mark(self._home, vault), root_is)
        root = _Root.from_bytes(vault.open(_ROOT, found["sealed"])) if found else _Root()
        vault.require_epoch(root.epoch)
        if rows and self._before is None:
            self._look(db, root)
        return root

    def _look(self, db: sqlite3.Connection, root: _Root) -> None:
        (version,) = db.execute("PRAGMA data_version").fetchone()
        if version == self._looked_at:
            return
        count = total = 0
        for row in db.execute("SELECT * FROM vault_items"):
            count, total = count + 1, total ^ self._tag(row)
        if count < root.count:
            raise _not_the_set(f"{root.count - count} of {root.count} records are gone")
        if count > root.count:
            raise _not_the_set(
                f"{count - root.count} records were put there that are none of the set"
            )
        if total != root.rows:
            raise VaultRolledBackError(
                f"{self._home.database}: a record of the vault was exchanged for an old or another one",
                safe=_SAFE,
                next_step=f"fedpalm-participant vault check names those that do not open; {_RESTORE}",
            )
        self._looked_at = version

    def _begin(self, db: sqlite3.Connection) -> _Root:
        """The root as this transaction has it so far."""
        root = self._checked(db) or _Root()
        if self._before is None:
            self._before = self._root_hash(db)
        return root

    def _replace(
        self,
        db: sqlite3.Connection,
        root: _Root,
        old: sqlite3.Row | None,
        new: tuple[str, bytes, int, bytes] | None,
    ) -> _Root:
        rows, count = root.rows, root.count
        if old is not None:
            rows, count = rows ^ self._tag(old), count - 1
            db.execute(
                "DELETE FROM vault_items WHERE (kind, key) = (?, ?)", (old["kind"], old["key"])
            )
        if new is not None:
            db.execute(
                "INSERT INTO vault_items (kind, key, version, sealed) VALUES (?, ?, ?, ?)", new
            )
            rows, count = rows ^ self._tag(db.execute(_ONE, new[:2]).fetchone()), count + 1
        return self._write(db, _Root(root.changes, count, rows, root.epoch))

    def _write(self, db: sqlite3.Connection, root: _Root) -> _Root:
        epoch = max(root.epoch, self._store.vault.header.epoch)
        root = _Root(root.changes + 1, root.count, root.rows, epoch)
        sealed = self._store.vault.seal(_ROOT, root.to_bytes())
        db.execute("INSERT OR REPLACE INTO vault_root (one, sealed) VALUES (1, ?)", (sealed,))
        return root

    def _root_hash(self, db: sqlite3.Connection) -> str:
        found = db.execute("SELECT sealed FROM vault_root").fetchone()
        return root_hash(found["sealed"]) if found else NO_ROOT

    def _tag(self, row: sqlite3.Row) -> int:
        parts = (row["kind"].encode(), row["key"], row["version"].to_bytes(8, "big"))
        said = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        digest = hashlib.sha256(row["sealed"]).digest()
        key = self._derived("items/set")
        return int.from_bytes(hmac.digest(key, said + digest, "sha256"), "big")

    def _key(self, kind: str, name: str) -> bytes:
        key = self._derived(f"items/names/{kind}")
        return hmac.digest(key, name.encode(), "sha256")

    def _derived(self, label: str) -> bytes:
        """Remembered: one key serves every row of a look through the set."""
        if label not in self._keys:
            self._keys[label] = self._store.vault.derive(label)
        return self._keys[label]

    def _opened(self, row: sqlite3.Row) -> tuple[str, bytes]:
        raw = self._store.vault.open(
            _purpose(row["kind"], row["key"], row["version"]), row["sealed"]
        )
        end = 4 + int.from_bytes(raw[:4], "big")
        return raw[4:end].decode(), raw[end:]


_ONE = "SELECT * FROM vault_items WHERE (kind, key) = (?, ?)"


def _purpose(kind: str, key: bytes, version: int) -> str:
    return f"item {kind} {key.hex()} {version}"


def _not_the_set(what: str) -> VaultDamagedError:
    return VaultDamagedError(
        f"the records of the vault are not those that were stored: {what}",
        safe=_SAFE,
        next_step=_RESTORE,
    )
