"""Large payloads as ordered chunks: sent from a file, received into a spool file."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from types import TracebackType

from ..wire.v1.federation_pb2 import Chunk

CHUNK_BYTES = 1024 * 1024


def send_file(source: Path | int, offset: int, size: int) -> AsyncIterator[Chunk]:
    """Chunks of ``source`` (a path or an open descriptor) from ``offset`` up to ``size``, its length."""
    raise NotImplementedError


def send_buffer(buffer: bytes | memoryview, offset: int = 0) -> AsyncIterator[Chunk]:
    """Chunks of bytes in memory, from ``offset``."""
    raise NotImplementedError


def partial_bytes(path: Path, expected_hash: bytes) -> int:
    """How much of a payload lies in the partial file of ``SpoolWriter(path, ..., expected_hash)``."""
    raise NotImplementedError


class SpoolWriter:
    """Receives one payload in order into ``path``; an async context manager.

    On entry a partial file from an earlier attempt is taken up (``offset`` says how much is there).
    ``finish`` checks length and SHA-256, fsyncs and gives the file its final name: a file at ``path``
    is complete and durable. Leaving early keeps the partial file.
    """

    def __init__(self, path: Path, expected_bytes: int, expected_hash: bytes) -> None:
        raise NotImplementedError

    @property
    def offset(self) -> int:
        """Bytes received so far."""
        raise NotImplementedError

    async def __aenter__(self) -> SpoolWriter:
        raise NotImplementedError

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError

    async def append(self, chunk: Chunk) -> None:
        """Take the next chunk; it must start at ``offset``."""
        raise NotImplementedError

    async def finish(self) -> None:
        """All chunks are in: check, make durable, give the final name."""
        raise NotImplementedError

    async def receive(self, chunks: AsyncIterable[Chunk]) -> None:
        """``append`` all chunks, then ``finish``."""
        raise NotImplementedError
