"""The coordinator's one database: SQLite, WAL, ``synchronous=FULL``; what is committed survives.

Columns are explained in ``schema.sql``. Whoever changes something opens a named transaction, and lets
nobody see the effect before it is committed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

from fedpalm.errors import ConfigError, IntegrityError, ResourceError

SCHEMA_VERSION = 4
BUSY_TIMEOUT_S = 10.0


class Store:
    """An open store; a context manager. Use it from one thread."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name = connection, name

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the store, making it if it is not there.

        Raises:
            ConfigError: the store was written by a newer version, or by one that was never released.
            IntegrityError: the file is no such store, or is damaged.
        """
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        store = cls(connection, str(path))
        try:
            path.chmod(0o600)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            store._migrate()
        except sqlite3.DatabaseError as error:
            connection.close()
            raise IntegrityError(
                f"{path}: not a coordinator's store, or damaged: {error}",
                next_step="restore it from a backup",
            ) from error
        except BaseException:
            connection.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self, name: str) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end.

        Args:
            name: what is being done; names the transaction in an error.
        Raises:
            ResourceError: the disk is full, or another process holds the store for too long.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise ResourceError(
                f"{self._name}: {name} was not stored: {error}",
                safe="nothing of it took effect",
                next_step="look at free space and permissions of the home folder",
            ) from error

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of a SELECT, as of now; the tables are STRICT, so columns have their declared types."""
        return self._connection.execute(sql, values).fetchall()

    def outside_changes(self) -> int:
        """A number that moves whenever another process, or another open store, has committed."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    # --- what operators did -----------------------------------------------------------------------

    def operator_event(
        self, at_ms: int, operator: str, action: str, run_id: str, detail: str = ""
    ) -> None:
        """Record that an operator asked for something, before it is done."""
        with self.transaction("operator event") as db:
            record_operator_event(db, at_ms, operator, action, run_id, detail)

    # --- version ----------------------------------------------------------------------------------

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{self._name}: written by a newer version (store {version}, this program knows "
                f"{SCHEMA_VERSION})",
                safe="the store is unchanged",
                next_step="run the version of fedpalm that last served this home",
            )
        if version == SCHEMA_VERSION:
            return
        if version:
            raise ConfigError(
                f"{self._name}: written by an unreleased version (store {version}, this program knows "
                f"{SCHEMA_VERSION})",
                safe="the store is unchanged",
                next_step="make a new home: fedpalm-coordinator init --home DIR",
            )
        schema = (resources.files(__package__) / "schema.sql").read_text(encoding="utf-8")
        # executescript would commit what is open, so the script brings its own transaction; two
        # processes may open a new home at once, and the second finds the work done.
        try:
            self._connection.executescript(
                f"BEGIN IMMEDIATE;\n{schema}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;"
            )
        except sqlite3.OperationalError:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA_VERSION:
                raise


def record_operator_event(
    db: sqlite3.Connection, at_ms: int, operator: str, action: str, subject: str, detail: str = ""
) -> None:
    """The row of what an operator asked for, inside the caller's transaction.

    Args:
        subject: the run or the site that it is about.
    """
    db.execute(
        "INSERT INTO operator_events (at_ms, operator, action, run_id, detail) "
        "VALUES (?, ?, ?, ?, ?)",
        (at_ms, operator, action, subject, detail),
    )
