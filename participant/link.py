"""The site's end of the line: it dials, and it sends what the egress gate released and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from google.protobuf.message import Message

from fedpalm.errors import (
    HashMismatchError,
    IdentityError,
    MaskingMessageError,
    ProtocolError,
    VersionMismatchError,
)
from fedpalm.exchange.sealing import SealedExpert
from fedpalm.ledger.checkpoint import GivenCheckpoint
from fedpalm.pki.statement import SignedStatement
from fedpalm.pki.trust import TrustBundle
from fedpalm.plan import MAX_SITES, Plan
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.secagg.messages import MaskedInput, Signed
from fedpalm.secagg.unmasking import Step
from fedpalm.transport.chunks import SpoolWriter, send_file
from fedpalm.wire import checkpoints, membership, statements
from fedpalm.wire.masking import from_wire as masking_from_wire
from fedpalm.wire.v1 import federation_pb2 as wire

from .egress import EgressGate
from .incoming import checked
from .messages import PROTOCOL_VERSIONS
from .outgoing import MASKING_KINDS, OutgoingPayload, PayloadKind, Place, require_outgoing

CALL_DEADLINE_S = 30.0
UPLOAD_DEADLINE_S = 3600.0
MASKING_DEADLINE_S = 120.0
CHUNK_IDLE_S = 60.0
MISSED_HEARTBEATS = 3
MAX_RECEIPTS = 100_000
MAX_LISTED_BYTES = 64 * 2**20
"""Of one list that the coordinator gives, so that it cannot fill a site's memory."""


class ConnectionLike(Protocol):
    """What the link uses of :class:`fedpalm.transport.channel.Connection`."""

    federation: Any
    membership: Any

    async def unary(self, method: Any, request: Message, *, deadline_s: float) -> Any: ...

    def stream(self, method: Any, request: Message, *, idle_s: float) -> AsyncIterator[Any]: ...

    async def upload(
        self, method: Any, requests: AsyncIterator[Message], *, deadline_s: float
    ) -> Any: ...


class Link:
    """Calls on one connection. Every request is an :class:`OutgoingPayload`, logged before it is sent.

    All methods raise what the connection raises: FedPalmError of the coordinator, UnavailableError,
    DeadlineError, IdentityError, ProtocolError.
    """

    def __init__(self, connection: ConnectionLike, gate: EgressGate) -> None:
        self._connection, self._gate = connection, gate
        self._heartbeat_s = 10.0

    async def hello(self) -> wire.HelloReply:
        """Agree on a version; must be the first call.

        Raises:
            VersionMismatchError: the coordinator chose a version that was not offered.
            IdentityError: it is the coordinator of another federation.
        """
        reply: wire.HelloReply = await self._call("Hello", self._gate.release_hello())
        if reply.protocol_version not in PROTOCOL_VERSIONS:
            raise VersionMismatchError(
                f"the coordinator speaks version {reply.protocol_version} of the contract, "
                f"this site {', '.join(map(str, PROTOCOL_VERSIONS))}",
                next_step="bring both sides to a common release",
            )
        if reply.federation_id != self._gate.federation:
            raise IdentityError(
                f"this is the coordinator of {reply.federation_id[:63]!r}, not of "
                f"{self._gate.federation!r}"
            )
        if reply.heartbeat_ms:
            self._heartbeat_s = reply.heartbeat_ms / 1000
        return reply

    async def instructions(self) -> AsyncIterator[wire.Instruction]:
        """What the coordinator wants, for as long as it is heard.

        Raises:
            DeadlineError: no instruction or heartbeat for MISSED_HEARTBEATS periods.
            ProtocolError: an instruction with a malformed name.
        """
        message = self._message(self._gate.release_instructions(), PayloadKind.INSTRUCTIONS)
        idle_s = MISSED_HEARTBEATS * self._heartbeat_s
        method = self._connection.federation.Instructions
        async with aclosing(self._connection.stream(method, message, idle_s=idle_s)) as stream:  # type: ignore[type-var]
            async for instruction in stream:
                yield checked(instruction)

    async def fetch_plan(self, run_id: str) -> tuple[Plan, SignedStatement]:
        """The plan of a run and the coordinator's offer of it; whether that holds is not checked here.

        Raises:
            HashMismatchError: the plan's bytes are not its canonical ones.
            ConfigError: not a plan.
        """
        reply = await self._call("FetchPlan", self._gate.release_fetch_plan(run_id))
        plan = Plan.from_bytes(reply.plan)
        if plan.to_bytes() != reply.plan:
            raise HashMismatchError(
                f"run {run_id}: the plan that came is not in canonical form",
                safe="this site has not joined",
                next_step="ask the operator of the coordinator",
            )
        return plan, statements.from_wire(reply.offer)

    async def answer_plan(self, run_id: str, signed: SignedStatement) -> None:
        """Send this site's stored answer to a plan."""
        await self._call("AnswerPlan", self._gate.release_answer_plan(run_id, signed))

    async def join_run(self, run_id: str) -> None:
        await self._call("JoinRun", self._gate.release_join(run_id))

    # --- rounds -----------------------------------------------------------------------------------

    async def fetch_manifests(
        self, run_id: str, from_seq: int, count: int
    ) -> list[SignedStatement]:
        """The ``count`` manifests of a run's chain from a position on, unchecked, or fewer.

        Raises:
            ProtocolError: malformed, or more than MAX_LISTED_BYTES.
        """
        payload = self._gate.release_fetch_manifests(run_id, from_seq)
        found: list[SignedStatement] = []
        room = MAX_LISTED_BYTES
        async with aclosing(self._stream("FetchManifests", payload)) as stream:
            async for item in stream:
                room -= item.ByteSize()
                if room < 0:
                    raise _too_much("FetchManifests")
                found.append(statements.from_wire(item))
                if len(found) == count:
                    break
        return found

    async def countersign(self, place: Place, signed: SignedStatement) -> None:
        """Send this site's stored signature over the manifest of an attempt."""
        await self._call("Countersign", self._gate.release_countersign(place, signed))

    async def fetch_countersignatures(self, place: Place) -> list[SignedStatement]:
        """What the sites of the cohort have signed about an attempt so far, unchecked.

        Raises:
            ProtocolError: malformed, or more than a cohort can have.
        """
        payload = self._gate.release_fetch_countersignatures(place)
        items = await self._listed("FetchCountersignatures", payload, MAX_SITES)
        return [statements.from_wire(item) for item in items]

    async def give_checkpoints(self, place: Place, given: Sequence[GivenCheckpoint]) -> None:
        """Send stored checkpoints of this site's log, the one for the attempt included."""
        await self._call("GiveCheckpoint", self._gate.release_give_checkpoints(place, given))

    async def fetch_checkpoints(
        self, place: Place, from_seq: int, newest: Sequence[bytes]
    ) -> AsyncGenerator[GivenCheckpoint, None]:
        """Checkpoints behind the manifests from a position to that of the attempt, unchecked.

        Args:
            newest: hashes of those that are here.
        Raises:
            ProtocolError: malformed, or more than MAX_LISTED_BYTES; what came before that may be good.
        """
        payload = self._gate.release_fetch_checkpoints(place, from_seq, newest)
        room = MAX_LISTED_BYTES
        async with aclosing(self._stream("FetchCheckpoints", payload)) as stream:
            async for item in stream:
                room -= item.ByteSize()
                if room < 0:
                    raise _too_much("FetchCheckpoints")
                yield checkpoints.from_wire(item)

    async def list_receipts(self, run_id: str) -> list[SignedStatement]:
        """Every receipt that the coordinator says it has given this site in a run, unchecked.

        Raises:
            ProtocolError: malformed, or more than MAX_RECEIPTS.
        """
        payload = self._gate.release_list_receipts(run_id)
        items = await self._listed("ListReceipts", payload, MAX_RECEIPTS)
        return [statements.from_wire(item) for item in items]

    async def download_model(self, run_id: str, model_hash: bytes, size: int, path: Path) -> None:
        """Bring a global vector of ``size`` bytes to ``path``, going on where an earlier try ended.

        Raises:
            HashMismatchError: other bytes than the hash says; they are deleted.
        """
        if path.exists():
            return
        async with SpoolWriter(path, size, model_hash) as spool:
            payload = self._gate.release_download(run_id, model_hash, spool.offset)
            await spool.receive(self._stream("DownloadModel", payload))

    async def send_masking(self, payload: OutgoingPayload) -> None:
        """Send what this site says in a step of a masked attempt, its header first."""
        require_outgoing(payload, *MASKING_KINDS)
        header = self._gate.masking_header(payload)
        requests = [
            wire.SendMaskingRequest(header=header),
            *(wire.SendMaskingRequest(message=one) for one in payload.messages),  # type: ignore[arg-type]
        ]
        await self._connection.upload(
            self._connection.federation.SendMasking,
            _each(requests),
            deadline_s=MASKING_DEADLINE_S,
        )

    async def fetch_masking(self, place: Place, step: Step) -> list[Signed]:
        """What the others said in a step, of the right form; whether it is true is the core's question.

        Raises:
            MaskingMessageError: malformed, or more than a roster can say.
        """
        payload = self._gate.release_fetch_masking(place, step)
        try:
            items = await self._listed("FetchMasking", payload, MAX_SITES)
        except ProtocolError as error:
            raise MaskingMessageError(error.what, safe="nothing was revealed") from error
        return [masking_from_wire(item) for item in items]

    async def upload_update(
        self, payload: OutgoingPayload, masked: MaskedInput | None = None
    ) -> PayloadReceipt:
        """Send a released update from where an earlier try ended; the receipt is checked and logged.

        Args:
            masked: this site's signed input, if it is a masked one.
        """
        require_outgoing(payload, PayloadKind.UPDATE)
        header = self._gate.update_header(payload, masked)
        question = self._gate.release_update_offset(payload, masked)
        reply = await self._call("UpdateOffset", question)
        if reply.HasField("receipt"):
            receipt: wire.Receipt = reply.receipt
        else:
            receipt = await self._connection.upload(
                self._connection.federation.UploadUpdate,
                self._parts(wire.UploadRequest, header, payload, reply.offset),
                deadline_s=UPLOAD_DEADLINE_S,
            )
        return self._gate.record_receipt(payload, statements.from_wire(receipt.receipt))

    # --- membership -------------------------------------------------------------------------------

    async def fetch_trust(self) -> TrustBundle:
        """The federation's trust anchors as the coordinator says; what is pinned decides about them."""
        payload = self._gate.release_fetch_trust()
        reply = await self._unary(self._connection.membership.FetchTrust, payload)
        return membership.trust_from_wire(reply)

    async def renew(self, csr_pem: bytes) -> tuple[tuple[x509.Certificate, ...], TrustBundle]:
        """A certificate for a fresh TLS key, leaf first, and the trust that goes with it; unchecked."""
        payload = self._gate.release_renew(csr_pem)
        reply = await self._unary(self._connection.membership.Renew, payload)
        return membership.issued_from_wire(reply)

    # --- the exchange of experts ------------------------------------------------------------------

    async def send_answer(self, payload: OutgoingPayload) -> None:
        """Send this site's yes or no."""
        require_outgoing(payload, PayloadKind.CONSENT, PayloadKind.REFUSAL)
        await self._call("SendConsent", payload)

    async def fetch_consents(self, run_id: str, exchange_id: str) -> list[SignedStatement]:
        """Every signer's consent; whether it is one, and true, is the gate's question.

        Raises:
            ProtocolError: malformed, or more than a roster can have.
        """
        payload = self._gate.release_fetch_consents(run_id, exchange_id)
        items = await self._listed("FetchConsents", payload, MAX_SITES)
        return [statements.from_wire(item) for item in items]

    async def upload_sealed(self, payload: OutgoingPayload) -> PayloadReceipt:
        """Send this site's sealed expert; the receipt is checked and logged."""
        require_outgoing(payload, PayloadKind.SEALED_EXPERT)
        receipt: wire.Receipt = await self._connection.upload(
            self._connection.federation.UploadSealedExpert,
            self._parts(wire.UploadExpertRequest, self._gate.sealed_header(payload), payload, 0),
            deadline_s=UPLOAD_DEADLINE_S,
        )
        return self._gate.record_receipt(payload, statements.from_wire(receipt.receipt))

    async def download_sealed(
        self, run_id: str, exchange_id: str, sender: str, limit: int
    ) -> SealedExpert:
        """One sealed expert of at most ``limit`` bytes, not yet verified.

        Raises:
            ProtocolError: chunks out of order, or more bytes.
            SealedExpertError: not the bytes of a sealed expert.
        """
        data = bytearray()
        payload = self._gate.release_download_expert(run_id, exchange_id, sender)
        async for chunk in self._stream("DownloadSealedExpert", payload):
            if chunk.offset != len(data) or len(data) + len(chunk.data) > limit:
                raise ProtocolError(
                    f"the sealed expert of {sender} is out of order or larger than {limit} bytes"
                )
            data += chunk.data
        return SealedExpert.from_bytes(bytes(data))

    async def send_keys(self, payload: OutgoingPayload) -> None:
        """Send the wrapped keys of this site's expert."""
        require_outgoing(payload, PayloadKind.EXPERT_KEYS)
        await self._call("SendExpertKeys", payload)

    async def fetch_keys(self, run_id: str, exchange_id: str) -> dict[str, bytes]:
        """The keys that are wrapped for this site by sender, not yet verified.

        Raises:
            ProtocolError: more than a roster can have, two of one sender, or for another site.
        """
        payload = self._gate.release_fetch_keys(run_id, exchange_id)
        found: dict[str, bytes] = {}
        for item in await self._listed("FetchExpertKeys", payload, MAX_SITES):
            if item.sender in found or item.recipient != self._gate.site:
                raise ProtocolError(
                    f"the key of {item.sender}'s expert came twice, or is another's"
                )
            found[item.sender] = bytes(item.wrapped)
        return found

    async def confirm_experts(self, payload: OutgoingPayload) -> None:
        """Send this site's receipt for the experts that it has opened."""
        require_outgoing(payload, PayloadKind.CONFIRM_EXPERTS)
        await self._call("ConfirmExperts", payload)

    # --- inside -----------------------------------------------------------------------------------

    async def _call(self, method: str, payload: OutgoingPayload) -> Any:
        return await self._unary(getattr(self._connection.federation, method), payload)

    async def _unary(self, method: Any, payload: OutgoingPayload) -> Any:
        message = self._message(payload, payload.kind)
        return await self._connection.unary(method, message, deadline_s=CALL_DEADLINE_S)

    @staticmethod
    def _message(payload: OutgoingPayload, kind: PayloadKind) -> Message:
        message = require_outgoing(payload, kind).message
        if message is None:
            raise ProtocolError(f"a {kind.value} is not a single message")
        return message

    async def _stream(self, method: str, payload: OutgoingPayload) -> AsyncGenerator[Any, None]:
        message = self._message(payload, payload.kind)
        call = getattr(self._connection.federation, method)
        async with aclosing(
            self._connection.stream(call, message, idle_s=CHUNK_IDLE_S)  # type: ignore[type-var]
        ) as stream:
            async for item in stream:
                yield item

    async def _listed(self, method: str, payload: OutgoingPayload, most: int) -> list[Any]:
        """All of a stream. Raises ProtocolError: more than ``most`` or MAX_LISTED_BYTES came."""
        found: list[Any] = []
        room = MAX_LISTED_BYTES
        async with aclosing(self._stream(method, payload)) as stream:
            async for item in stream:
                if len(found) == most:
                    raise ProtocolError(f"{method}: more than {most} came")
                room -= item.ByteSize()
                if room < 0:
                    raise _too_much(method)
                found.append(item)
        return found

    @staticmethod
    async def _parts(
        request: type[Message], header: Message, payload: OutgoingPayload, offset: int
    ) -> AsyncIterator[Message]:
        # Opened once: what is sent is the file that was compared with the log, whatever its name
        # has come to mean since the gate looked at it.
        descriptor = await asyncio.to_thread(_open_released, payload)
        try:
            yield request(header=header)
            async for chunk in send_file(descriptor, offset, payload.size):
                yield request(chunk=chunk)
        finally:
            os.close(descriptor)


def _too_much(method: str) -> ProtocolError:
    return ProtocolError(f"{method}: more than {MAX_LISTED_BYTES} bytes came")


async def _each(requests: Sequence[Message]) -> AsyncGenerator[Message, None]:
    for request in requests:
        yield request


def _open_released(payload: OutgoingPayload) -> int:
    """A descriptor of a payload's file, which the caller closes.

    Raises:
        HashMismatchError: it is not there, or holds other bytes than were logged.
    """
    path = payload.path
    if path is None:
        raise ProtocolError(f"a {payload.kind.value} has no file to send")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HashMismatchError(f"{path}: {error.strerror}", safe="nothing was sent") from error
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if digest != payload.payload_hash:
            raise HashMismatchError(
                f"{path}: the bytes are not those that were logged", safe="nothing was sent"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
