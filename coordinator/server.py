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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fedpalm.clock import Clock, SystemClock
from fedpalm.errors import ConfigError, IdentityError, StateError, UnavailableError
from fedpalm.pki.bundle import TlsIdentity, load_tls_identity
from fedpalm.pki.files import write_public
from fedpalm.pki.identity import Role
from fedpalm.transport.server import SERVICE_ROLES, bound_port, build_server
from fedpalm.wire.v1.federation_pb2_grpc import add_FederationServicer_to_server
from fedpalm.wire.v1.operator_pb2_grpc import add_OperatorServicer_to_server

from .config import CoordinatorSettings, Home
from .service_federation import FederationService
from .service_operator import OperatorService
from .state import Coordinator
from .store import Store

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
    identity = load_tls_identity(home.tls, now=clock.now())
    if identity.identity.role is not Role.COORDINATOR:
        raise IdentityError(f"{home.tls}: {identity.identity} is no coordinator")
    if identity.identity.federation != settings.federation:
        raise ConfigError(
            f"{home.config}: federation {settings.federation!r}, but the certificate is of "
            f"{identity.identity.federation!r}"
        )
    with _sole(home), Store.open(home.store) as store:
        asyncio.run(_serve(home, settings, identity, store, clock))


async def _serve(
    home: Home, settings: CoordinatorSettings, identity: TlsIdentity, store: Store, clock: Clock
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    coordinator = Coordinator.build(home, settings, identity, store, clock)
    async with listening(coordinator, home) as address:
        sys.stdout.write(f"ready: coordinator of {settings.federation} on {address}\n")
        sys.stdout.flush()
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def listening(coordinator: Coordinator, home: Home) -> AsyncIterator[str]:
    """Take up unfinished runs and serve; yields the bound ``host:port``, which is also written down.

    Raises:
        UnavailableError: the address cannot be bound.
    """
    listen = coordinator.settings.listen
    for address in _addresses(home, listen):
        try:
            server = build_server(
                coordinator.identity,
                address,
                roles=SERVICE_ROLES,
                authorise=coordinator.authorise,
                clock=coordinator.clock,
            )
            break
        except UnavailableError:
            if address == listen:
                raise
    add_FederationServicer_to_server(FederationService(coordinator), server)  # type: ignore[no-untyped-call]
    add_OperatorServicer_to_server(OperatorService(coordinator), server)  # type: ignore[no-untyped-call]
    try:
        coordinator.start()
        await server.start()
        bound = f"{listen.rpartition(':')[0]}:{bound_port(server)}"
        write_public(home.listen, f"{bound}\n".encode())
        yield bound
    finally:
        await coordinator.driver.stop()
        await server.stop(STOP_GRACE_S)


def _addresses(home: Home, listen: str) -> list[str]:
    """Port 0 is chosen once: sites keep the address that they were told, so try that one first."""
    host, _, port = listen.rpartition(":")
    if port != "0" or not home.listen.exists():
        return [listen]
    earlier = home.listen.read_text(encoding="utf-8").strip().rpartition(":")[2]
    return [f"{host}:{earlier}", listen] if earlier.isdigit() else [listen]


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
