"""A recording man in the middle that the test itself equips with both sides' keys.

TLS hides what travels, so the tap ends it: to the site it is the coordinator, to the coordinator it
is the site, and it keeps the plaintext HTTP/2 bytes of each direction. Nobody without both private
keys could build it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

FRAME_HEADER = 9
DATA_FRAME = 0x0
PADDED = 0x8
CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class Recording:
    """Plaintext of one direction of one connection."""

    data: bytearray = field(default_factory=bytearray)

    def messages(self) -> dict[int, bytes]:
        """DATA payloads joined per HTTP/2 stream: what gRPC sent, without frame headers."""
        streams: dict[int, bytearray] = {}
        at = len(CLIENT_PREFACE) if self.data.startswith(CLIENT_PREFACE) else 0
        while at + FRAME_HEADER <= len(self.data):
            length = int.from_bytes(self.data[at : at + 3], "big")
            kind, flags = self.data[at + 3], self.data[at + 4]
            stream = int.from_bytes(self.data[at + 5 : at + 9], "big") & 0x7FFFFFFF
            payload = self.data[at + FRAME_HEADER : at + FRAME_HEADER + length]
            if kind == DATA_FRAME:
                if flags & PADDED:
                    payload = payload[1 : len(payload) - payload[0]]
                streams.setdefault(stream, bytearray()).extend(payload)
            at += FRAME_HEADER + length
        return {stream: bytes(data) for stream, data in streams.items()}


class WireTap:
    """Listens in a thread; ``sent`` and ``received`` are the site's two directions."""

    def __init__(self, site_tls: Path, coordinator_tls: Path, target: str) -> None:
        self.sent: list[Recording] = []
        self.received: list[Recording] = []
        self._target = target.rsplit(":", 1)
        self._server_side = _context(ssl.Purpose.CLIENT_AUTH, coordinator_tls)
        self._client_side = _context(ssl.Purpose.SERVER_AUTH, site_tls)
        self._client_side.check_hostname = False
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the tap did not start")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def listen() -> None:
            server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._server_side)
            self._port = server.sockets[0].getsockname()[1]
            self._ready.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(
            self._target[0], int(self._target[1]), ssl=self._client_side
        )
        sent, received = Recording(), Recording()
        self.sent.append(sent)
        self.received.append(received)
        await asyncio.gather(
            _copy(reader, upstream_writer, sent), _copy(upstream_reader, writer, received)
        )

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, recording: Recording
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            recording.data += data
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


def _context(purpose: ssl.Purpose, tls: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(purpose, cafile=str(tls / "ca.pem"))
    context.load_cert_chain(str(tls / "tls.pem"), str(tls / "tls.key"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context
