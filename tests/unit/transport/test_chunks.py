"""Payloads arrive whole, in order and durable, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import (
    HashMismatchError,
    IntegrityError,
    MessageTooLargeError,
    ProtocolError,
    ResourceError,
    UnavailableError,
)
from fedpalm.transport import chunks
from fedpalm.transport.chunks import CHUNK_BYTES, SpoolWriter, partial_bytes, send_buffer, send_file
from fedpalm.wire.v1.federation_pb2 import Chunk
from tests.support.aio import in_loop

PAYLOAD = os.urandom(2 * CHUNK_BYTES + 12_345)
HASH = hashlib.sha256(PAYLOAD).digest()


async def collect(stream: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "payload"


@in_loop
async def test_a_file_travels_whole_into_a_durable_file(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(PAYLOAD)
    async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
        await spool.receive(send_file(source, 0, len(PAYLOAD)))
    assert target.read_bytes() == PAYLOAD
    assert [f.name for f in tmp_path.iterdir() if f not in (source, target)] == []
    assert target.stat().st_mode & 0o777 == 0o600


@in_loop
async def test_chunks_are_a_mebibyte_but_the_last_and_follow_each_other(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(PAYLOAD)
    from_path = await collect(send_file(source, 0, len(PAYLOAD)))
    with source.open("rb") as file:
        from_descriptor = await collect(send_file(file.fileno(), 0, len(PAYLOAD)))
        os.fstat(file.fileno())  # A descriptor that was lent is not closed.
    assert from_path == from_descriptor == await collect(send_buffer(PAYLOAD))
    assert [c.offset for c in from_path] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert b"".join(c.data for c in from_path) == PAYLOAD


@in_loop
async def test_an_interrupted_payload_goes_on_where_it_stopped(target: Path) -> None:
    with pytest.raises(ProtocolError, match="ended at byte"):
        async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
            await spool.receive(send_buffer(PAYLOAD[: CHUNK_BYTES + 7]))
    assert partial_bytes(target, HASH) == CHUNK_BYTES + 7 and not target.exists()
    async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
        assert spool.offset == CHUNK_BYTES + 7
        await spool.receive(send_buffer(PAYLOAD, spool.offset))
    assert target.read_bytes() == PAYLOAD
    assert partial_bytes(target, HASH) == 0


@settings(max_examples=30)
@given(data=st.data())
def test_whatever_the_cuts_and_restarts_the_payload_arrives(data: st.DataObject) -> None:
    payload = data.draw(st.binary(max_size=400))
    digest = hashlib.sha256(payload).digest()

    async def attempt(target: Path, until: int) -> None:
        async with SpoolWriter(target, len(payload), digest) as spool:
            while spool.offset < until:
                step = data.draw(st.integers(1, until - spool.offset))
                piece = payload[spool.offset : spool.offset + step]
                await spool.append(Chunk(offset=spool.offset, data=piece))
            if until == len(payload):
                await spool.finish()

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "payload"
        for until in sorted(data.draw(st.sets(st.integers(0, len(payload)), max_size=3))):
            if until < len(payload):
                asyncio.run(attempt(target, until))
        asyncio.run(attempt(target, len(payload)))
        assert target.read_bytes() == payload


@in_loop
async def test_other_bytes_than_announced_are_deleted_and_can_be_sent_again(target: Path) -> None:
    wrong = bytes([PAYLOAD[0] ^ 1]) + PAYLOAD[1:]
    with pytest.raises(HashMismatchError):
        async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
            await spool.receive(send_buffer(wrong))
    assert not target.exists() and partial_bytes(target, HASH) == 0
    async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
        await spool.receive(send_buffer(PAYLOAD))
    assert target.read_bytes() == PAYLOAD


@in_loop
async def test_a_part_of_another_payload_is_never_continued(target: Path) -> None:
    async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
        await spool.append(Chunk(offset=0, data=b"x" * 100))
    assert partial_bytes(target, hashlib.sha256(b"other").digest()) == 0
    async with SpoolWriter(target, 5, hashlib.sha256(b"other").digest()) as spool:
        await spool.receive(send_buffer(b"other"))
    assert target.read_bytes() == b"other"


@in_loop
async def test_a_partial_file_longer_than_announced_is_begun_anew(target: Path) -> None:
    async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
        await spool.append(Chunk(offset=0, data=PAYLOAD[:100]))
    async with SpoolWriter(target, 10, HASH) as spool:
        assert spool.offset == 0


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        (Chunk(offset=6, data=b"x"), ProtocolError),
        (Chunk(offset=4, data=b"x"), ProtocolError),
        (Chunk(offset=5, data=b""), ProtocolError),
        (Chunk(offset=5, data=b"x" * 6), MessageTooLargeError),
    ],
    ids=["gap", "overlap", "empty", "too long"],
)
def test_a_chunk_that_does_not_follow_is_refused_and_changes_nothing(
    target: Path, chunk: Chunk, error: type[Exception]
) -> None:
    async def scenario() -> None:
        async with SpoolWriter(target, 10, HASH) as spool:
            await spool.append(Chunk(offset=0, data=b"start"))
            with pytest.raises(error):
                await spool.append(chunk)
            assert spool.offset == 5
        assert partial_bytes(target, HASH) == 5

    asyncio.run(scenario())


@in_loop
async def test_an_empty_payload_is_a_file_too(target: Path) -> None:
    async with SpoolWriter(target, 0, hashlib.sha256().digest()) as spool:
        await spool.receive(send_buffer(b""))
    assert target.read_bytes() == b""


@in_loop
async def test_two_streams_never_write_one_payload(target: Path) -> None:
    async with SpoolWriter(target, len(PAYLOAD), HASH):
        with pytest.raises(UnavailableError, match="another stream"):
            async with SpoolWriter(target, len(PAYLOAD), HASH):
                pass
    async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
        await spool.receive(send_buffer(PAYLOAD))


@in_loop
async def test_a_full_disk_is_a_resource_error(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunks.os, "pwrite", full)
    with pytest.raises(ResourceError, match="No space left"):
        async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
            await spool.receive(send_buffer(PAYLOAD))
    assert not target.exists()


@in_loop
async def test_at_most_two_chunks_of_a_stream_are_in_memory(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    real = os.pwrite

    def counted(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal writes
        writes += 1
        return real(descriptor, data, offset)

    monkeypatch.setattr(chunks.os, "pwrite", counted)
    async with SpoolWriter(target, 50, HASH) as spool:
        for taken in range(5):
            await spool.append(Chunk(offset=spool.offset, data=b"x" * 10))
            assert writes >= taken


@in_loop
async def test_a_cancelled_stream_leaves_a_partial_file_that_can_be_continued(target: Path) -> None:
    async def forever() -> AsyncIterator[Chunk]:
        async for chunk in send_buffer(PAYLOAD[: 2 * CHUNK_BYTES]):
            yield chunk
        await asyncio.sleep(3600)

    async def receive() -> None:
        async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
            await spool.receive(forever())

    task = asyncio.create_task(receive())
    while partial_bytes(target, HASH) < 2 * CHUNK_BYTES:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with SpoolWriter(target, len(PAYLOAD), HASH) as spool:
        assert spool.offset == 2 * CHUNK_BYTES
        await spool.receive(send_buffer(PAYLOAD, spool.offset))
    assert target.read_bytes() == PAYLOAD


@in_loop
async def test_what_cannot_be_sent_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "short"
    source.write_bytes(b"12345")
    with pytest.raises(IntegrityError, match="ends at byte 5"):
        await collect(send_file(source, 0, 6))
    with pytest.raises(ProtocolError, match="beyond"):
        await collect(send_file(source, 6, 5))
    with pytest.raises(ProtocolError, match="beyond"):
        await collect(send_buffer(b"12345", 6))
