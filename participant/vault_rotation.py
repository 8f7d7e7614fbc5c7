"""Rotation of the vault's data key, and what is done with everything sealed: listing, checking.

Rotation: a new data key is added to the header, every file and record is sealed anew under it, and only
when a transaction has seen that nothing else is left does the old key go. Both keys open until then, so a
rotation that is killed anywhere loses nothing, and run again it goes on. What was erased or replaced before
is lost with the old key, in free pages and backups, too, for whoever has no older ``vault.json`` and its
secret.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpalm.errors import FedPalmError, IntegrityError

from .files import erase
from .store import SiteStore
from .vault import BLOB_EXTRA, sealed_generation

BATCH = 256
"""Records in one transaction of a rotation."""

Tick = Callable[[str, int, int], None]
"""Told what is done: what, done, total."""


@dataclass(frozen=True)
class SealedFile:
    """A file of the state folder that a row names."""

    kind: str  # state, or key
    owner: str  # run or exchange
    path: Path


@dataclass(frozen=True)
class Rotated:
    generation: int
    files: int
    records: int


def sealed_files(store: SiteStore) -> list[SealedFile]:
    """What the vault sealed into files, and rows name."""
    return [
        SealedFile(row["kind"], row["owner"], store.home.state / row["file"])
        for row in store.rows(
            "SELECT 'state' AS kind, run_id AS owner, file FROM states UNION ALL "
            "SELECT 'key', exchange_id, key_file FROM exchanges WHERE key_file IS NOT NULL"
        )
    ]


def rotate(store: SiteStore, tick: Tick) -> Rotated:
    """Seal everything under a new data key, and forget the one before. No agent may run.

    Raises:
        VaultError, IntegrityError: something does not open; both keys stay, and nothing is lost.
    """
    vault = store.vault
    vault.begin_generation()
    newest, files, records = vault.header.newest, 0, 0
    total = store.items.count()
    while True:
        old = [one for one in sealed_files(store) if file_generation(one.path) != newest]
        for done, one in enumerate(old, 1):
            files += _reseal(store, one)
            tick("files", done, len(old))
        more = BATCH
        while more == BATCH:
            with store.transaction() as db:
                more = store.items.reseal(db, BATCH)
            records += more
            tick("records", records, max(total, records))
        # Whoever seals something holds the transaction: nothing comes under the old key after this look.
        with store.transaction() as db:
            if not _left(store, db, newest):
                vault.end_generation()
                break
    with store.transaction() as db:
        store.items.touch(db)
    return Rotated(newest, files, records)


def check(store: SiteStore, tick: Tick) -> list[FedPalmError]:
    """Open every file and record: everything that is wrong."""
    found: list[FedPalmError] = []
    files = sealed_files(store)
    for done, one in enumerate(files, 1):
        try:
            if one.kind == "state":
                store.load_state(one.owner)
            else:
                store.read_private(one.path.name)
        except FedPalmError as error:
            if one in sealed_files(store):  # an exchange that ends meanwhile erases its key
                found.append(error)
        tick("files", done, len(files))
    return found + store.items.check()


def _reseal(store: SiteStore, one: SealedFile) -> int:
    """Seal a file under the newest key; 0 if it was replaced or erased meanwhile."""
    stem, suffix = one.path.stem.rpartition("-")[0], one.path.suffix
    name = f"{stem}-{secrets.token_hex(4)}{suffix}"
    with store.files(), store.transaction() as db:
        if one.kind == "state":
            row = db.execute(
                "SELECT * FROM states WHERE (run_id, file) = (?, ?)", (one.owner, one.path.name)
            ).fetchone()
            if row is None:
                return 0
            data = store.state_bytes(row)
            file_hash = store.write_sealed(name, data)
            store.on_step("file sealed anew")
            store.point_state(db, one.owner, row["round"], name, file_hash)
        else:
            where = (one.owner, one.path.name)
            if not db.execute(
                "SELECT 1 FROM exchanges WHERE (exchange_id, key_file) = (?, ?)", where
            ).fetchone():
                return 0
            store.write_sealed(name, store.read_private(one.path.name))
            store.on_step("file sealed anew")
            db.execute(
                "UPDATE exchanges SET key_file = ? WHERE (exchange_id, key_file) = (?, ?)",
                (name, *where),
            )
    erase(one.path)
    store.on_step("old file erased")
    return 1


def _left(store: SiteStore, db: sqlite3.Connection, newest: int) -> bool:
    """Whether anything is sealed under another data key."""
    return any(one != newest for one in _generations(store, db))


def _generations(store: SiteStore, db: sqlite3.Connection) -> Iterator[int | None]:
    for one in sealed_files(store):
        yield file_generation(one.path)
    for table in ("vault_items", "vault_root"):
        for row in db.execute(
            f"SELECT substr(sealed, 1, {BLOB_EXTRA}) AS start FROM {table}"  # noqa: S608
        ):
            yield sealed_generation(row["start"])


def file_generation(path: Path) -> int | None:
    """Under which data key a file is sealed; None if it is not sealed. Raises IntegrityError: gone."""
    try:
        with path.open("rb") as file:
            return sealed_generation(file.read(BLOB_EXTRA))
    except OSError as error:
        raise IntegrityError(
            f"{path}: {error.strerror}", next_step="restore the site's home from a backup"
        ) from error
