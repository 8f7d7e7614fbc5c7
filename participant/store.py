"""What a site must not forget: one SQLite file (WAL, synchronous=FULL) and files that rows point at.

A file (private state, encoded update, sealed expert) is written whole and fsynced first; the row that
names it is the commit. A file that no row names is what a crash left behind: it is removed on opening.
``kill -9`` between any two instructions leaves the state before or after a commit, never between.

What stays at the site (private state, recipient keys, records of the vault) is sealed by the vault. Encoded
and masked updates and sealed experts lie here as they are sent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from fedpalm.clock import Clock, SystemClock
from fedpalm.errors import (
    HashMismatchError,
    IntegrityError,
    ResourceError,
    StateError,
    VaultRolledBackError,
)
from fedpalm.layout import FloatVector, Layout
from fedpalm.methods.base import Tensors
from fedpalm.pki.files import read_secret
from fedpalm.plan import Plan

from .config import Home
from .files import Buffer, check_owner_only, erase, sync_folder, write_durably
from .ledger_mark import begin_mark
from .masking_memory import begin_memory
from .vault import Vault
from .vault_header import STANDARD_COST, Argon2Cost
from .vault_items import VaultItems
from .vault_secret import Ask, no_terminal, source_of

SCHEMA_VERSION = 7
STATE_RECORD = "state"
"""Kind of the vault's records of which state file is the newest; named by run."""
BUSY_TIMEOUT_S = 30.0

_SCHEMA = Path(__file__).with_name("schema.sql")
_SEALED_ANYTHING = (
    "SELECT 1 FROM states UNION SELECT 1 FROM exchanges WHERE key_file IS NOT NULL "
    "UNION SELECT 1 FROM vault_root"
)


@dataclass(frozen=True)
class StoredRun:
    """A run and its plan; ``model_hash`` is the final global model of an ended one."""

    run_id: str
    plan: Plan
    state: str
    model_hash: bytes | None
    reason: str


@dataclass(frozen=True)
class StoredUpdate:
    """An encoded update as it was committed; ``path`` is None once its round is past."""

    run_id: str
    round: int
    model_hash: bytes
    payload_hash: bytes
    payload_bytes: int
    layout_hash: bytes
    path: Path | None


@dataclass(frozen=True)
class NewUpdate:
    """An encoded update about to be committed: the wire bytes and what they were made from."""

    model_hash: bytes
    layout_hash: bytes
    payload: Buffer

    @cached_property
    def payload_hash(self) -> bytes:
        return hashlib.sha256(self.payload).digest()


Pay = Callable[[sqlite3.Connection, bytes], None]
"""Called with the transaction and the hash of the update that it stores."""


def _nothing(step: str) -> None:
    """The default of ``on_step``."""


class SiteStore:
    """The database and state folder of a home; safe to use from several threads and processes.

    Args:
        on_step: called with the name of each step of a durable write just after it is done; a test
            that raises from it stands for a process killed there.
        ask: asks a person for the vault's passphrase.
        vault_cost: of a passphrase that is set, and the least that the vault's header may say.
    Raises:
        IntegrityError: the state folder or database is readable by others, or of another version.
    """

    def __init__(
        self,
        home: Home,
        *,
        clock: Clock | None = None,
        on_step: Callable[[str], None] = _nothing,
        ask: Ask = no_terminal,
        vault_cost: Argon2Cost = STANDARD_COST,
    ) -> None:
        self.home, self.clock, self.on_step = home, clock or SystemClock(), on_step
        self.ask, self._vault_cost = ask, vault_cost
        self._vault: Vault | None = None
        self.items = VaultItems(self)
        home.make()
        self._lock, self._writing = threading.RLock(), threading.RLock()
        if not home.database.exists():
            os.close(os.open(home.database, os.O_CREAT | os.O_WRONLY, 0o600))
        check_owner_only(home.database)
        self._db = sqlite3.connect(
            home.database,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        self._db.row_factory = sqlite3.Row
        # What is deleted is overwritten with zeros, for erasures: see erase_freed().
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        self._create()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def now_ms(self) -> int:
        return int(self.clock.now() * 1000)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is committed together, or not at all.

        Raises:
            ResourceError: the disk is full, or another process holds the database too long.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self.on_step("before commit")
                    with self.items.committing(self._db):
                        self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    self.items.undone()
                    raise
            except sqlite3.OperationalError as error:
                raise ResourceError(
                    f"{self.home.database}: {error}", safe="nothing of this step was stored"
                ) from error
            self.on_step("committed")

    @contextmanager
    def snapshot_lock(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone."""
        with self._lock:
            yield self._db

    def has_sealed(self) -> bool:
        """Whether something here was ever sealed, unlocked or not."""
        return self.row(_SEALED_ANYTHING) is not None or self.home.vault_mark.exists()

    @property
    def vault(self) -> Vault:
        """Unlocked on first use, and made where nothing was sealed yet.

        Raises:
            VaultError, KeyFileError: it cannot be unlocked, or is not of this database.
        """
        with self._lock:
            if self._vault is None:
                self._vault = Vault(
                    self.home,
                    source_of(self.home, self.home.load().vault, self.ask),
                    in_use=self.has_sealed(),
                    cost=self._vault_cost,
                    on_step=self.on_step,
                )
                try:
                    self.items.check_root()
                except BaseException:
                    self._vault = None
                    raise
            return self._vault

    @contextmanager
    def files(self) -> Iterator[None]:
        """While held, a file that no row names yet is not taken for an orphan."""
        with self._writing:
            yield

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: object) -> sqlite3.Row | None:
        with self._lock:
            found: sqlite3.Row | None = self._db.execute(query, values).fetchone()
            return found

    def erase_freed(self) -> bool:
        """Bring deletions into the database file, where their bytes are overwritten, and empty the journal.

        False if another process is reading from the journal: then old bytes stay in it until a later call.
        A copy-on-write file system or an SSD may keep blocks that are not in use any more.
        """
        with self._lock:
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def masking_mark(self) -> str:
        """What ``masking/memory.json`` must name, to be the memory of this database."""
        found = self.row("SELECT mark FROM masking_mark")
        return str(found["mark"]) if found else ""

    # --- runs -------------------------------------------------------------------------------------

    def run(self, run_id: str) -> StoredRun | None:
        found = self.row("SELECT * FROM runs WHERE run_id = ?", run_id)
        return _run(found) if found else None

    def active_run(self) -> StoredRun | None:
        """The run that is joined and has not ended; there is one at most."""
        found = self.row("SELECT * FROM runs WHERE state = 'joined'")
        return _run(found) if found else None

    def latest_run(self) -> StoredRun | None:
        """The run joined last, ended or not."""
        found = self.row("SELECT * FROM runs ORDER BY joined_ms DESC, rowid DESC LIMIT 1")
        return _run(found) if found else None

    def add_run(self, run_id: str, plan: Plan) -> None:
        """Take part in a run. Raises StateError while another one is going on."""
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM runs WHERE state = 'joined'").fetchone():
                raise StateError("this site takes part in another run already")
            db.execute(
                "INSERT INTO runs (run_id, plan, state, joined_ms) VALUES (?, ?, 'joined', ?)",
                (run_id, plan.to_bytes(), self.now_ms()),
            )

    def end_run(self, run_id: str, state: str, model_hash: bytes | None, reason: str) -> None:
        """``state``: completed, aborted, or left (another run began while this site was away)."""
        with self.transaction() as db:
            db.execute(
                "UPDATE runs SET state = ?, model_hash = ?, reason = ? WHERE run_id = ?",
                (state, model_hash, reason, run_id),
            )

    # --- global models ----------------------------------------------------------------------------

    def model_path(self, model_hash: bytes) -> Path:
        return self.home.models / f"{model_hash.hex()}.f32"

    def add_model(self, run_id: str, round_number: int, model_hash: bytes, keep: int) -> None:
        """Note a downloaded model, and drop all files but those of the last ``keep`` rounds."""
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO models VALUES (?, ?, ?)", (run_id, round_number, model_hash)
            )
            db.execute(
                "DELETE FROM models WHERE run_id = ? AND round <= ?", (run_id, round_number - keep)
            )
        kept = {f"{row['model_hash'].hex()}.f32" for row in self.rows("SELECT * FROM models")}
        for path in self.home.models.glob("*.f32"):
            if path.name not in kept:
                path.unlink()

    def load_model(self, model_hash: bytes, layout: Layout) -> FloatVector:
        """A kept global vector, (P,) float32.

        Raises:
            IntegrityError: the file is missing.
            HashMismatchError: it holds other bytes than its name says.
            LayoutMismatchError: it is no vector of the layout.
        """
        path = self.model_path(model_hash)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise IntegrityError(f"{path}: {error.strerror}") from error
        if hashlib.sha256(data).digest() != model_hash:
            raise HashMismatchError(f"{path}: not the model that its name says")
        vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
        layout.unflatten(vector)
        return vector

    def models(self, run_id: str) -> dict[int, bytes]:
        """Hash by round of the models that are here."""
        query = "SELECT round, model_hash FROM models WHERE run_id = ? ORDER BY round"
        return {row["round"]: row["model_hash"] for row in self.rows(query, run_id)}

    def known_model(self, model_hash: bytes) -> str | None:
        """Of which run this was a global model, as far as this site remembers; None: of none."""
        found = self.row(
            "SELECT run_id, round FROM models WHERE model_hash = ? ORDER BY round LIMIT 1",
            model_hash,
        )
        if found is not None:
            return f"the global model of run {found['run_id']} after round {found['round']}"
        found = self.row("SELECT run_id FROM runs WHERE model_hash = ?", model_hash)
        return f"the last global model of run {found['run_id']}" if found else None

    # --- private state and updates ----------------------------------------------------------------

    def state_round(self, run_id: str) -> int:
        """The last round whose state is stored; 0 before the first."""
        found = self.row("SELECT round FROM states WHERE run_id = ?", run_id)
        return int(found["round"]) if found else 0

    def state_file(self, run_id: str) -> str:
        """Name of the file with the stored state; empty before the first round."""
        found = self.row("SELECT file FROM states WHERE run_id = ?", run_id)
        return str(found["file"]) if found else ""

    def load_state(self, run_id: str) -> Tensors | None:
        """The private state after :meth:`state_round`, or None before the first round.

        Raises:
            IntegrityError: the file is missing or is not what was committed.
            VaultError: it cannot be unlocked, or was not sealed here under this name.
        """
        with self.items.reading() as db:
            found = db.execute("SELECT * FROM states WHERE run_id = ?", (run_id,)).fetchone()
            if found is None:
                return None
            data = self.state_bytes(found)
        try:
            return dict(safetensors.numpy.load(data))
        except safetensors.SafetensorError as error:
            raise IntegrityError(f"{found['file']}: not safetensors: {error}") from error

    def state_bytes(self, row: sqlite3.Row) -> bytes:
        """The safetensors bytes that a row of ``states`` names. Raises as :meth:`load_state`."""
        path = self.home.state / row["file"]
        data = self._read(path, row["file_hash"])
        if self.items.get(STATE_RECORD, row["run_id"]) != _state_record(
            row["round"], row["file_hash"]
        ):
            raise VaultRolledBackError(
                f"{path}: not the private state that was stored last for {row['run_id']}: an old one was "
                "put back",
                safe="nothing was read from it, and nothing was changed",
                next_step="restore the site's home from its newest backup",
            )
        return self.vault.open(file_purpose(path.name), data)

    def load_continued_state(self, plan: Plan) -> Tensors | None:
        """The private state that a plan goes on from, or None if this site has none of it.

        It is that of the run which the plan continues, under exactly the plan that it names; if this
        site did not train in that run, of the one before it. It may be one round ahead of the model:
        what was trained for an attempt that was not committed is not undone, as within a run. A plan with
        differential privacy does not go on from state that was trained without, or for another unit:
        no noise would cover what it tells.

        Raises:
            IntegrityError: the file is missing or is not what was committed.
        """
        while plan.continues is not None:
            named = plan.continues
            row = self.row("SELECT plan FROM plans WHERE run_id = ?", named.run) or self.row(
                "SELECT plan FROM runs WHERE run_id = ?", named.run
            )
            earlier = Plan.from_bytes(row["plan"]) if row else None
            if (
                earlier is None
                or earlier.hash.hex() != named.plan_hash
                or earlier.draft.method != plan.draft.method
                or plan.draft.privacy.unit not in ("none", earlier.draft.privacy.unit)
            ):
                return None
            state = self.load_state(named.run)
            if state is not None:
                return state
            plan = earlier
        return None

    def update(self, run_id: str, round_number: int) -> StoredUpdate | None:
        found = self.row(
            "SELECT * FROM updates WHERE run_id = ? AND round = ?", run_id, round_number
        )
        if found is None:
            return None
        return StoredUpdate(
            run_id=found["run_id"],
            round=found["round"],
            model_hash=found["model_hash"],
            payload_hash=found["payload_hash"],
            payload_bytes=found["payload_bytes"],
            layout_hash=found["layout_hash"],
            path=self.home.state / found["file"] if found["file"] else None,
        )

    def metrics(self, run_id: str) -> dict[int, dict[str, float | None]]:
        """By round what its training told of itself; None stands for what is not a finite number."""
        query = "SELECT round, metrics FROM updates WHERE run_id = ? ORDER BY round"
        return {row["round"]: json.loads(row["metrics"]) for row in self.rows(query, run_id)}

    def commit_round(
        self,
        run_id: str,
        round_number: int,
        state: Mapping[str, np.ndarray],
        update: NewUpdate,
        *,
        pay: Pay | None = None,
        began_from: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> StoredUpdate:
        """Store the state after a round and its encoded update at once.

        Args:
            pay: commits in the same transaction what the round was charged for (``budget.py``).
            began_from: the :meth:`state_file` that it was trained from; None: not compared.
            metrics: how the training went; kept here (:meth:`metrics`) and never sent.
        Raises:
            StateError: this round, or a later one, is stored already; the run is over; the state is
                another one than the training began from, or promised to an exchange; or the plan has
                differential privacy and nothing was charged for exactly this update.
        """
        with self.files():
            state_file, state_hash = self._write_state(run_id, round_number, state)
            update_file = self._new_name(run_id, f"r{round_number}", "update")
            write_durably(self.home.state / update_file, update.payload)
            self.on_step("update file written")
            stored = StoredUpdate(
                run_id,
                round_number,
                update.model_hash,
                update.payload_hash,
                memoryview(update.payload).nbytes,
                update.layout_hash,
                self.home.state / update_file,
            )
            with self.transaction() as db:
                before = db.execute(
                    "SELECT round FROM states WHERE run_id = ?", (run_id,)
                ).fetchone()
                if before is not None and before["round"] >= round_number:
                    raise StateError(f"round {before['round']} of {run_id} is stored already")
                self._require_still_wanted(db, run_id, round_number, began_from)
                db.execute("UPDATE updates SET file = NULL WHERE run_id = ?", (run_id,))
                db.execute(
                    "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        run_id,
                        round_number,
                        stored.model_hash,
                        stored.payload_hash,
                        stored.payload_bytes,
                        stored.layout_hash,
                        update_file,
                        _metrics_json(metrics or {}),
                    ),
                )
                self.point_state(db, run_id, round_number, state_file, state_hash)
                if pay is not None:
                    pay(db, update.payload_hash)
                self._require_paid(db, run_id, round_number, update.payload_hash)
        self.remove_orphans()
        return stored

    def _require_still_wanted(
        self, db: sqlite3.Connection, run_id: str, round_number: int, began_from: str | None
    ) -> None:
        """A training may end after its run has, or after an exchange took its state up."""
        run = db.execute("SELECT state FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        promised = db.execute(
            "SELECT 1 FROM exchanges WHERE run_id = ? AND state IN ('approved', 'sealed', 'revealed')",
            (run_id,),
        ).fetchone()
        if (
            run is None
            or run["state"] not in ("joined", "left")
            or promised is not None
            or (began_from is not None and began_from != self.state_file(run_id))
        ):
            raise StateError(
                f"round {round_number} of {run_id} comes too late: the run, or the state that it was "
                "trained from, has gone on",
                safe="nothing of it was stored",
            )

    @staticmethod
    def _require_paid(
        db: sqlite3.Connection, run_id: str, round_number: int, update_hash: bytes
    ) -> None:
        row = db.execute("SELECT plan FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if Plan.from_bytes(row["plan"]).draft.privacy.unit == "none":
            return
        paid = db.execute(
            "SELECT 1 FROM reservations WHERE run_id = ? AND round = ? AND state = 'committed' "
            "AND update_hash = ?",
            (run_id, round_number, update_hash),
        ).fetchone()
        if paid is None:
            raise StateError(
                f"round {round_number} of {run_id}: nothing was charged for this update",
                safe="it was not stored and cannot leave",
            )

    def replace_state(
        self, db: sqlite3.Connection, run_id: str, state: Mapping[str, np.ndarray]
    ) -> None:
        """Replace the state of the last round (it took in other sites' experts).

        Inside :meth:`transaction` and :meth:`files`.
        """
        round_number = self.state_round(run_id)
        file, file_hash = self._write_state(run_id, round_number, state)
        self.point_state(db, run_id, round_number, file, file_hash)

    def write_private(self, purpose: str, suffix: str, data: Buffer) -> str:
        """Seal into a file of the state folder and return its name; :meth:`read_private` opens it.

        Call it inside :meth:`transaction` or :meth:`files`, and have a row point at it before either
        ends: until then the file is an orphan.
        """
        name = self._new_name(purpose, secrets.token_hex(4), suffix)
        self.write_sealed(name, data)
        self.on_step(f"{suffix} file written")
        return name

    def read_private(self, name: str) -> bytes:
        """What :meth:`write_private` sealed under this name.

        Raises:
            KeyFileError: the file is missing, or others can read it.
            VaultError: it is not what was sealed under this name.
        """
        return self.vault.open(file_purpose(name), read_secret(self.home.state / name))

    def write_outgoing(self, purpose: str, suffix: str, data: Buffer) -> str:
        """As :meth:`write_private`, but not sealed: these are the bytes that leave."""
        name = self._new_name(purpose, secrets.token_hex(4), suffix)
        write_durably(self.home.state / name, data)
        self.on_step(f"{suffix} file written")
        return name

    def write_sealed(self, name: str, data: Buffer) -> bytes:
        """Seal a file of the state folder; the hash of the sealed bytes."""
        sealed = self.vault.seal(file_purpose(name), data)
        write_durably(self.home.state / name, sealed)
        return hashlib.sha256(sealed).digest()

    def remove_orphans(self) -> None:
        """Remove files of the state folder that no row names."""
        # The transaction keeps out the site's own commands, which write a key file inside theirs.
        with self.files(), self.transaction() as db:
            named = {
                row[0]
                for query in (
                    "SELECT file FROM states",
                    "SELECT file FROM updates",
                    "SELECT masked_file FROM masked_attempts",
                    "SELECT file FROM sealed_experts",
                    "SELECT key_file FROM exchanges",
                )
                for row in db.execute(query)
            }
            orphans = [path for path in self.home.state.iterdir() if path.name not in named]
            for path in orphans:
                erase(path) if path.suffix == ".key" else path.unlink(missing_ok=True)
            if orphans:
                sync_folder(self.home.state)

    def _write_state(
        self, run_id: str, round_number: int, state: Mapping[str, np.ndarray]
    ) -> tuple[str, bytes]:
        data = safetensors.numpy.save({name: np.asarray(v, order="C") for name, v in state.items()})
        name = self._new_name(run_id, f"r{round_number}", "safetensors")
        file_hash = self.write_sealed(name, data)
        self.on_step("state file written")
        return name, file_hash

    def point_state(
        self, db: sqlite3.Connection, run_id: str, round_number: int, file: str, file_hash: bytes
    ) -> None:
        """Have a row name the state's file, and a record of the vault vouch for the row."""
        db.execute(
            "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)",
            (run_id, round_number, file, file_hash),
        )
        self.items.put(db, STATE_RECORD, run_id, _state_record(round_number, file_hash))

    @staticmethod
    def _new_name(stem: str, part: str, suffix: str) -> str:
        return f"{stem}-{part}-{secrets.token_hex(4)}.{suffix}"

    @staticmethod
    def _read(path: Path, expected_hash: bytes) -> bytes:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise IntegrityError(
                f"{path}: {error.strerror}", next_step="restore the site's home from a backup"
            ) from error
        if hashlib.sha256(data).digest() != expected_hash:
            raise IntegrityError(
                f"{path}: the bytes are not those that were stored",
                safe="nothing was sent",
                next_step="restore the site's home from a backup",
            )
        return data

    def _create(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA_VERSION:
            return
        if version != 0:
            raise IntegrityError(
                f"{self.home.database}: schema {version}, this program knows {SCHEMA_VERSION}",
                next_step="use the program version that wrote it",
            )
        with self.transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _statements(_SCHEMA.read_text(encoding="utf-8")):
                    db.execute(statement)
                mark = secrets.token_hex(16)
                db.execute("INSERT INTO masking_mark (one, mark) VALUES (1, ?)", (mark,))
                # Before the commit: from then on its absence means that somebody took it away.
                begin_memory(self.home.masking, mark)
                begin_mark(self.home.masking, mark)
                self.on_step("masking memory begun")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _metrics_json(metrics: Mapping[str, float]) -> str:
    finite = {name: float(one) if math.isfinite(one) else None for name, one in metrics.items()}
    return json.dumps(finite, sort_keys=True)


def _state_record(round_number: int, file_hash: bytes) -> bytes:
    return round_number.to_bytes(4, "big") + file_hash


def file_purpose(name: str) -> str:
    """What a file of the state folder is sealed as."""
    return f"file {name}"


def _statements(script: str) -> Iterator[str]:
    """Single statements; ``executescript`` would commit the transaction around it."""
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        if pending.strip() and sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _run(row: sqlite3.Row) -> StoredRun:
    return StoredRun(
        row["run_id"], Plan.from_bytes(row["plan"]), row["state"], row["model_hash"], row["reason"]
    )
