"""The coordinator's process: one per home, ready with one line, ended by SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from fedpalm.clock import Clock, SystemClock
from fedpalm.errors import ConfigError, IdentityError, StateError, UnavailableError
from fedpalm.pki.files import write_public
from fedpalm.pki.identity import Role
from fedpalm.pki.live import LiveIdentity
from fedpalm.transport.server import SERVICE_ROLES, GatedServer, build_server
from fedpalm.wire.v1.federation_pb2_grpc import add_FederationServicer_to_server
from fedpalm.wire.v1.membership_pb2_grpc import add_MembershipServicer_to_server
from fedpalm.wire.v1.operator_pb2_grpc import add_OperatorServicer_to_server

from .config import CoordinatorSettings, Home
from .enrolment import EnrolmentListener, EnrolmentService, addresses
from .service_federation import FederationService
from .service_membership import MembershipService
from .service_operator import OperatorService
from .state import Coordinator
from .store import Store
from .watch import RegistryWatch

log = logging.getLogger(__name__)

STOP_GRACE_S = 5.0


def serve(home: Home) -> None:
    """Serve until SIGTERM or SIGINT; then end streams, and leave everything resumable.

    Raises:
        ConfigError, KeyFileError, IdentityError: the home cannot be used.
        StateError: another coordinator serves it.
        UnavailableError: the address cannot be bound.
    """
    settings = home.settings()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    faulthandler.enable()
    _raise_open_files()
    clock = SystemClock()
    identity = LiveIdentity(home.tls, clock)
    named = identity.current.identity
    if named.role is not Role.COORDINATOR:
        raise IdentityError(f"{home.tls}: {named} is no coordinator")
    if named.federation != settings.federation:
        raise ConfigError(
            f"{home.config}: federation {settings.federation!r}, but the certificate is of "
            f"{named.federation!r}"
        )
    with _sole(home), Store.open(home.store) as store:
        asyncio.run(_serve(home, settings, identity, store, clock))


async def _serve(
    home: Home, settings: CoordinatorSettings, identity: LiveIdentity, store: Store, clock: Clock
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    coordinator = Coordinator.build(home, settings, identity, store, clock)
    async with listening(coordinator, home, failed=stop.set) as address:
        sys.stdout.write(f"ready: coordinator of {settings.federation} on {address}\n")
        sys.stdout.flush()
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def listening(
    coordinator: Coordinator, home: Home, failed: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """Take up unfinished runs and serve; yields the bound ``host:port``, which is also written down.

    Args:
        failed: called if the watch over the registry ends: a coordinator that goes on would miss the
            next revocation. What it failed with is raised at the end.
    Raises:
        UnavailableError: the address cannot be bound.
    """
    server = _bind(coordinator, home)
    service = EnrolmentService(
        coordinator.invitations,
        coordinator.settings.federation,
        coordinator.issuing.trust,
        coordinator.clock,
    )
    enrolment = EnrolmentListener(
        coordinator.identity,
        coordinator.settings.enrolment,
        home.enrol_listen,
        service,
        coordinator.clock,
    )
    add_FederationServicer_to_server(FederationService(coordinator), server.server)  # type: ignore[no-untyped-call]
    add_MembershipServicer_to_server(MembershipService(coordinator), server.server)  # type: ignore[no-untyped-call]
    add_OperatorServicer_to_server(OperatorService(coordinator), server.server)  # type: ignore[no-untyped-call]
    watch = RegistryWatch(coordinator, home, server.recheck, enrolment.follow)
    try:
        coordinator.start()
        # Whoever was revoked while nobody served is out before the first call.
        await watch.look()
        await server.start()
        bound = f"{coordinator.settings.listen.rpartition(':')[0]}:{server.port}"
        write_public(home.listen, f"{bound}\n".encode())
        watching = asyncio.create_task(watch.run())
        watching.add_done_callback(lambda _: failed())
        try:
            yield bound
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if not watching.cancelled():
            watching.result()
    finally:
        await coordinator.driver.stop()
        await enrolment.close()
        await server.stop(STOP_GRACE_S)


def _bind(coordinator: Coordinator, home: Home) -> GatedServer:
    """Raises UnavailableError: the address cannot be bound."""
    listen = coordinator.settings.listen
    for address in addresses(listen, home.listen):
        try:
            return build_server(
                coordinator.identity,
                address,
                roles=SERVICE_ROLES,
                authorise=coordinator.authorise,
                clock=coordinator.clock,
            )
        except UnavailableError:
            if address == listen:
                raise
    raise AssertionError("there is an address")


def _raise_open_files() -> None:
    """Every connection, transfer and update of a sum is an open file: take as many as are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _sole(home: Home) -> Iterator[None]:
    """Hold the home's lock; the kernel lets it go with the process, however that ends."""
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"{home.root}: another coordinator serves this home",
                safe="it goes on undisturbed",
                next_step="stop it first, or use another --home",
            ) from None
        yield
    finally:
        os.close(descriptor)
