"""A TCP forwarder that counts bytes: what a connection really costs on the network, TLS included."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class ByteCounter:
    """Forwards ``address`` to ``target`` and counts; a context manager with a thread of its own."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.sent = 0
        """Bytes from the dialling side."""
        self.received = 0
        """Bytes to the dialling side."""
        self.address = ""
        self._writers: list[asyncio.StreamWriter] = []

    def __enter__(self) -> ByteCounter:
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end_all(self) -> None:
        """Drop every connection; a peer that would keep its one open does not keep this alive."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    def _run(self, listening: threading.Event) -> None:
        async def listen() -> None:
            server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
            self.address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
            listening.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, there_writer]

        async def copy(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, outgoing: bool
        ) -> None:
            # A peer that resets a connection ends it; both counts stay.
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 18):
                    if outgoing:
                        self.sent += len(data)
                    else:
                        self.received += len(data)
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, there_writer, True), copy(there_reader, writer, False))
