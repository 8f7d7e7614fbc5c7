"""What the network and the disk alone cost: the baselines that a round is measured against.

The bytes of one round, each site down and then up, all sites at once, over mutual TLS on loopback:
bare gRPC streams of 1 MiB messages without protobuf, checks or storage; optionally with SHA-256 on
both ends, and with every received payload written to a file and fsynced. Server and sites are two
processes. Reproduce: ``python -m fedpalm.benchmark.raw_stream --sites 8 --bytes 20000000``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from ..errors import UnavailableError
from ..pki.authority import create_authority
from ..pki.bundle import create_keys, install_certificates, load_tls_identity
from ..pki.identity import Identity, Role, coordinator_dns_name
from ..pki.request import create_request
from ..transport import require_tls_1_3
from ..transport.limits import MAX_CHUNK_BYTES, SERVER_OPTIONS, client_options

FEDERATION, SERVICE = "raw-stream", "raw.Round"


@dataclass(frozen=True)
class Load:
    """One round: how many sites, bytes to and from each, and what is done with them."""

    sites: int
    bytes_down: int
    bytes_up: int
    hashed: bool
    fsync: bool


def raw_round_seconds(
    sites: int, bytes_down: int, bytes_up: int, hashed: bool, fsync: bool, *, repeats: int = 3
) -> float:
    """Median wall-clock seconds of one round, connections made and warm.

    Args:
        sites: concurrent sites, one connection each.
        bytes_down, bytes_up: per site.
        hashed: SHA-256 over every payload, by its sender and by its receiver.
        fsync: the receiver writes every payload to a file of its own and fsyncs it.
        repeats: rounds measured, after one that is not.
    Raises:
        UnavailableError: one of the two processes failed.
    """
    load = Load(sites, bytes_down, bytes_up, hashed, fsync)
    with tempfile.TemporaryDirectory(prefix="fedpalm-raw-") as name:
        folder = Path(name)
        _make_identities(folder)
        with _process("serve", folder, load) as server:
            port = _answer(server)["port"]
            with _process("dial", folder, load, f"--port={port}", f"--repeats={repeats}") as sites_:
                return float(statistics.median(_answer(sites_)["seconds"]))


# --- the two processes ------------------------------------------------------------------------------


async def _serve(folder: Path, load: Load) -> None:
    async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
        async for message in _messages(load.bytes_down, load):
            yield message

    async def up(requests: AsyncIterable[bytes], context: Any) -> bytes:
        return await _receive(requests, load, folder)

    tls = load_tls_identity(folder / "server", now=time.time())
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handlers = {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.chain_pem)], tls.ca_pem, True)
    _print_line({"port": server.add_secure_port("127.0.0.1:0", credentials)})
    await server.start()
    await server.wait_for_termination()


async def _dial(folder: Path, load: Load, port: int, repeats: int) -> None:
    tls = load_tls_identity(folder / "site", now=time.time())
    credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.chain_pem)
    options = client_options(coordinator_dns_name(FEDERATION), proxy=False)
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
            )
            for _ in range(load.sites)
        ]
        seconds = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            await asyncio.gather(*(_site_round(channel, load, folder) for channel in channels))
            seconds.append(time.perf_counter() - start)
    _print_line({"seconds": seconds[1:]})


async def _site_round(channel: grpc.aio.Channel, load: Load, folder: Path) -> None:
    down = channel.unary_stream(f"/{SERVICE}/Down", None, None)
    up = channel.stream_unary(f"/{SERVICE}/Up", None, None)
    await _receive(down(b""), load, folder)
    await up(_messages(load.bytes_up, load))


async def _messages(size: int, load: Load) -> AsyncIterator[bytes]:
    """``size`` random bytes in messages of 1 MiB; random, so that nothing on the way compresses."""
    block, digest = os.urandom(min(size, MAX_CHUNK_BYTES)), hashlib.sha256()
    for offset in range(0, size, MAX_CHUNK_BYTES):
        message = block if size - offset >= MAX_CHUNK_BYTES else block[: size - offset]
        if load.hashed:
            await asyncio.to_thread(digest.update, message)
        yield message


async def _receive(messages: AsyncIterable[bytes], load: Load, folder: Path) -> bytes:
    """Take one payload to its end, hash and store it as the load says; its SHA-256."""
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:

        def take(message: bytes) -> None:
            if load.fsync:
                file.write(message)
            if load.hashed:
                digest.update(message)

        async for message in messages:
            if load.fsync or load.hashed:
                await asyncio.to_thread(take, message)
        if load.fsync:
            await asyncio.to_thread(os.fsync, file.fileno())
    return digest.digest()


# --- setting them up --------------------------------------------------------------------------------


def _make_identities(folder: Path) -> None:
    now = time.time()
    authority, _ = create_authority(FEDERATION, now)
    for name, role in (("server", Role.COORDINATOR), ("site", Role.PARTICIPANT)):
        home = folder / name
        home.mkdir(mode=0o700)
        tls_key, signing_key = create_keys(home)
        identity = Identity(FEDERATION, role, name)
        hosts = ["localhost"] if role is Role.COORDINATOR else []
        request = create_request(identity, tls_key, signing_key)
        leaf = authority.issue(request, identity, now=now, dns_names=hosts)
        install_certificates(home, authority.chain(leaf), authority.anchors, now=now)


@contextmanager
def _process(
    what: str, folder: Path, load: Load, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "fedpalm.benchmark.raw_stream", what, "--folder", str(folder)]
    process = subprocess.Popen(  # noqa: S603  # this very module
        [*command, "--load", json.dumps(asdict(load)), *options], stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _answer(process: subprocess.Popen[bytes]) -> Any:
    line = process.stdout.readline() if process.stdout else b""
    if not line:
        raise UnavailableError(f"a benchmark process ended with {process.wait()}: {process.args!r}")
    return json.loads(line)


def _print_line(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Both baselines as one JSON object, or one of the two processes behind them."""
    require_tls_1_3()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("measure", "serve", "dial"), default="measure")
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--bytes", type=int, default=20_000_000, help="down and up, per site")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "serve":
        asyncio.run(_serve(options.folder, Load(**options.load)))
    elif options.what == "dial":
        asyncio.run(_dial(options.folder, Load(**options.load), options.port, options.repeats))
    else:
        _print_line(
            {
                name: raw_round_seconds(
                    options.sites, options.bytes, options.bytes, full, full, repeats=options.repeats
                )
                for name, full in (("raw_s", False), ("raw_hashed_fsynced_s", True))
            }
        )


if __name__ == "__main__":
    main()
