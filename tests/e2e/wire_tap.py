"""A recording man in the middle that the test itself equips with both sides' keys.

TLS hides what travels, so the tap ends it: to the site it is the coordinator, to the coordinator it
is the site. It relays every call of any name and kind and keeps each message and all metadata, and
it counts the encrypted bytes on the site's side, so that nothing can travel beside what it records.
Nobody without both private keys could build it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedpalm.cli.byte_counter import ByteCounter
from fedpalm.pki.bundle import load_tls_identity
from fedpalm.pki.identity import coordinator_dns_name
from fedpalm.transport import require_tls_1_3
from fedpalm.transport.limits import SERVER_OPTIONS, client_options

require_tls_1_3()
import grpc  # noqa: E402  (the line above must come first)


class WireTap:
    """A context manager; sites dial ``address``. ``calls`` holds each call's metadata and messages.

    Args:
        site_tls: the site's folder of keys; None for a newcomer's port, where nobody shows a certificate.
        coordinator_tls: the coordinator's folder of keys.
        target: ``host:port`` of the coordinator's listener.
    """

    def __init__(self, site_tls: Path | None, coordinator_tls: Path, target: str) -> None:
        self.calls: list[tuple[str, list[bytes]]] = []
        self.received: list[bytes] = []
        self._target = target
        self._site = load_tls_identity(site_tls, now=time.time()) if site_tls else None
        self._coordinator = load_tls_identity(coordinator_tls, now=time.time())
        self._stack = ExitStack()

    @property
    def address(self) -> str:
        return self._counter.address

    @property
    def sent(self) -> list[bytes]:
        """Every message and all metadata that the site sent."""
        return [part for _, parts in self.calls for part in parts]

    @property
    def encrypted_bytes_sent(self) -> int:
        return self._counter.sent

    def __enter__(self) -> WireTap:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        if not ready.wait(20):
            raise RuntimeError("the tap did not start")
        self._counter = self._stack.enter_context(ByteCounter(f"127.0.0.1:{self._port}"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        asyncio.run_coroutine_threadsafe(self._server.stop(None), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def listen() -> None:
            ours, theirs = self._coordinator, self._site
            shown = (theirs.key_pem, theirs.chain_pem) if theirs else (None, None)
            self._channel = grpc.aio.secure_channel(
                self._target,
                grpc.ssl_channel_credentials(ours.ca_pem, *shown),
                options=client_options(coordinator_dns_name(ours.identity.federation), proxy=False),
            )
            self._server = grpc.aio.server(options=SERVER_OPTIONS)
            self._server.add_generic_rpc_handlers((_AnyCall(self),))
            self._port = self._server.add_secure_port(
                "127.0.0.1:0",
                grpc.ssl_server_credentials(
                    [(ours.key_pem, ours.chain_pem)],
                    ours.ca_pem if theirs else None,
                    require_client_auth=theirs is not None,
                ),
            )
            await self._server.start()
            ready.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()

    async def relay(
        self, method: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        metadata = [(k, v) for k, v in context.invocation_metadata() if k != "user-agent"]
        sent = [repr(metadata).encode()]
        self.calls.append((method, sent))

        async def recorded() -> AsyncIterator[bytes]:
            async for request in requests:
                sent.append(request)
                yield request

        call = self._channel.stream_stream(method)(
            recorded(), metadata=metadata, timeout=context.time_remaining()
        )

        async def greet() -> None:
            # The coordinator's initial metadata says that an upload's turn has come.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await context.send_initial_metadata(await call.initial_metadata() or ())

        greeting = asyncio.ensure_future(greet())
        try:
            async for reply in call:
                await greeting
                self.received.append(reply)
                yield reply
        except grpc.aio.AioRpcError as error:
            context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
            await context.abort(error.code(), error.details() or "")
        finally:
            greeting.cancel()
            call.cancel()


class _AnyCall(grpc.GenericRpcHandler):
    """Takes every method as a stream of raw bytes both ways, which is what any call is."""

    def __init__(self, tap: WireTap) -> None:
        self._tap = tap

    def service(self, details: Any) -> Any:
        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for reply in self._tap.relay(details.method, requests, context):
                yield reply

        return grpc.stream_stream_rpc_method_handler(handle)
