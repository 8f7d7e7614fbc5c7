"""The site's process: dials the coordinator, follows its instructions, survives both their deaths.

A connection has a reader, which notes every instruction at once, a worker, which carries out those of
rounds and exchanges one at a time, one more for plans, which can be answered while a round is trained, a
watch on what the site's person decides meanwhile, and one on the site's own certificates.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from fedpalm.errors import (
    DeadlineError,
    FedPalmError,
    ForkError,
    HashMismatchError,
    IntegrityError,
    NotFoundError,
    NotOnRosterError,
    PlanNotApprovedError,
    PolicyError,
    ProtocolError,
    RefusedError,
    ResourceError,
    RevokedError,
    RoundAbortedError,
    StateError,
    UnavailableError,
)
from fedpalm.transport.backoff import Backoff
from fedpalm.wire.v1 import federation_pb2 as wire

from .config import ParticipantConfig
from .desk import Desk
from .egress import EgressGate
from .ending import Ended, ExitAfter, Outcome
from .exchange import ExchangeAgent
from .link import ConnectionLike, Link
from .offers import OfferWorker
from .reporter import Reporter
from .rounds import RunWorker
from .store import SiteStore
from .trainer import Trainer

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0
DECISION_POLL_S = 0.5
MAX_BAD_TRANSFERS = 5
MAX_WAITING = 256
"""Instructions that came while an earlier one was followed."""

Connect = Callable[[], AbstractAsyncContextManager[ConnectionLike]]


class Keeper(Protocol):
    """What the agent uses of :class:`participant.renewal.Renewal`."""

    async def keep(self, link: Link) -> None:
        """Return when the certificates that the connection was made with are not the newest any more."""


class Agent:
    """One site's agent; :meth:`run` returns when it was told to stop or its wait is over.

    Args:
        connect: opens a fresh connection as an async context manager, under the identity of that moment.
        renewal: keeps the identity; when it has a new one, the agent connects anew.
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
        renewal: Keeper,
        *,
        exit_after: ExitAfter = ExitAfter.NEVER,
        rng: random.Random | None = None,
        backoff_base_s: float = BACKOFF_BASE_S,
        decision_poll_s: float = DECISION_POLL_S,
    ) -> None:
        self._config, self._store, self._desk = config, store, desk
        self._connect, self._report, self._gate, self._renewal = connect, report, gate, renewal
        self._runs = RunWorker(config, store, gate, trainer, report, exit_after)
        self._exchanges = ExchangeAgent(desk, gate, trainer, report, exit_after)
        self._offers = OfferWorker(store, desk.plans, trainer, report, poll_s=decision_poll_s)
        self._decision_poll_s = decision_poll_s
        self._backoff = Backoff(
            backoff_base_s, max(BACKOFF_CAP_S, backoff_base_s), rng or random.SystemRandom()
        )
        self._stop = asyncio.Event()
        self._queue: asyncio.Queue[wire.Instruction] = asyncio.Queue(MAX_WAITING)
        self._bad_transfers = 0

    @property
    def abandoned_training(self) -> bool:
        """A training thread still runs that nobody waits for."""
        return self._runs.abandoned_training

    def stop(self) -> None:
        """End between two steps. Thread-unsafe: call it in the loop (a signal handler may)."""
        self._stop.set()

    async def run(self) -> Outcome:
        """Connect and work until the end; connects again, ever more patiently, when a link fails.

        Raises:
            RevokedError: the operator has revoked this site.
            FedPalmError: what else no new try can mend (identity, roster, layout, data, damaged files).
        """
        self._desk.log.verify()
        self._store.remove_orphans()
        self._runs.start()
        try:
            while not self._stop.is_set():
                try:
                    await self._connected()
                except Ended as end:
                    return end.outcome
                except (
                    *(UnavailableError, DeadlineError, ResourceError, HashMismatchError),
                    PolicyError,
                ) as error:
                    await self._wait_after(error)
                except FedPalmError as error:
                    if type(error) not in (FedPalmError, ProtocolError):
                        raise
                    # A malformed message, or an error without a code of its own: a fault at the other
                    # end, which may pass.
                    await self._wait_after(error)
            return Outcome()
        finally:
            await self._runs.settle_training()

    # --- one connection ---------------------------------------------------------------------------

    async def _connected(self) -> None:
        self._report.working(f"connecting to {self._config.coordinator}")
        async with self._connect() as connection:
            link = Link(connection, self._gate)
            await link.hello()
            self._queue = asyncio.Queue(MAX_WAITING)
            self._runs.reconnected()
            self._offers.reconnected()
            self._report.line(f"connected to {self._config.coordinator} as {self._config.site}")
            self._report.working("waiting for instructions")
            await _first_of(
                self._read(link),
                self._keep_identity(link),
                self._work(link),
                self._offers.work(link),
                self._watch_decisions(link),
                self._watch_policy(),
                self._runs.watch_amendment(self._decision_poll_s),
                self._stop.wait(),
            )

    async def _read(self, link: Link) -> None:
        async for instruction in link.instructions():
            kind = instruction.WhichOneof("kind")
            if kind in (None, "heartbeat"):
                self._backoff.reset()
                continue
            self._runs.note(instruction)
            self._offers.note(instruction)
            if kind == "run_offer":
                continue
            try:
                self._queue.put_nowait(instruction)
            except asyncio.QueueFull:
                raise ProtocolError(
                    f"more than {MAX_WAITING} instructions came while an earlier one was followed",
                    safe="they were dropped; what is stored is as it was",
                ) from None
        raise UnavailableError("the coordinator ended the stream of instructions")

    async def _keep_identity(self, link: Link) -> None:
        """Ends, and with it the connection, when there is a newer identity to connect with."""
        await self._renewal.keep(link)
        self._report.line("this site's certificates have changed: connecting with the new ones")
        self._backoff.reset()

    async def _work(self, link: Link) -> None:
        while True:
            instruction = await self._queue.get()
            try:
                if not await self._runs.follow(link, instruction):
                    await self._exchanges.follow(link, instruction)
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
            except (PlanNotApprovedError, PolicyError, ForkError) as error:
                # The site's own no: this instruction ends here, the site goes on.
                self._report.line(
                    f"refused: {error.what}. Safe: {error.safe}. Next: {error.next_step}"
                )
            except (NotOnRosterError, StateError, NotFoundError, RoundAbortedError) as error:
                self._report.line(f"skipped: {error.what}")
            self._report.working("waiting for instructions")

    # --- decisions, waiting ---------------------------------------------------------------------

    async def _watch_decisions(self, link: Link) -> None:
        """Send what the site's person decides, in another process, as soon as it is stored."""
        while True:
            for exchange_id in self._desk.book.unanswered():
                try:
                    await self._exchanges.answer(link, exchange_id)
                except RevokedError:
                    raise
                except PolicyError:
                    break  # told by the watch on the policy; the answer stays to be sent
                except (StateError, RefusedError, NotFoundError) as error:
                    self._desk.book.set_answered(exchange_id, True)
                    self._report.line(f"exchange {exchange_id}: answer not taken: {error.what}")
                else:
                    self._report.line(f"exchange {exchange_id}: this site's answer was sent")
            await asyncio.sleep(self._decision_poll_s)

    async def _watch_policy(self) -> None:
        """Ends, and with it the connection, when a policy that could not be used can be used again.

        What it held up is said again on the next connection.
        """
        unusable = False
        while True:
            try:
                self._desk.policy.current  # noqa: B018
            except PolicyError as error:
                if not unusable:
                    self._report.line(f"{error.what}. Safe: {error.safe}. Next: {error.next_step}")
                unusable = True
            else:
                if unusable:
                    self._report.line("this site's policy can be used again: connecting anew")
                    self._backoff.reset()
                    return
            await asyncio.sleep(self._decision_poll_s)

    async def _wait_after(self, error: FedPalmError) -> None:
        delay_s = self._backoff.next_delay_s()
        self._report.line(f"{error.what}; trying again in {delay_s:.1f} s")
        self._report.working("waiting to connect again")
        try:
            await asyncio.wait_for(self._stop.wait(), delay_s)
        except TimeoutError:
            return


async def _first_of(*steps: Coroutine[Any, Any, Any]) -> None:
    """Run all until one returns or raises; cancel the others, wait for them, raise what it raised."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # Errors of the work itself tell more than those of the stream beside it.
    for task in sorted(done, key=tasks.index, reverse=True):
        task.result()
