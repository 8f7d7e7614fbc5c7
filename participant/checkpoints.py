"""Checkpoints: this site's own, given for each attempt under differential privacy, and those of the others.

An own one is signed once for an attempt and stored with its log entry before it is sent. One of another
site is stored once it is shown to go on from the newest one of the same log. This site's countersignature
of a manifest says that it holds every checkpoint that the manifest names: it is the witness's signature.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from fedpalm.errors import (
    FedPalmError,
    ForkError,
    IdentityError,
    ProtocolError,
    RolledBackError,
    StaleRoundError,
    UnwitnessedError,
    WrongRoleError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.ledger.witness import RESTORE_STEP, check_follows
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.manifest import RoundManifest

from .log import SiteLog
from .outgoing import Place
from .store import SiteStore

MAX_GIVEN = 200
"""Checkpoints in one message; a coordinator that lacks more gets the oldest first."""


@dataclass(frozen=True)
class Conflict:
    """Two checkpoints that cannot both be of one log; ``seq`` is of the log entry that says so."""

    seq: int
    held: SignedStatement
    other: SignedStatement


class CheckpointBook:
    """Rows of ``checkpoints`` and ``checkpoint_conflicts``.

    Args:
        live: who signs, and whose anchors are trusted.
    """

    def __init__(self, store: SiteStore, log: SiteLog, live: LiveIdentity) -> None:
        self._store, self._log, self._live = store, log, live
        self._site = live.current.identity.name
        self._tree = MerkleTree()

    # --- reading ----------------------------------------------------------------------------------

    def newest(self, site: str) -> Checkpoint | None:
        """The one of a site that came last."""
        row = self._store.row(
            "SELECT signed FROM checkpoints WHERE site = ? ORDER BY seq DESC LIMIT 1", site
        )
        return _read(row) if row else None

    def newest_hashes(self, sites: Sequence[str]) -> list[bytes]:
        """Hash of the newest one of each of these sites but this one, where there is one."""
        found = (self.newest(site) for site in sites if site != self._site)
        return [one.hash for one in found if one is not None]

    def first_unsigned(self, run_id: str) -> int:
        """Position of the first manifest that this site has not countersigned, nor any after it."""
        row = self._store.row(
            "SELECT MAX(m.seq) AS seq FROM manifests m JOIN countersignatures c "
            "USING (run_id, round, attempt) WHERE m.run_id = ? AND c.site = ?",
            *(run_id, self._site),
        )
        return 0 if row is None or row["seq"] is None else int(row["seq"]) + 1

    def conflicts(self) -> list[Conflict]:
        """Everything that was seen to contradict a log, as evidence."""
        rows = self._store.rows("SELECT seq, held, other FROM checkpoint_conflicts ORDER BY seq")
        return [
            Conflict(
                row["seq"],
                SignedStatement.from_bytes(row["held"]),
                SignedStatement.from_bytes(row["other"]),
            )
            for row in rows
        ]

    # --- this site's own --------------------------------------------------------------------------

    def check(self, place: Place, newest: SignedStatement | None) -> None:
        """May this site give a checkpoint for an attempt?

        Args:
            newest: what the coordinator says is the newest one of this log that it has.
        Raises:
            RolledBackError: that one is signed with this site's key, and this home does not know it.
            ProtocolError: it is something else.
            StaleRoundError: this site has given one for a later attempt of the run, or followed one.
        """
        with self._store.transaction() as db:
            self._known(newest)
            self._require_timely(db, place)

    def give(self, place: Place, newest: SignedStatement | None) -> list[GivenCheckpoint]:
        """This site's checkpoint for an attempt, after those that the coordinator lacks; stored.

        It covers every entry that the log has now. For the same attempt it is the same one again.

        Raises:
            RolledBackError, ProtocolError, StaleRoundError: as :meth:`check`.
        """
        with self._store.transaction() as db:
            known = self._known(newest)
            self._require_timely(db, place)
            if self._own(db, place) is None:
                self._sign(db, place)
            rows = db.execute(
                "SELECT signed, proof FROM checkpoints WHERE site = ? AND key_id = ? AND seq > ? "
                "ORDER BY seq LIMIT ?",
                (self._site, self._key_id(), known, MAX_GIVEN),
            ).fetchall()
            if not rows:
                rows = [self._own(db, place)]
        return [GivenCheckpoint.stored(row["signed"], row["proof"]) for row in rows]

    def _sign(self, db: sqlite3.Connection, place: Place) -> None:
        for row in db.execute(
            "SELECT entry FROM log WHERE seq >= ? ORDER BY seq", (len(self._tree),)
        ):
            self._tree.append(row["entry"])
        before = db.execute(
            "SELECT size FROM checkpoints WHERE site = ? AND key_id = ? ORDER BY seq DESC LIMIT 1",
            (self._site, self._key_id()),
        ).fetchone()
        live = self._live.current
        said = Checkpoint(
            federation=live.identity.federation,
            site=self._site,
            key_id=self._key_id(),
            size=len(self._tree),
            root=self._tree.root().hex(),
            run=place.run,
            round=place.round or 0,
            attempt=place.attempt or 0,
            time_ms=self._store.now_ms(),
        )
        signed = said.sign(live)
        proof = self._tree.consistency_proof(before["size"]) if before else []
        self._add(db, said, GivenCheckpoint(signed, tuple(proof)))
        self._log.append(
            db,
            EntryKind.CHECKPOINT,
            {
                "run": said.run,
                "round": said.round,
                "attempt": said.attempt,
                "size": said.size,
                "root": said.root,
                "checkpoint_hash": said.hash.hex(),
            },
        )

    def _require_timely(self, db: sqlite3.Connection, place: Place) -> None:
        asked = (place.round or 0, place.attempt or 0)
        if asked == (0, 0) or self._own(db, place) is not None:
            return
        for query, values in (
            ("SELECT round, attempt FROM manifests WHERE run_id = ? ORDER BY seq DESC LIMIT 1", ()),
            (
                "SELECT round, attempt FROM checkpoints WHERE run_id = ? AND site = ? "
                "ORDER BY seq DESC LIMIT 1",
                (self._site,),
            ),
        ):
            last = db.execute(query, (place.run, *values)).fetchone()
            if last is not None and (last["round"], last["attempt"]) >= asked:
                raise StaleRoundError(
                    f"run {place.run}: a checkpoint for {asked[0]}.{asked[1]} was asked for after "
                    f"{last['round']}.{last['attempt']}",
                    safe="nothing was reserved or given",
                )

    def _known(self, newest: SignedStatement | None) -> int:
        """Position of this site's checkpoint that the coordinator has; 0: it has none."""
        if newest is None:
            return 0
        row = self._store.row("SELECT seq, site FROM checkpoints WHERE hash = ?", newest.hash)
        if row is not None and row["site"] == self._site:
            return int(row["seq"])
        own = self._live.current
        try:
            found = Checkpoint.open(
                newest, own.record_anchors, now=newest.last_valid(self._store.clock.now())
            )
        except (IdentityError, ProtocolError, WrongRoleError) as error:
            raise _not_ours() from error
        if found.log != (self._site, self._key_id()):
            raise _not_ours()
        raise RolledBackError(
            f"this site's log does not know a checkpoint that was signed with its key: {found}",
            safe="nothing was signed, trained or sent; the budget that is missing here is not used again",
            next_step=RESTORE_STEP,
        )

    # --- the others' ------------------------------------------------------------------------------

    def take(self, given: GivenCheckpoint, roster: Sequence[str], place: Place) -> None:
        """Store a checkpoint of another site, if it goes on from the newest one of that log.

        Args:
            place: the attempt that is asked for; what was given for an earlier one may be signed under a
                certificate that has ended since.
        Raises:
            ProtocolError, IdentityError, WrongRoleError: not a checkpoint that another site of the roster
                has signed.
            ForkError, RolledBackError: it contradicts the newest one; logged and kept as evidence.
        """
        signed, own = given.signed, self._live.current
        if self._store.row("SELECT 1 FROM checkpoints WHERE hash = ?", signed.hash) is not None:
            return
        said = Checkpoint.read(signed)
        now, anchors = self._store.clock.now(), own.anchors
        if (said.run, said.round, said.attempt) != (place.run, place.round, place.attempt):
            now, anchors = signed.last_valid(now), own.record_anchors
        said = Checkpoint.open(signed, anchors, now=now)
        if said.site not in roster or said.site == self._site:
            raise ProtocolError(f"a checkpoint of {said.site} came, of no other site of the roster")
        contradiction: FedPalmError | None = None
        with self._store.transaction() as db:
            held = db.execute(
                "SELECT signed FROM checkpoints WHERE site = ? AND key_id = ? "
                "ORDER BY seq DESC LIMIT 1",
                said.log,
            ).fetchone()
            try:
                if held is not None:
                    check_follows(_read(held), said, given.proof)
            except (ForkError, RolledBackError) as error:
                contradiction = error
                self._keep(db, SignedStatement.from_bytes(held["signed"]), signed, said.site)
            else:
                self._add(db, said, given)
        if contradiction is not None:
            raise contradiction

    def require_all(self, db: sqlite3.Connection, manifest: RoundManifest) -> None:
        """Hold every checkpoint that a manifest names, and those before it not countersigned yet.

        Raises:
            UnwitnessedError: one is missing, or was given by another site, for another attempt, or under
                another key than the manifest says; this site's own included.
        """
        if not manifest.checkpoints:
            return
        rows = db.execute(
            "SELECT signed FROM manifests WHERE run_id = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            (manifest.run, self.first_unsigned(manifest.run), manifest.seq),
        ).fetchall()
        if not rows:  # Countersigned before: again changes nothing.
            return
        for row in rows:
            one = RoundManifest.read(SignedStatement.from_bytes(row["signed"]))
            for site, checkpoint_hash in one.checkpoints.items():
                self._require(db, one, site, bytes.fromhex(checkpoint_hash))

    def _require(
        self, db: sqlite3.Connection, manifest: RoundManifest, site: str, checkpoint_hash: bytes
    ) -> None:
        expected = (site, key_id(manifest.verifying_keys[site]).hex())
        if site == self._site and expected[1] != self._key_id():
            return  # Missed, and of an earlier admission: that log is not here.
        row = db.execute(
            "SELECT signed FROM checkpoints WHERE hash = ?", (checkpoint_hash,)
        ).fetchone()
        named = f"checkpoint {checkpoint_hash.hex()[:16]} of site {site}"
        if row is None and site == self._site:
            raise _unwitnessed(manifest, f"it names {named}, which this site has not given")
        if row is None:
            raise _unwitnessed(manifest, f"{named} did not come")
        said = _read(row)
        if said.log != expected:
            raise _unwitnessed(manifest, f"{named} is of {said.site}, or of another key")
        if (said.run, said.round, said.attempt) != (
            manifest.run,
            manifest.round,
            manifest.attempt,
        ):
            raise _unwitnessed(manifest, f"{named} is an earlier one: {said}")

    # --- inside -----------------------------------------------------------------------------------

    def _key_id(self) -> str:
        return key_id(self._log.public_key).hex()

    def _own(self, db: sqlite3.Connection, place: Place) -> sqlite3.Row | None:
        found: sqlite3.Row | None = db.execute(
            "SELECT signed, proof FROM checkpoints WHERE site = ? AND key_id = ? "
            "AND run_id = ? AND round = ? AND attempt = ?",
            (self._site, self._key_id(), place.run, place.round, place.attempt),
        ).fetchone()
        return found

    @staticmethod
    def _add(db: sqlite3.Connection, said: Checkpoint, given: GivenCheckpoint) -> None:
        db.execute(
            "INSERT INTO checkpoints (site, key_id, size, run_id, round, attempt, hash, proof, signed) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(said.site, said.key_id, said.size, said.run, said.round, said.attempt),
                *(said.hash, given.proof_bytes, given.signed.to_bytes()),
            ),
        )

    def _keep(
        self, db: sqlite3.Connection, held: SignedStatement, other: SignedStatement, site: str
    ) -> None:
        """Evidence with its log entry; the same pair again is no news."""
        known = db.execute(
            "SELECT 1 FROM checkpoint_conflicts WHERE held = ? AND other = ?",
            (held.to_bytes(), other.to_bytes()),
        ).fetchone()
        if known is not None:
            return
        entry = self._log.append(
            db,
            EntryKind.FORK_SEEN,
            {"site": site, "checkpoint_hash": held.hash.hex(), "other_hash": other.hash.hex()},
        )
        db.execute(
            "INSERT INTO checkpoint_conflicts (seq, held, other) VALUES (?, ?, ?)",
            (entry.seq, held.to_bytes(), other.to_bytes()),
        )


def _read(row: sqlite3.Row) -> Checkpoint:
    return Checkpoint.read(SignedStatement.from_bytes(row["signed"]))


def _not_ours() -> ProtocolError:
    return ProtocolError(
        "the coordinator says that it has a checkpoint of this site's log, and it is none",
        safe="nothing was reserved or given",
        next_step="ask the operator of the coordinator",
    )


def _unwitnessed(manifest: RoundManifest, why: str) -> UnwitnessedError:
    return UnwitnessedError(
        f"run {manifest.run}, {manifest.ref}: {why}",
        safe="nothing is countersigned, trained or sent for it",
        next_step="wait for the next attempt; if it comes again, ask the operator of the coordinator",
    )
