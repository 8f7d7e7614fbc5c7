"""A coordinator that says what a test tells it to: the real certificate, real TLS, and no scruples."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message

from fedpalm.clock import SystemClock
from fedpalm.errors import NotFoundError
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.pki.trust import TrustBundle
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanOffer
from fedpalm.rounds.manifest import Countersignature, ManifestHead, RoundManifest
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.transport.chunks import send_buffer
from fedpalm.transport.server import SERVICE_ROLES, build_server
from fedpalm.wire.membership import trust_to_wire
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as pb
from fedpalm.wire.v1 import membership_pb2 as mb
from fedpalm.wire.v1.federation_pb2_grpc import (
    FederationServicer,
    add_FederationServicer_to_server,
)
from fedpalm.wire.v1.membership_pb2_grpc import (
    MembershipServicer,
    add_MembershipServicer_to_server,
)

from .background import Background, wait_until

HEARTBEAT_S = 0.5


class Liar(FederationServicer, MembershipServicer):
    """A context manager. ``calls`` is all that came, by method; what is answered lies in the tables.

    Args:
        home: the folder of the coordinator's TLS identity.
        accomplice: a site that signs whatever the liar wants.
        keys: the signing key of each site, hex, as manifests have it.
    """

    def __init__(
        self, home: Path, address: str, accomplice: TlsIdentity, keys: dict[str, str]
    ) -> None:
        self._home, self._address, self._accomplice = home, address, accomplice
        self.keys = keys
        self.calls: list[tuple[str, Any]] = []
        self.documents: dict[str, pb.PlanDocument] = {}
        self.models: dict[str, bytes] = {}
        self.countersignatures: dict[tuple[str, int, int], list[SignedStatement]] = {}
        self._listeners: list[asyncio.Queue[pb.Instruction]] = []

    def __enter__(self) -> Liar:
        self._background = Background().__enter__()
        self._background.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._background.run(self._server.stop(None))
        self._background.__exit__()

    async def _start(self) -> None:
        identity = LiveIdentity(self._home, SystemClock())
        self.identity = identity.current
        self._server = build_server(
            identity, self._address, roles=SERVICE_ROLES, authorise=lambda peer: None
        )
        add_FederationServicer_to_server(self, self._server.server)  # type: ignore[no-untyped-call]
        add_MembershipServicer_to_server(self, self._server.server)  # type: ignore[no-untyped-call]
        await self._server.start()

    # --- what a test says -------------------------------------------------------------------------

    def tell(self, **kind: Any) -> None:
        """Send an instruction to whoever listens."""
        wait_until(lambda: self._listeners, "a site that listens")

        async def put() -> None:
            for queue in self._listeners:
                queue.put_nowait(pb.Instruction(**kind))

        self._background.run(put())

    def offer(
        self,
        run_id: str,
        plan: Plan,
        *,
        document: bytes | None = None,
        signed: SignedStatement | None = None,
    ) -> None:
        """Offer a run; what is fetched then may be another plan's bytes, or another offer."""
        self.documents[run_id] = pb.PlanDocument(
            plan=document or plan.to_bytes(),
            offer=to_wire(signed or self.signed_offer(run_id, plan)),
        )
        self.tell(run_offer=pb.RunOffer(run_id=run_id, plan_hash=plan.hash))

    def signed_offer(self, run_id: str, plan: Plan) -> SignedStatement:
        return PlanOffer(
            federation=plan.federation, run=run_id, plan_hash=plan.hash.hex(), offered_ms=_now_ms()
        ).sign(self.identity)

    def manifest(
        self,
        plan: Plan,
        run_id: str,
        head: ManifestHead,
        number: int,
        attempt: int = 1,
        **changes: Any,
    ) -> RoundManifest:
        """What would be asked of the whole roster next; or something else."""
        values = {
            "federation": plan.federation,
            "run": run_id,
            "plan_hash": plan.hash.hex(),
            "seq": head.size,
            "previous": head.hash.hex(),
            "round": number,
            "attempt": attempt,
            "cohort": list(plan.roster),
            "model_hash": self.model(plan, number),
            "sealed_ms": _now_ms(),
            **changes,
        }
        keys = {"signing_keys": {site: self.keys.get(site, "0" * 64) for site in values["cohort"]}}
        return RoundManifest.model_validate({**keys, **values})

    def model(self, plan: Plan, number: int) -> str:
        """A vector for the start of a round; of the first one, the plan's."""
        seed = plan.draft.seed if number == 1 else plan.draft.seed + 1000 + number
        vector: np.ndarray = rehearsal_vector(plan.model_layout, seed).astype("<f4")
        name = hashlib.sha256(vector.tobytes()).hexdigest()
        self.models[name] = vector.tobytes()
        return name

    def ask(self, manifest: RoundManifest, signed: SignedStatement | None = None) -> None:
        """Order a round, as the manifest says or as ``signed`` does."""
        ref = pb.RoundRef(run_id=manifest.run, round=manifest.round, attempt=manifest.attempt)
        signed = signed or manifest.sign(self.identity)
        self.tell(train=pb.TrainRound(ref=ref, manifest=to_wire(signed)))

    def let_the_accomplice_sign(self, manifest: RoundManifest) -> None:
        signed = Countersignature(
            federation=manifest.federation,
            run=manifest.run,
            round=manifest.round,
            attempt=manifest.attempt,
            manifest_hash=manifest.hash.hex(),
            site=self._accomplice.identity.name,
        ).sign(self._accomplice)
        place = (manifest.run, manifest.round, manifest.attempt)
        self.countersignatures.setdefault(place, []).append(signed)

    def end(self, run_id: str) -> None:
        self.tell(
            run_ended=pb.RunEnded(
                run_id=run_id, completed=False, model_hash=bytes(32), reason="seen enough"
            )
        )

    # --- what came --------------------------------------------------------------------------------

    def came(self, method: str, run_id: str) -> list[Any]:
        """The messages of a method that are about a run."""
        return [
            message
            for name, message in list(self.calls)
            if name == method
            and run_id in (_run_of(message), _run_of(getattr(message, "ref", None)))
        ]

    def wait_for(self, method: str, run_id: str, count: int = 1) -> list[Any]:
        wait_until(lambda: len(self.came(method, run_id)) >= count, f"{method} in {run_id}")
        return self.came(method, run_id)

    # --- the services -----------------------------------------------------------------------------

    async def Hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloReply:
        self.calls.append(("Hello", request))
        return pb.HelloReply(
            protocol_version=1,
            federation_id=self.identity.identity.federation,
            heartbeat_ms=round(HEARTBEAT_S * 1000),
        )

    async def FetchTrust(self, request: mb.FetchTrustRequest, context: Any) -> mb.TrustBundle:
        return trust_to_wire(TrustBundle(self.identity.anchors, ()))

    async def FetchPlan(self, request: pb.FetchPlanRequest, context: Any) -> pb.PlanDocument:
        self.calls.append(("FetchPlan", request))
        if request.run_id not in self.documents:
            raise NotFoundError(f"no run {request.run_id}")
        return self.documents[request.run_id]

    async def AnswerPlan(self, request: pb.AnswerPlanRequest, context: Any) -> pb.AnswerPlanReply:
        self.calls.append(("AnswerPlan", request))
        return pb.AnswerPlanReply()

    async def JoinRun(self, request: pb.JoinRunRequest, context: Any) -> pb.JoinRunReply:
        self.calls.append(("JoinRun", request))
        return pb.JoinRunReply()

    async def Instructions(
        self, request: pb.InstructionsRequest, context: Any
    ) -> AsyncIterator[pb.Instruction]:
        queue: asyncio.Queue[pb.Instruction] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        one = await queue.get()
                except TimeoutError:
                    one = pb.Instruction(heartbeat=pb.Heartbeat())
                yield one
        finally:
            self._listeners.remove(queue)

    async def DownloadModel(
        self, request: pb.DownloadModelRequest, context: Any
    ) -> AsyncIterator[pb.Chunk]:
        async for chunk in send_buffer(self.models[request.model_hash.hex()], request.offset):
            yield chunk

    async def Countersign(
        self, request: pb.CountersignRequest, context: Any
    ) -> pb.CountersignReply:
        self.calls.append(("Countersign", request))
        ref = request.ref
        place = (ref.run_id, ref.round, ref.attempt)
        self.countersignatures.setdefault(place, []).append(from_wire(request.countersignature))
        return pb.CountersignReply()

    async def FetchCountersignatures(
        self, request: pb.RoundRef, context: Any
    ) -> AsyncIterator[pb.SignedStatement]:
        self.calls.append(("FetchCountersignatures", request))
        place = (request.run_id, request.round, request.attempt)
        for signed in self.countersignatures.get(place, []):
            yield to_wire(signed)

    async def FetchManifests(
        self, request: pb.FetchManifestsRequest, context: Any
    ) -> AsyncIterator[pb.SignedStatement]:
        self.calls.append(("FetchManifests", request))
        for signed in ():
            yield signed

    async def UpdateOffset(self, request: pb.UpdateHeader, context: Any) -> pb.OffsetReply:
        self.calls.append(("UpdateOffset", request))
        return pb.OffsetReply(offset=0)

    async def UploadUpdate(
        self, requests: AsyncIterator[pb.UploadRequest], context: Any
    ) -> pb.Receipt:
        header = (await anext(requests)).header
        self.calls.append(("UploadUpdate", header))
        data = b"".join([request.chunk.data async for request in requests])
        ref = header.ref
        receipt = PayloadReceipt(
            federation=self.identity.identity.federation,
            site=header.site_id,
            payload="update",
            place=f"{ref.run_id}/{ref.round}/{ref.attempt}",
            payload_hash=hashlib.sha256(data).hexdigest(),
            payload_bytes=len(data),
            received_ms=_now_ms(),
        )
        return pb.Receipt(receipt=to_wire(receipt.sign(self.identity)))


def _run_of(message: Message | None) -> str:
    return str(getattr(message, "run_id", ""))


def _now_ms() -> int:
    return round(time.time() * 1000)
