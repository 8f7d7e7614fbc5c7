"""The manifests of this site's runs: each one checked against the chain before it is acted upon.

A manifest is stored with its log entry before this site signs that it accepts it, and signed before the
round is trained. What contradicts a stored one is kept as evidence, and the run goes no further here
until a person has taken the approval back (and, the cause being known, given it anew).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from fedpalm.errors import (
    ForkError,
    HashMismatchError,
    IdentityError,
    NotOnRosterError,
    ProtocolError,
    StaleRoundError,
    WrongRoleError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.request import signing_key_of
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import Countersignature, ManifestHead, RoundManifest, follow

from .checkpoints import CheckpointBook
from .log import SiteLog
from .outgoing import Place
from .plan_book import PlanBook
from .policy import PolicyFile, require_allowed
from .release import refused
from .store import SiteStore


@dataclass(frozen=True)
class Fork:
    """Two signed statements that contradict each other; ``held`` is None before the first manifest."""

    run_id: str
    held: SignedStatement | None
    other: SignedStatement
    open: bool


class ManifestBook:
    """Rows of ``manifests``, ``countersignatures`` and ``forks``.

    Args:
        live: whose anchors are trusted, and who countersigns.
    """

    def __init__(
        self, store: SiteStore, log: SiteLog, live: LiveIdentity, policy: PolicyFile
    ) -> None:
        self._store, self._log, self._live, self.policy = store, log, live, policy
        self._plans = PlanBook(store)
        self.checkpoints = CheckpointBook(store, log, live)
        self._site = live.current.identity.name

    # --- reading ----------------------------------------------------------------------------------

    def size(self, run_id: str) -> int:
        """How many manifests of the run are stored: the position of the next one."""
        row = self._store.row("SELECT COUNT(*) AS n FROM manifests WHERE run_id = ?", run_id)
        return int(row["n"]) if row else 0

    def chain(self, run_id: str) -> list[SignedStatement]:
        """All of a run's manifests, in order."""
        rows = self._store.rows(
            "SELECT signed FROM manifests WHERE run_id = ? ORDER BY seq", run_id
        )
        return [SignedStatement.from_bytes(row["signed"]) for row in rows]

    def runs(self) -> list[str]:
        """Runs of which a manifest was accepted, the oldest first."""
        rows = self._store.rows("SELECT run_id FROM manifests WHERE seq = 0 ORDER BY rowid")
        return [row["run_id"] for row in rows]

    def trains_from(self, run_id: str, round_number: int, model_hash: bytes) -> bool:
        """Whether an accepted manifest asks to train this round from this model."""
        rows = self._store.rows(
            "SELECT signed FROM manifests WHERE run_id = ? AND round = ?", run_id, round_number
        )
        return any(_read(row).model_hash == model_hash.hex() for row in rows)

    def countersigned_by(self, manifest: RoundManifest) -> list[str]:
        """The sites, sorted, whose signature over exactly this manifest is stored."""
        rows = self._store.rows(
            "SELECT signed FROM countersignatures WHERE run_id = ? AND round = ? AND attempt = ? "
            "ORDER BY site",
            *(manifest.run, manifest.round, manifest.attempt),
        )
        said = [Countersignature.read(SignedStatement.from_bytes(row["signed"])) for row in rows]
        return [one.site for one in said if one.manifest_hash == manifest.hash.hex()]

    def forks(self) -> list[Fork]:
        """Every contradiction that was seen; an open one holds its run up."""
        rows = self._store.rows(
            "SELECT f.*, f.answer = p.number AS open FROM forks f JOIN plans p USING (run_id) "
            "ORDER BY seq"
        )
        return [
            Fork(
                row["run_id"],
                SignedStatement.from_bytes(row["held"]) if row["held"] else None,
                SignedStatement.from_bytes(row["other"]),
                bool(row["open"]),
            )
            for row in rows
        ]

    def refuse_forked(self, run_id: str) -> None:
        """Raises ForkError: two statements about the run contradict each other, and nobody decided."""
        if any(seen.open and seen.run_id == run_id for seen in self.forks()):
            raise _fork(run_id, "the coordinator's signed statements contradict each other")

    # --- manifests --------------------------------------------------------------------------------

    def accept(self, signed: SignedStatement, *, missed: bool = False) -> RoundManifest:
        """Check a manifest and store it with its log entry; the newest one again is no news.

        Args:
            missed: it only fills a gap before the one that this site is asked to follow, so it need
                not concern this site, and its signer's certificate may have ended since.
        Raises:
            IdentityError, WrongRoleError, ProtocolError: not a manifest of the coordinator.
            PlanNotApprovedError: the run's plan is not approved here.
            ForkError: it contradicts what was accepted before; logged and kept as evidence.
            HashMismatchError, StaleRoundError, NotOnRosterError: as in :func:`follow`; an earlier one
                again; a cohort without this site, or with another signing key for it.
            PolicyError: the plan, and so the cohort, is beyond this site's limits.
        """
        now = self._store.clock.now()
        at = signed.last_valid(now) if missed else now
        own = self._live.current
        # A missed one may be signed under an anchor that was retired since: a signed later one vouches.
        anchors = own.record_anchors if missed else own.anchors
        manifest = RoundManifest.open(signed, anchors, now=at)
        plan = self._plans.approved(manifest.run)
        contradiction = ""
        with self._store.transaction() as db:
            self.refuse_forked(manifest.run)
            held = db.execute(
                "SELECT signed FROM manifests WHERE run_id = ? AND seq = ?",
                (manifest.run, manifest.seq),
            ).fetchone()
            last = self._newest(db, manifest.run)
            head = _head(last, plan, manifest.run)
            if held is not None:
                before = SignedStatement.from_bytes(held["signed"])
                if before.hash != signed.hash:
                    contradiction = f"manifest {manifest.seq} is there twice"
                    self._keep_fork(db, manifest.run, before.hash, before, signed)
                elif not missed:
                    self.check_asked(manifest, plan)
                    if manifest.seq + 1 < head.size:
                        raise StaleRoundError(
                            f"run {manifest.run}: {manifest.ref} is past; its manifest came again",
                            safe="nothing was trained or sent for it",
                        )
            else:
                try:
                    follow(head, manifest, plan, manifest.run)
                except ForkError as error:
                    contradiction = error.what
                    self._keep_fork(db, manifest.run, head.hash, last, signed)
                else:
                    if not missed:
                        self.check_asked(manifest, plan)
                    self._add(db, manifest, signed)
        if contradiction:
            raise _fork(manifest.run, contradiction)
        return manifest

    def accept_missed(self, missed: Sequence[SignedStatement], newest: SignedStatement) -> None:
        """Fill the gap before ``newest``, which must vouch for every one of ``missed`` by its hash.

        Raises:
            HashMismatchError: they do not lead from one to the next up to ``newest``.
            FedPalmError: as :meth:`accept`, of ``newest`` or of one of them.
        """
        follows = self.newest(newest).previous
        for signed in reversed(missed):
            if signed.hash.hex() != follows:
                raise HashMismatchError(
                    "the manifests that were missed do not lead to the one that is asked for",
                    safe="nothing was trained or sent for it",
                    next_step="ask the operator of the coordinator",
                )
            follows = RoundManifest.read(signed).previous
        for signed in missed:
            self.accept(signed, missed=True)

    def newest(self, signed: SignedStatement) -> RoundManifest:
        """A manifest that the coordinator signed, before anything is asked for because of it.

        Raises:
            IdentityError, WrongRoleError, ProtocolError: it is not the coordinator's word.
        """
        return RoundManifest.open(signed, self._live.current.anchors, now=self._store.clock.now())

    def still_asked(self, manifest: RoundManifest) -> None:
        """What must hold at the moment in which an accepted manifest is acted upon.

        Raises:
            PlanNotApprovedError: the approval was taken back since.
            ForkError: a contradiction was seen since.
            NotOnRosterError, PolicyError: as :meth:`check_asked`.
        """
        self.refuse_forked(manifest.run)
        self.check_asked(manifest, self._plans.approved(manifest.run))

    def check_asked(self, manifest: RoundManifest, plan: Plan) -> None:
        """What must hold whenever this site acts on a manifest, at the limits of this moment.

        Raises:
            NotOnRosterError: this site is not in the cohort, or only under another signing key.
            PolicyError: the plan, and so the cohort, is beyond this site's limits.
        """
        if self._site not in manifest.cohort:
            raise NotOnRosterError(
                f"run {manifest.run}, {manifest.ref}: {self._site} is not in the cohort",
                safe="nothing was trained or sent for it",
            )
        own = self._live.current.signing_key.public_key()
        if manifest.verifying_keys[self._site] != own:
            raise NotOnRosterError(
                f"run {manifest.run}, {manifest.ref}: the manifest names another signing key for this "
                f"site than its own, {key_id(own).hex()[:16]}",
                safe="nothing was trained or sent for it",
                next_step="ask the operator of the coordinator, by telephone, which key that is",
            )
        # That includes min_cohort: the plan's quorum is no smaller, and no cohort is below the quorum.
        require_allowed(self.policy.current, plan)

    def newest_accepted(self, place: Place) -> RoundManifest:
        """The manifest of an attempt, if none after it was accepted.

        Raises:
            EgressRefusedError: none was accepted.
            StaleRoundError: a later one was.
        """
        row = self._store.row(
            "SELECT seq, signed FROM manifests WHERE run_id = ? AND round = ? AND attempt = ?",
            *(place.run, place.round, place.attempt),
        )
        if row is None:
            raise refused(f"no manifest of {place} was accepted here")
        if row["seq"] + 1 < self.size(place.run):
            raise StaleRoundError(f"{place} is past: a later manifest was accepted")
        return _read(row)

    def agreed(self, place: Place, plan: Plan) -> RoundManifest:
        """The manifest of an attempt, if an update may leave for it.

        Raises:
            EgressRefusedError: none was accepted, or fewer sites than the plan's quorum have signed it.
            StaleRoundError: a later one was accepted.
            ForkError, NotOnRosterError, PolicyError: as :meth:`accept`.
        """
        self.refuse_forked(place.run)
        manifest = self.newest_accepted(place)
        self.check_asked(manifest, plan)
        signers = self.countersigned_by(manifest)
        if len(signers) < plan.quorum or self._site not in signers:
            raise refused(
                f"{len(signers)} sites have signed the manifest of {place}, the plan's quorum is "
                f"{plan.quorum}"
            )
        return manifest

    # --- countersignatures ------------------------------------------------------------------------

    def countersign(self, manifest: RoundManifest) -> SignedStatement:
        """This site's signature over an accepted manifest, stored before it is sent.

        Raises:
            EgressRefusedError: it was not accepted.
            UnwitnessedError: not every checkpoint that it names is held here.
        """
        identity = self._live.current
        signed = Countersignature(
            federation=manifest.federation,
            run=manifest.run,
            round=manifest.round,
            attempt=manifest.attempt,
            manifest_hash=manifest.hash.hex(),
            site=self._site,
        ).sign(identity)
        with self._store.transaction() as db:
            accepted = db.execute(
                "SELECT 1 FROM manifests WHERE run_id = ? AND hash = ?",
                (manifest.run, manifest.hash),
            ).fetchone()
            if accepted is None:
                raise refused("a manifest that was not accepted is not signed")
            self.checkpoints.require_all(db, manifest)
            # Made again after a renewal it is the same signature, with the present certificate.
            self._put_countersignature(db, manifest, self._site, signed)
        return signed

    def take_countersignature(self, manifest: RoundManifest, signed: SignedStatement) -> bool:
        """Store what a site of the cohort signed about an accepted manifest.

        Returns:
            False for a signature that proves nothing: it does not count, and changes nothing.
        Raises:
            ForkError: the site was given another manifest for this attempt; logged and kept.
        """
        known = self._store.row(
            "SELECT 1 FROM countersignatures WHERE run_id = ? AND round = ? AND attempt = ? "
            "AND signed = ?",
            *(manifest.run, manifest.round, manifest.attempt, signed.to_bytes()),
        )
        if known is not None:
            return True
        try:
            said = Countersignature.open(
                signed, self._live.current.anchors, now=self._store.clock.now()
            )
        except (ProtocolError, IdentityError, WrongRoleError):
            return False
        about = (said.federation, said.run, said.round, said.attempt)
        asked = (manifest.federation, manifest.run, manifest.round, manifest.attempt)
        if about != asked or said.site not in manifest.cohort:
            return False
        agrees = said.manifest_hash == manifest.hash.hex()
        if agrees and signing_key_of(signed.chain[0]) != manifest.verifying_keys[said.site]:
            return False
        with self._store.transaction() as db:
            if agrees:
                self._put_countersignature(db, manifest, said.site, signed)
            else:
                row = db.execute(
                    "SELECT signed FROM manifests WHERE run_id = ? AND seq = ?",
                    (manifest.run, manifest.seq),
                ).fetchone()
                held = SignedStatement.from_bytes(row["signed"])
                other = bytes.fromhex(said.manifest_hash)
                self._keep_fork(db, manifest.run, held.hash, held, signed, other)
        if not agrees:
            raise _fork(manifest.run, f"{said.site} has signed another manifest of {manifest.ref}")
        return True

    # --- inside -----------------------------------------------------------------------------------

    @staticmethod
    def _newest(db: sqlite3.Connection, run_id: str) -> SignedStatement | None:
        row = db.execute(
            "SELECT signed FROM manifests WHERE run_id = ? ORDER BY seq DESC LIMIT 1", (run_id,)
        ).fetchone()
        return SignedStatement.from_bytes(row["signed"]) if row else None

    def _add(
        self, db: sqlite3.Connection, manifest: RoundManifest, signed: SignedStatement
    ) -> None:
        db.execute(
            "INSERT INTO manifests (run_id, seq, round, attempt, hash, signed) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                manifest.run,
                manifest.seq,
                manifest.round,
                manifest.attempt,
                signed.hash,
                signed.to_bytes(),
            ),
        )
        self._log.append(
            db,
            EntryKind.MANIFEST_ACCEPTED,
            {
                "run": manifest.run,
                "round": manifest.round,
                "attempt": manifest.attempt,
                "seq": manifest.seq,
                "manifest_hash": signed.hash.hex(),
            },
        )

    @staticmethod
    def _put_countersignature(
        db: sqlite3.Connection, manifest: RoundManifest, site: str, signed: SignedStatement
    ) -> None:
        db.execute(
            "INSERT OR REPLACE INTO countersignatures (run_id, round, attempt, site, signed) "
            "VALUES (?, ?, ?, ?, ?)",
            (manifest.run, manifest.round, manifest.attempt, site, signed.to_bytes()),
        )

    def _keep_fork(
        self,
        db: sqlite3.Connection,
        run_id: str,
        held_hash: bytes,
        held: SignedStatement | None,
        other: SignedStatement,
        other_hash: bytes | None = None,
    ) -> None:
        """Evidence and log entry; ``other_hash`` if ``other`` is not the other manifest itself."""
        entry = self._log.append(
            db,
            EntryKind.FORK_SEEN,
            {
                "run": run_id,
                "manifest_hash": held_hash.hex(),
                "other_hash": (other_hash or other.hash).hex(),
            },
        )
        db.execute(
            "INSERT INTO forks (seq, run_id, answer, held, other) "
            "SELECT ?, run_id, number, ?, ? FROM plans WHERE run_id = ?",
            (entry.seq, held.to_bytes() if held else None, other.to_bytes(), run_id),
        )


def _head(last: SignedStatement | None, plan: Plan, run_id: str) -> ManifestHead:
    if last is None:
        return ManifestHead.start(plan, run_id)
    return ManifestHead.after(RoundManifest.read(last))


def _read(row: sqlite3.Row) -> RoundManifest:
    return RoundManifest.read(SignedStatement.from_bytes(row["signed"]))


def _fork(run_id: str, what: str) -> ForkError:
    return ForkError(
        f"run {run_id}: fork: {what}",
        safe="nothing is trained or sent in this run; both signed statements are kept",
        next_step=f"compare with the other sites: fedpalm-participant manifests {run_id}; then leave "
        f"the run: fedpalm-participant refuse {run_id} (approving it again afterwards lets it go on)",
    )
