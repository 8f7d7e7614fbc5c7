"""A coordinator that really listens, in this process, and callers of it that say what they like."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.config import CoordinatorSettings, Home
from coordinator.registry import Registry
from coordinator.server import listening
from coordinator.state import Coordinator
from coordinator.store import Store
from fedpalm.clock import SystemClock
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.pki.authority import create_authority, save_authority
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import Role
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.secagg.messages import Signed
from fedpalm.secagg.unmasking import Step
from fedpalm.transport.channel import Connection
from fedpalm.transport.chunks import send_buffer
from fedpalm.wire import masking
from fedpalm.wire.masking import step_to_wire
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import operator_pb2 as o
from tests.support.agreement import answer
from tests.support.pki import TestAuthority
from tests.support.servicer import live_identity

DEADLINE_S = 20.0


def manifest_of(order: f.TrainRound) -> RoundManifest:
    """What an order to train says, unverified."""
    return RoundManifest.read(from_wire(order.manifest))


def receipt_of(receipt: f.Receipt) -> PayloadReceipt:
    """What a receipt says, unverified."""
    return PayloadReceipt.read(from_wire(receipt.receipt))


@dataclass
class Operator:
    """Calls of the operator service."""

    connection: Connection

    async def call(self, method: str, request: Any) -> Any:
        return await self.connection.unary(
            getattr(self.connection.operator, method), request, deadline_s=DEADLINE_S
        )

    async def submit(self, plan: Plan, model: bytes | None = None) -> o.SubmitPlanReply:
        vector = rehearsal_vector(plan.model_layout, plan.draft.seed).astype("<f4").tobytes()

        async def parts() -> AsyncIterator[o.SubmitPlanRequest]:
            yield o.SubmitPlanRequest(plan=plan.to_bytes())
            async for chunk in send_buffer(vector if model is None else model):
                yield o.SubmitPlanRequest(chunk=chunk)

        return await self.connection.upload(
            self.connection.operator.SubmitPlan, parts(), deadline_s=DEADLINE_S
        )

    async def start(self, plan: Plan) -> str:
        reply = await self.submit(plan)
        await self.call("StartRun", o.RunRef(run_id=reply.run_id))
        return str(reply.run_id)


@dataclass
class Site:
    """Calls of the federation service under one site's certificate."""

    name: str
    connection: Connection
    identity: TlsIdentity

    async def call(self, method: str, request: Any) -> Any:
        return await self.connection.unary(
            getattr(self.connection.federation, method), request, deadline_s=DEADLINE_S
        )

    async def list(self, method: str, request: Any) -> list[SignedStatement]:
        """A stream of signed statements."""
        stream = self.connection.stream(
            getattr(self.connection.federation, method), request, idle_s=DEADLINE_S
        )
        return [from_wire(one) async for one in stream]

    async def answer(self, run_id: str, plan: Plan, kind: str = "approve", number: int = 1) -> None:
        signed = answer(self.identity, run_id, plan, kind, number)
        request = f.AnswerPlanRequest(run_id=run_id, site_id=self.name, answer=to_wire(signed))
        await self.call("AnswerPlan", request)

    @asynccontextmanager
    async def instructions(self) -> AsyncIterator[AsyncIterator[f.Instruction]]:
        """What the coordinator says, heartbeats left out."""
        stream = self.connection.stream(
            self.connection.federation.Instructions,
            f.InstructionsRequest(site_id=self.name),
            idle_s=DEADLINE_S,
        )

        async def telling() -> AsyncIterator[f.Instruction]:
            async for one in stream:
                if one.WhichOneof("kind") != "heartbeat":
                    yield one

        async with aclosing(stream):  # type: ignore[type-var]
            yield telling()

    async def join(self, run_id: str, plan: Plan) -> None:
        await self.call(
            "JoinRun",
            f.JoinRunRequest(
                run_id=run_id,
                site_id=self.name,
                plan_hash=plan.hash,
                layout_hash=plan.model_layout.hash,
            ),
        )

    async def download(self, run_id: str, model_hash: bytes, offset: int = 0) -> bytes:
        request = f.DownloadModelRequest(run_id=run_id, model_hash=model_hash, offset=offset)
        data = b""
        async for chunk in self.connection.stream(
            self.connection.federation.DownloadModel, request, idle_s=DEADLINE_S
        ):
            assert chunk.offset == offset + len(data)
            data += chunk.data
        return data

    def header(self, order: f.TrainRound, plan: Plan, payload: bytes) -> f.UpdateHeader:
        return f.UpdateHeader(
            ref=order.ref,
            site_id=self.name,
            plan_hash=plan.hash,
            model_hash=bytes.fromhex(manifest_of(order).model_hash),
            payload_hash=hashlib.sha256(payload).digest(),
            payload_bytes=len(payload),
        )

    async def send_masking(
        self, ref: f.RoundRef, step: Step, said: Sequence[Signed], /, **wrong: Any
    ) -> None:
        """All that this site says in a step, under a header with these fields changed."""
        header = {"ref": ref, "site_id": self.name, "step": step_to_wire(step), **wrong}

        async def parts() -> AsyncIterator[f.SendMaskingRequest]:
            yield f.SendMaskingRequest(header=f.MaskingHeader(**header))
            for one in said:
                yield f.SendMaskingRequest(message=masking.to_wire(one))

        await self.connection.upload(
            self.connection.federation.SendMasking, parts(), deadline_s=DEADLINE_S
        )

    async def fetch_masking(self, ref: f.RoundRef, step: Step) -> list[Signed]:
        request = f.FetchMaskingRequest(ref=ref, site_id=self.name, step=step_to_wire(step))
        stream = self.connection.stream(
            self.connection.federation.FetchMasking, request, idle_s=DEADLINE_S
        )
        return [masking.from_wire(one) async for one in stream]

    async def upload_sealed(self, ref: f.ExchangeRef, sealed: bytes) -> f.Receipt:
        """The site's sealed expert."""
        header = f.SealedExpertHeader(
            ref=f.SealedExpertRef(exchange=ref, sender=self.name),
            payload_hash=hashlib.sha256(sealed).digest(),
            payload_bytes=len(sealed),
        )

        async def parts() -> AsyncIterator[f.UploadExpertRequest]:
            yield f.UploadExpertRequest(header=header)
            async for chunk in send_buffer(sealed):
                yield f.UploadExpertRequest(chunk=chunk)

        return await self.connection.upload(
            self.connection.federation.UploadSealedExpert, parts(), deadline_s=DEADLINE_S
        )

    async def download_sealed(self, ref: f.ExchangeRef, sender: str) -> bytes:
        """Another signer's sealed expert."""
        stream = self.connection.stream(
            self.connection.federation.DownloadSealedExpert,
            f.SealedExpertRef(exchange=ref, sender=sender),
            idle_s=DEADLINE_S,
        )
        return b"".join([chunk.data async for chunk in stream])

    async def expert_keys(self, ref: f.ExchangeRef) -> list[f.WrappedKey]:
        """What is wrapped for this site."""
        stream = self.connection.stream(
            self.connection.federation.FetchExpertKeys, ref, idle_s=DEADLINE_S
        )
        return [key async for key in stream]

    async def upload(
        self, header: f.UpdateHeader, payload: bytes, offset: int = 0, until: int | None = None
    ) -> f.Receipt:
        async def parts() -> AsyncIterator[f.UploadRequest]:
            yield f.UploadRequest(header=header)
            async for chunk in send_buffer(payload[:until], offset):
                yield f.UploadRequest(chunk=chunk)

        return await self.connection.upload(
            self.connection.federation.UploadUpdate, parts(), deadline_s=DEADLINE_S
        )


@dataclass
class RunningCoordinator:
    """Its address, its parts and its people."""

    address: str
    coordinator: Coordinator
    authority: TestAuthority
    people: dict[str, TlsIdentity]

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Operator]:
        async with Connection(self.address, self.people["operator"]) as connection:
            yield Operator(connection)

    @asynccontextmanager
    async def site(self, name: str, identity: TlsIdentity | None = None) -> AsyncIterator[Site]:
        identity = identity or self.people[name]
        async with Connection(self.address, identity) as connection:
            yield Site(name, connection, identity)


class World:
    """A home folder, a CA and people, for coordinators that come and go."""

    def __init__(self, root: Path, *sites: str, **settings: Any) -> None:
        self.home = Home(root)
        founded, root_key = create_authority("simulated", time.time())
        save_authority(self.home.authority, founded, root_key)
        self.authority = TestAuthority.of(founded)
        self.settings = CoordinatorSettings(
            federation="simulated", listen="127.0.0.1:0", **{"heartbeat_s": 0.2, **settings}
        )
        hub = self.authority.enrol(Role.COORDINATOR, "coordinator")
        self.identity = live_identity(self.home.tls, hub)
        self.people = {"operator": self.authority.enrol(Role.OPERATOR, "olga")}
        with Store.open(self.home.store) as store:
            Registry(store).certificate_issued(self.people["operator"].leaf, 1)
        for site in sites:
            self.admit(site)

    def admit(self, site: str) -> TlsIdentity:
        """Let a site in with fresh keys; what its name had before is over."""
        self.people[site] = member = self.authority.enrol(Role.PARTICIPANT, site)
        with Store.open(self.home.store) as store:
            registry = Registry(store)
            registry.admit(
                member.leaf, breaks=registry.breaks(site), at_ms=1, operator="olga", action="sign"
            )
        return member

    def revoke(self, site: str) -> None:
        """As the operator's command does, in the store and past the process that serves."""
        with Store.open(self.home.store) as store:
            Registry(store).revoke(site, "a test", at_ms=round(time.time() * 1000), operator="olga")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RunningCoordinator]:
        with Store.open(self.home.store) as store:
            coordinator = Coordinator.build(
                self.home, self.settings, self.identity, store, SystemClock()
            )
            async with listening(coordinator, self.home) as address:
                yield RunningCoordinator(address, coordinator, self.authority, self.people)
