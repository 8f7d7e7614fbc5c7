"""The event loop's side of conducting: timers, threads, queues and status watchers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec

from fedpalm.clock import Clock
from fedpalm.errors import FedPalmError, HashMismatchError, NotFoundError, ResourceError
from fedpalm.methods.rules import server_rule
from fedpalm.rounds.events import Aggregate, RoundRef, TimerKind
from fedpalm.rounds.run import Pause, RunState
from fedpalm.wire.v1 import federation_pb2 as pb

from .aggregate import aggregate, change
from .conductor import Conductor
from .notary import Notary
from .run_records import RunRecords
from .sessions import Sessions
from .spool import Spool

log = logging.getLogger(__name__)
P = ParamSpec("P")

NEWEST_KEPT = 2
LOOK_S = 0.5
RETRY_S = 5.0
"""A timer or result that could not be stored (a full disk) is given again after so long."""


class Driver:
    """Implements :class:`coordinator.outside.Outside` on asyncio; owns the conductor.

    Args:
        keep_models: ``all``, or ``latest`` for the initial model and the newest two of each run.
    """

    def __init__(
        self, records: RunRecords, spool: Spool, clock: Clock, notary: Notary, keep_models: str
    ) -> None:
        self._records, self._spool, self._clock = records, spool, clock
        self._keep_models = keep_models
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_look: asyncio.TimerHandle | None = None
        self._watchers: dict[str, asyncio.Event] = {}
        self.sessions = Sessions()
        self.conductor = Conductor(records, self, clock, notary)

    def start(self) -> None:
        """Delete what no row speaks of and go on with unfinished runs; a damaged model pauses its run."""
        conductor = self.conductor
        for run_id in conductor.run_ids():
            run = conductor.run(run_id)
            if run.state is RunState.RUNNING:
                try:
                    self._spool.check_model(run.model_hash)
                except (HashMismatchError, NotFoundError) as error:
                    conductor.feed(run_id, Pause(error.what))
        self._spool.keep_models_only(
            model_hash
            for run_id in conductor.run_ids()
            for model_hash in self._records.models(run_id).values()
        )
        current = ((run_id, conductor.run(run_id).current) for run_id in conductor.run_ids())
        self._spool.keep_updates_only(
            (run_id, one.ref) for run_id, one in current if one is not None and not one.over
        )
        conductor.restart()

    async def stop(self) -> None:
        """End streams and timers; a sum that is being formed is formed again after the next start."""
        self.sessions.end_all()
        for timer in self._timers.values():
            timer.cancel()
        if self._next_look is not None:
            self._next_look.cancel()
        for event in self._watchers.values():
            event.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def keep_looking(self, look: Callable[[], None]) -> None:
        """Call ``look`` now and every LOOK_S until the end; what it could not store, it tries again."""
        pause_s = LOOK_S
        try:
            look()
        except ResourceError as error:
            log.error("%s; trying again in %g s", error.what, RETRY_S)
            pause_s = RETRY_S
        finally:
            loop = asyncio.get_running_loop()
            self._next_look = loop.call_later(pause_s, self.keep_looking, look)

    async def status_changes(self, run_id: str, every_s: float) -> AsyncGenerator[None, None]:
        """One item now, one after every change of the run or its exchange, one every ``every_s``."""
        while not self.sessions.closing:
            event = self._watchers.setdefault(run_id, asyncio.Event())
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await event.wait()

    # --- Outside ----------------------------------------------------------------------------------

    def instruct(self, site: str, instruction: pb.Instruction) -> None:
        self.sessions.tell(site, instruction)

    def set_timer(self, run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None:
        if run_id in self._timers:
            self._timers[run_id].cancel()
        self._arm(run_id, ref, kind, at_ms)

    def aggregate(self, run_id: str, effect: Aggregate) -> None:
        self._keep(self._aggregate(run_id, effect))

    def try_again(self, action: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(RETRY_S, self._until_stored, action)

    def require_room(self, needed_bytes: int, what: str) -> None:
        self._spool.require_room(needed_bytes, what)

    def round_closed(self, run_id: str, ref: RoundRef) -> None:
        self._in_background(self._spool.discard, run_id, ref)
        if self._keep_models == "latest":
            self._forget_old_models(run_id)

    def changed(self, run_id: str) -> None:
        event = self._watchers.pop(run_id, None)
        if event is not None:
            event.set()

    # --- inside -----------------------------------------------------------------------------------

    def _arm(self, run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None:
        delay_s = at_ms / 1000 - self._clock.now()
        self._timers[run_id] = asyncio.get_running_loop().call_later(
            max(0.0, delay_s), self._rang, run_id, ref, kind, at_ms
        )

    def _rang(self, run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None:
        if self._clock.now() * 1000 < at_ms:
            # The loop's clock is monotonic, ours can be set: the deadline is in ours.
            self._arm(run_id, ref, kind, at_ms)
        else:
            self._until_stored(partial(self.conductor.timer_rang, run_id, ref, kind))

    async def _aggregate(self, run_id: str, effect: Aggregate) -> None:
        try:
            model_hash = await self._new_model(run_id, effect)
        except FedPalmError as error:
            log.error("%s: %s: %s", run_id, effect.ref, error.what)
            self._until_stored(partial(self.conductor.aggregation_failed, run_id, effect, error))
        except Exception as error:
            log.exception("%s: %s: the sum failed", run_id, effect.ref)
            failure = FedPalmError(f"the sum failed: {error!r}")
            self._until_stored(partial(self.conductor.aggregation_failed, run_id, effect, failure))
        else:
            self._until_stored(partial(self.conductor.aggregated, run_id, effect, model_hash))

    async def _new_model(self, run_id: str, effect: Aggregate) -> str:
        ref, plan, spool = effect.ref, self.conductor.plan(run_id), self._spool
        codec, model = self.conductor.codec(run_id), spool.model(effect.model_hash)
        if effect.lost:
            manifest = self.conductor.manifest_hash(run_id)
            spent = self._records.masking.spent_models()
            return await asyncio.to_thread(change, codec, model, manifest, spool.model, spent)
        masked = self.conductor.masking.collection(run_id, ref)
        receipts = self._records.updates(run_id, ref)
        updates = {
            site: spool.update(run_id, ref, site, receipts[site].payload_hash)
            for site in effect.survivors
        }
        corrections = await asyncio.to_thread(masked.corrections) if masked else ((), ())
        rule = server_rule(plan.draft.method)
        return await asyncio.to_thread(
            aggregate, codec, rule, model, updates, spool.model, corrections
        )

    def _until_stored(self, action: Callable[[], None]) -> None:
        if self.sessions.closing:
            return
        try:
            action()
        except ResourceError as error:
            log.error("%s; trying again in %g s", error.what, RETRY_S)
            self.try_again(action)

    def _forget_old_models(self, run_id: str) -> None:
        """Keep the initial model and the newest two; other runs keep what they share with this one."""
        models = self._records.models(run_id)
        old = {models[number] for number in sorted(models)[1:-NEWEST_KEPT]}
        kept = set(list(models.values())[-NEWEST_KEPT:]) | {models[0]}
        for other in self.conductor.run_ids():
            if other != run_id:
                kept |= set(self._records.models(other).values())
        self._in_background(self._spool.drop_models, old - kept)

    def _in_background(self, function: Callable[P, None], *args: P.args, **kw: P.kwargs) -> None:
        self._keep(asyncio.to_thread(function, *args, **kw))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("work in the background failed: %s", error, exc_info=error)
