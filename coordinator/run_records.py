"""Runs in the store: one transaction an advance, with everything that the advance says happened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from fedpalm.errors import ConfigError, NotFoundError
from fedpalm.plan import Plan
from fedpalm.rounds.events import CloseRound, PersistCohort, PublishModel, RoundRef
from fedpalm.rounds.run import RoundOpened, Run, RunEffect, RunTerms

from .store import Store


@dataclass(frozen=True)
class StoredRun:
    """A run as read back; nobody is present."""

    run_id: str
    plan: Plan
    run: Run


@dataclass(frozen=True)
class UpdateRow:
    """A receipt; see table ``updates``."""

    run_id: str
    ref: RoundRef
    site: str
    payload_hash: str
    payload_bytes: int
    received_ms: int


class RunRecords:
    """The tables runs, attempts, updates and models."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, run_id: str, plan: Plan, at_ms: int) -> StoredRun:
        """A new run whose initial model is durable already."""
        run = Run(RunTerms.of(plan), model_hash=plan.initial_model)
        with self._store.transaction("creation of a run") as db:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?)",
                (run_id, plan.to_bytes(), json.dumps(run.to_json()), at_ms),
            )
            db.execute("INSERT INTO models VALUES (?, 0, ?)", (run_id, plan.initial_model))
        return StoredRun(run_id, plan, run)

    def load(self) -> list[StoredRun]:
        """All runs, oldest first. Raises ConfigError for a plan that this version cannot read."""
        loaded = []
        for run_id, plan_bytes, state in self._store.query(
            "SELECT run_id, plan, state FROM runs ORDER BY created_ms, run_id"
        ):
            plan = _stored_plan(run_id, plan_bytes)
            run = Run.from_json(json.loads(state), RunTerms.of(plan))
            loaded.append(StoredRun(run_id, plan, run))
        return loaded

    def save(
        self,
        run_id: str,
        run: Run,
        effects: Iterable[RunEffect],
        at_ms: int,
        update: UpdateRow | None = None,
    ) -> None:
        """Store an advance: the state, the facts in its effects, and the update that led to it."""
        with self._store.transaction("advance of a run") as db:
            db.execute(
                "UPDATE runs SET state = ? WHERE run_id = ?",
                (json.dumps(run.to_json()), run_id),
            )
            if update is not None:
                db.execute(
                    "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        run_id, update.ref.round, update.ref.attempt, update.site,
                        update.payload_hash, update.payload_bytes, update.received_ms,
                    ),
                )  # fmt: skip
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

    def update(self, run_id: str, ref: RoundRef, site: str) -> UpdateRow | None:
        """The receipt of a site's accepted update, if there is one."""
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
        """All receipts of an attempt, by site."""
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


def _stored_plan(run_id: str, plan_bytes: bytes) -> Plan:
    try:
        return Plan.from_bytes(plan_bytes)
    except ConfigError as error:
        raise ConfigError(
            f"run {run_id}: this version cannot read its plan: {error.what}",
            safe="the store is unchanged",
            next_step="run the version of fedpalm that made it, or move this home away",
        ) from error
