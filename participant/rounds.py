"""A site's part in runs: join, train what is not stored, send what is, keep the final model.

What is stored decides what is done: a round with a stored update is sent, never trained again; a round
without one is trained from the stored state of the round before. Training is a task of its own, so that
a lost connection does not stop it and a new one finds it again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass

from fedpalm.errors import (
    FedPalmError,
    HashMismatchError,
    NotOnRosterError,
    ProtocolError,
    RefusedError,
    StaleRoundError,
    StateError,
)
from fedpalm.layout import FloatVector
from fedpalm.plan import Plan
from fedpalm.wire.v1 import federation_pb2 as wire

from .config import ParticipantConfig
from .egress import EgressGate
from .ending import Ended, ExitAfter, Outcome
from .link import Link
from .reporter import Reporter
from .store import SiteStore, StoredRun, StoredUpdate
from .trainer import Trainer

STOP_GRACE_S = 5.0


@dataclass(frozen=True)
class _Ref:
    run_id: str
    round: int
    attempt: int

    @classmethod
    def of(cls, ref: wire.RoundRef) -> _Ref:
        return cls(ref.run_id, ref.round, ref.attempt)


class RunWorker:
    """Follows the instructions that are about runs and rounds."""

    def __init__(
        self,
        config: ParticipantConfig,
        store: SiteStore,
        gate: EgressGate,
        trainer: Trainer,
        report: Reporter,
        exit_after: ExitAfter,
    ) -> None:
        self._config, self._store, self._gate = config, store, gate
        self._trainer, self._report, self._exit_after = trainer, report, exit_after
        self._target: _Ref | None = None
        self._seen_runs: set[str] = set()
        self._training: tuple[tuple[str, int], asyncio.Task[StoredUpdate]] | None = None
        self.abandoned_training = False

    def reconnected(self) -> None:
        """The coordinator will say again what it wants."""
        self._target, self._seen_runs = None, set()

    def note(self, instruction: wire.Instruction) -> None:
        """Take note of an instruction as it arrives, while an earlier one is still followed."""
        kind = instruction.WhichOneof("kind")
        if kind == "train":
            self._target = _Ref.of(instruction.train.ref)
        elif kind in ("round_closed", "run_ended"):
            self._target = None

    async def follow(self, link: Link, instruction: wire.Instruction) -> bool:
        """Carry out an instruction; False if it is about something else.

        Raises:
            StateError, NotFoundError: it does not fit (any more), and may be skipped.
            Ended: what the agent was to wait for has happened.
        """
        match instruction.WhichOneof("kind"):
            case "run_offer":
                await self._on_offer(link, instruction.run_offer)
            case "train":
                await self._on_train(link, instruction.train)
            case "round_closed":
                self._on_round_closed(instruction.round_closed)
            case "run_ended":
                await self._on_run_ended(link, instruction.run_ended)
            case _:
                return False
        return True

    async def _on_offer(self, link: Link, offer: wire.RunOffer) -> None:
        run = self._store.run(offer.run_id)
        if run is None:
            active = self._store.active_run()
            if active is not None and active.run_id in self._seen_runs:
                raise StateError(
                    f"run {offer.run_id} is offered while {active.run_id} goes on; one at a time"
                )
            self._report.working(f"run {offer.run_id}: reading the plan")
            plan = await link.fetch_plan(offer.run_id, offer.plan_hash)
            self._check_plan(plan)
            self._report.working(f"run {offer.run_id}: loading images and model")
            await asyncio.to_thread(self._trainer.prepare, offer.run_id, plan)
            if active is not None:
                self._store.end_run(active.run_id, "left", None, f"{offer.run_id} was offered")
            self._store.add_run(offer.run_id, plan)
            self._report.line(
                f"run {offer.run_id}: {plan.draft.method}, {plan.draft.rounds} rounds, "
                f"{len(plan.roster)} sites"
            )
        elif run.plan.hash != offer.plan_hash:
            raise HashMismatchError(f"run {offer.run_id} is offered with another plan than before")
        elif run.state != "joined":
            raise StateError(f"run {offer.run_id} is over at this site: {run.state}")
        else:
            await asyncio.to_thread(self._trainer.prepare, run.run_id, run.plan)
        self._seen_runs.add(offer.run_id)
        await link.join_run(offer.run_id)
        self._report.line(f"run {offer.run_id}: joined")

    def _check_plan(self, plan: Plan) -> None:
        if plan.federation != self._config.federation:
            raise RefusedError(
                f"the plan is of federation {plan.federation!r}", safe="this site has not joined"
            )
        if self._config.site not in plan.roster:
            raise NotOnRosterError(
                f"{self._config.site} is not on the roster of this run",
                safe="this site has not joined",
            )

    async def _on_train(self, link: Link, order: wire.TrainRound) -> None:
        ref = _Ref.of(order.ref)
        run = self._joined(ref.run_id)
        self._seen_runs.add(ref.run_id)
        if not 1 <= ref.round <= run.plan.draft.rounds:
            raise ProtocolError(f"run {ref.run_id} has no round {ref.round}")
        if ref.round == 1 and order.model_hash.hex() != run.plan.initial_model:
            raise RefusedError(
                f"run {ref.run_id}: round 1 is to start from another model than the plan's",
                safe="nothing was trained or sent",
            )
        if ref != self._target:
            return
        update = self._store.update(ref.run_id, ref.round)
        if update is None:
            update = await self._trained(link, run, ref, order.model_hash)
        if update.model_hash != order.model_hash:
            raise StaleRoundError(
                f"round {ref.round} was trained from another global model; it is not trained twice",
                safe="the stored update was not sent",
            )
        if ref != self._target:
            self._report.line(f"round {ref.round}: over before this site's update was sent")
            return
        payload = await asyncio.to_thread(
            self._gate.release_update, ref.run_id, ref.round, ref.attempt
        )
        self._report.working(f"round {ref.round}: sending {payload.size} bytes")
        await link.upload_update(payload)
        self._report.line(f"round {ref.round}: update delivered, {payload.size} bytes")

    async def _trained(
        self, link: Link, run: StoredRun, ref: _Ref, model_hash: bytes
    ) -> StoredUpdate:
        key = (ref.run_id, ref.round)
        if self._training is None or self._training[0] != key:
            if self._training is not None:
                await asyncio.wait([self._training[1]])
                self._training = None
            if self._store.state_round(ref.run_id) >= ref.round:
                raise StaleRoundError(f"round {ref.round} is past at this site")
            shared = await self._download(link, run, ref.round - 1, model_hash)
            self._report.line(f"round {ref.round}: training")
            task = asyncio.create_task(self._train(run, ref.round, model_hash, shared))
            self._training = (key, task)
        self._report.working(f"round {ref.round} of {run.plan.draft.rounds}: training")
        task = self._training[1]
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._training = None

    async def _train(
        self, run: StoredRun, round_number: int, model_hash: bytes, shared: FloatVector
    ) -> StoredUpdate:
        """Train, then store state, encoded update and its log entry in one transaction."""

        def work() -> tuple[StoredUpdate, dict[str, float]]:
            update, state = self._trainer.train(run.run_id, run.plan, round_number, shared)
            encoded = self._gate.encode_update(
                run.run_id,
                round_number,
                model_hash,
                self._trainer.prepare(run.run_id, run.plan).layout,
                update,
                shared=shared,
                private=state,
            )

            def within(db: sqlite3.Connection, stored: StoredUpdate) -> None:
                target = self._target
                if target is not None and (target.run_id, target.round) == (
                    run.run_id,
                    round_number,
                ):
                    self._gate.log_update(db, stored, target.attempt)

            stored = self._store.commit_round(run.run_id, round_number, state, encoded, within)
            self._trainer.committed(round_number)
            return stored, dict(update.metrics)

        stored, metrics = await asyncio.to_thread(work)
        figures = ", ".join(f"{_short(name)} {value:.4g}" for name, value in metrics.items())
        self._report.line(f"round {round_number}: trained" + (f" ({figures})" if figures else ""))
        return stored

    def _on_round_closed(self, closed: wire.RoundClosed) -> None:
        if closed.committed:
            self._report.line(
                f"round {closed.ref.round}: committed, model {closed.model_hash.hex()[:12]}"
            )
        else:
            self._report.line(
                f"round {closed.ref.round}: attempt {closed.ref.attempt} aborted: {closed.reason}"
            )

    async def _on_run_ended(self, link: Link, ended: wire.RunEnded) -> None:
        run = self._store.run(ended.run_id)
        state = "completed" if ended.completed else "aborted"
        if run is None:
            self._report.line(f"run {ended.run_id}: {state}, without this site")
            self._end_after_run(ended)
            return
        if run.state not in ("joined", "left"):
            # Told again after a reconnection; whoever waits, waits for a run that still goes on.
            return
        if ended.completed:
            await self._download(link, run, run.plan.draft.rounds, ended.model_hash)
        self._store.end_run(ended.run_id, state, ended.model_hash or None, ended.reason)
        self._report.line(
            f"run {ended.run_id}: {state}"
            + (f", model {ended.model_hash.hex()[:12]}" if ended.completed else "")
            + (f": {ended.reason}" if ended.reason else "")
        )
        if ended.completed and run.plan.expert_layout and self._exit_after is ExitAfter.EXCHANGE:
            return
        self._end_after_run(ended)

    def _end_after_run(self, ended: wire.RunEnded) -> None:
        if self._exit_after is not ExitAfter.NEVER:
            raise Ended(Outcome(ended.run_id, ended.completed, ended.reason))

    async def _download(
        self, link: Link, run: StoredRun, round_number: int, model_hash: bytes
    ) -> FloatVector:
        """The global vector after a round, (P,) float32, from the cache or the coordinator."""
        layout = run.plan.model_layout
        path = self._store.model_path(model_hash)
        self._report.working(f"model {model_hash.hex()[:12]}: downloading")
        await link.download_model(run.run_id, model_hash, 4 * layout.size, path)
        self._store.add_model(run.run_id, round_number, model_hash, self._config.keep_models)
        try:
            return await asyncio.to_thread(self._store.load_model, model_hash, layout)
        except HashMismatchError:
            path.unlink()  # so that it is downloaded again
            raise

    def _joined(self, run_id: str) -> StoredRun:
        run = self._store.run(run_id)
        if run is None or run.state != "joined":
            raise StateError(f"run {run_id[:63]} is not one that this site takes part in")
        return run

    async def settle_training(self) -> None:
        """Let a training that still goes on finish, for a moment; its round is trained again else."""
        if self._training is None:
            return
        task = self._training[1]
        if not task.done():
            self._report.line("stopping: waiting for the round in training")
        done, _ = await asyncio.wait([task], timeout=STOP_GRACE_S)
        if not done:
            self.abandoned_training = True
            self._report.line("stopped in training: the round starts again from the stored state")
        elif not task.cancelled() and (error := task.exception()) is not None:
            what = error.what if isinstance(error, FedPalmError) else repr(error)
            self._report.line(f"stopped in training, which had failed: {what}")


def _short(metric: str) -> str:
    """``routing.open.east`` as ``open<east``, ``teim.open.alpha`` as ``open.alpha``."""
    match metric.split(".", 2):
        case ["routing", model, expert]:
            return f"{model}<{expert}"
        case ["teim", model, name]:
            return f"{model}.{name}"
        case _:
            return metric
