"""Certificates and anchors that change under a running server, and clients in the middle of it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.errors import FedPalmError, IdentityError, UnavailableError
from fedpalm.pki.bundle import CA, TLS_CHAIN, TlsIdentity, pem_of
from fedpalm.pki.files import write_public
from fedpalm.pki.identity import Role
from fedpalm.transport.channel import Connection
from fedpalm.transport.server import GatedServer
from fedpalm.wire.v1.federation_pb2 import HelloRequest, Instruction, InstructionsRequest
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.servicer import Recorder, live_identity, running

OLD, NEW = TestAuthority("palms"), TestAuthority("palms")
HUB, HUB_ANEW = OLD.enrol(Role.COORDINATOR, "hub"), OLD.enrol(Role.COORDINATOR, "hub")
NORTH = OLD.enrol(Role.PARTICIPANT, "north")


class Beating(Recorder):
    """A stream that goes on."""

    async def Instructions(
        self, request: InstructionsRequest, context: Any
    ) -> AsyncIterator[Instruction]:
        while True:
            yield Instruction()
            await asyncio.sleep(0.01)


async def hello(gated: GatedServer, tls: TlsIdentity) -> None:
    """One call on a connection of its own."""
    async with Connection(f"127.0.0.1:{gated.port}", tls) as connection:
        await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)


async def served_leaf(gated: GatedServer, tls: TlsIdentity) -> bytes:
    """The certificate that a new connection gets to see, in DER."""
    context = ssl.create_default_context(cadata=tls.ca_pem.decode())
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", gated.port, ssl=context)
    der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return der


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def trusting(tls: TlsIdentity, *authorities: TestAuthority) -> TlsIdentity:
    """The same identity with these anchors pinned."""
    anchors = tuple(a for authority in authorities for a in authority.authority.anchors)
    return replace(tls, anchors=anchors, ca_pem=pem_of(anchors))


@in_loop
async def _renewed(folder: Path) -> None:
    identity = live_identity(folder, HUB)
    async with running(Beating(), identity) as gated:
        assert await served_leaf(gated, NORTH) == der_of(HUB.leaf)
        async with Connection(f"127.0.0.1:{gated.port}", NORTH) as connection:
            stream = connection.stream(
                connection.federation.Instructions, InstructionsRequest(), idle_s=10
            )
            await anext(stream)
            live_identity(folder, HUB_ANEW)
            await gated.recheck()
            assert await served_leaf(gated, NORTH) == der_of(HUB_ANEW.leaf)
            for _ in range(5):
                await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
        await hello(gated, NORTH)


def test_a_renewed_certificate_serves_new_connections_and_open_ones_go_on(tmp_path: Path) -> None:
    _renewed(tmp_path)


@in_loop
async def _by_itself(folder: Path) -> None:
    identity = live_identity(folder, HUB)
    async with running(Recorder(), identity) as gated:
        live_identity(folder, HUB_ANEW)
        while await served_leaf(gated, NORTH) != der_of(HUB_ANEW.leaf):
            await asyncio.sleep(0.1)


def test_the_server_notices_a_renewal_by_itself(tmp_path: Path) -> None:
    _by_itself(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: write_public(folder / TLS_CHAIN, b"-----BEGIN CERTIFICATE-----\nno\n"),
        lambda folder: write_public(folder / TLS_CHAIN, HUB_ANEW.chain_pem),
        lambda folder: write_public(folder / CA, pem_of(NEW.authority.anchors)),
        lambda folder: (folder / TLS_CHAIN).unlink(),
        lambda folder: live_identity(folder, NORTH),
    ],
    ids=["not PEM", "of another key", "of another CA", "gone", "of somebody else"],
)
def test_files_that_cannot_be_used_change_nothing_and_are_logged_once(
    spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def run() -> None:
        async with running(Recorder(), live_identity(tmp_path, HUB)) as gated:
            spoil(tmp_path)
            for _ in range(3):
                await gated.recheck()
            assert await served_leaf(gated, NORTH) == der_of(HUB.leaf)
            await hello(gated, NORTH)
            complaints = [r for r in caplog.records if "are not used" in r.getMessage()]
            assert len(complaints) == 1 and complaints[0].levelno == logging.ERROR
            live_identity(tmp_path, HUB_ANEW)
            await gated.recheck()
            assert await served_leaf(gated, NORTH) == der_of(HUB_ANEW.leaf)

    run()


@in_loop
async def _rotation(folder: Path) -> None:
    """Anchors of two CAs for a while: whoever has either certificate and either anchor gets through."""
    north_anew = NEW.enrol(Role.PARTICIPANT, "north")
    hub_of_new = NEW.enrol(Role.COORDINATOR, "hub")
    async with running(Recorder(), live_identity(folder, HUB)) as gated:
        await hello(gated, NORTH)
        with pytest.raises(FedPalmError):
            await hello(gated, trusting(north_anew, OLD))
        # The new root is trusted beside the old one, which the coordinator's own leaf is still under.
        live_identity(folder, trusting(HUB, OLD, NEW))
        await gated.recheck()
        await hello(gated, NORTH)
        await hello(gated, trusting(NORTH, OLD, NEW))
        await hello(gated, trusting(north_anew, OLD, NEW))
        # The coordinator's leaf is of the new CA: sites that have taken up the new anchor follow.
        live_identity(folder, trusting(hub_of_new, OLD, NEW))
        await gated.recheck()
        await hello(gated, trusting(NORTH, OLD, NEW))
        await hello(gated, trusting(north_anew, NEW))
        with pytest.raises(IdentityError, match="does not lead to this federation's CA"):
            await hello(gated, NORTH)
        # The old root is retired.
        live_identity(folder, trusting(hub_of_new, NEW))
        await gated.recheck()
        await hello(gated, trusting(north_anew, NEW))
        with pytest.raises((IdentityError, UnavailableError)):
            await hello(gated, trusting(NORTH, OLD, NEW))


def test_a_root_is_replaced_without_a_restart(tmp_path: Path) -> None:
    _rotation(tmp_path)
