"""Large payloads as ordered chunks: sent from a file, received into a spool file.

Per stream at most two chunks are in memory: one on its way to the disk, the next one arriving.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ParamSpec

from ..errors import (
    HashMismatchError,
    IntegrityError,
    MessageTooLargeError,
    ProtocolError,
    ResourceError,
    UnavailableError,
)
from ..wire.v1.federation_pb2 import Chunk
from .limits import CHUNK_BYTES

P = ParamSpec("P")

__all__ = ["CHUNK_BYTES", "SpoolWriter", "partial_bytes", "send_buffer", "send_file"]


async def send_file(source: Path | int, offset: int, size: int) -> AsyncIterator[Chunk]:
    """Chunks of ``source`` (a path or an open descriptor) from ``offset`` up to ``size``, its length.

    Raises:
        ProtocolError: ``offset`` lies beyond ``size``.
        IntegrityError: the file ends before ``size``.
    """
    _check_offset(offset, size)
    descriptor = source if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while offset < size:
            # From the page cache this takes 50 us; a thread would cost more than it saves.
            data = os.pread(descriptor, min(CHUNK_BYTES, size - offset), offset)
            if not data:
                raise IntegrityError(f"{source}: ends at byte {offset}, not at {size}")
            yield Chunk(offset=offset, data=data)
            offset += len(data)
    finally:
        if not isinstance(source, int):
            os.close(descriptor)


async def send_buffer(buffer: bytes | memoryview, offset: int = 0) -> AsyncIterator[Chunk]:
    """Chunks of bytes in memory, from ``offset``. Raises ProtocolError for one beyond the end."""
    view = memoryview(buffer).cast("B")
    _check_offset(offset, len(view))
    for start in range(offset, len(view), CHUNK_BYTES):
        yield Chunk(offset=start, data=bytes(view[start : start + CHUNK_BYTES]))


def partial_bytes(path: Path, expected_hash: bytes) -> int:
    """How much of a payload lies in the partial file of ``SpoolWriter(path, ..., expected_hash)``."""
    try:
        return _partial_path(path, expected_hash).stat().st_size
    except FileNotFoundError:
        return 0


class SpoolWriter:
    """Receives one payload in order into ``path``; an async context manager.

    On entry a partial file from an earlier attempt is taken up (``offset`` says how much is there).
    ``finish`` checks length and SHA-256, fsyncs and gives the file its final name: a file at ``path``
    is complete and durable. Leaving early keeps the partial file, whose name holds the hash, so that
    parts of different payloads never meet.

    Args:
        expected_bytes: announced length; the caller has checked it against what it allows.
        expected_hash: announced SHA-256, 32 bytes.
    Raises:
        UnavailableError: on entry, while another writer has this payload.
        ResourceError: the disk is full.
    """

    def __init__(self, path: Path, expected_bytes: int, expected_hash: bytes) -> None:
        self._path, self._partial = path, _partial_path(path, expected_hash)
        self._expected_bytes, self._expected_hash = expected_bytes, expected_hash
        self._digest = hashlib.sha256()
        self._offset = 0
        self._descriptor = -1
        # Held while the file is written or closed: a cancelled call must not close it under a write.
        self._file_in_use = threading.Lock()
        self._writing: asyncio.Future[None] | None = None

    @property
    def offset(self) -> int:
        """Bytes received so far."""
        return self._offset

    async def __aenter__(self) -> SpoolWriter:
        opening = _in_thread(self._open)
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda _: self._close())
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._writing is not None:
                await asyncio.wait({self._writing})
        finally:
            self._close()

    async def append(self, chunk: Chunk) -> None:
        """Take the next chunk; returns when the one before it is written.

        Raises:
            ProtocolError: the chunk does not start at ``offset``, or is empty.
            MessageTooLargeError: more than the announced bytes.
            ResourceError: the disk is full.
        """
        data = chunk.data
        if chunk.offset != self._offset or not data:
            raise ProtocolError(
                f"a chunk of {len(data)} bytes at {chunk.offset}, where byte {self._offset} was due"
            )
        if self._offset + len(data) > self._expected_bytes:
            raise MessageTooLargeError(f"more than the announced {self._expected_bytes} bytes came")
        await self._written()
        self._writing = _in_thread(self._write, data, self._offset)
        self._offset += len(data)

    async def finish(self) -> None:
        """All chunks are in: check, make durable, give the final name.

        Raises:
            ProtocolError: fewer than the announced bytes; the partial file stays.
            HashMismatchError: other bytes than announced; the partial file is deleted.
        """
        await self._written()
        if self._offset != self._expected_bytes:
            raise ProtocolError(
                f"the stream ended at byte {self._offset} of {self._expected_bytes}",
                safe="what came is kept",
                next_step="go on from there",
            )
        await _in_thread(self._keep)

    async def receive(self, chunks: AsyncIterable[Chunk]) -> None:
        """``append`` all chunks, then ``finish``."""
        async for chunk in chunks:
            await self.append(chunk)
        await self.finish()

    async def _written(self) -> None:
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def _open(self) -> None:
        with _disk_errors(self._partial):
            descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._lock(descriptor)
                if os.fstat(descriptor).st_size > self._expected_bytes:
                    os.ftruncate(descriptor, 0)
                while data := os.pread(descriptor, CHUNK_BYTES, self._offset):
                    self._digest.update(data)
                    self._offset += len(data)
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The writer before us may have given this very file its final name in between.
            ours = self._partial.stat().st_ino == os.fstat(descriptor).st_ino
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise UnavailableError(
                "another stream is bringing this payload", next_step="try again in some seconds"
            )

    def _write(self, data: bytes, offset: int) -> None:
        with self._file_in_use, _disk_errors(self._partial):
            if self._descriptor < 0:
                return
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
            self._digest.update(data)

    def _keep(self) -> None:
        with self._file_in_use, _disk_errors(self._path):
            if self._descriptor < 0:
                return
            if self._digest.digest() != self._expected_hash:
                self._partial.unlink()
                raise HashMismatchError(
                    f"{self._expected_bytes} bytes came that do not have the announced SHA-256",
                    safe="they are deleted",
                    next_step="send them again from the start",
                )
            os.fsync(self._descriptor)
            self._partial.rename(self._path)
            _fsync_folder(self._path.parent)

    def _close(self) -> None:
        with self._file_in_use:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


# Hashing and writing release the GIL, so a few threads keep up with the network.
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="spool")


def _in_thread(
    function: Callable[P, None], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Future[None]:
    future = asyncio.get_running_loop().run_in_executor(
        _threads, functools.partial(function, *args, **kwargs)
    )
    # A stream that is cancelled does not wait for its last write; its error is then nobody's.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path.name}: {error.strerror or error}",
            safe="what was stored before is unchanged",
            next_step="look at free space and permissions of the folder",
        ) from error


def _partial_path(path: Path, expected_hash: bytes) -> Path:
    return path.with_name(f"{path.name}.{expected_hash.hex()[:16]}.part")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_offset(offset: int, size: int) -> None:
    if not 0 <= offset <= size:
        raise ProtocolError(f"offset {offset} lies beyond the {size} bytes there are")
