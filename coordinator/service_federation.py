"""What sites may call. Each handler checks who sends, asks the conductor, and answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fedpalm import __version__
from fedpalm.errors import (
    FedPalmError,
    MaskingMessageError,
    NotFoundError,
    ProtocolError,
    SenderMismatchError,
    VersionMismatchError,
)
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.events import RoundRef
from fedpalm.secagg.codec import BYTES_PER_VALUE
from fedpalm.text import one_line
from fedpalm.transport.chunks import SpoolWriter, partial_bytes, send_file
from fedpalm.transport.peer import Context, current_peer
from fedpalm.wire import checkpoints, masking
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as pb
from fedpalm.wire.v1.federation_pb2_grpc import FederationServicer
from fedpalm.wire.v1.masking_pb2 import MaskingMessage

from .aggregate import check_values
from .claims import SealedClaim, UpdateClaim, sealed_claim, update_claim
from .exchange_relay import KeyClaim
from .state import Coordinator

PROTOCOL_VERSION = 1
PATIENCE_S = 600.0
"""How long a transfer waits for a place where no round deadline says it."""


class FederationService(FederationServicer):
    """The service ``fedpalm.wire.v1.Federation``."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloReply:
        site = _sender(context, request.site_id)
        if PROTOCOL_VERSION not in request.protocol_versions:
            raise VersionMismatchError(
                f"site {site} speaks versions {list(request.protocol_versions)} of the contract, "
                f"the coordinator speaks {PROTOCOL_VERSION}",
                next_step="install a version of fedpalm that speaks it",
            )
        version = one_line(request.software_version)
        self._c.registry.site_seen(site, self._c.now_ms(), version)
        return pb.HelloReply(
            protocol_version=PROTOCOL_VERSION,
            federation_id=self._c.settings.federation,
            software_version=__version__,
            heartbeat_ms=round(self._c.settings.heartbeat_s * 1000),
        )

    async def FetchPlan(self, request: pb.FetchPlanRequest, context: Context) -> pb.PlanDocument:
        self._c.conductor.require_on_roster(request.run_id, _caller(context))
        plan, offer = (
            self._c.conductor.plan(request.run_id),
            self._c.conductor.offer(request.run_id),
        )
        return pb.PlanDocument(plan=plan.to_bytes(), offer=to_wire(offer))

    async def AnswerPlan(
        self, request: pb.AnswerPlanRequest, context: Context
    ) -> pb.AnswerPlanReply:
        site = _sender(context, request.site_id)
        self._c.conductor.answer_plan(request.run_id, site, from_wire(request.answer))
        return pb.AnswerPlanReply()

    async def JoinRun(self, request: pb.JoinRunRequest, context: Context) -> pb.JoinRunReply:
        site = _sender(context, request.site_id)
        self._c.conductor.join(request.run_id, site, request.plan_hash, request.layout_hash)
        return pb.JoinRunReply()

    async def Instructions(
        self, request: pb.InstructionsRequest, context: Context
    ) -> AsyncIterator[pb.Instruction]:
        site = _sender(context, request.site_id)
        sessions, conductor = self._c.driver.sessions, self._c.conductor
        if site in sessions.connected():
            conductor.site_disconnected(site)
        session = sessions.open(site)
        try:
            self._c.registry.site_seen(site, self._c.now_ms())
            conductor.site_connected(site)
            self._c.exchanges.site_connected(site)
            stream = session.stream(self._c.settings.heartbeat_s)
            async with aclosing(stream):
                async for instruction in stream:
                    yield instruction
        finally:
            if sessions.close(site, session):
                conductor.site_disconnected(site)
                self._c.registry.site_seen(site, self._c.now_ms())

    async def DownloadModel(
        self, request: pb.DownloadModelRequest, context: Context
    ) -> AsyncIterator[pb.Chunk]:
        run_id, model_hash = request.run_id, request.model_hash.hex()
        site = _caller(context)
        self._c.conductor.require_on_roster(run_id, site)
        if model_hash not in self._c.runs.models(run_id).values():
            raise NotFoundError(f"run {run_id} has no model {model_hash[:16]}")
        path = self._c.spool.existing_model(model_hash)
        size = self._c.conductor.codec(run_id).parameters * BYTES_PER_VALUE
        chunks = self._c.transfers.relayed(
            ("down", site), self._patience_s(run_id), size, send_file(path, request.offset, size)
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def UpdateOffset(self, request: pb.UpdateHeader, context: Context) -> pb.OffsetReply:
        claim = update_claim(request, _sender(context, request.site_id))
        known = self._c.conductor.updates.check(claim)
        if known is not None:
            return pb.OffsetReply(offset=claim.payload_bytes, receipt=_receipt(known))
        path = self._update_path(claim)
        if path.exists():
            return pb.OffsetReply(offset=claim.payload_bytes)
        return pb.OffsetReply(offset=partial_bytes(path, request.payload_hash))

    async def UploadUpdate(
        self, requests: AsyncIterator[pb.UploadRequest], context: Context
    ) -> pb.Receipt:
        header = await _header(requests)
        claim = update_claim(header, _sender(context, header.site_id))
        known = self._c.conductor.updates.check(claim)
        if known is not None:
            return _receipt(known)
        try:
            receipt = await self._c.takeover.run(
                ("update", claim.run_id, claim.site), self._take_update(claim, header, requests)
            )
        except FedPalmError:
            # If the round closed meanwhile, that is the reason, and not what came of it.
            self._c.conductor.updates.check(claim)
            raise
        return _receipt(receipt)

    # --- statements -------------------------------------------------------------------------------

    async def FetchManifests(
        self, request: pb.FetchManifestsRequest, context: Context
    ) -> AsyncIterator[pb.SignedStatement]:
        site = _caller(context)
        for signed in self._c.statements.manifests(request.run_id, site, request.from_seq):
            yield to_wire(signed)

    async def Countersign(
        self, request: pb.CountersignRequest, context: Context
    ) -> pb.CountersignReply:
        site, ref = _sender(context, request.site_id), request.ref
        signed = from_wire(request.countersignature)
        self._c.statements.countersign(ref.run_id, _round_ref(ref), site, signed)
        return pb.CountersignReply()

    async def FetchCountersignatures(
        self, request: pb.RoundRef, context: Context
    ) -> AsyncIterator[pb.SignedStatement]:
        site, ref = _caller(context), _round_ref(request)
        for signed in self._c.statements.countersignatures(request.run_id, site, ref):
            yield to_wire(signed)

    async def ListReceipts(
        self, request: pb.ListReceiptsRequest, context: Context
    ) -> AsyncIterator[pb.SignedStatement]:
        for signed in self._c.statements.receipts(request.run_id, _caller(context)):
            yield to_wire(signed)

    # --- checkpoints ------------------------------------------------------------------------------

    async def GiveCheckpoint(
        self, request: pb.GiveCheckpointRequest, context: Context
    ) -> pb.GiveCheckpointReply:
        site, ref = _sender(context, request.site_id), request.ref
        given = [checkpoints.from_wire(one) for one in request.given]
        self._c.conductor.checkpoints.give(ref.run_id, _round_ref(ref), site, given)
        return pb.GiveCheckpointReply()

    async def FetchCheckpoints(
        self, request: pb.FetchCheckpointsRequest, context: Context
    ) -> AsyncIterator[pb.GivenCheckpoint]:
        site, ref = _sender(context, request.site_id), request.ref
        for given in self._c.conductor.checkpoints.fetch(
            ref.run_id, _round_ref(ref), site, request.from_seq, request.newest
        ):
            yield checkpoints.to_wire(given)

    # --- masked attempts --------------------------------------------------------------------------

    async def SendMasking(
        self, requests: AsyncIterator[pb.SendMaskingRequest], context: Context
    ) -> pb.SendMaskingReply:
        header = await _header(requests)
        site, ref, run_id = _sender(context, header.site_id), header.ref, header.ref.run_id
        conductor = self._c.conductor
        conductor.require_on_roster(run_id, site)
        most = len(conductor.plan(run_id).roster)
        said = []
        async for request in requests:
            if request.WhichOneof("part") != "message":
                raise ProtocolError("a masking message has one header, then what is said")
            said.append(masking.from_wire(request.message))
            if len(said) > most:
                raise MaskingMessageError(
                    f"site {site} says more than {most} things in one step",
                    safe="nothing was stored",
                )
        step = masking.step_from_wire(header.step)
        conductor.masking.take(run_id, _round_ref(ref), site, step, said)
        return pb.SendMaskingReply()

    async def FetchMasking(
        self, request: pb.FetchMaskingRequest, context: Context
    ) -> AsyncIterator[MaskingMessage]:
        site, ref = _sender(context, request.site_id), request.ref
        self._c.conductor.require_on_roster(ref.run_id, site)
        step = masking.step_from_wire(request.step)
        for one in self._c.conductor.masking.fetch(ref.run_id, _round_ref(ref), site, step):
            yield masking.to_wire(one)

    # --- the exchange of experts ------------------------------------------------------------------

    async def SendConsent(self, request: pb.ConsentRequest, context: Context) -> pb.ConsentReply:
        site, ref = _sender(context, request.site_id), request.ref
        if request.WhichOneof("answer") == "consent":
            signed = from_wire(request.consent)
            self._c.exchanges.consent(ref.run_id, ref.exchange_id, site, signed)
        elif request.WhichOneof("answer") == "refusal":
            self._c.exchanges.refuse(ref.run_id, ref.exchange_id, site, request.refusal)
        else:
            raise ProtocolError("neither a consent nor a refusal")
        return pb.ConsentReply()

    async def FetchConsents(
        self, request: pb.ExchangeRef, context: Context
    ) -> AsyncIterator[pb.SignedStatement]:
        site = _caller(context)
        for signed in self._c.exchanges.consents(request.run_id, request.exchange_id, site):
            yield to_wire(signed)

    async def UploadSealedExpert(
        self, requests: AsyncIterator[pb.UploadExpertRequest], context: Context
    ) -> pb.Receipt:
        header = await _header(requests)
        claim = sealed_claim(header, _sender(context, header.ref.sender))
        receipt = self._c.relay.check_sealed(claim)
        if receipt is None:
            try:
                receipt = await self._c.takeover.run(
                    ("expert", claim.exchange_id, claim.sender),
                    self._take_sealed(claim, header, requests),
                )
            except FedPalmError:
                # If the exchange ended meanwhile, that is the reason, and not what came of it.
                self._c.relay.check_sealed(claim)
                raise
        return _receipt(receipt)

    async def DownloadSealedExpert(
        self, request: pb.SealedExpertRef, context: Context
    ) -> AsyncIterator[pb.Chunk]:
        site, ref = _caller(context), request.exchange
        path, size = self._c.relay.deliverable(ref.run_id, ref.exchange_id, request.sender, site)
        chunks = self._c.transfers.relayed(
            ("down", site), PATIENCE_S, size, send_file(path, 0, size)
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def SendExpertKeys(
        self, request: pb.ExpertKeysRequest, context: Context
    ) -> pb.ExpertKeysReply:
        site, ref = _sender(context, request.site_id), request.ref
        keys = [KeyClaim(one.sender, one.recipient, one.wrapped) for one in request.keys]
        self._c.relay.take_keys(ref.run_id, ref.exchange_id, site, keys)
        return pb.ExpertKeysReply()

    async def FetchExpertKeys(
        self, request: pb.ExchangeRef, context: Context
    ) -> AsyncIterator[pb.WrappedKey]:
        for key in self._c.relay.keys(request.run_id, request.exchange_id, _caller(context)):
            yield pb.WrappedKey(sender=key.sender, recipient=key.recipient, wrapped=key.wrapped)

    async def ConfirmExperts(
        self, request: pb.ConfirmExpertsRequest, context: Context
    ) -> pb.ConfirmExpertsReply:
        site, ref = _sender(context, request.site_id), request.ref
        self._c.relay.confirm(ref.run_id, ref.exchange_id, site, from_wire(request.receipt))
        return pb.ConfirmExpertsReply()

    # --- inside -----------------------------------------------------------------------------------

    def _update_path(self, claim: UpdateClaim) -> Path:
        return self._c.spool.update(claim.run_id, claim.ref, claim.site, claim.payload_hash)

    async def _take_update(
        self, claim: UpdateClaim, header: pb.UpdateHeader, requests: AsyncIterator[Any]
    ) -> SignedStatement:
        """Receive an update, unless a crash came between its last byte and its receipt; count it.

        The values of a masked one say nothing, so nothing can be said about them.

        Runs alone for its site, and the earlier stream may have been counted while this one waited:
        so it asks again before it deletes anything.
        """
        known = self._c.conductor.updates.check(claim)
        if known is not None:
            return known
        path = self._update_path(claim)
        self._c.spool.drop_other_parts(path)
        if not path.exists():
            await self._receive(claim.run_id, claim.site, path, header, requests)
        if claim.masked is None:
            try:
                codec = self._c.conductor.codec(claim.run_id)
                await asyncio.to_thread(check_values, codec, path, claim.site)
            except ProtocolError:
                path.unlink(missing_ok=True)
                raise
        return self._c.conductor.updates.accept(claim)

    async def _take_sealed(
        self, claim: SealedClaim, header: pb.SealedExpertHeader, requests: AsyncIterator[Any]
    ) -> SignedStatement:
        """Receive a sealed expert from its first byte, and count it; asks again as for an update."""
        relay = self._c.relay
        known = relay.check_sealed(claim)
        if known is not None:
            return known
        path = relay.sealed_path(claim)
        _unlink_all(path)
        await self._receive(claim.run_id, claim.sender, path, header, requests)
        return relay.accept_sealed(claim)

    async def _receive(
        self, run_id: str, site: str, path: Path, header: Any, requests: AsyncIterator[Any]
    ) -> None:
        patience_s, size = self._patience_s(run_id), header.payload_bytes
        async with (
            self._c.transfers.slot(("up", site), patience_s, size),
            SpoolWriter(path, size, header.payload_hash) as writer,
        ):
            await writer.receive(_chunks(requests))

    def _patience_s(self, run_id: str) -> float:
        """A transfer of a round waits until the round's deadline, or its step's, at most."""
        deadline_ms = self._c.conductor.deadline_ms(run_id)
        if not deadline_ms:
            return PATIENCE_S
        return max(1.0, (deadline_ms - self._c.now_ms()) / 1000)


def _receipt(signed: SignedStatement) -> pb.Receipt:
    return pb.Receipt(receipt=to_wire(signed))


def _round_ref(ref: pb.RoundRef) -> RoundRef:
    return RoundRef(ref.round, ref.attempt)


def _caller(context: Context) -> str:
    return current_peer(context).identity.name


def _sender(context: Context, claimed: str) -> str:
    """The calling site, if the message names it as its sender."""
    site = _caller(context)
    if claimed != site:
        raise SenderMismatchError(
            f"a message that names site {claimed!r} came with the certificate of {site}",
            safe="nothing was stored",
        )
    return site


async def _header(requests: AsyncIterator[Any]) -> Any:
    async for first in requests:
        if first.WhichOneof("part") == "header":
            return first.header
        break
    raise ProtocolError("an upload begins with its header")


async def _chunks(requests: AsyncIterator[Any]) -> AsyncIterator[pb.Chunk]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise ProtocolError("an upload has one header, then chunks")
        yield request.chunk


def _unlink_all(path: Path) -> None:
    for part in (path, *path.parent.glob(f"{path.name}.*.part")):
        part.unlink(missing_ok=True)
