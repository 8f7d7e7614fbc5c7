"""A coordinator that is a Python object: it signs what it says, and lies or fails on demand."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from fedpalm.errors import (
    FedPalmError,
    NotFoundError,
    PlanNotApprovedError,
    StaleRoundError,
    StateError,
    UnavailableError,
)
from fedpalm.exchange.receipt import ExpertReceipt
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.bodies import EntryKind
from fedpalm.methods.contribution import codec_for
from fedpalm.methods.rules import server_rule
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanAnswer
from fedpalm.rounds.manifest import Countersignature, ManifestHead, RoundManifest
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.transport.chunks import send_buffer
from fedpalm.wire.limits import check_limits
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from fedpalm.wire.v1 import masking_pb2, membership_pb2
from participant.log import SiteLog
from participant.store import SiteStore
from tests.support.participant import (
    FEDERATION,
    Site,
    World,
    initial_vector,
)

MASKING_PAYLOADS = {
    masking_pb2.MASKING_STEP_KEYS: "masking_keys",
    masking_pb2.MASKING_STEP_BOXES: "masking_boxes",
    masking_pb2.MASKING_STEP_INPUTS: "masking_complaint",
    masking_pb2.MASKING_STEP_AGREEMENTS: "masking_agreement",
    masking_pb2.MASKING_STEP_REVEALS: "masking_reveal",
}


class _Names:
    def __getattr__(self, name: str) -> str:
        return name


class FakeConnection:
    """Calls methods of a :class:`FakeCoordinator` by their names in the contract."""

    federation = _Names()
    membership = _Names()

    def __init__(self, coordinator: FakeCoordinator, site: Site) -> None:
        self._coordinator, self._site = coordinator, site

    async def unary(self, method: str, request: Message, *, deadline_s: float) -> Any:
        self._arrived(method, request)
        reply = getattr(self._coordinator, method)(self._site.config.site, request)
        check_limits(reply)
        return reply

    async def stream(self, method: str, request: Message, *, idle_s: float) -> AsyncIterator[Any]:
        self._arrived(method, request)
        async for reply in getattr(self._coordinator, method)(self._site.config.site, request):
            check_limits(reply)
            yield reply

    async def upload(
        self, method: str, requests: AsyncIterator[Message], *, deadline_s: float
    ) -> Any:
        return await getattr(self._coordinator, method)(
            self._site.config.site, self._logged_first(method, requests)
        )

    async def _logged_first(
        self, method: str, requests: AsyncIterator[Message]
    ) -> AsyncIterator[Message]:
        """The requests, once the header's payload is seen to be in the log on disk already."""
        first = True
        async with aclosing(requests):
            async for request in requests:
                if first:
                    self._check_upload_logged(method, request.header)
                    first = False
                yield request

    def _check_upload_logged(self, method: str, header: Message) -> None:
        ref, recipient = header.ref, f"spiffe://{FEDERATION}/coordinator/coordinator"
        if isinstance(header, wire.UpdateHeader):
            place = {"run": ref.run_id, "round": ref.round, "attempt": ref.attempt}
        elif isinstance(header, wire.MaskingHeader):
            place = {"run": ref.run_id, "round": ref.round, "attempt": ref.attempt}
            self._check_logged(method, {**place, "payload": MASKING_PAYLOADS[header.step]})
            return
        else:
            place = {"run": ref.exchange.run_id, "exchange": ref.exchange.exchange_id}
        announced = {
            **place,
            "recipient": recipient,
            "payload_hash": header.payload_hash.hex(),
            "bytes": header.payload_bytes,
        }
        self._check_logged(method, announced)

    def _check_logged(self, method: str, announced: dict[str, Any]) -> None:
        # Read on a connection of its own: what is not committed is not seen.
        store = SiteStore(self._site.home)
        log = SiteLog(store, self._site.identity.signing_key)
        logged = [e.body for e in log.entries() if e.kind is EntryKind.EGRESS]
        store.close()
        assert any(announced.items() <= dict(body).items() for body in logged), (
            f"{method} left the site unlogged"
        )

    def _arrived(self, method: str, request: Message) -> None:
        self._coordinator.fail_if_due(method)
        check_limits(request)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        # Persist, then send: whatever gets here is in the log on disk already.
        logged = {
            e.body["payload_hash"] for e in self._site.log.entries() if e.kind is EntryKind.EGRESS
        }
        assert digest in logged, f"{method} left the site unlogged"


def exchange_terms(
    world: World, plan: Plan, run: str = "toy-1", exchange_id: str = "exchange-1", **changes: Any
) -> SignedStatement:
    """What the coordinator proposes to a plan's sites, signed."""
    values = {"number": 1, "purpose": "to verify at all sites", "expires_ms": 2**52} | changes
    return ExchangeTerms.of(plan, run, exchange_id, **values).sign(world.coordinator)


class FakeCoordinator:
    """One run on one coordinator, level-triggered: who connects is told where things stand.

    ``expected`` are the sites whose updates make a round; each one's delivery is kept for ever in
    ``deliveries``, so that a second, different one would be seen. Every attempt's cohort is the whole
    roster; the sites of it that are not expected countersign when somebody asks, unless
    ``absent_sign`` is off, and that is all they do.
    """

    def __init__(
        self, world: World, plan: Plan, expected: tuple[str, ...], run_id: str = "toy-1"
    ) -> None:
        self.world, self.plan, self.run_id, self.expected = world, plan, run_id, expected
        self.plans = {run_id: plan}
        """Every run that is offered; only ``run_id`` is trained."""
        self.answers: dict[tuple[str, str], PlanAnswer] = {}
        """By site and run, the newest."""
        self.manifests: list[SignedStatement] = []
        self.head = ManifestHead.start(plan, run_id)
        self.countersignatures: dict[tuple[int, int], dict[str, SignedStatement]] = {}
        self.absent_sign = True
        self.receipts: dict[tuple[str, str], SignedStatement] = {}
        self.codec = codec_for(plan)
        self.round, self.attempt = 1, 1
        self.models = {1: initial_vector().astype("<f4").tobytes()}
        self.ended: bool | None = None
        self.joined: set[str] = set()
        self.accepted: dict[str, bytes] = {}
        self.partial: dict[tuple[str, bytes], bytearray] = {}
        self.deliveries: list[tuple[str, int, int, str]] = []
        self.queues: dict[str, asyncio.Queue[wire.Instruction | FedPalmError]] = {}
        self.failures: Counter[str] = Counter()
        self.errors: dict[str, FedPalmError] = {}
        self.cut_upload_at: int | None = None
        self.connections = 0
        self.abort_attempts: set[tuple[int, int]] = set()
        self.exchange_state = ""
        self.consents: dict[str, wire.SignedStatement] = {}
        self.refusals: dict[str, str] = {}
        self.sealed: dict[str, bytes] = {}
        self.keys: dict[str, dict[str, bytes]] = {}
        self.confirmed: dict[str, ExpertReceipt] = {}

    @asynccontextmanager
    async def connect(self, site: Site) -> AsyncIterator[FakeConnection]:
        self.connections += 1
        try:
            yield FakeConnection(self, site)
        finally:
            self.queues.pop(site.config.site, None)

    def fail_if_due(self, method: str) -> None:
        if method in self.errors:
            raise self.errors[method]
        if self.failures[method] > 0:
            self.failures[method] -= 1
            raise UnavailableError(f"{method} failed on purpose")

    # --- what sites call --------------------------------------------------------------------------

    def Hello(self, site: str, request: wire.HelloRequest) -> wire.HelloReply:
        assert request.site_id == site
        return wire.HelloReply(protocol_version=1, federation_id=FEDERATION, heartbeat_ms=60_000)

    def FetchTrust(
        self, site: str, request: membership_pb2.FetchTrustRequest
    ) -> membership_pb2.TrustBundle:
        return membership_pb2.TrustBundle(
            anchors=[anchor.public_bytes(Encoding.DER) for anchor in self.world.authority.anchors]
        )

    # --- plans ------------------------------------------------------------------------------------

    def FetchPlan(self, site: str, request: wire.FetchPlanRequest) -> wire.PlanDocument:
        plan = self.plans[request.run_id]
        offer = self.world.offer(plan, request.run_id)
        return wire.PlanDocument(plan=plan.to_bytes(), offer=to_wire(offer))

    def AnswerPlan(self, site: str, request: wire.AnswerPlanRequest) -> wire.AnswerPlanReply:
        assert request.site_id == site
        answer = self._opened(PlanAnswer, request.answer)
        plan = self.plans[request.run_id]
        assert (answer.site, answer.run) == (site, request.run_id)
        assert answer.plan_hash == plan.hash.hex()
        before = self.answers.get((site, answer.run))
        if before is not None and before.number >= answer.number and before != answer:
            raise StateError(f"answer {answer.number} comes after {before.number}")
        self.answers[site, answer.run] = answer
        if answer.answer == "refuse":
            self.joined.discard(site)
        return wire.AnswerPlanReply()

    def JoinRun(self, site: str, request: wire.JoinRunRequest) -> wire.JoinRunReply:
        plan = self.plans[request.run_id]
        assert request.plan_hash == plan.hash
        assert request.layout_hash == plan.model_layout.hash
        self._require_approval(site, request.run_id)
        if request.run_id == self.run_id:
            self.joined.add(site)
            self.tell(site, self._train())
        return wire.JoinRunReply()

    def offer_also(self, plan: Plan, run_id: str) -> None:
        """Offer a further run to every site that is connected, and to those that come."""
        self.plans[run_id] = plan
        for site in list(self.queues):
            self.tell(site, _offer(plan, run_id))

    def _require_approval(self, site: str, run_id: str) -> None:
        answer = self.answers.get((site, run_id))
        if answer is None or answer.answer != "approve":
            raise PlanNotApprovedError(f"{site} has not approved the plan of run {run_id}")

    def _opened(self, kind: Any, message: wire.SignedStatement) -> Any:
        return kind.open(from_wire(message), self.world.authority.anchors, now=time.time())

    # --- manifests --------------------------------------------------------------------------------

    async def FetchManifests(
        self, site: str, request: wire.FetchManifestsRequest
    ) -> AsyncIterator[wire.SignedStatement]:
        for signed in self.manifests[request.from_seq :]:
            yield to_wire(signed)

    def Countersign(self, site: str, request: wire.CountersignRequest) -> wire.CountersignReply:
        said = self._opened(Countersignature, request.countersignature)
        place = (request.ref.round, request.ref.attempt)
        assert (said.site, said.run, (said.round, said.attempt)) == (site, self.run_id, place)
        signatures = self.countersignatures.setdefault(place, {})
        assert signatures.setdefault(site, from_wire(request.countersignature)).statement == (
            request.countersignature.statement
        ), f"{site} countersigned two manifests of {place}"
        return wire.CountersignReply()

    async def FetchCountersignatures(
        self, site: str, request: wire.RoundRef
    ) -> AsyncIterator[wire.SignedStatement]:
        place = (request.round, request.attempt)
        signatures = self.countersignatures.setdefault(place, {})
        if self.absent_sign:
            for name in sorted(set(self.plan.roster) - set(self.expected)):
                signatures.setdefault(name, self.countersigned(name, place))
        for signed in list(signatures.values()):
            yield to_wire(signed)

    def countersigned(
        self, site: str, place: tuple[int, int], manifest_hash: bytes | None = None
    ) -> SignedStatement:
        """What a site without a home says of an attempt, or of another manifest in its place."""
        return Countersignature(
            federation=FEDERATION,
            run=self.run_id,
            round=place[0],
            attempt=place[1],
            manifest_hash=(manifest_hash or self._manifest(place).hash).hex(),
            site=site,
        ).sign(self.world.absent(site))

    def _manifest(self, place: tuple[int, int]) -> SignedStatement:
        """The manifest of an attempt; made when the attempt is first asked for."""
        for signed in self.manifests:
            if (made := RoundManifest.read(signed)) and (made.round, made.attempt) == place:
                return signed
        manifest = self.next_manifest()
        assert (manifest.round, manifest.attempt) == place
        self.manifests.append(manifest.sign(self.world.coordinator))
        self.head = ManifestHead.after(manifest)
        return self.manifests[-1]

    def next_manifest(self) -> RoundManifest:
        """What comes next in the chain, for the present attempt; a test may say something else."""
        return RoundManifest(
            federation=FEDERATION,
            run=self.run_id,
            plan_hash=self.plan.hash.hex(),
            seq=self.head.size,
            previous=self.head.hash.hex(),
            round=self.round,
            attempt=self.attempt,
            cohort=sorted(self.plan.roster),
            signing_keys=self.world.signing_keys(self.plan.roster),
            model_hash=self.model_hash.hex(),
            sealed_ms=1,
        )

    async def Instructions(
        self, site: str, request: wire.InstructionsRequest
    ) -> AsyncIterator[wire.Instruction]:
        queue = self.queues[site] = asyncio.Queue()
        for instruction in self._standing(site):
            queue.put_nowait(instruction)
        while True:
            item = await queue.get()
            if isinstance(item, FedPalmError):
                raise item
            yield item

    async def DownloadModel(
        self, site: str, request: wire.DownloadModelRequest
    ) -> AsyncIterator[wire.Chunk]:
        for data in self.models.values():
            if hashlib.sha256(data).digest() == request.model_hash:
                async for chunk in send_buffer(data, request.offset):
                    yield chunk
                return
        raise NotFoundError("no such model")

    def UpdateOffset(self, site: str, header: wire.UpdateHeader) -> wire.OffsetReply:
        self._check_header(site, header)
        done = self.accepted.get(site)
        if done is not None and hashlib.sha256(done).digest() == header.payload_hash:
            receipt = self._receipt(site, "update", _round_place(header.ref), done)
            return wire.OffsetReply(offset=len(done), receipt=receipt)
        return wire.OffsetReply(offset=len(self.partial.get((site, header.payload_hash), b"")))

    async def UploadUpdate(
        self, site: str, requests: AsyncIterator[wire.UploadRequest]
    ) -> wire.Receipt:
        header: wire.UpdateHeader | None = None
        spool = bytearray()
        async for request in requests:
            if header is None:
                header = request.header
                self._check_header(site, header)
                spool = self.partial.setdefault((site, header.payload_hash), bytearray())
                continue
            assert request.chunk.offset == len(spool)
            if self.cut_upload_at is not None and self.cut_upload_at <= len(request.chunk.data):
                spool += request.chunk.data[: self.cut_upload_at]
                self.cut_upload_at = None
                raise UnavailableError("the line was cut on purpose")
            spool += request.chunk.data
        assert header is not None
        self.fail_if_due("UploadUpdate")
        data = bytes(spool)
        assert hashlib.sha256(data).digest() == header.payload_hash
        digest = header.payload_hash.hex()
        self.deliveries.append((site, header.ref.round, header.ref.attempt, digest))
        self.accepted[site] = data
        receipt = self._receipt(site, "update", _round_place(header.ref), data)
        self._advance()
        self.fail_if_due("receipt")
        return receipt

    async def ListReceipts(
        self, site: str, request: wire.ListReceiptsRequest
    ) -> AsyncIterator[wire.SignedStatement]:
        for (owner, place), signed in self.receipts.items():
            if owner == site and place.startswith(f"{request.run_id}/"):
                yield to_wire(signed)

    # --- the exchange -----------------------------------------------------------------------------

    def terms(self, exchange_id: str = "exchange-1", **changes: Any) -> SignedStatement:
        """Signed terms of an exchange of the run."""
        return exchange_terms(self.world, self.plan, self.run_id, exchange_id, **changes)

    def propose_exchange(self) -> None:
        self.exchange_state = "proposed"
        self._tell_all()

    def SendConsent(self, site: str, request: wire.ConsentRequest) -> wire.ConsentReply:
        if request.WhichOneof("answer") == "refusal":
            self.refusals[site] = request.refusal
            self.exchange_state = "cancelled"
            self._tell_all()
            return wire.ConsentReply()
        assert self.consents.setdefault(site, request.consent) == request.consent
        if set(self.consents) == set(self.expected) and self.exchange_state == "proposed":
            self.exchange_state = "sealing"
            self._tell_all()
        return wire.ConsentReply()

    async def FetchConsents(
        self, site: str, request: wire.ExchangeRef
    ) -> AsyncIterator[wire.SignedStatement]:
        for consent in self.consents.values():
            yield consent

    async def UploadSealedExpert(
        self, site: str, requests: AsyncIterator[wire.UploadExpertRequest]
    ) -> wire.Receipt:
        header: wire.SealedExpertHeader | None = None
        data = bytearray()
        async for request in requests:
            if header is None:
                header = request.header
            else:
                data += request.chunk.data
        assert header is not None
        assert header.ref.sender == site
        self.fail_if_due("UploadSealedExpert")
        assert self.sealed.setdefault(site, bytes(data)) == bytes(data), "sealed twice"
        if len(self.sealed) == len(self.expected) and self.exchange_state == "sealing":
            self.exchange_state = "revealing"
            self._tell_all()
        place = f"{self.run_id}/{header.ref.exchange.exchange_id}"
        return self._receipt(site, "sealed_expert", place, bytes(data))

    async def DownloadSealedExpert(
        self, site: str, request: wire.SealedExpertRef
    ) -> AsyncIterator[wire.Chunk]:
        async for chunk in send_buffer(self.sealed[request.sender]):
            yield chunk

    def SendExpertKeys(self, site: str, request: wire.ExpertKeysRequest) -> wire.ExpertKeysReply:
        assert len(self.sealed) == len(self.expected), "a key left before every expert was here"
        keys = {key.recipient: key.wrapped for key in request.keys}
        assert self.keys.setdefault(site, keys) == keys
        if len(self.keys) == len(self.expected) and self.exchange_state == "revealing":
            self.exchange_state = "delivering"
            self._tell_all()
        return wire.ExpertKeysReply()

    async def FetchExpertKeys(
        self, site: str, request: wire.ExchangeRef
    ) -> AsyncIterator[wire.WrappedKey]:
        for sender, keys in self.keys.items():
            if sender != site:
                yield wire.WrappedKey(sender=sender, recipient=site, wrapped=keys[site])

    def ConfirmExperts(
        self, site: str, request: wire.ConfirmExpertsRequest
    ) -> wire.ConfirmExpertsReply:
        signed = from_wire(request.receipt)
        receipt = ExpertReceipt.open(signed, self.world.coordinator.anchors, now=time.time())
        assert receipt.site == site
        self.confirmed[site] = receipt
        if set(self.confirmed) == set(self.expected):
            self.exchange_state = "completed"
            self._tell_all()
        return wire.ConfirmExpertsReply()

    # --- what it says -----------------------------------------------------------------------------

    def tell(self, site: str, *instructions: wire.Instruction) -> None:
        for instruction in instructions:
            if site in self.queues:
                self.queues[site].put_nowait(instruction)

    def drop(self, site: str) -> None:
        """Cut a site's stream."""
        self.queues[site].put_nowait(UnavailableError("the stream was cut on purpose"))

    def _tell_all(self) -> None:
        for site in list(self.queues):
            self.tell(site, *self._exchange())

    def _standing(self, site: str) -> list[wire.Instruction]:
        if self.ended is not None:
            others = [
                _offer(p, run_id) for run_id, p in self.plans.items() if run_id != self.run_id
            ]
            return [self._run_ended(), *self._exchange(), *others]
        standing = [_offer(plan, run_id) for run_id, plan in self.plans.items()]
        return [*standing, self._train()] if site in self.joined else standing

    def _train(self) -> wire.Instruction:
        manifest = self._manifest((self.round, self.attempt))
        return wire.Instruction(train=wire.TrainRound(ref=self.ref(), manifest=to_wire(manifest)))

    def _exchange(self) -> list[wire.Instruction]:
        ref = wire.ExchangeRef(run_id=self.run_id, exchange_id="exchange-1")
        match self.exchange_state:
            case "proposed":
                proposed = wire.ExchangeProposed(ref=ref, terms=to_wire(self.terms()))
                return [wire.Instruction(exchange_proposed=proposed)]
            case "sealing":
                return [wire.Instruction(seal_experts=wire.SealExperts(ref=ref))]
            case "revealing":
                return [wire.Instruction(reveal_keys=wire.RevealKeys(ref=ref))]
            case "delivering":
                return [wire.Instruction(open_experts=wire.OpenExperts(ref=ref))]
            case "completed" | "cancelled":
                closed = wire.ExchangeClosed(ref=ref, completed=self.exchange_state == "completed")
                return [wire.Instruction(exchange_closed=closed)]
        return []

    def _run_ended(self) -> wire.Instruction:
        assert self.ended is not None
        return wire.Instruction(
            run_ended=wire.RunEnded(
                run_id=self.run_id, completed=self.ended, model_hash=self.model_hash
            )
        )

    # --- what it knows ----------------------------------------------------------------------------

    @property
    def model_hash(self) -> bytes:
        return hashlib.sha256(self.models[max(self.models)]).digest()

    def ref(self) -> wire.RoundRef:
        return wire.RoundRef(run_id=self.run_id, round=self.round, attempt=self.attempt)

    def _receipt(self, site: str, payload: Any, place: str, data: bytes) -> wire.Receipt:
        receipt = PayloadReceipt(
            federation=FEDERATION,
            site=site,
            payload=payload,
            place=place,
            payload_hash=hashlib.sha256(data).hexdigest(),
            payload_bytes=len(data),
            received_ms=1,
        ).sign(self.world.coordinator)
        given = self.receipts.setdefault((site, place), receipt)
        return wire.Receipt(receipt=to_wire(given))

    def _check_header(self, site: str, header: wire.UpdateHeader) -> None:
        self._require_approval(site, header.ref.run_id)
        if header.ref != self.ref() or self.ended is not None:
            raise StaleRoundError(f"round {header.ref.round}.{header.ref.attempt} is over")
        assert header.site_id == site
        assert header.plan_hash == self.plan.hash
        assert header.model_hash == self.model_hash
        assert header.payload_bytes == self.codec.payload_bytes

    def _advance(self) -> None:
        if set(self.accepted) != set(self.expected):
            return
        ref = self.ref()
        committed = (self.round, self.attempt) not in self.abort_attempts
        if committed:
            total = np.zeros(self.codec.length, np.uint32)
            for data in self.accepted.values():
                total += np.frombuffer(data, "<u4")
            params = np.frombuffer(self.models[max(self.models)], "<f4")
            split = self.codec.parameters
            stepped = server_rule("fedpalm").step(
                params,
                self.codec.decode_deltas(total[:split]),
                self.codec.decode_stats(total[split:]),
            )
            self.models[self.round + 1] = stepped.astype("<f4").tobytes()
            self.round, self.attempt = self.round + 1, 1
        else:
            self.attempt += 1
        self.accepted, self.partial = {}, {}
        closed = wire.RoundClosed(ref=ref, committed=committed, model_hash=self.model_hash)
        if self.round > self.plan.draft.rounds:
            self.ended = True
        for site in list(self.queues):
            self.tell(site, wire.Instruction(round_closed=closed))
            self.tell(site, self._run_ended() if self.ended else self._train())


def _offer(plan: Plan, run_id: str) -> wire.Instruction:
    return wire.Instruction(run_offer=wire.RunOffer(run_id=run_id, plan_hash=plan.hash))


def _round_place(ref: wire.RoundRef) -> str:
    return f"{ref.run_id}/{ref.round}/{ref.attempt}"
