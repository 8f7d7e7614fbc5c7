"""Masked attempts as the site stores them: rows of ``masked_attempts``, and one secret file for each.

A stage's file is written whole under a name of its own, the row that names its hash is the commit, and the
file before it is erased after that. So a crash leaves the one stage or the other. Files lie in
``masking/``, outside every backup, and hold the kernel's boot id: after another boot, in a home that was
restored, or on another machine the attempt is dead.

What is noticed of a home that was put back: a database older than ``masking/`` (the hashes differ, and
``memory.json`` remembers what was given), a ``masking/`` that is older than the database, is missing, or is
another database's, and any state of before the last boot. What is not: database and ``masking/`` put back
together to an earlier moment of the same boot. Whoever can do that acts as the site; keep ``masking/`` out
of backups.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpalm.canonical import canonical_json
from fedpalm.errors import ContributionReuseError, FedPalmError, StaleRoundError
from fedpalm.pki.keys import VerifyingKey
from fedpalm.secagg.memory import AttemptRef, Contribution, ContributionMemory, NewestAttempt
from fedpalm.secagg.site import AttemptFacts, SiteAttempt, Stage
from fedpalm.secagg.stored import attempt_from_bytes, attempt_to_bytes
from fedpalm.secagg.terms import SecAggTerms

from .files import erase, sync_folder, write_durably
from .ledger_mark import LEDGER_MARK
from .masking_memory import MEMORY, read_memory, write_memory
from .outgoing import Place
from .plan_book import PlanState
from .store import SiteStore

DEAD = "dead"
BEFORE = {
    "keyed": None,
    "shared": "keyed",
    "masked": "shared",
    "complained": "shared",
    "agreed": "masked",
    "revealed": "agreed",
}
"""The stage that each stage goes on from."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Of the kernel that runs: another one after every start of the machine."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


@dataclass(frozen=True)
class MaskedRow:
    """How far an attempt has come here; ``path`` is the masked vector's file."""

    place: Place
    stage: str
    model_hash: bytes
    encoded_hash: bytes
    state_hash: bytes | None
    masked_hash: bytes | None
    path: Path | None


@dataclass(frozen=True)
class Written:
    """A state file that no row names yet."""

    name: str
    hash: bytes


class MaskedBook:
    """Rows and files of masked attempts.

    Args:
        boot: tells which boot this is.
    """

    def __init__(self, store: SiteStore, boot: Callable[[], str] = boot_id) -> None:
        self._store, self._boot, self._folder = store, boot, store.home.masking

    # --- reading ----------------------------------------------------------------------------------

    def row(self, place: Place) -> MaskedRow | None:
        found = self._store.row(
            "SELECT * FROM masked_attempts WHERE (run_id, round, attempt) = (?, ?, ?)",
            *(place.run, place.round, place.attempt),
        )
        return self._row(found) if found else None

    def newest(self, run_id: str) -> MaskedRow | None:
        """The newest attempt of a run that was begun here, whatever became of it."""
        found = self._store.row(
            "SELECT * FROM masked_attempts WHERE run_id = ? "
            "ORDER BY round DESC, attempt DESC LIMIT 1",
            run_id,
        )
        return self._row(found) if found else None

    def memory(self) -> ContributionMemory:
        """What this site has begun and given: of the rows, and of the copy that no backup holds.

        Raises:
            KeyFileError: the copy is damaged.
            ContributionReuseError: it is gone or another home's, so this one came from a backup.
        """
        newest: dict[str, NewestAttempt] = {}
        given: dict[str, Contribution] = {}
        masked: dict[str, str] = {}
        for row in self._store.rows(
            "SELECT * FROM masked_attempts ORDER BY run_id, round, attempt"
        ):
            model, encoded = row["model_hash"].hex(), row["encoded_hash"].hex()
            gave = bool(row["gave_shares"])
            newest[row["run_id"]] = NewestAttempt(
                row["round"], row["attempt"], model, encoded, gave
            )
            if gave:
                given[model] = Contribution(row["run_id"], row["round"], encoded)
            if row["masked_hash"] is not None:
                masked[model] = row["run_id"]
        rows = ContributionMemory(newest, given, masked)
        return rows.merge(read_memory(self._folder, self._store.masking_mark()))

    def load(self, place: Place, terms: SecAggTerms, site: str) -> SiteAttempt | None:
        """The attempt as it was stored last; None if it was never begun here or is dead.

        One that cannot be trusted is dead from here on: the file is missing, is not the one that the row
        names, or is of another boot.
        """
        row = self.row(place)
        if row is None or row.stage == DEAD:
            return None
        attempt = self._read(row, terms, site)
        if attempt is None:
            self.kill(place.run, place.round, place.attempt)
        return attempt

    def _read(self, row: MaskedRow, terms: SecAggTerms, site: str) -> SiteAttempt | None:
        if row.state_hash is None:
            return None
        try:
            raw = (self._folder / _name(row.place, row.state_hash)).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(raw).digest() != row.state_hash:
            return None
        try:
            values: dict[str, Any] = json.loads(raw)
            if values["boot"] != self._boot():
                return None
            keys = {
                name: VerifyingKey.from_public_bytes(bytes.fromhex(key))
                for name, key in values["signing_keys"].items()
            }
            facts = AttemptFacts(
                terms, site, bytes.fromhex(values["manifest_hash"]), tuple(sorted(keys)), keys
            )
            attempt = attempt_from_bytes(values["attempt"].encode(), facts)
        except (ValueError, KeyError, TypeError, AttributeError, FedPalmError):
            return None
        return attempt if attempt.stage.value == row.stage else None

    # --- writing ----------------------------------------------------------------------------------

    def write(self, place: Place, attempt: SiteAttempt) -> Written:
        """Write the file of a stage, durably. Inside :meth:`SiteStore.files`."""
        facts = attempt.facts
        raw = canonical_json(
            {
                "version": 1,
                "boot": self._boot(),
                "manifest_hash": facts.manifest_hash.hex(),
                "signing_keys": {
                    name: facts.signing_keys[name].public_bytes_raw().hex() for name in facts.cohort
                },
                "attempt": attempt_to_bytes(attempt).decode(),
            }
        )
        digest = hashlib.sha256(raw).digest()
        name = _name(place, digest)
        write_durably(self._folder / name, raw)
        self._store.on_step("masking file written")
        return Written(name, digest)

    def put(
        self,
        db: sqlite3.Connection,
        place: Place,
        attempt: SiteAttempt,
        written: Written,
        *,
        model_hash: bytes,
        encoded_hash: bytes,
        masked_file: str | None = None,
    ) -> None:
        """The stage's row, if the memory of this site allows it; a new attempt ends those before it.

        Raises:
            StaleRoundError: a later attempt was begun, or the row has come to another stage meanwhile.
            ContributionReuseError: as in :class:`ContributionMemory`; or an update from this model has
                left unmasked, which the sum without masks would be compared with.
        """
        ref, memory, before = _ref(place), self.memory(), self.row(place)
        if attempt.stage in (Stage.KEYED, Stage.MASKED, Stage.REVEALED):
            self._require_never_plain(db, ref, model_hash)
        stage, last = attempt.stage.value, before.stage if before else None
        if last != BEFORE[stage]:
            raise StaleRoundError(f"{ref}: {stage} does not come after {last or 'nothing'}")
        match attempt.stage:
            case Stage.KEYED:
                memory.begin_attempt(ref, model_hash.hex(), encoded_hash.hex())
                db.execute(_KILL, (place.run, None, None, None, None))
                db.execute(
                    "INSERT INTO masked_attempts (run_id, round, attempt, stage, model_hash, "
                    "encoded_hash, state_hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(place.run, place.round, place.attempt, stage),
                        *(model_hash, encoded_hash, written.hash),
                    ),
                )
                return
            case Stage.MASKED:
                memory.note_masked(ref, encoded_hash.hex())
                assert attempt.masked is not None
                db.execute(
                    "UPDATE masked_attempts SET masked_hash = ?, masked_file = ? "
                    "WHERE (run_id, round, attempt) = (?, ?, ?)",
                    (
                        *(attempt.masked.payload_hash, masked_file),
                        *(place.run, place.round, place.attempt),
                    ),
                )
            case Stage.REVEALED:
                memory.note_revealed(ref)
            case _:
                memory.require_live(ref)
        db.execute(
            "UPDATE masked_attempts SET stage = ?, state_hash = ?, gave_shares = ? "
            "WHERE (run_id, round, attempt) = (?, ?, ?)",
            (
                *(stage, written.hash, int(attempt.stage is Stage.REVEALED)),
                *(place.run, place.round, place.attempt),
            ),
        )

    def require_never_masked(self, db: sqlite3.Connection, model_hash: bytes) -> None:
        """Before an update leaves unmasked: none from this model was ever masked here.

        A masked vector that left may be in a sum; the sum less the plain updates of the others would be
        the update of one site. A home that came from a backup of before its first masked attempt does
        not know; it goes on with runs without masking, of which people know what the coordinator sees.

        Raises:
            ContributionReuseError: one was, or nobody knows.
        """
        row = db.execute(
            "SELECT 1 FROM masked_attempts WHERE model_hash = ? AND masked_hash IS NOT NULL",
            (model_hash,),
        ).fetchone()
        if row is not None or model_hash.hex() in self._known_masked(db):
            raise ContributionReuseError(
                f"an update from model {model_hash.hex()[:16]} was masked by this site; unmasked, none "
                "leaves any more",
                safe="nothing was sent",
                next_step="a run without masking starts from another model",
            )

    def _known_masked(self, db: sqlite3.Connection) -> Mapping[str, str]:
        try:
            return self.memory().masked
        except ContributionReuseError:
            if db.execute("SELECT 1 FROM masked_attempts").fetchone() is not None:
                raise
            return {}

    @staticmethod
    def _require_never_plain(db: sqlite3.Connection, ref: AttemptRef, model_hash: bytes) -> None:
        row = db.execute(
            "SELECT 1 FROM updates u JOIN releases r ON r.payload_hash = u.payload_hash "
            "WHERE u.model_hash = ? AND r.payload = 'update'",
            (model_hash,),
        ).fetchone()
        if row is not None:
            raise ContributionReuseError(
                f"{ref}: an update from model {model_hash.hex()[:16]} has left this site unmasked",
                safe="nothing is masked",
                next_step="a masked run starts from another model",
            )

    def stored(self) -> None:
        """After the commit and before anything is sent: erase what is past, copy the memory."""
        with self._store.files():
            # Read and written in one: another thread's later memory is not overwritten by this one.
            write_memory(self._folder, self._store.masking_mark(), self.memory())
            self._store.on_step("masking memory written")
            self.sweep()

    def kill(
        self, run_id: str, round_number: int | None = None, attempt: int | None = None
    ) -> None:
        """These attempts are over here, for good: their secrets are erased, their vectors go.

        Left out, ``attempt`` means all of a round, and ``round_number`` all of a run. Touches no file of
        another run: a command does this while the agent, in another process, may be writing one.
        """
        which = (run_id, round_number, round_number, attempt, attempt)
        with self._store.transaction() as db:
            vectors = db.execute(_VECTORS, which).fetchall()
            db.execute(_KILL, which)
        self.sweep(run_id)
        for row in vectors:
            (self._store.home.state / row["masked_file"]).unlink(missing_ok=True)
        if vectors:
            sync_folder(self._store.home.state)

    def sweep(self, run_id: str | None = None) -> None:
        """Erase the state files that no row names: of a run, or all."""
        with self._store.files(), self._store.transaction() as db:
            rows = [
                self._row(row)
                for row in db.execute("SELECT * FROM masked_attempts WHERE state_hash IS NOT NULL")
            ]
            named = {_name(row.place, row.state_hash) for row in rows if row.state_hash}
            for path in self._folder.iterdir():
                if path.name in named or path.name in (MEMORY, LEDGER_MARK):
                    continue
                if run_id is None or _run_of(path.name) == run_id:
                    erase(path)

    def start(self) -> list[Place]:
        """On starting: kill what cannot go on, erase orphans.

        Returns:
            what was killed of runs that go on here; nobody waits for the attempts of others.
        """
        killed = []
        for row in self._store.rows("SELECT * FROM masked_attempts WHERE state_hash IS NOT NULL"):
            found = self._row(row)
            assert found.state_hash is not None
            path = self._folder / _name(found.place, found.state_hash)
            if not self._takes_part(found.place.run):
                self.kill(found.place.run)
            elif not self._trusted(path, found.state_hash):
                killed.append(found.place)
                self.kill(found.place.run, found.place.round, found.place.attempt)
        try:
            self.stored()
        except ContributionReuseError:
            self.sweep()  # Masked rounds are refused one by one; the others go on.
        return killed

    def _takes_part(self, run_id: str) -> bool:
        """Whether the run is joined, and its plan is still approved."""
        row = self._store.row(
            "SELECT 1 FROM runs JOIN plans USING (run_id) "
            "WHERE run_id = ? AND runs.state = 'joined' AND plans.state = ?",
            *(run_id, PlanState.APPROVED.value),
        )
        return row is not None

    def _trusted(self, path: Path, digest: bytes) -> bool:
        try:
            raw = path.read_bytes()
            return (
                hashlib.sha256(raw).digest() == digest and json.loads(raw)["boot"] == self._boot()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _row(self, row: sqlite3.Row) -> MaskedRow:
        return MaskedRow(
            Place(row["run_id"], row["round"], row["attempt"]),
            row["stage"],
            row["model_hash"],
            row["encoded_hash"],
            row["state_hash"],
            row["masked_hash"],
            self._store.home.state / row["masked_file"] if row["masked_file"] else None,
        )


_WHICH = (
    "run_id = ? AND (? IS NULL OR round = ?) AND (? IS NULL OR attempt = ?) AND stage != 'dead'"
)
_VECTORS = f"SELECT masked_file FROM masked_attempts WHERE {_WHICH} AND masked_file IS NOT NULL"  # noqa: S608
_KILL = f"""
    UPDATE masked_attempts SET stage = 'dead', state_hash = NULL, masked_file = NULL WHERE {_WHICH}
"""  # noqa: S608


def _name(place: Place, digest: bytes) -> str:
    return f"{place.run}-r{place.round}-a{place.attempt}-{digest.hex()[:16]}.secret"


def _run_of(name: str) -> str:
    """The run of a state file, or of what an interrupted write left of one."""
    return re.sub(r"-r\d+-a\d+-[0-9a-f]{16}\.secret.*", "", name)


def _ref(place: Place) -> AttemptRef:
    assert place.round is not None and place.attempt is not None
    return AttemptRef(place.run, place.round, place.attempt)
