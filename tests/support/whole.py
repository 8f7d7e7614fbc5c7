"""A whole federation in one process: real agents and a real coordinator, with method calls for a network.

The sites' method is a stand-in. A test may bend what the coordinator answers, cut a call, kill either side,
and put an older copy of a home in its place.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from coordinator.config import CoordinatorSettings
from coordinator.config import Home as CoordinatorHome
from coordinator.registry import Registry
from coordinator.service_federation import FederationService
from coordinator.state import Coordinator
from coordinator.store import Store
from fedpalm.clock import SystemClock
from fedpalm.errors import UnavailableError
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan, PlanDraft
from fedpalm.rounds.events import RoundRef, TimerKind
from fedpalm.rounds.machine import Round
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.rounds.run import Start
from fedpalm.transport.peer import KEY_EXCHANGE_GROUP, TLS_VERSION
from fedpalm.wire.limits import check_limits
from participant.ending import ExitAfter, Outcome
from participant.store import SiteStore
from tests.support.participant import (
    FEDERATION,
    SITES,
    Site,
    World,
    initial_vector,
    make_plan,
)
from tests.support.servicer import live_identity

RUN = "toy-1"
POLICY = "auto_approve = true\ndelta = 1e-5\npeople = 1000\nmax_epsilon = 100.0\n"


def private_plan(rounds: int = 2, sites: tuple[str, ...] = SITES, **draft: Any) -> Plan:
    """A plan with differential privacy for the toy method."""
    return make_plan(
        rounds,
        sites,
        draft=PlanDraft.model_validate(
            {
                "name": "toy",
                "method": "fedavg",
                "rounds": rounds,
                "quorum": 2,
                "colluders": 0,
                "join_deadline_s": 3600,
                "round_deadline_s": 3600,
                "training": {"privacy": {"unit": "subject"}},
                **draft,
            }
        ),
        expert_layout=(),
    )


Bend = Callable[[str, str, Any], Any]
"""Site, method and what the coordinator answers (of a stream, each item); None: that does not come."""


def without_prepare(name: str, *rounds: int) -> Bend:
    """This site is not asked for checkpoints for these rounds, or for any."""

    def bend(site: str, method: str, reply: Any) -> Any:
        if (site, method) != (name, "Instructions") or reply.WhichOneof("kind") != "prepare":
            return reply
        return reply if rounds and reply.prepare.ref.round not in rounds else None

    return bend


class _Names:
    def __getattr__(self, name: str) -> str:
        return name


class _Context:
    """What a handler looks at of a call: whose certificate it came with."""

    def __init__(self, identity: TlsIdentity) -> None:
        self._leaf = identity.chain_pem.split(b"-----END CERTIFICATE-----")[0]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {
            "transport_security_type": [b"ssl"],
            "ssl_tls_version": [TLS_VERSION.encode()],
            "ssl_negotiated_key_exchange_group": [KEY_EXCHANGE_GROUP.encode()],
            "x509_pem_cert": [self._leaf + b"-----END CERTIFICATE-----\n"],
        }


class _Wire:
    """A connection of a site to the coordinator that runs at this moment."""

    federation = _Names()
    membership = _Names()

    def __init__(self, whole: WholeFederation, site: Site) -> None:
        self._whole, self._name = whole, site.config.site
        self._context: Any = _Context(site.live.current)
        self._life = whole.life

    def _method(self, method: str, request: Message | None) -> Any:
        if self._life != self._whole.life:
            raise UnavailableError("the coordinator is gone")
        self._whole.before(self._name, method, request)
        if request is not None:
            check_limits(request)
        return getattr(self._whole.service, method)

    async def _answer(self, handled: Awaitable[Any]) -> Any:
        """What the coordinator answers, if it lives to do so: a killed one has no store to write to."""
        try:
            reply = await handled
        except Exception:
            if self._life == self._whole.life:
                raise
        if self._life != self._whole.life:
            raise UnavailableError("the coordinator is gone")
        return reply

    async def unary(self, method: str, request: Message, *, deadline_s: float) -> Any:
        reply = await self._answer(self._method(method, request)(request, self._context))
        self._whole.after(self._name, method)
        return self._whole.bend(self._name, method, reply)

    async def stream(self, method: str, request: Message, *, idle_s: float) -> AsyncIterator[Any]:
        replies = self._method(method, request)(request, self._context)
        async with aclosing(replies):
            while True:
                try:
                    reply = await self._answer(anext(replies))
                except StopAsyncIteration:
                    return
                check_limits(reply)
                if (bent := self._whole.bend(self._name, method, reply)) is not None:
                    yield bent

    async def upload(
        self, method: str, requests: AsyncIterator[Message], *, deadline_s: float
    ) -> Any:
        reply = await self._answer(self._method(method, None)(requests, self._context))
        self._whole.after(self._name, method)
        return reply


class WholeFederation:
    """A coordinator below ``root`` and the sites of a plan; the run is created, not started.

    Attributes:
        bend: what a lying coordinator makes of its answers.
        cut_before, cut_after: (site, method) of calls that fail once before or after the coordinator acts.
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self.plan = plan
        self.world = World(root, policy=POLICY)
        self.home = CoordinatorHome(root / "hub")
        self.home.models.mkdir(parents=True)
        self.home.spool.mkdir()
        self.identity = live_identity(self.home.tls, self.world.coordinator)
        self.settings = CoordinatorSettings(
            federation=FEDERATION, listen="127.0.0.1:0", heartbeat_s=5
        )
        lines = (f'federation = "{FEDERATION}"', 'listen = "127.0.0.1:0"', "heartbeat_s = 5")
        self.home.config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.bend: Bend = lambda site, method, reply: reply
        self.cut_before: set[tuple[str, str]] = set()
        self.cut_after: set[tuple[str, str]] = set()
        self.crash_after: set[str] = set()
        self.life = 0
        self.timer: tuple[RoundRef, TimerKind] | None = None
        self.sites: dict[str, Site] = {}
        self.tasks: dict[str, asyncio.Task[Outcome]] = {}
        with Store.open(self.home.store) as store:
            for name in plan.roster:
                self.world.home(name)
                leaf = Site(self.world.home(name)).live.current.leaf
                registry = Registry(store)
                registry.admit(
                    leaf, breaks=registry.breaks(name), at_ms=1, operator="olga", action="sign"
                )

    # --- the coordinator's life -------------------------------------------------------------------

    def boot(self, run_id: str = RUN) -> None:
        """Start it from what is on disk; the first time with the run."""
        self.life += 1
        self.store = Store.open(self.home.store)
        self.coordinator = Coordinator.build(
            self.home, self.settings, self.identity, self.store, SystemClock()
        )
        self.service = FederationService(self.coordinator)
        driver = self.coordinator.driver
        set_timer = driver.set_timer

        def noted(run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None:
            self.timer = (ref, kind)
            set_timer(run_id, ref, kind, at_ms)

        driver.set_timer = noted  # type: ignore[method-assign]
        self.coordinator.start()
        if run_id not in self.conductor.run_ids():
            model = initial_vector().astype("<f4").tobytes()
            self.coordinator.spool.model(self.plan.initial_model).write_bytes(model)
            self.conductor.create(run_id, self.plan)
            self.conductor.feed(run_id, Start(self.coordinator.now_ms()))

    def ring(self) -> None:
        """The deadline that is waited for is over."""
        assert self.timer is not None
        self.conductor.timer_rang(RUN, *self.timer)

    def kill(self) -> None:
        """kill -9, and start again: memory and connections are gone."""
        driver = self.coordinator.driver
        for timer in driver._timers.values():
            timer.cancel()
        driver.sessions.end_all()
        self.store.close()
        self.boot()

    @property
    def conductor(self):  # type: ignore[no-untyped-def]
        return self.coordinator.conductor

    @property
    def run(self):  # type: ignore[no-untyped-def]
        return self.conductor.run(RUN)

    def manifests(self) -> list[tuple[RoundManifest, SignedStatement]]:
        found = self.coordinator.runs.manifests(RUN, 0)
        return [(RoundManifest.read(one), one) for one in found]

    def countersigners(self, manifest: RoundManifest) -> set[str]:
        query = "SELECT site FROM countersignatures WHERE (round, attempt) = (?, ?)"
        return {site for (site,) in self.store.query(query, manifest.round, manifest.attempt)}

    # --- calls ------------------------------------------------------------------------------------

    def before(self, site: str, method: str, request: Message | None) -> None:
        if (site, method) in self.cut_before:
            self.cut_before.discard((site, method))
            raise UnavailableError(f"{method} was cut on its way")

    def after(self, site: str, method: str) -> None:
        if method in self.crash_after:
            self.crash_after.discard(method)
            self.kill()
            raise UnavailableError("the coordinator is gone")
        if (site, method) in self.cut_after:
            self.cut_after.discard((site, method))
            raise UnavailableError(f"the answer to {method} was cut")

    @asynccontextmanager
    async def connect(self, site: Site) -> AsyncIterator[_Wire]:
        yield _Wire(self, site)

    # --- the sites' lives -------------------------------------------------------------------------

    def start(self, *names: str, on_step: Callable[[str], None] = lambda step: None) -> None:
        """Start the agents of these sites, or of all."""
        for name in names or self.plan.roster:
            site = self.sites[name] = Site(self.world.home(name), on_step)
            self.tasks[name] = asyncio.create_task(site.run(self, ExitAfter.RUN))  # type: ignore[arg-type]

    async def stop(self, name: str) -> None:
        """End a site's agent at once."""
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.sites[name].store.close()

    async def stop_all(self) -> None:
        for name in list(self.tasks):
            await self.stop(name)
        await self.coordinator.driver.stop()
        self.store.close()

    async def round_without(self, number: int, name: str) -> None:
        """Start everybody; a site hears nothing of this round and is stopped, and the cohort is sealed."""
        self.bend = without_prepare(name, number)
        self.start()
        others = set(self.plan.roster) - {name}
        await self.until(
            lambda: self.run.current.ref.round == number and self.run.current.prepared == others
        )
        await self.stop(name)
        self.bend = lambda site, method, reply: reply
        self.ring()

    async def until(self, condition: Callable[[], object]) -> None:
        """Until it holds; an agent that failed meanwhile fails the test."""
        while not condition():
            for task in self.tasks.values():
                if task.done() and task.exception() is not None:
                    task.result()
            await asyncio.sleep(0.005)

    async def ended(self, overdue: Callable[[Round], object] = lambda current: False) -> None:
        """Until the run is over and every agent has ended with it.

        Args:
            overdue: the deadline of an attempt is over as soon as this holds.
        """

        def over() -> bool:
            current = self.run.current
            if not self.run.over and current is not None and overdue(current):
                self.ring()
            return bool(self.run.over)

        await self.until(over)
        await asyncio.gather(*self.tasks.values())

    def told(self, name: str, text: str) -> bool:
        return any(text in line for line in self.sites[name].lines)

    def backup(self, name: str, to: Path) -> None:
        """Copy the database of a site's home."""
        store = SiteStore(self.world.home(name))
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.close()
        shutil.copy(self.world.home(name).database, to)

    def restore(self, name: str, backup: Path) -> None:
        """Put a copy of the database back; what belongs in no backup stays as it is."""
        home = self.world.home(name)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{home.database}{suffix}").unlink(missing_ok=True)
        shutil.copy(backup, home.database)
