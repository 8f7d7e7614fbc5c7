"""The site's process: dials the coordinator, follows its instructions, survives both their deaths.

A connection has a reader, which notes every instruction at once, and a worker, which carries them out
one at a time. Training is a task of its own, so that a lost connection does not stop it and a new one
finds it again. What is stored decides what is done: a round with a stored update is sent, never
trained again; a round without one is trained from the stored state of the round before.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from fedpalm.clock import Clock
from fedpalm.errors import (
    DeadlineError,
    EgressRefusedError,
    FedPalmError,
    HashMismatchError,
    IllegalTransitionError,
    IntegrityError,
    NotFoundError,
    NotOnRosterError,
    ProtocolError,
    RefusedError,
    ResourceError,
    RoundAbortedError,
    StaleRoundError,
    StateError,
    UnavailableError,
)
from fedpalm.exchange.site import SiteState
from fedpalm.layout import FloatVector, Layout
from fedpalm.plan import Plan
from fedpalm.transport.backoff import Backoff
from fedpalm.wire.v1 import federation_pb2 as wire

from .config import ParticipantConfig
from .egress import EgressGate
from .exchange import Desk, ExchangeAgent
from .link import ConnectionLike, Link
from .reporter import Reporter
from .store import SiteStore, StoredRun, StoredUpdate
from .trainer import Trainer

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0
DECISION_POLL_S = 0.5
STOP_GRACE_S = 5.0
MAX_BAD_TRANSFERS = 5

Connect = Callable[[], AbstractAsyncContextManager[ConnectionLike]]


class ExitAfter(StrEnum):
    """When the agent ends by itself."""

    NEVER = "never"
    RUN = "run"
    EXCHANGE = "exchange"


@dataclass(frozen=True)
class Outcome:
    """How the agent ended; ``completed`` is None if it was told to stop."""

    run_id: str = ""
    completed: bool | None = None
    reason: str = ""


class _Ended(Exception):
    """What the agent was to wait for has happened."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


@dataclass(frozen=True)
class _Ref:
    run_id: str
    round: int
    attempt: int

    @classmethod
    def of(cls, ref: wire.RoundRef) -> _Ref:
        return cls(ref.run_id, ref.round, ref.attempt)


class Agent:
    """One site's agent; :meth:`run` returns when it was told to stop or its wait is over.

    Args:
        connect: opens a fresh connection, as an async context manager.
        rng: jitter of the back-off.
    """

    def __init__(
        self,
        config: ParticipantConfig,
        store: SiteStore,
        desk: Desk,
        gate: EgressGate,
        trainer: Trainer,
        connect: Connect,
        report: Reporter,
        *,
        exit_after: ExitAfter = ExitAfter.NEVER,
        rng: random.Random | None = None,
        backoff_base_s: float = BACKOFF_BASE_S,
        decision_poll_s: float = DECISION_POLL_S,
    ) -> None:
        self._config, self._store, self._desk, self._gate = config, store, desk, gate
        self._trainer, self._connect, self._report = trainer, connect, report
        self._exchanges = ExchangeAgent(desk, gate, trainer)
        self._exit_after, self._decision_poll_s = exit_after, decision_poll_s
        self._backoff = Backoff(
            backoff_base_s, max(BACKOFF_CAP_S, backoff_base_s), rng or random.SystemRandom()
        )
        self._stop = asyncio.Event()
        self._queue: asyncio.Queue[wire.Instruction] = asyncio.Queue()
        self._target: _Ref | None = None
        self._seen_runs: set[str] = set()
        self._training: tuple[tuple[str, int], asyncio.Task[StoredUpdate]] | None = None
        self._bad_transfers = 0
        self.abandoned_training = False

    @property
    def _clock(self) -> Clock:
        return self._store.clock

    def stop(self) -> None:
        """End between two steps. Thread-unsafe: call it in the loop (a signal handler may)."""
        self._stop.set()

    async def run(self) -> Outcome:
        """Connect and work until the end; connects again, ever more patiently, when a link fails.

        Raises:
            FedPalmError: what no new try can mend (identity, roster, layout, data, damaged files).
        """
        self._desk.log.verify()
        self._store.remove_orphans()
        try:
            while not self._stop.is_set():
                try:
                    await self._connected()
                except _Ended as end:
                    return end.outcome
                except (UnavailableError, DeadlineError, ResourceError, HashMismatchError) as error:
                    await self._wait_after(error)
                except FedPalmError as error:
                    if type(error) is not FedPalmError:
                        raise
                    # An error without a code of its own: a fault at the other end, which may pass.
                    await self._wait_after(error)
            return Outcome()
        finally:
            await self._settle_training()

    # --- one connection ---------------------------------------------------------------------------

    async def _connected(self) -> None:
        self._report.working(f"connecting to {self._config.coordinator}")
        async with self._connect() as connection:
            link = Link(connection, self._gate)
            await link.hello()
            self._queue, self._target, self._seen_runs = asyncio.Queue(), None, set()
            self._report.line(f"connected to {self._config.coordinator} as {self._config.site}")
            self._report.working("waiting for instructions")
            await _first_of(
                self._read(link), self._work(link), self._watch_decisions(link), self._stop.wait()
            )

    async def _read(self, link: Link) -> None:
        async for instruction in link.instructions():
            kind = instruction.WhichOneof("kind")
            if kind in (None, "heartbeat"):
                self._backoff.reset()
                continue
            if kind == "train":
                self._target = _Ref.of(instruction.train.ref)
            elif kind in ("round_closed", "run_ended"):
                self._target = None
            self._queue.put_nowait(instruction)
        raise UnavailableError("the coordinator ended the stream of instructions")

    async def _work(self, link: Link) -> None:
        while True:
            instruction = await self._queue.get()
            try:
                await self._follow(link, instruction)
                self._bad_transfers = 0
                self._backoff.reset()
            except HashMismatchError as error:
                # A damaged transfer is brought again; damaged files stay damaged.
                self._bad_transfers += 1
                if self._bad_transfers >= MAX_BAD_TRANSFERS:
                    raise IntegrityError(
                        f"{error.what} ({self._bad_transfers} times in a row)",
                        safe=error.safe,
                        next_step=error.next_step,
                    ) from error
                raise
            except NotOnRosterError as error:
                if instruction.WhichOneof("kind") == "run_offer":
                    raise
                self._report.line(f"skipped: {error.what}")
            except (StateError, NotFoundError, RoundAbortedError) as error:
                self._report.line(f"skipped: {error.what}")
            self._report.working("waiting for instructions")

    async def _follow(self, link: Link, instruction: wire.Instruction) -> None:
        kind = instruction.WhichOneof("kind")
        if kind == "run_offer":
            await self._on_offer(link, instruction.run_offer)
        elif kind == "train":
            await self._on_train(link, instruction.train)
        elif kind == "round_closed":
            await self._on_round_closed(instruction.round_closed)
        elif kind == "run_ended":
            await self._on_run_ended(link, instruction.run_ended)
        else:
            await self._follow_exchange(link, kind, instruction)

    # --- runs and rounds --------------------------------------------------------------------------

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
        losses = ", ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if name.endswith(".loss")
        )
        self._report.line(f"round {round_number}: trained" + (f" ({losses})" if losses else ""))
        return stored

    async def _on_round_closed(self, closed: wire.RoundClosed) -> None:
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
            raise _Ended(Outcome(ended.run_id, ended.completed, ended.reason))

    async def _download(
        self, link: Link, run: StoredRun, round_number: int, model_hash: bytes
    ) -> FloatVector:
        """The global vector after a round, (P,) float32, from the cache or the coordinator."""
        layout = run.plan.model_layout
        path = self._store.model_path(model_hash)
        self._report.working(f"model {model_hash.hex()[:12]}: downloading")
        await link.download_model(run.run_id, model_hash, 4 * layout.size, path)
        self._store.add_model(run.run_id, round_number, model_hash, self._config.keep_models)
        return await asyncio.to_thread(_load_model, path, model_hash, layout)

    def _joined(self, run_id: str) -> StoredRun:
        run = self._store.run(run_id)
        if run is None or run.state != "joined":
            raise StateError(f"run {run_id[:63]} is not one that this site takes part in")
        return run

    # --- the deployment exchange ------------------------------------------------------------------

    async def _follow_exchange(
        self, link: Link, kind: str | None, instruction: wire.Instruction
    ) -> None:
        if kind not in (
            "exchange_proposed",
            "seal_experts",
            "fetch_experts",
            "exchange_closed",
        ):
            raise ProtocolError(f"unknown instruction {kind!r}")
        message = getattr(instruction, kind)
        exchange_id = message.ref.exchange_id
        try:
            if kind == "exchange_closed":
                self._on_exchange_closed(message)
                return
            run = self._store.run(message.ref.run_id)
            if run is None or run.state != "completed":
                raise StateError(
                    f"exchange {exchange_id}: run {message.ref.run_id} is not completed here"
                )
            if kind == "exchange_proposed":
                self._on_exchange_proposed(run, message)
            elif kind == "seal_experts":
                self._report.working(f"exchange {exchange_id}: sealing")
                count = await self._exchanges.seal(link, run, exchange_id)
                self._report.line(f"exchange {exchange_id}: expert sealed to {count} sites")
            else:
                self._report.working(f"exchange {exchange_id}: receiving experts")
                count = await self._exchanges.fetch(link, run, exchange_id)
                self._report.line(f"exchange {exchange_id}: {count} experts received and stored")
        except (EgressRefusedError, RefusedError, IllegalTransitionError) as error:
            # The coordinator asked for what was not agreed: say so, send nothing, go on.
            self._report.line(f"exchange {exchange_id}: refused: {error.what}")

    def _on_exchange_proposed(self, run: StoredRun, proposed: wire.ExchangeProposed) -> None:
        exchange_id = proposed.ref.exchange_id
        exchange = self._desk.propose(run, exchange_id, proposed.plan_hash)
        if exchange.state is SiteState.ASKED:
            self._report.line(
                f"exchange {exchange_id}: the operator asks for this site's expert; decide with: "
                f"fedpalm-participant exchange review | approve | refuse"
            )
        else:
            # It asks again, so it may not have the answer.
            self._desk.book.set_answered(exchange_id, False)

    def _on_exchange_closed(self, closed: wire.ExchangeClosed) -> None:
        exchange = self._desk.close(closed.ref.exchange_id, closed.completed, closed.reason)
        if exchange is not None:
            word = "completed" if closed.completed else "cancelled"
            self._report.line(
                f"exchange {closed.ref.exchange_id}: {word}"
                + (f": {closed.reason}" if closed.reason else "")
            )
        if self._exit_after is ExitAfter.EXCHANGE:
            raise _Ended(Outcome(closed.ref.run_id, closed.completed, closed.reason))

    async def _watch_decisions(self, link: Link) -> None:
        """Send what the site's person decides, in another process, as soon as it is stored."""
        while True:
            for exchange_id in self._desk.book.unanswered():
                try:
                    await self._exchanges.answer(link, exchange_id)
                except (StateError, RefusedError, NotFoundError) as error:
                    self._desk.book.set_answered(exchange_id, True)
                    self._report.line(f"exchange {exchange_id}: answer not taken: {error.what}")
                else:
                    self._report.line(f"exchange {exchange_id}: this site's answer was sent")
            await asyncio.sleep(self._decision_poll_s)

    # --- waiting and ending -----------------------------------------------------------------------

    async def _wait_after(self, error: FedPalmError) -> None:
        delay_s = self._backoff.next_delay_s()
        self._report.line(f"{error.what}; trying again in {delay_s:.1f} s")
        self._report.working("waiting to connect again")
        try:
            await asyncio.wait_for(self._stop.wait(), delay_s)
        except TimeoutError:
            return

    async def _settle_training(self) -> None:
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
        elif not task.cancelled():
            task.exception()


def _load_model(path: Path, model_hash: bytes, layout: Layout) -> FloatVector:
    data = path.read_bytes()
    if hashlib.sha256(data).digest() != model_hash:
        path.unlink()
        raise HashMismatchError(
            f"{path}: not the model that its name says", safe="the file was deleted"
        )
    vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
    layout.unflatten(vector)
    return vector


async def _first_of(*steps: Coroutine[Any, Any, Any]) -> None:
    """Run all until one returns or raises; cancel the others, wait for them, raise what it raised."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await _settle(asyncio.gather(*tasks, return_exceptions=True))
    # Errors of the work itself tell more than those of the stream beside it.
    for task in sorted(done, key=tasks.index, reverse=True):
        task.result()


async def _settle(everything: Awaitable[Any]) -> None:
    await everything
