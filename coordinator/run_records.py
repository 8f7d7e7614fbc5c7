"""Runs in the store: one transaction an advance, with everything that the advance says happened.

What the coordinator signed and what sites signed is stored in the transaction that makes it count, and
told to anybody only after that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedpalm.errors import ConfigError, NotFoundError
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import Aggregate, CloseRound, PersistCohort, PublishModel, RoundRef
from fedpalm.rounds.run import RoundOpened, Run, RunEffect, RunTerms

from .checkpoint_records import CheckpointRecords
from .facts import Fact, UpdateRow
from .masking_records import MaskingRecords, forget
from .store import Store

PAGE_ROWS = 100
"""Rows of a long table that are in memory at a time."""


@dataclass(frozen=True)
class StoredRun:
    """A run as read back; nobody is present. ``manifest`` is its newest one."""

    run_id: str
    plan: Plan
    run: Run
    offer: SignedStatement
    answers: dict[str, SignedStatement]
    manifest: SignedStatement | None


class RunRecords:
    """The tables of runs: their state, history, updates, models, and the statements about them.

    ``masking`` has what was said in their masked attempts, ``checkpoints`` those of sites' logs.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.masking = MaskingRecords(store)
        self.checkpoints = CheckpointRecords(store)

    def create(self, run_id: str, plan: Plan, offer: SignedStatement, at_ms: int) -> StoredRun:
        """A new run whose initial model is durable already."""
        run = Run(RunTerms.of(plan), model_hash=plan.initial_model)
        with self._store.transaction("creation of a run") as db:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?)",
                (run_id, plan.to_bytes(), json.dumps(run.to_json()), at_ms),
            )
            db.execute("INSERT INTO models VALUES (?, 0, ?)", (run_id, plan.initial_model))
            db.execute("INSERT INTO plan_offers VALUES (?, ?)", (run_id, offer.to_bytes()))
        return StoredRun(run_id, plan, run, offer, {}, None)

    def load(self) -> list[StoredRun]:
        """All runs, oldest first. Raises ConfigError for a plan that this version cannot read."""
        loaded = []
        for run_id, plan_bytes, state, offer in self._store.query(
            "SELECT run_id, plan, state, signed FROM runs JOIN plan_offers USING (run_id) "
            "ORDER BY created_ms, run_id"
        ):
            plan = _stored_plan(run_id, plan_bytes)
            run = Run.from_json(json.loads(state), RunTerms.of(plan))
            loaded.append(
                StoredRun(
                    run_id,
                    plan,
                    run,
                    SignedStatement.from_bytes(offer),
                    self._answers(run_id),
                    self._newest_manifest(run_id),
                )
            )
        return loaded

    def save(
        self,
        run_id: str,
        run: Run,
        effects: Iterable[RunEffect],
        at_ms: int,
        facts: Iterable[Fact] = (),
    ) -> None:
        """Store an advance: the state, what is in its effects, and the facts that go with it."""
        with self._store.transaction("advance of a run") as db:
            db.execute(
                "UPDATE runs SET state = ? WHERE run_id = ?",
                (json.dumps(run.to_json()), run_id),
            )
            for fact in facts:
                fact.write(db)
            for effect in effects:
                if isinstance(effect, RoundOpened):
                    db.execute(
                        "INSERT INTO attempts (run_id, round, attempt, opened_ms) "
                        "VALUES (?, ?, ?, ?)",
                        (run_id, effect.ref.round, effect.ref.attempt, at_ms),
                    )
                elif isinstance(effect, PersistCohort):
                    db.execute(
                        "UPDATE attempts SET cohort = ? WHERE (run_id, round, attempt) = (?, ?, ?)",
                        (
                            json.dumps(effect.cohort),
                            run_id, effect.ref.round, effect.ref.attempt,
                        ),
                    )  # fmt: skip
                elif isinstance(effect, Aggregate):
                    db.execute(
                        "UPDATE attempts SET survivors = ? "
                        "WHERE (run_id, round, attempt) = (?, ?, ?)",
                        (
                            json.dumps(effect.survivors),
                            run_id, effect.ref.round, effect.ref.attempt,
                        ),
                    )  # fmt: skip
                elif isinstance(effect, PublishModel):
                    db.execute(
                        "INSERT INTO models VALUES (?, ?, ?)",
                        (run_id, effect.ref.round, effect.model_hash),
                    )
                elif isinstance(effect, CloseRound):
                    db.execute(
                        "UPDATE attempts SET closed_ms = ?, model_hash = ?, reason = ? "
                        "WHERE (run_id, round, attempt) = (?, ?, ?)",
                        (
                            at_ms, effect.model_hash if effect.committed else "", effect.reason,
                            run_id, effect.ref.round, effect.ref.attempt,
                        ),
                    )  # fmt: skip
                    forget(db, run_id, effect.ref)

    def write(self, fact: Fact) -> None:
        """Store one fact that moves no run."""
        with self._store.transaction("a site's statement") as db:
            fact.write(db)

    def update(self, run_id: str, ref: RoundRef, site: str) -> UpdateRow | None:
        """A site's accepted update, if there is one."""
        rows = self._store.query(
            "SELECT payload_hash, payload_bytes, received_ms FROM updates "
            "WHERE (run_id, round, attempt, site) = (?, ?, ?, ?)",
            run_id, ref.round, ref.attempt, site,
        )  # fmt: skip
        if not rows:
            return None
        payload_hash, payload_bytes, received_ms = rows[0]
        return UpdateRow(run_id, ref, site, payload_hash, payload_bytes, received_ms)

    def updates(self, run_id: str, ref: RoundRef) -> dict[str, UpdateRow]:
        """All accepted updates of an attempt, by site."""
        rows = self._store.query(
            "SELECT site FROM updates WHERE (run_id, round, attempt) = (?, ?, ?)",
            run_id, ref.round, ref.attempt,
        )  # fmt: skip
        found = {site: self.update(run_id, ref, site) for (site,) in rows}
        return {site: row for site, row in found.items() if row is not None}

    def models(self, run_id: str) -> dict[int, str]:
        """Hash of every global model of a run by its round, the initial one as round 0."""
        rows = self._store.query(
            "SELECT round, model_hash FROM models WHERE run_id = ? ORDER BY round", run_id
        )
        return dict(rows)

    def model(self, run_id: str, round_number: int) -> str:
        """Hash of one round's model. Raises NotFoundError naming the rounds there are."""
        models = self.models(run_id)
        if round_number not in models:
            raise NotFoundError(
                f"run {run_id} has no committed round {round_number}",
                next_step=f"choose one of 0 to {max(models, default=0)}",
            )
        return models[round_number]

    # --- statements -------------------------------------------------------------------------------

    def receipt(self, run_id: str, site: str, place: str) -> SignedStatement | None:
        """The receipt that was given for a payload, if one was."""
        rows = self._store.query(
            "SELECT signed FROM receipts WHERE (run_id, site, place) = (?, ?, ?)",
            run_id,
            site,
            place,
        )
        return SignedStatement.from_bytes(rows[0][0]) if rows else None

    def receipts(self, run_id: str, site: str) -> Iterator[SignedStatement]:
        """Every receipt that a site was given in a run, by place, read a page at a time."""
        last = ""
        while rows := self._store.query(
            "SELECT place, signed FROM receipts WHERE run_id = ? AND site = ? AND place > ? "
            "ORDER BY place LIMIT ?",
            run_id, site, last, PAGE_ROWS,
        ):  # fmt: skip
            for place, signed in rows:
                last = place
                yield SignedStatement.from_bytes(signed)

    def manifest(self, run_id: str, ref: RoundRef) -> SignedStatement | None:
        """The manifest of an attempt, if its cohort was sealed."""
        rows = self._store.query(
            "SELECT signed FROM manifests WHERE (run_id, round, attempt) = (?, ?, ?)",
            run_id, ref.round, ref.attempt,
        )  # fmt: skip
        return SignedStatement.from_bytes(rows[0][0]) if rows else None

    def manifests(self, run_id: str, from_seq: int) -> Iterator[SignedStatement]:
        """A run's chain from a position on, read a page at a time."""
        while rows := self._store.query(
            "SELECT signed FROM manifests WHERE run_id = ? AND seq >= ? ORDER BY seq LIMIT ?",
            run_id, from_seq, PAGE_ROWS,
        ):  # fmt: skip
            from_seq += len(rows)
            for (signed,) in rows:
                yield SignedStatement.from_bytes(signed)

    def countersignatures(self, run_id: str, ref: RoundRef) -> list[SignedStatement]:
        """Those over the manifest of an attempt, by site."""
        rows = self._store.query(
            "SELECT signed FROM countersignatures WHERE (run_id, round, attempt) = (?, ?, ?) "
            "ORDER BY site",
            run_id, ref.round, ref.attempt,
        )  # fmt: skip
        return [SignedStatement.from_bytes(signed) for (signed,) in rows]

    def _answers(self, run_id: str) -> dict[str, SignedStatement]:
        rows = self._store.query("SELECT site, signed FROM plan_answers WHERE run_id = ?", run_id)
        return {site: SignedStatement.from_bytes(signed) for site, signed in rows}

    def _newest_manifest(self, run_id: str) -> SignedStatement | None:
        rows = self._store.query(
            "SELECT signed FROM manifests WHERE run_id = ? ORDER BY seq DESC LIMIT 1", run_id
        )
        return SignedStatement.from_bytes(rows[0][0]) if rows else None


def _stored_plan(run_id: str, plan_bytes: bytes) -> Plan:
    try:
        return Plan.from_bytes(plan_bytes)
    except ConfigError as error:
        raise ConfigError(
            f"run {run_id}: this version cannot read its plan: {error.what}",
            safe="the store is unchanged",
            next_step="run the version of fedpalm that made it, or move this home away",
        ) from error
