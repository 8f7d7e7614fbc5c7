"""A channel without the hybrid key exchange: TLS 1.3 makes it, and no call on it reaches a handler.

gRPC's own client always offers the hybrid group, so the caller here is Python's TLS with HTTP/2 by hand.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from fedpalm.pki.bundle import TLS_CHAIN, TLS_KEY
from fedpalm.pki.identity import Role
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.servicer import Desk, Recorder, enrolling, live_identity, running

AUTHORITY = TestAuthority("palms")
HUB = AUTHORITY.enrol(Role.COORDINATOR, "hub")
NORTH = AUTHORITY.enrol(Role.PARTICIPANT, "north")

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


def _headers(path: str) -> bytes:
    """RFC 7541, section 6.2.2: literals without indexing and without Huffman coding."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "coordinator",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    coded = b""
    for name, value in fields.items():
        coded += b"\x00" + bytes((len(name),)) + name.encode()
        coded += bytes((len(value),)) + value.encode()
    return coded


async def _call(port: int, folder: Path, path: str) -> tuple[str, bytes]:
    """One unary call with an empty request: the TLS version, and what came back."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.check_hostname = False
    context.load_cert_chain(folder / TLS_CHAIN, folder / TLS_KEY)
    context.set_alpn_protocols(["h2"])
    context.set_ecdh_curve("prime256v1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    version: str = writer.get_extra_info("ssl_object").version()
    writer.write(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, _headers(path))
        + _frame(_DATA, _END_STREAM, 1, bytes(5))
    )
    answer = b""
    while b"grpc-status" not in answer:
        part = await asyncio.wait_for(reader.read(65536), 10)
        if not part:
            break
        answer += part
    writer.close()
    return version, answer


@in_loop
async def _members(folder: Path, site: Path) -> None:
    recorder = Recorder()
    async with running(recorder, live_identity(folder, HUB)) as gated:
        version, answer = await _call(gated.port, site, "/fedpalm.wire.v1.Federation/Hello")
    assert version == "TLSv1.3"
    assert b"ssl_negotiated_key_exchange_group is" in answer and b"not X25519MLKEM768" in answer
    assert recorder.calls == []


def test_a_member_without_the_hybrid_key_exchange_is_refused(tmp_path: Path) -> None:
    _members(_folder(tmp_path, "hub"), _site(tmp_path))


@in_loop
async def _newcomers(folder: Path, site: Path) -> None:
    desk = Desk()
    async with enrolling(desk, live_identity(folder, HUB)) as listener:
        version, answer = await _call(listener.port, site, "/fedpalm.wire.v1.Enrolment/Enrol")
    assert version == "TLSv1.3"
    assert b"ssl_negotiated_key_exchange_group is" in answer and b"not X25519MLKEM768" in answer
    assert desk.requests == []


def test_a_newcomer_without_the_hybrid_key_exchange_is_refused(tmp_path: Path) -> None:
    _newcomers(_folder(tmp_path, "hub"), _site(tmp_path))


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir(mode=0o700)
    return folder


def _site(tmp_path: Path) -> Path:
    folder = _folder(tmp_path, "north")
    live_identity(folder, NORTH)
    return folder
