"""Whatever is sent to a coordinator that listens: a status that means something, and no fault of its own.

Every method of every service gets good messages and broken copies of them, under a certificate that may
call it, while a round is open. `make fuzz-wire` asks for more inputs, and prints what came of them.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coordinator.enrolment import EnrolmentService
from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import Identity, Role, coordinator_dns_name
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.pki.signing import key_id
from fedpalm.plan import Plan
from fedpalm.transport.ending import Ending
from fedpalm.transport.enrolment import build_enrolment_server
from fedpalm.transport.server import GatedServer
from fedpalm.wire import checkpoints
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import masking_pb2 as k
from fedpalm.wire.v1 import membership_pb2 as m
from fedpalm.wire.v1 import operator_pb2 as o
from fedpalm.wire.v1.membership_pb2_grpc import add_EnrolmentServicer_to_server
from tests.e2e.background import Background
from tests.simulation.federation import encoded_update, rehearsal_plan
from tests.support.agreement import answer, countersignature
from tests.support.coordinator import RunningCoordinator, World
from tests.support.pki import TestAuthority

from . import samples as documents
from .inputs import COPIES, INPUTS, MAX_GROWTH_MIB, broken, messages, resident_mib

SERVICES = [
    service for module in (f, m, o) for service in module.DESCRIPTOR.services_by_name.values()
]
METHODS = {f"{one.name}/{method.name}": method for one in SERVICES for method in one.methods}
EXAMPLES = max(1, -(-(INPUTS // 3) // (len(METHODS) * COPIES)))
"""A third of all inputs: calls."""
PATIENCE_S = 30.0
OPEN_ENDED = {"Federation/Instructions", "Operator/WatchRun"}
LISTEN_S = 0.2
"""A stream that has no end is left after so long."""
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
TOKEN = bytes(range(32))


class LeapingClock:
    """Each look at it is a minute later: rates never run out."""

    def __init__(self) -> None:
        self._now = time.time()

    def now(self) -> float:
        self._now += 60.0
        return self._now


@dataclass
class Target:
    """A coordinator in a thread, with a round that waits for updates, and who may call it."""

    background: Background
    running: RunningCoordinator
    channels: dict[str, grpc.aio.Channel]
    samples: dict[str, list[Message]]
    statuses: Counter[str] = field(default_factory=Counter)
    inputs: int = 0

    def channel(self, service: str) -> grpc.aio.Channel:
        return self.channels[service]

    def hello(self) -> None:
        """An honest site is served."""

        async def call() -> None:
            async with self.running.site("south") as south:
                request = f.HelloRequest(protocol_versions=[1], site_id="south")
                reply = await south.call("Hello", request)
                assert reply.federation_id == "simulated"

        self.background.run(call())


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    world = World(tmp_path_factory.mktemp("fuzzed"), "north", "south")
    with ExitStack() as stack:
        background = stack.enter_context(Background())
        manager = world.running()
        running = background.run(manager.__aenter__())
        stack.callback(lambda: background.run(manager.__aexit__(None, None, None)))
        samples, stop = background.run(_begin(running))
        stack.callback(lambda: background.run(stop()))
        newcomers = background.run(_newcomers_port(running, world))
        stack.callback(lambda: background.run(newcomers.stop(None)))
        addresses = {
            "Enrolment": (f"127.0.0.1:{newcomers.port}", None),
            "Federation": (running.address, "north"),
            "Membership": (running.address, "north"),
            "Operator": (running.address, "operator"),
        }
        channels = {
            service: background.run(
                _channel(address, running.people["north"], running.people[who] if who else None)
            )
            for service, (address, who) in addresses.items()
        }
        target = Target(background, running, channels, samples)
        before = resident_mib()
        yield target
        gc.collect()
        grown = f"{resident_mib() - before:+.1f} MiB"
        told = dict(target.statuses.most_common())
        sys.stdout.write(f"\ncalls: {target.inputs} inputs, {grown}; {told}\n")
        for channel in channels.values():
            background.run(channel.close())


async def _channel(
    address: str, trusting: TlsIdentity, shown: TlsIdentity | None
) -> grpc.aio.Channel:
    own = (shown.key_pem, shown.chain_pem) if shown else (None, None)
    name = ("grpc.ssl_target_name_override", coordinator_dns_name("simulated"))
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(trusting.ca_pem, *own),
        options=[name, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
    )


async def _newcomers_port(running: RunningCoordinator, world: World) -> GatedServer:
    """The enrolment service without its pace, which would refuse most of what is tried here."""
    coordinator, clock = running.coordinator, LeapingClock()
    coordinator.invitations.invite(
        "ab" * 16, "east", TOKEN, created_ms=1, expires_ms=1 << 50, operator="olga"
    )
    server = build_enrolment_server(world.identity, "127.0.0.1:0", clock=clock)
    service = EnrolmentService(
        coordinator.invitations, "simulated", coordinator.issuing.trust, clock
    )
    add_EnrolmentServicer_to_server(service, server.server)  # type: ignore[no-untyped-call]
    await server.start()
    return server


async def _begin(running: RunningCoordinator) -> tuple[dict[str, list[Message]], Any]:
    """Bring a run to a round that waits; good messages for each method; and what ends it."""
    plan = Plan.model_validate(
        {
            **rehearsal_plan(
                2, 5, reproducible=False, training={"privacy": {"unit": "subject"}}
            ).model_dump(mode="json"),
            "federation": "simulated",
            "roster": ["north", "south"],
        }
    )
    async with running.operator() as operator:
        run_id = await operator.start(plan)
    listening, told, callers = [], {}, {}
    for name in ("north", "south"):
        site = running.site(name)
        opened = await site.__aenter__()
        stream = opened.instructions()
        instructions = await stream.__aenter__()
        await anext(instructions)
        await opened.answer(run_id, plan, "approve", 1)
        await opened.join(run_id, plan)
        listening.append((site, stream))
        told[name], callers[name] = instructions, opened
    for name, instructions in told.items():
        async for one in instructions:
            if one.WhichOneof("kind") == "prepare":
                given = _checkpoint(running.people[name], one.prepare.ref)
                await callers[name].call("GiveCheckpoint", given)
                break
    async for one in told["south"]:
        if one.WhichOneof("kind") == "train":
            break

    async def stop() -> None:
        for site, stream in listening:
            await stream.__aexit__(None, None, None)
            await site.__aexit__(None, None, None)

    return _samples(running, run_id, plan, one.train), stop


def _samples(
    running: RunningCoordinator, run_id: str, plan: Plan, order: f.TrainRound
) -> dict[str, list[Message]]:
    north, manifest = running.people["north"], from_wire(order.manifest)
    shared = rehearsal_vector(plan.model_layout, plan.draft.seed)
    payload = encoded_update(plan, "north", 1, shared)
    header = f.UpdateHeader(
        ref=order.ref,
        site_id="north",
        plan_hash=plan.hash,
        model_hash=bytes.fromhex(plan.initial_model),
        payload_hash=hashlib.sha256(payload).digest(),
        payload_bytes=len(payload),
    )
    exchange = f.ExchangeRef(run_id=run_id, exchange_id="exchange-1")
    sealed = f.SealedExpertRef(exchange=exchange, sender="north")
    run = o.RunRef(run_id=run_id)
    return {
        "Federation/Hello": [f.HelloRequest(protocol_versions=[1], site_id="north")],
        "Federation/FetchPlan": [f.FetchPlanRequest(run_id=run_id)],
        "Federation/AnswerPlan": [
            f.AnswerPlanRequest(
                run_id=run_id,
                site_id="north",
                answer=to_wire(answer(north, run_id, plan, number=1)),
            )
        ],
        "Federation/JoinRun": [
            f.JoinRunRequest(
                run_id=run_id,
                site_id="north",
                plan_hash=plan.hash,
                layout_hash=plan.model_layout.hash,
            )
        ],
        "Federation/Instructions": [f.InstructionsRequest(site_id="north")],
        "Federation/DownloadModel": [
            f.DownloadModelRequest(run_id=run_id, model_hash=bytes.fromhex(plan.initial_model))
        ],
        "Federation/UpdateOffset": [header],
        "Federation/UploadUpdate": [
            f.UploadRequest(header=header),
            f.UploadRequest(chunk=f.Chunk(offset=0, data=payload[:100])),
            f.UploadRequest(chunk=f.Chunk(offset=100, data=payload[100:])),
        ],
        "Federation/FetchManifests": [f.FetchManifestsRequest(run_id=run_id)],
        "Federation/Countersign": [
            f.CountersignRequest(
                ref=order.ref,
                site_id="north",
                countersignature=to_wire(countersignature(north, manifest)),
            )
        ],
        "Federation/FetchCountersignatures": [order.ref],
        "Federation/GiveCheckpoint": [_checkpoint(north, order.ref)],
        "Federation/FetchCheckpoints": [
            f.FetchCheckpointsRequest(ref=order.ref, site_id="north", newest=[bytes(32)])
        ],
        "Federation/ListReceipts": [f.ListReceiptsRequest(run_id=run_id)],
        "Federation/SendMasking": [
            f.SendMaskingRequest(header=f.MaskingHeader(ref=order.ref, site_id="north", step=1)),
            f.SendMaskingRequest(message=k.MaskingMessage(keys=_keys())),
        ],
        "Federation/FetchMasking": [f.FetchMaskingRequest(ref=order.ref, site_id="north", step=1)],
        "Federation/SendConsent": [f.ConsentRequest(ref=exchange, site_id="north", refusal="no")],
        "Federation/FetchConsents": [exchange],
        "Federation/UploadSealedExpert": [
            f.UploadExpertRequest(
                header=f.SealedExpertHeader(ref=sealed, payload_hash=bytes(32), payload_bytes=64)
            ),
            f.UploadExpertRequest(chunk=f.Chunk(offset=0, data=bytes(64))),
        ],
        "Federation/DownloadSealedExpert": [sealed],
        "Federation/SendExpertKeys": [
            f.ExpertKeysRequest(
                ref=exchange,
                site_id="north",
                keys=[f.WrappedKey(sender="north", recipient="south", wrapped=bytes(1168))],
            )
        ],
        "Federation/FetchExpertKeys": [exchange],
        "Federation/ConfirmExperts": [
            f.ConfirmExpertsRequest(
                ref=exchange, site_id="north", receipt=to_wire(documents.expert_receipt())
            )
        ],
        "Membership/Renew": [m.RenewRequest(request=_request("north", north))],
        "Membership/FetchTrust": [m.FetchTrustRequest()],
        "Enrolment/Enrol": [
            m.EnrolRequest(invitation_id="ab" * 16, token=TOKEN, request=_request("east"))
        ],
        "Operator/SubmitPlan": [
            o.SubmitPlanRequest(plan=plan.to_bytes()),
            o.SubmitPlanRequest(chunk=f.Chunk(offset=0, data=bytes(388))),
        ],
        **{
            f"Operator/{name}": [run]
            for name in ("StartRun", "ResumeRun", "WatchRun", "CloseAnswers", "CancelExchange")
        },
        "Operator/ProposeExchange": [
            o.ProposeExchangeRequest(run_id=run_id, purpose="fuzzing", valid_ms=60_000)
        ],
        # Not this run: it has to go on for what comes after.
        "Operator/AbortRun": [o.AbortRunRequest(run_id="another-run", reason="fuzz")],
        "Operator/ExportModel": [o.ExportModelRequest(run_id=run_id)],
    }


def _checkpoint(site: TlsIdentity, ref: f.RoundRef) -> f.GiveCheckpointRequest:
    said = Checkpoint(
        federation="simulated",
        site=site.identity.name,
        key_id=key_id(site.signing_key.public_key()).hex(),
        size=7,
        root="3" * 64,
        run=ref.run_id,
        round=ref.round,
        attempt=ref.attempt,
        time_ms=1,
    )
    given = checkpoints.to_wire(GivenCheckpoint(said.sign(site)))
    return f.GiveCheckpointRequest(ref=ref, site_id=site.identity.name, given=[given])


def _keys() -> k.MaskingKeys:
    return k.MaskingKeys(
        site="north",
        agreement=bytes(32),
        escrow=bytes(1216),
        transport=bytes(1216),
        seed_hash=bytes(32),
        signature=bytes(64),
    )


def _request(name: str, identity: TlsIdentity | None = None) -> bytes:
    signing_key = identity.signing_key if identity else new_signing_key()
    asked = create_request(
        Identity("simulated", Role.PARTICIPANT, name), new_tls_key(), signing_key
    )
    return asked.public_bytes(Encoding.PEM)


# --- one input ------------------------------------------------------------------------------------


async def _status(channel: grpc.aio.Channel, name: str, parts: list[bytes]) -> grpc.StatusCode:
    """Make a call of raw bytes and take what comes; the status it ends with."""
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    limit_s = LISTEN_S if name in OPEN_ENDED else PATIENCE_S

    async def sending() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    if method.client_streaming:
        call = channel.stream_unary(path)(sending(), timeout=limit_s)
    elif method.server_streaming:
        call = channel.unary_stream(path)(parts[0], timeout=limit_s)
    else:
        call = channel.unary_unary(path)(parts[0], timeout=limit_s)
    ending = Ending(call)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        # grpcio may report its own failed write in place of the status that came: see Ending.
        return (await ending.of(error)).code()
    return await call.code()


def _spoilt(good: list[bytes], rng: random.Random) -> list[list[bytes]]:
    """The parts as they are, then with one of them broken, left out, or said twice."""
    at = rng.randrange(len(good))
    inputs = [[*good[:at], copy, *good[at + 1 :]] for copy in broken(good[at], rng)]
    if len(good) > 1:
        inputs[-1] = good[:at] + good[at + 1 :]
        inputs[-2] = [*good[: at + 1], *good[at:]]
    return inputs


@pytest.mark.parametrize("name", METHODS)
def test_a_call_ends_with_a_status_that_means_something(name: str, target: Target) -> None:
    kind = METHODS[name].input_type._concrete_class
    good = [one.SerializeToString() for one in target.samples.get(name, [kind()])]
    channel = target.channel(name.partition("/")[0])
    reached = Counter[str]()

    async def all_of(inputs: list[list[bytes]]) -> list[grpc.StatusCode]:
        return list(await asyncio.gather(*(_status(channel, name, one) for one in inputs)))

    @settings(
        max_examples=EXAMPLES,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.just(None) | st.just(None) | messages(kind), st.integers(0, 2**32))
    def run(drawn: Message | None, seed: int) -> None:
        parts = good if drawn is None else [drawn.SerializeToString(), *good[1:]]
        inputs = _spoilt(parts, random.Random(seed))
        for tried, status in zip(
            inputs, target.background.run(all_of(inputs), 4 * PATIENCE_S), strict=True
        ):
            assert status not in NEVER, f"{name}: {status} for {tried!r}"
            reached[status.name] += 1
        target.inputs += len(inputs)

    run()
    target.statuses.update(reached)
    if name not in OPEN_ENDED:
        assert "DEADLINE_EXCEEDED" not in reached, "it hung"
    target.hello()


@pytest.mark.parametrize("name", ["Federation/UploadUpdate", "Federation/DownloadModel"])
def test_calls_that_take_over_from_each_other_all_end(name: str, target: Target) -> None:
    channel, good = target.channel("Federation"), target.samples[name]

    async def together(number: int) -> list[grpc.StatusCode]:
        parts = [one.SerializeToString() for one in good]
        if name.endswith("UploadUpdate"):
            # Another payload each time, so that none is there already.
            header = f.UploadRequest.FromString(parts[0])
            header.header.payload_hash = number.to_bytes(32, "big")
            parts[0] = header.SerializeToString()
        return list(await asyncio.gather(*(_status(channel, name, parts) for _ in range(COPIES))))

    for number in range(10):
        statuses = set(target.background.run(together(number), 2 * PATIENCE_S))
        assert grpc.StatusCode.DEADLINE_EXCEEDED not in statuses, "a call did not hear of its end"
        assert not statuses & NEVER


def test_every_method_has_a_good_message(target: Target) -> None:
    """What has none starts from an empty message, which goes nowhere: only calls without content may."""
    without = {name for name in METHODS if name not in target.samples}
    assert without <= {"Operator/ListSites", "Operator/ListRuns"}


def test_it_has_not_grown(target: Target) -> None:
    """By now every method has had its share once: the same again must need no more memory."""

    async def again() -> None:
        for name in METHODS:
            if name in OPEN_ENDED:
                continue
            channel = target.channel(name.partition("/")[0])
            kind = METHODS[name].input_type._concrete_class
            good = [one.SerializeToString() for one in target.samples.get(name, [kind()])]
            for one in _spoilt(good, random.Random(1)):
                await _status(channel, name, one)

    target.background.run(again(), 120)
    gc.collect()
    before = resident_mib()
    for _ in range(3):
        target.background.run(again(), 120)
    gc.collect()
    assert resident_mib() - before < MAX_GROWTH_MIB / 4


def test_nobody_of_another_ca_reaches_a_method(target: Target) -> None:
    stranger = TestAuthority("simulated").enrol(Role.PARTICIPANT, "north")

    async def call() -> grpc.StatusCode:
        channel = await _channel(target.running.address, target.running.people["north"], stranger)
        async with channel:
            return await _status(channel, "Federation/Hello", [b""])

    assert target.background.run(call()) is grpc.StatusCode.UNAVAILABLE
