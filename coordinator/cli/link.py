"""The operator's side of a call to the running coordinator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fedpalm.errors import UnavailableError
from fedpalm.pki.bundle import load_tls_identity
from fedpalm.transport.channel import Connection

from ..config import Home

T = TypeVar("T")
UNARY_DEADLINE_S = 20.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  (read, not bound)

coordinator_option = click.option(
    "--coordinator",
    "address",
    metavar="HOST:PORT",
    help="Where the coordinator listens; left out, what the one of this home says.",
)
run_option = click.option(
    "--run", "run_id", default="", metavar="RUN", help="Left out, the one run that is not over."
)
newest_run_option = click.option(
    "--run", "run_id", default="", metavar="RUN", help="Left out, the newest run."
)


def with_operator(home: Path, address: str | None, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Connect with the operator's certificate and do ``work``.

    Raises:
        UnavailableError: no coordinator listens.
        FedPalmError: whatever the coordinator answers.
    """
    identity = load_tls_identity(Home(home).operator, now=time.time())

    async def connected() -> T:
        async with Connection(address or _own_address(Home(home)), identity) as connection:
            return await work(connection)

    return asyncio.run(connected())


def call(home: Path, address: str | None, method: str, request: Any) -> Any:
    """One unary call of the operator service."""

    async def work(connection: Connection) -> Any:
        stub_method = getattr(connection.operator, method)
        return await connection.unary(stub_method, request, deadline_s=UNARY_DEADLINE_S)

    return with_operator(home, address, work)


def _own_address(home: Home) -> str:
    try:
        host, _, port = home.listen.read_text(encoding="utf-8").strip().rpartition(":")
    except FileNotFoundError:
        raise UnavailableError(
            f"{home.root}: no coordinator has been started on this home",
            next_step="fedpalm-coordinator serve, or name another with --coordinator HOST:PORT",
        ) from None
    # A coordinator that listens everywhere is reached here by loopback.
    return f"{_LOOPBACK.get(host, host)}:{port}"
