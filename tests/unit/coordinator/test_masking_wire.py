"""A masked round with a coordinator that really listens: what crosses the wire and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedpalm.errors import (
    ConfigError,
    IllegalTransitionError,
    MaskingMessageError,
    NotOnRosterError,
    ProtocolError,
    SenderMismatchError,
    StaleRoundError,
)
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.plan import Plan
from fedpalm.secagg.messages import MaskedInput, Reveal
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.masking import input_to_wire, step_from_wire, step_to_wire, to_wire
from fedpalm.wire.statements import from_wire
from fedpalm.wire.statements import to_wire as statement_to_wire
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import operator_pb2 as o
from tests.simulation.federation import encoded_update, oracle_step
from tests.simulation.masked import masked_plan
from tests.support.agreement import countersignature
from tests.support.aio import in_loop
from tests.support.coordinator import DEADLINE_S, Operator, RunningCoordinator, Site, World
from tests.support.masking_sites import BEFORE, MaskedSite

SITES = ("site-000", "site-001", "site-002", "site-003")
PLAN = masked_plan(sites=4, quorum=3, masking_step_deadline_s=1, parameters=4001)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, *SITES)


@dataclass
class Member:
    """A site that is connected and has its order to train."""

    site: Site
    telling: AsyncIterator[f.Instruction]
    order: f.TrainRound
    masked: MaskedSite

    @property
    def name(self) -> str:
        return self.site.name

    def header(self, plan: Plan, said: MaskedInput) -> f.UpdateHeader:
        header = self.site.header(self.order, plan, self.masked.masked)
        header.masked.CopyFrom(input_to_wire(said))
        return header

    async def opened(self) -> Step:
        """The step that the coordinator says is open."""
        while True:
            said = await anext(self.telling)
            if said.HasField("masking"):
                assert said.masking.ref == self.order.ref
                return step_from_wire(said.masking.step)

    async def say(self, plan: Plan, step: Step) -> None:
        came = await self.site.fetch_masking(self.order.ref, BEFORE[step]) if step in BEFORE else ()
        said = self.masked.say(step, came)
        if step is Step.INPUTS:
            (one,) = said
            assert isinstance(one, MaskedInput)
            await self.site.upload(self.header(plan, one), self.masked.masked)
        else:
            await self.site.send_masking(self.order.ref, step, said)


async def members(
    hub: RunningCoordinator, stack: AsyncExitStack, operator: Operator, plan: Plan
) -> list[Member]:
    """A started run whose sites have trained and countersigned."""
    run_id = await operator.start(plan)
    keys = {name: hub.people[name].signing_key.public_key() for name in SITES}
    waiting = []
    for name in SITES:
        site = await stack.enter_async_context(hub.site(name))
        telling = await stack.enter_async_context(site.instructions())
        await anext(telling)
        await site.answer(run_id, plan)
        await site.join(run_id, plan)
        waiting.append((site, telling))
    shared = rehearsal_vector(plan.model_layout, plan.draft.seed)
    there = []
    for site, telling in waiting:
        order = (await anext(telling)).train
        manifest = from_wire(order.manifest)
        await site.call(
            "Countersign",
            f.CountersignRequest(
                ref=order.ref,
                site_id=site.name,
                countersignature=statement_to_wire(countersignature(site.identity, manifest)),
            ),
        )
        payload = encoded_update(plan, site.name, 1, shared)
        masked = MaskedSite(plan, site.identity, manifest, keys, payload)
        there.append(Member(site, telling, order, masked))
    return there


@in_loop
async def test_a_masked_round_over_the_wire_is_the_exact_sum_of_who_stayed(world: World) -> None:
    async with world.running() as hub, AsyncExitStack() as stack:
        operator = await stack.enter_async_context(hub.operator())
        there = await members(hub, stack, operator, PLAN)
        await asyncio.gather(*(one.say(PLAN, Step.KEYS) for one in there))
        for step in (Step.BOXES, Step.INPUTS, Step.AGREEMENTS, Step.REVEALS):
            if step is Step.INPUTS:
                gone = there.pop(1)
            assert [await one.opened() for one in there] == [step] * len(there)
            status = (await operator.call("ListRuns", o.ListRunsRequest())).runs[0]
            assert (status.masking, status.masking_step) == ("secagg", step.value)
            await asyncio.gather(*(one.say(PLAN, step) for one in there))
        while (closed := await anext(there[0].telling)).WhichOneof("kind") != "round_closed":
            pass
        assert closed.round_closed.committed
        model = await there[0].site.download(
            there[0].order.ref.run_id, closed.round_closed.model_hash
        )
        survivors = tuple(name for name in SITES if name != gone.name)
        shared = rehearsal_vector(PLAN.model_layout, PLAN.draft.seed)
        wanted = oracle_step(PLAN, 1, shared, survivors)
        np.testing.assert_array_equal(np.frombuffer(model, dtype="<f4"), wanted)


@in_loop
async def test_what_is_no_masking_message_of_its_sender_is_refused(world: World) -> None:
    async with world.running() as hub, AsyncExitStack() as stack:
        operator = await stack.enter_async_context(hub.operator())
        there = await members(hub, stack, operator, PLAN)
        one, other = there[0], there[1]
        ref, said = one.order.ref, one.masked.say(Step.KEYS)
        with pytest.raises(SenderMismatchError):
            await one.site.send_masking(ref, Step.KEYS, said, site_id=other.name)
        with pytest.raises(MaskingMessageError, match="not its own"):
            await other.site.send_masking(ref, Step.KEYS, said)
        with pytest.raises(MaskingMessageError, match="more than 4 things"):
            await one.site.send_masking(ref, Step.BOXES, said * 5)
        with pytest.raises(MaskingMessageError, match="no step 77"):
            await one.site.send_masking(ref, Step.KEYS, said, step=77)
        with pytest.raises(MaskingMessageError):
            await one.site.send_masking(ref, Step.KEYS, ())
        with pytest.raises(IllegalTransitionError):
            await one.site.send_masking(ref, Step.REVEALS, (Reveal(SITES[0], (), bytes(64)),))
        late = f.RoundRef(run_id=ref.run_id, round=1, attempt=2)
        with pytest.raises(StaleRoundError):
            await one.site.send_masking(late, Step.KEYS, said)
        with pytest.raises(MaskingMessageError, match="not closed"):
            await one.site.fetch_masking(ref, Step.KEYS)
        await one.site.send_masking(ref, Step.KEYS, said)
        await one.site.send_masking(ref, Step.KEYS, said)


@in_loop
async def test_a_masking_stream_has_one_header_then_messages(world: World) -> None:
    async with world.running() as hub, AsyncExitStack() as stack:
        operator = await stack.enter_async_context(hub.operator())
        one = (await members(hub, stack, operator, PLAN))[0]
        header = f.SendMaskingRequest(
            header=f.MaskingHeader(
                ref=one.order.ref, site_id=one.name, step=step_to_wire(Step.KEYS)
            )
        )
        message = f.SendMaskingRequest(message=to_wire(one.masked.say(Step.KEYS)[0]))
        empty = f.SendMaskingRequest(message=f.SendMaskingRequest().message)
        for wrong in ([], [message], [header, header], [header, message, header], [header, empty]):

            async def parts(
                stream: list[f.SendMaskingRequest] = wrong,
            ) -> AsyncIterator[f.SendMaskingRequest]:
                for part in stream:
                    yield part

            with pytest.raises((ProtocolError, MaskingMessageError)):
                await one.site.connection.upload(
                    one.site.connection.federation.SendMasking, parts(), deadline_s=DEADLINE_S
                )


@in_loop
async def test_the_plain_vector_is_refused_on_the_wire_too(world: World) -> None:
    async with world.running() as hub, AsyncExitStack() as stack:
        operator = await stack.enter_async_context(hub.operator())
        one = (await members(hub, stack, operator, PLAN))[0]
        header = one.site.header(one.order, PLAN, one.masked.payload)
        with pytest.raises(MaskingMessageError, match="is masked, the update of site"):
            await one.site.call("UpdateOffset", header)
        with pytest.raises(MaskingMessageError, match="is masked, the update of site"):
            await one.site.upload(header, one.masked.payload)
        assert not [path for path in hub.coordinator.spool.root.rglob("*") if path.is_file()]


@in_loop
async def test_a_site_that_is_not_of_the_run_is_told_nothing(world: World) -> None:
    world.admit("stranger")
    async with world.running() as hub, AsyncExitStack() as stack:
        operator = await stack.enter_async_context(hub.operator())
        one = (await members(hub, stack, operator, PLAN))[0]
        stranger = await stack.enter_async_context(hub.site("stranger"))
        with pytest.raises(NotOnRosterError):
            await stranger.fetch_masking(one.order.ref, Step.KEYS)
        with pytest.raises(NotOnRosterError):
            await stranger.send_masking(one.order.ref, Step.KEYS, one.masked.say(Step.KEYS))


@in_loop
async def test_a_plan_that_masking_cannot_work_with_is_refused_at_submission(world: World) -> None:
    async with world.running() as hub, hub.operator() as operator:
        for plan in (masked_plan(sites=2, quorum=2), masked_plan(sites=4, quorum=2)):
            with pytest.raises(ConfigError, match="masking"):
                await operator.submit(plan)
        assert not (await operator.call("ListRuns", o.ListRunsRequest())).runs


@pytest.mark.parametrize(("quorum", "warns"), [(3, False), (4, True)])
@in_loop
async def test_an_operator_is_warned_of_a_roster_without_a_site_to_spare(
    world: World, quorum: int, warns: bool
) -> None:
    async with world.running() as hub, hub.operator() as operator:
        run_id = await operator.start(masked_plan(sites=4, quorum=quorum))
        status = (await operator.call("ListRuns", o.ListRunsRequest())).runs[0]
        assert status.run_id == run_id
        assert [text for text in status.warnings if "all 4 sites" in text] == list(status.warnings)
        assert bool(status.warnings) is warns
