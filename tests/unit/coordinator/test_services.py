"""Both services of a coordinator that really listens, called by clients that may be wrong."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from coordinator.claims import update_claim
from fedpalm.errors import (
    ConfigError,
    FedPalmError,
    HashMismatchError,
    IllegalTransitionError,
    LayoutMismatchError,
    NotFoundError,
    NotOnRosterError,
    PlanNotApprovedError,
    ProtocolError,
    RefusedError,
    SenderMismatchError,
    StaleRoundError,
    StateError,
    VersionMismatchError,
)
from fedpalm.methods.contribution import codec_for
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.pki.identity import Role
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanOffer
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import operator_pb2 as o
from tests.simulation.federation import encoded_update, oracle_step, rehearsal_plan
from tests.support.agreement import answer, countersignature
from tests.support.aio import in_loop
from tests.support.coordinator import (
    DEADLINE_S,
    RunningCoordinator,
    Site,
    World,
    manifest_of,
    receipt_of,
)

SITES = ("site-000", "site-001")
BIG = 700_000
"""Parameters of a payload of three chunks."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, *SITES)


async def train_order(site: Site, stack: AsyncExitStack, run_id: str, plan: Plan) -> f.TrainRound:
    """Listen, accept the offer and wait for the order to train."""
    telling = await stack.enter_async_context(site.instructions())
    offer = await anext(telling)
    assert offer.run_offer.plan_hash == plan.hash
    await site.answer(run_id, plan)
    await site.join(run_id, plan)
    site.telling = telling  # type: ignore[attr-defined]
    return (await anext(telling)).train


async def both(
    hub: RunningCoordinator, stack: AsyncExitStack, plan: Plan
) -> tuple[str, list[Site], f.TrainRound]:
    """A started run in which both sites have their order."""
    operator = await stack.enter_async_context(hub.operator())
    run_id = await operator.start(plan)
    sites = [await stack.enter_async_context(hub.site(name)) for name in SITES]
    orders = await asyncio.gather(*(train_order(s, stack, run_id, plan) for s in sites))
    assert orders[0] == orders[1]
    return run_id, sites, orders[0]


async def first_update(
    hub: RunningCoordinator, stack: AsyncExitStack, plan: Plan
) -> tuple[Site, f.UpdateHeader, bytes]:
    """The first site of a started run, and the update of round 1 that it is about to send."""
    _, sites, order = await both(hub, stack, plan)
    payload = payload_of(plan, SITES[0])
    return sites[0], sites[0].header(order, plan, payload), payload


def model_of(order: f.TrainRound) -> bytes:
    return bytes.fromhex(manifest_of(order).model_hash)


def payload_of(plan: Plan, site: str, number: int = 1) -> bytes:
    return encoded_update(plan, site, number, rehearsal_vector(plan.model_layout, plan.draft.seed))


def hello(site: str, *versions: int) -> f.HelloRequest:
    return f.HelloRequest(protocol_versions=versions, site_id=site, software_version="9.9")


@in_loop
async def test_hello_agrees_on_the_version_and_notes_the_site(world: World) -> None:
    async with world.running() as hub, hub.site(SITES[0]) as site, hub.operator() as operator:
        reply = await site.call("Hello", hello(SITES[0], 7, 1))
        assert (reply.protocol_version, reply.federation_id) == (1, "simulated")
        listed = (await operator.call("ListSites", o.ListSitesRequest())).sites[0]
        assert (listed.software_version, listed.connected) == ("9.9", False)
        with pytest.raises(VersionMismatchError):
            await site.call("Hello", hello(SITES[0], 7))


@in_loop
async def test_a_version_that_a_site_names_moves_nobodys_terminal(world: World) -> None:
    async with world.running() as hub, hub.site(SITES[0]) as site, hub.operator() as operator:
        request = hello(SITES[0], 1)
        request.software_version = "1\x1b[2J\n2\u202e"
        await site.call("Hello", request)
        listed = (await operator.call("ListSites", o.ListSitesRequest())).sites[0]
        assert listed.software_version == "1\ufffd[2J 2\ufffd"


@in_loop
async def test_no_call_may_name_another_sender_than_its_certificate(world: World) -> None:
    other = SITES[1]
    header = f.UpdateHeader(
        ref=f.RoundRef(run_id="r", round=1, attempt=1),
        site_id=other,
        plan_hash=bytes(32),
        model_hash=bytes(32),
        payload_hash=bytes(32),
    )
    exchange = f.ExchangeRef(run_id="r", exchange_id="x")

    async def sealed() -> AsyncIterator[f.UploadExpertRequest]:
        pair = f.SealedExpertRef(exchange=exchange, sender=other)
        yield f.UploadExpertRequest(header=f.SealedExpertHeader(ref=pair, payload_hash=bytes(32)))

    async with world.running() as hub, hub.site(SITES[0]) as site:
        calls = [
            site.call("Hello", hello(other, 1)),
            site.call(
                "JoinRun",
                f.JoinRunRequest(
                    run_id="r", site_id=other, plan_hash=bytes(32), layout_hash=bytes(32)
                ),
            ),
            site.call("AnswerPlan", f.AnswerPlanRequest(run_id="r", site_id=other)),
            site.call("Countersign", f.CountersignRequest(site_id=other)),
            site.call("UpdateOffset", header),
            site.upload(header, b""),
            site.call("SendConsent", f.ConsentRequest(ref=exchange, site_id=other, refusal="no")),
            site.call("SendExpertKeys", f.ExpertKeysRequest(ref=exchange, site_id=other)),
            site.call("ConfirmExperts", f.ConfirmExpertsRequest(ref=exchange, site_id=other)),
            site.connection.upload(
                site.connection.federation.UploadSealedExpert, sealed(), deadline_s=DEADLINE_S
            ),
        ]
        for call in calls:
            with pytest.raises(SenderMismatchError):
                await call
        site.name = other
        with pytest.raises(SenderMismatchError):
            async with site.instructions() as telling:
                await anext(telling)
        assert hub.coordinator.driver.sessions.connected() == frozenset()


@in_loop
async def test_only_an_admitted_certificate_may_call(world: World) -> None:
    stranger = world.authority.enrol(Role.PARTICIPANT, "mallory")
    impostor = world.authority.enrol(Role.PARTICIPANT, SITES[0])
    async with world.running() as hub:
        for name, identity in (("mallory", stranger), (SITES[0], impostor)):
            async with hub.site(name, identity) as site:
                with pytest.raises(RefusedError):
                    await site.call("Hello", hello(name, 1))


@in_loop
async def test_two_sites_commit_a_round_and_the_model_is_the_oracles(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1, parameters=BIG)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        initial = await sites[0].download(run_id, model_of(order))
        assert hashlib.sha256(initial).hexdigest() == plan.initial_model
        assert await sites[1].download(run_id, model_of(order), 4_000) == initial[4_000:]
        for site in sites:
            payload = payload_of(plan, site.name)
            receipt = await site.upload(site.header(order, plan, payload), payload)
            assert receipt_of(receipt).payload_hash == hashlib.sha256(payload).hexdigest()
        closed = (await anext(sites[0].telling)).round_closed  # type: ignore[attr-defined]
        assert closed.committed
        ended = (await anext(sites[0].telling)).run_ended  # type: ignore[attr-defined]
        assert ended.completed and ended.model_hash == closed.model_hash
        vector = np.frombuffer(await sites[1].download(run_id, closed.model_hash), "<f4")
        start = rehearsal_vector(plan.model_layout, plan.draft.seed)
        np.testing.assert_array_equal(vector, oracle_step(plan, 1, start, plan.roster))
        await asyncio.wait(hub.coordinator.driver._tasks or {asyncio.create_task(asyncio.sleep(0))})
        assert list((world.home.spool / run_id).glob("*/*")) == []


@in_loop
async def test_an_upload_goes_on_where_it_broke_even_after_a_restart(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1, parameters=BIG)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        site, header, payload = await first_update(hub, stack, plan)
        assert (await site.call("UpdateOffset", header)).offset == 0
        with pytest.raises(ProtocolError, match="ended at byte 2097152"):
            await site.upload(header, payload, until=2 << 20)
        assert (await site.call("UpdateOffset", header)).offset == 2 << 20

    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        site = await stack.enter_async_context(hub.site(SITES[0]))
        reply = await site.call("UpdateOffset", header)
        assert (reply.offset, reply.HasField("receipt")) == (2 << 20, False)
        with pytest.raises(ProtocolError, match="where byte 2097152 was due"):
            await site.upload(header, payload, offset=0)
        first = await site.upload(header, payload, offset=2 << 20)
        assert (await site.call("UpdateOffset", header)).receipt == first
        assert await site.upload(header, payload) == first


@in_loop
async def test_a_stream_that_hangs_gives_way_to_the_next_one_of_its_site(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1, parameters=BIG)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        site, header, payload = await first_update(hub, stack, plan)
        sent = asyncio.Event()

        async def hanging() -> AsyncIterator[f.UploadRequest]:
            yield f.UploadRequest(header=header)
            yield f.UploadRequest(chunk=f.Chunk(offset=0, data=payload[: 1 << 20]))
            sent.set()
            await asyncio.sleep(3600)

        upload = site.connection.federation.UploadUpdate
        old = asyncio.create_task(site.connection.upload(upload, hanging(), deadline_s=60))
        await sent.wait()
        while (await site.call("UpdateOffset", header)).offset < 1 << 20:
            await asyncio.sleep(0.01)
        again = await stack.enter_async_context(hub.site(SITES[0]))
        receipt = await again.upload(header, payload, offset=1 << 20)
        assert receipt_of(receipt).payload_hash == header.payload_hash.hex()
        old.cancel()


@in_loop
async def test_a_stream_that_waited_deletes_nothing_that_was_counted_meanwhile(
    world: World,
) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        first, other = payload_of(plan, SITES[0]), bytes(4 * 98)
        claim = update_claim(sites[0].header(order, plan, first), SITES[0])
        ending, release = asyncio.Event(), asyncio.Event()

        async def slow_to_end() -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ending.set()
                await release.wait()

        takeover = hub.coordinator.takeover
        earlier = asyncio.create_task(takeover.run(("update", run_id, SITES[0]), slow_to_end()))
        await asyncio.sleep(0)
        late = asyncio.create_task(sites[0].upload(sites[0].header(order, plan, other), other))
        await ending.wait()
        path = hub.coordinator.spool.update(run_id, claim.ref, SITES[0], claim.payload_hash)
        path.write_bytes(first)
        hub.coordinator.conductor.updates.accept(claim)
        release.set()
        await earlier
        with pytest.raises(StateError, match="already delivered"):
            await late
        assert path.read_bytes() == first


@in_loop
async def test_a_crash_between_the_last_byte_and_the_receipt_loses_neither(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        payload = payload_of(plan, SITES[0])
        header = sites[0].header(order, plan, payload)
        ref = hub.coordinator.conductor.run(run_id).current.ref  # type: ignore[union-attr]
        path = hub.coordinator.spool.update(run_id, ref, SITES[0], header.payload_hash.hex())
        path.write_bytes(payload)
        reply = await sites[0].call("UpdateOffset", header)
        assert (reply.offset, reply.HasField("receipt")) == (len(payload), False)
        receipt = await sites[0].upload(header, payload, offset=len(payload))
        assert receipt_of(receipt).payload_bytes == len(payload)


@in_loop
async def test_updates_that_do_not_fit_are_refused_and_leave_nothing(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        site, payload = sites[0], payload_of(plan, SITES[0])
        good = site.header(order, plan, payload)

        def changed(**fields: object) -> f.UpdateHeader:
            header = f.UpdateHeader()
            header.CopyFrom(good)
            for name, value in fields.items():
                setattr(header, name, value)
            return header

        later = f.TrainRound(
            ref=f.RoundRef(run_id=run_id, round=1, attempt=2), manifest=order.manifest
        )
        cases: list[tuple[f.UpdateHeader, bytes, type[FedPalmError]]] = [
            (changed(plan_hash=bytes(32)), payload, HashMismatchError),
            (changed(model_hash=bytes(32)), payload, HashMismatchError),
            (changed(payload_bytes=len(payload) + 4), payload, ProtocolError),
            (changed(payload_hash=bytes(32)), payload, HashMismatchError),
            (good, payload[:-4], ProtocolError),
            (site.header(later, plan, payload), payload, StaleRoundError),
        ]
        for header, data, error in cases:
            with pytest.raises(error):
                await site.upload(header, data)
        assert hub.coordinator.conductor.run(run_id).current.delivered == {}  # type: ignore[union-attr]
        other = bytes(len(payload))
        await site.upload(good, payload, offset=len(payload) - 4)
        with pytest.raises(StateError, match="already delivered"):
            await site.upload(site.header(order, plan, other), other)


@in_loop
async def test_values_beyond_the_plans_bounds_do_not_count_and_the_rest_do(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    codec = codec_for(plan)
    weight_bound = math.ceil(codec.max_weight * codec.stat_scale)
    delta_bound = math.ceil(codec.max_weight * codec.clip_abs * codec.delta_scale)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        ref = update_claim(sites[0].header(order, plan, b""), SITES[0]).ref
        good = payload_of(plan, SITES[0])
        for place, value in (
            (codec.parameters, -1),
            (codec.parameters, weight_bound + 1),
            (0, delta_bound + 1),
            (codec.parameters - 1, -delta_bound - 1),
            (3, -(2**31)),
        ):
            values = np.frombuffer(good, "<i4").copy()
            values[place] = value
            bad = values.tobytes()
            header = sites[0].header(order, plan, bad)
            with pytest.raises(ProtocolError, match="outside the plan's bounds"):
                await sites[0].upload(header, bad)
            assert hub.coordinator.runs.updates(run_id, ref) == {}
            assert [one for one in (world.home.spool / run_id).rglob("*") if one.is_file()] == []
        for site in sites:
            payload = payload_of(plan, site.name)
            await site.upload(site.header(order, plan, payload), payload)
        assert (await anext(sites[0].telling)).round_closed.committed  # type: ignore[attr-defined]


@in_loop
async def test_a_site_that_reads_none_of_its_downloads_stops_no_other_site(tmp_path: Path) -> None:
    world = World(tmp_path, *SITES, max_transfers=2)
    plan = rehearsal_plan(sites=2, rounds=1, parameters=5_000_000)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        request = f.DownloadModelRequest(run_id=run_id, model_hash=model_of(order))
        stalled = [
            sites[1].connection.federation.DownloadModel.call(request, wait_for_ready=False)
            for _ in range(4)
        ]
        await asyncio.wait(
            [asyncio.ensure_future(call.read()) for call in stalled],
            return_when=asyncio.FIRST_COMPLETED,
        )
        payload = payload_of(plan, SITES[0])
        receipt = await sites[0].upload(sites[0].header(order, plan, payload), payload)
        assert receipt_of(receipt).payload_bytes == len(payload)
        for call in stalled:
            call.cancel()


@in_loop
async def test_joining_needs_the_plan_the_layout_a_place_and_an_open_ear(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    outsider = "site-009"
    world.admit(outsider)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator = await stack.enter_async_context(hub.operator())
        run_id = await operator.start(plan)
        site = await stack.enter_async_context(hub.site(SITES[0]))
        stranger = await stack.enter_async_context(hub.site(outsider))
        with pytest.raises(NotOnRosterError):
            await stranger.join(run_id, plan)
        with pytest.raises(NotOnRosterError):
            await stranger.call("FetchPlan", f.FetchPlanRequest(run_id=run_id))
        with pytest.raises(NotOnRosterError):
            await stranger.download(run_id, bytes.fromhex(plan.initial_model))
        with pytest.raises(NotFoundError):
            await site.join("no-such-run", plan)
        with pytest.raises(PlanNotApprovedError):
            await site.join(run_id, plan)
        await site.answer(run_id, plan)
        with pytest.raises(StateError, match="without listening"):
            await site.join(run_id, plan)
        document = await site.call("FetchPlan", f.FetchPlanRequest(run_id=run_id))
        offer = PlanOffer.open(from_wire(document.offer), site.identity.anchors, now=time.time())
        assert (offer.run, offer.plan_hash) == (run_id, plan.hash.hex())
        assert Plan.from_bytes(document.plan).hash == plan.hash
        await stack.enter_async_context(site.instructions())
        for field, error in (
            ("plan_hash", HashMismatchError),
            ("layout_hash", LayoutMismatchError),
        ):
            request = f.JoinRunRequest(
                run_id=run_id,
                site_id=SITES[0],
                plan_hash=plan.hash,
                layout_hash=plan.model_layout.hash,
            )
            setattr(request, field, bytes(32))
            with pytest.raises(error):
                await site.call("JoinRun", request)


@in_loop
async def test_a_site_that_dials_in_again_is_told_again_what_it_owes(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, _, order = await both(hub, stack, plan)
        again = await stack.enter_async_context(hub.site(SITES[0]))
        telling = await stack.enter_async_context(again.instructions())
        assert (await anext(telling)).run_offer.run_id == run_id
        assert (await anext(telling)).train == order


@in_loop
async def test_the_operator_sees_every_step_of_a_run_until_it_ends(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator = await stack.enter_async_context(hub.operator())
        run_id, sites, order = await both(hub, stack, plan)
        seen: list[tuple[str, str, int]] = []

        async def watch() -> None:
            async for status in operator.connection.stream(
                operator.connection.operator.WatchRun, o.RunRef(), idle_s=20
            ):
                seen.append((status.state, status.round_state, len(status.delivered)))

        watching = asyncio.create_task(watch())
        while not seen:
            await asyncio.sleep(0.01)
        for site in sites:
            payload = payload_of(plan, site.name)
            await site.upload(site.header(order, plan, payload), payload)
        await watching
        assert seen[0] == ("running", "collecting", 0)
        assert seen[-1] == ("completed", "committed", 2)
        runs = (await operator.call("ListRuns", o.ListRunsRequest())).runs
        assert [one.run_id for one in runs] == [run_id]
        events = hub.coordinator.store.query(
            "SELECT action, operator FROM operator_events WHERE run_id = ?", run_id
        )
        assert events == [("submit", "olga"), ("start", "olga")]
        parts = [
            one
            async for one in operator.connection.stream(
                operator.connection.operator.ExportModel, o.ExportModelRequest(), idle_s=20
            )
        ]
        assert parts[0].header.round == 1 and parts[0].header.model_hash == runs[0].model_hash
        data = b"".join(part.chunk.data for part in parts[1:])
        assert hashlib.sha256(data).digest() == runs[0].model_hash


@in_loop
async def test_plans_that_cannot_be_run_are_refused_at_submission(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    changed = plan.model_dump()
    async with world.running() as hub, hub.operator() as operator:
        stranger = Plan.model_validate({**changed, "roster": ("mallory", *SITES)})
        with pytest.raises(NotFoundError, match="mallory"):
            await operator.submit(stranger)
        with pytest.raises(ConfigError, match="elsewhere"):
            await operator.submit(Plan.model_validate({**changed, "federation": "elsewhere"}))
        with pytest.raises(HashMismatchError):
            await operator.submit(plan, bytes(4 * 97))
        with pytest.raises(ProtocolError):
            await operator.submit(plan, bytes(4 * 96))
        nan = np.full(97, np.nan, dtype="<f4").tobytes()
        poisoned = Plan.model_validate(
            {**changed, "initial_model": hashlib.sha256(nan).hexdigest()}
        )
        with pytest.raises(FedPalmError, match="NaN"):
            await operator.submit(poisoned, nan)
        assert list((await operator.call("ListRuns", o.ListRunsRequest())).runs) == []
        assert list(world.home.models.glob("*.f32")) == []
        with pytest.raises(NotFoundError, match="no run yet"):
            await operator.call("StartRun", o.RunRef())
        reply = await operator.submit(plan)
        with pytest.raises(IllegalTransitionError):
            await operator.call("ResumeRun", o.RunRef(run_id=reply.run_id))
        await operator.submit(plan)
        with pytest.raises(StateError, match="several runs"):
            await operator.call("StartRun", o.RunRef())
        status = await operator.call(
            "AbortRun", o.AbortRunRequest(run_id=reply.run_id, reason="enough\nof that\x1b")
        )
        assert (status.state, status.reason) == (
            "aborted",
            "enough of that\N{REPLACEMENT CHARACTER}",
        )


@in_loop
async def test_a_coordinator_keeps_the_port_that_it_once_chose(world: World) -> None:
    async with world.running() as hub:
        first = hub.address
        assert world.home.listen.read_text() == f"{first}\n"
    async with world.running() as hub:
        assert hub.address == first


@in_loop
async def test_a_damaged_model_pauses_its_run_until_it_is_restored(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, _, _ = await both(hub, stack, plan)
        path = hub.coordinator.spool.model(plan.initial_model)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    async with world.running() as hub, hub.operator() as operator:
        run = hub.coordinator.conductor.run(run_id)
        assert run.state == "paused" and path.name in run.reason
        with pytest.raises(HashMismatchError):
            await operator.call("ResumeRun", o.RunRef())
        path.write_bytes(whole)
        assert (await operator.call("ResumeRun", o.RunRef())).state == "running"


@in_loop
async def test_only_the_newest_models_stay_when_that_is_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path, *SITES, keep_models="latest")
    plan = rehearsal_plan(sites=2, rounds=4)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        vector = rehearsal_vector(plan.model_layout, plan.draft.seed)
        for number in range(1, 5):
            for site in sites:
                payload = encoded_update(plan, site.name, number, vector)
                await site.upload(site.header(order, plan, payload), payload)
            assert (await anext(sites[0].telling)).round_closed.committed  # type: ignore[attr-defined]
            vector = oracle_step(plan, number, vector, plan.roster)
            if number < 4:
                order = (await anext(sites[0].telling)).train  # type: ignore[attr-defined]
        models = hub.coordinator.runs.models(run_id)
        await hub.coordinator.driver.stop()
        left = {path.name for path in world.home.models.iterdir()}
        assert left == {f"{models[number]}.f32" for number in (0, 3, 4)}


@in_loop
async def test_sites_hear_of_a_plan_answer_it_and_join_before_the_start(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator = await stack.enter_async_context(hub.operator())
        first, second = [await stack.enter_async_context(hub.site(name)) for name in SITES]
        telling = await stack.enter_async_context(first.instructions())
        run_id = (await operator.submit(plan)).run_id
        assert (await anext(telling)).run_offer.run_id == run_id
        await first.answer(run_id, plan)
        await first.join(run_id, plan)
        await second.answer(run_id, plan, "refuse", 2)
        status = (await operator.call("ListRuns", o.ListRunsRequest())).runs[0]
        assert (status.state, list(status.joined)) == ("created", [SITES[0]])
        assert (list(status.roster), list(status.approved), list(status.refused)) == (
            list(SITES),
            [SITES[0]],
            [SITES[1]],
        )
        with pytest.raises(StateError, match="not newer"):
            await second.answer(run_id, plan, "approve", 1)
        with pytest.raises(SenderMismatchError):
            stolen = f.AnswerPlanRequest(run_id=run_id, site_id=SITES[1])
            stolen.answer.CopyFrom(to_wire(answer(first.identity, run_id, plan, number=9)))
            await second.call("AnswerPlan", stolen)
        await second.answer(run_id, plan, "approve", 3)
        heard = await stack.enter_async_context(second.instructions())
        assert (await anext(heard)).run_offer.run_id == run_id
        await second.join(run_id, plan)
        await operator.call("StartRun", o.RunRef(run_id=run_id))
        assert (await anext(telling)).WhichOneof("kind") == "run_offer"
        assert manifest_of((await anext(telling)).train).cohort == list(SITES)


@in_loop
async def test_sites_see_each_others_signatures_over_the_manifest_that_all_were_told(
    world: World,
) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        manifest = from_wire(order.manifest)
        said = RoundManifest.open(manifest, sites[0].identity.anchors, now=time.time())
        assert (said.cohort, said.model_hash) == (list(SITES), plan.initial_model)
        for site in sites:
            signed = to_wire(countersignature(site.identity, manifest))
            request = f.CountersignRequest(
                ref=order.ref, site_id=site.name, countersignature=signed
            )
            await site.call("Countersign", request)
            await site.call("Countersign", request)
        seen = await sites[0].list("FetchCountersignatures", order.ref)
        assert seen == [countersignature(site.identity, manifest) for site in sites]
        request = f.FetchManifestsRequest(run_id=run_id)
        assert await sites[1].list("FetchManifests", request) == [manifest]
        request.from_seq = 1
        assert await sites[1].list("FetchManifests", request) == []
        world.admit("stranger")
        stranger = await stack.enter_async_context(hub.site("stranger"))
        for method, asked in (
            ("FetchCountersignatures", order.ref),
            ("FetchManifests", request),
            ("ListReceipts", f.ListReceiptsRequest(run_id=run_id)),
        ):
            with pytest.raises(NotOnRosterError):
                await stranger.list(method, asked)


@in_loop
async def test_a_receipt_is_signed_and_every_copy_of_it_is_the_same(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        site, payload = sites[0], payload_of(plan, SITES[0])
        header = site.header(order, plan, payload)
        receipt = await site.upload(header, payload)
        said = PayloadReceipt.open(
            from_wire(receipt.receipt), site.identity.anchors, now=time.time()
        )
        assert (said.site, said.place, said.payload_bytes) == (
            SITES[0],
            f"{run_id}/1/1",
            len(payload),
        )
        assert (await site.call("UpdateOffset", header)).receipt == receipt
        assert await site.upload(header, payload) == receipt
        request = f.ListReceiptsRequest(run_id=run_id)
        assert await site.list("ListReceipts", request) == [from_wire(receipt.receipt)]
        assert await sites[1].list("ListReceipts", request) == []


@in_loop
async def test_a_site_that_is_revoked_in_a_round_is_cut_off_and_the_rest_commits(
    tmp_path: Path,
) -> None:
    names = (*SITES, "site-002")
    world, plan = World(tmp_path, *names), rehearsal_plan(sites=3, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator = await stack.enter_async_context(hub.operator())
        run_id = await operator.start(plan)
        sites = [await stack.enter_async_context(hub.site(name)) for name in names]
        order, *_ = await asyncio.gather(*(train_order(s, stack, run_id, plan) for s in sites))
        gone, *rest = sites
        payload = payload_of(plan, gone.name)
        await gone.upload(gone.header(order, plan, payload), payload)
        world.revoke(gone.name)
        with pytest.raises(FedPalmError):
            while True:
                await anext(gone.telling)  # type: ignore[attr-defined]
        for site in rest:
            payload = payload_of(plan, site.name)
            await site.upload(site.header(order, plan, payload), payload)
        closed = (await anext(rest[0].telling)).round_closed  # type: ignore[attr-defined]
        assert closed.committed
        vector = np.frombuffer(await rest[0].download(run_id, closed.model_hash), "<f4")
        start = rehearsal_vector(plan.model_layout, plan.draft.seed)
        np.testing.assert_array_equal(vector, oracle_step(plan, 1, start, names[1:]))


@in_loop
async def test_a_site_that_takes_its_approval_back_delivers_nothing_more(world: World) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        run_id, sites, order = await both(hub, stack, plan)
        site, payload = sites[0], payload_of(plan, SITES[0])
        await site.answer(run_id, plan, "refuse", 2)
        with pytest.raises(PlanNotApprovedError):
            await site.upload(site.header(order, plan, payload), payload)
        closed = (await anext(sites[1].telling)).round_closed  # type: ignore[attr-defined]
        assert not closed.committed and "refused the plan" in closed.reason


@in_loop
async def test_an_amended_plan_is_taken_only_when_it_goes_on_from_where_its_run_ended(
    world: World,
) -> None:
    plan = rehearsal_plan(sites=2, rounds=2)
    async with world.running() as hub, hub.operator() as operator:
        run_id = (await operator.submit(plan)).run_id
        continues = {
            "run": run_id,
            "plan_hash": plan.hash.hex(),
            "rounds_done": 0,
            "model": plan.initial_model,
        }
        amended = Plan.model_validate({**plan.model_dump(), "continues": continues})
        with pytest.raises(StateError, match="is created"):
            await operator.submit(amended)
        await operator.call("AbortRun", o.AbortRunRequest(run_id=run_id, reason="amended"))
        second = (await operator.submit(amended)).run_id
        with pytest.raises(StateError, match=f"continued by {second}"):
            await operator.submit(amended)
