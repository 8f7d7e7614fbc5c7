"""A run that is frozen for its exchange, over real connections: paused, exchanged, resumed, trained on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.cli import main
from fedpalm.errors import (
    MessageTooLargeError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    StateError,
)
from fedpalm.exchange.consent import Consent, Coverage, Sanction, commit, new_salt
from fedpalm.exchange.receipt import ExpertReceipt
from fedpalm.exchange.sealing import SealedExpert, expert_hash, open_expert, seal_expert
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.pki.hybrid import HybridKey
from fedpalm.plan import Plan
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import operator_pb2 as o
from tests.simulation.federation import encoded_update, rehearsal_plan
from tests.support.aio import in_loop
from tests.support.commands import run_program
from tests.support.coordinator import Operator, RunningCoordinator, Site, World
from tests.support.exchange_world import EXPERT, PURPOSE
from tests.support.servicer import live_identity

SITES = ("site-000", "site-001")
WEEK_MS = 7 * 24 * 60 * 60 * 1000


def frozen_plan(**draft: Any) -> Plan:
    values = rehearsal_plan(sites=2, rounds=3).model_dump()
    values["draft"] |= {"method": "fedpalm", "expert_exchange": "freeze", **draft}
    return Plan.model_validate({**values, "expert_layout": tuple(EXPERT.to_json())})


@dataclass
class Releasing:
    """What a site keeps while its process comes and goes."""

    number: int
    key: HybridKey = field(default_factory=HybridKey.generate)
    salt: bytes = field(default_factory=new_salt)

    @property
    def expert(self) -> Any:
        return np.full(EXPERT.size, self.number, dtype=np.float32)


@dataclass
class Playing:
    """A site that listens, and does the next thing when it is told to."""

    site: Site
    kept: Releasing
    telling: AsyncIterator[f.Instruction]

    async def heard(self, kind: str) -> Any:
        """The next instruction of this kind; whatever comes before it is for nobody here."""
        async with asyncio.timeout(20):
            async for one in self.telling:
                if one.WhichOneof("kind") == kind:
                    return getattr(one, kind)
        raise AssertionError(f"no {kind} came")

    async def train(self, plan: Plan, shared: np.ndarray) -> None:
        order = await self.heard("train")
        payload = encoded_update(plan, self.site.name, order.ref.round, shared)
        await self.site.upload(self.site.header(order, plan, payload), payload)

    async def say_yes(self) -> f.ExchangeRef:
        proposed = await self.heard("exchange_proposed")
        anchors = self.site.identity.anchors
        terms = ExchangeTerms.open(from_wire(proposed.terms), anchors, now=time.time())
        expert = expert_hash(EXPERT, self.kept.expert)
        consent = Consent(
            federation=terms.federation,
            terms=terms,
            site=self.site.name,
            recipient_key=self.kept.key.public_bytes.hex(),
            commitment=commit(terms.plan_hash, self.site.name, self.kept.salt, expert),
            log_size=0,
            log_root="0" * 64,
            privacy=Coverage(),
        ).sign(self.site.identity)
        request = f.ConsentRequest(
            ref=proposed.ref, site_id=self.site.name, consent=to_wire(consent)
        )
        await self.site.call("SendConsent", request)
        return proposed.ref

    async def sanction(self, ref: f.ExchangeRef) -> Sanction:
        consents = await self.site.list("FetchConsents", ref)
        terms = Consent.read(consents[0]).terms
        return Sanction(consents, terms, self.site.identity.anchors, now=time.time())

    async def seal(self) -> tuple[SealedExpert, dict[str, bytes]]:
        ref = (await self.heard("seal_experts")).ref
        sealed = seal_expert(
            self.kept.expert,
            EXPERT,
            await self.sanction(ref),
            sender=self.site.name,
            salt=self.kept.salt,
            signing_key=self.site.identity.signing_key,
        )
        await self.site.upload_sealed(ref, sealed[0].to_bytes())
        return sealed

    async def reveal(self, wrapped: dict[str, bytes]) -> None:
        ref = (await self.heard("reveal_keys")).ref
        keys = [
            f.WrappedKey(sender=self.site.name, recipient=to, wrapped=one)
            for to, one in wrapped.items()
        ]
        request = f.ExpertKeysRequest(ref=ref, site_id=self.site.name, keys=keys)
        await self.site.call("SendExpertKeys", request)

    async def open(self) -> np.ndarray:
        ref = (await self.heard("open_experts")).ref
        sanction, me = await self.sanction(ref), self.site.name
        (key,) = await self.site.expert_keys(ref)
        sealed = SealedExpert.from_bytes(await self.site.download_sealed(ref, key.sender))
        expert = open_expert(
            sealed,
            key.wrapped,
            EXPERT,
            sanction,
            sender=key.sender,
            recipient=me,
            key=self.kept.key,
            now=time.time(),
        )
        receipt = ExpertReceipt(
            federation=sanction.terms.federation,
            site=me,
            run=ref.run_id,
            exchange_id=ref.exchange_id,
            sanction=sanction.hash.hex(),
            experts={key.sender: expert_hash(EXPERT, expert)},
        ).sign(self.site.identity)
        request = f.ConfirmExpertsRequest(ref=ref, site_id=me, receipt=to_wire(receipt))
        await self.site.call("ConfirmExperts", request)
        await self.site.call("ConfirmExperts", request)
        return expert


async def playing(
    hub: RunningCoordinator, stack: AsyncExitStack, kept: dict[str, Releasing]
) -> list[Playing]:
    sites = []
    for name in kept:
        site = await stack.enter_async_context(hub.site(name))
        telling = await stack.enter_async_context(site.instructions())
        sites.append(Playing(site, kept[name], telling))
    return sites


async def trained(
    hub: RunningCoordinator, stack: AsyncExitStack, plan: Plan, kept: dict[str, Releasing]
) -> tuple[Operator, str, list[Playing]]:
    """A run that has just been given the updates of its first round."""
    operator = await stack.enter_async_context(hub.operator())
    run_id = await operator.start(plan)
    sites = await playing(hub, stack, kept)
    for one in sites:
        await one.heard("run_offer")
        await one.site.answer(run_id, plan)
        await one.site.join(run_id, plan)
    first = await sites[0].site.download(run_id, bytes.fromhex(plan.initial_model))
    for one in sites:
        await one.train(plan, np.frombuffer(first, "<f4"))
    return operator, run_id, sites


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, *SITES)
    live_identity(made.home.operator, made.people["operator"])
    return made


async def say(world: World, *words: object) -> tuple[int, dict[str, Any]]:
    """Exit code of an operator's command, and what it printed."""
    arguments = (*words, "--home", world.home.root, "--json")
    done = await asyncio.to_thread(run_program, "coordinator", *arguments)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@in_loop
async def test_a_frozen_run_waits_for_its_exchange_and_then_trains_on(world: World) -> None:
    plan = frozen_plan()
    kept = {name: Releasing(number) for number, name in enumerate(SITES, 1)}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator, run_id, sites = await trained(hub, stack, plan, kept)
        assert (await sites[0].heard("round_closed")).committed

    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        sites = await playing(hub, stack, kept)
        code, shown = await say(world, "status")
        assert (shown["state"], shown["round"], shown["exchange"]["state"]) == ("paused", 1, "")
        assert "fedpalm-coordinator exchange propose" in shown["reason"]
        code, refused = await say(world, "resume")
        assert code == StateError.exit_code and "waits for the exchange" in refused["error"]["what"]
        code, proposed = await say(
            world, "exchange", "propose", "--purpose", PURPOSE, "--valid", "2h"
        )
        assert code == 0 and proposed["exchange"]["state"] == "proposed"
        for one in sites:
            ref = await one.say_yes()
        code, refused = await say(world, "resume")
        assert code == StateError.exit_code
        sealings = [await one.seal() for one in sites]
        with pytest.raises((StateError, RefusedError)):
            await sites[0].site.expert_keys(ref)
        with pytest.raises(NotFoundError):
            await sites[0].site.download_sealed(ref, SITES[0])

    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator = await stack.enter_async_context(hub.operator())
        sites = await playing(hub, stack, kept)
        for one, (_, wrapped) in zip(sites, sealings, strict=True):
            await one.reveal(wrapped)
        _, shown = await say(world, "exchange", "status")
        assert shown["run_id"] == run_id and shown["run_state"] == "paused"
        exchange = shown["exchange"]
        assert (exchange["state"], exchange["number"], exchange["purpose"]) == (
            "delivering",
            1,
            PURPOSE,
        )
        for what in ("consented", "sealed", "revealed"):
            assert exchange[what] == list(SITES)
        assert exchange["refused"] == exchange["delivered"] == []
        assert exchange["expires_ms"] > 0
        for one, other in zip(sites, reversed(SITES), strict=True):
            np.testing.assert_array_equal(await one.open(), kept[other].expert)
        for one in sites:
            assert (await one.heard("exchange_closed")).completed
        _, shown = await say(world, "status")
        assert shown["exchange"]["delivered"] == list(SITES)
        assert "fedpalm-coordinator resume" in shown["reason"]
        code, shown = await say(world, "resume")
        assert (code, shown["state"]) == (0, "running")
        for one in sites:
            await one.site.answer(run_id, plan)
            await one.site.join(run_id, plan)
            assert (await one.heard("train")).ref.round == 2
        with pytest.raises(StateError, match="releases its experts once"):
            await operator.call(
                "ProposeExchange",
                o.ProposeExchangeRequest(run_id=run_id, purpose=PURPOSE, valid_ms=WEEK_MS),
            )


@in_loop
async def test_an_exchange_expires_while_nobody_calls(world: World) -> None:
    plan = frozen_plan(expert_exchange="deployment", rounds=1)
    kept = {name: Releasing(number) for number, name in enumerate(SITES, 1)}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator, run_id, sites = await trained(hub, stack, plan, kept)
        assert (await sites[0].heard("run_ended")).completed
        request = o.ProposeExchangeRequest(run_id=run_id, purpose=PURPOSE, valid_ms=1)
        assert (await operator.call("ProposeExchange", request)).exchange.number == 1
        for one in sites:
            closed = await one.heard("exchange_closed")
            assert (closed.completed, closed.reason) == (False, "the coordinator: expired")
        events = hub.coordinator.store.query(
            "SELECT action, detail FROM operator_events ORDER BY seq DESC LIMIT 1"
        )
        assert events == [("exchange propose", PURPOSE)]


@in_loop
async def test_an_operator_goes_on_without_a_silent_site_from_the_command_line(
    tmp_path: Path,
) -> None:
    sites = ("north", "south", "west")
    world = World(tmp_path, *sites)
    live_identity(world.home.operator, world.people["operator"])
    values = frozen_plan(expert_exchange="deployment", rounds=1).model_dump()
    values["draft"] |= {"exchange_without_refusers": True}
    plan = Plan.model_validate({**values, "roster": sites})
    kept = {name: Releasing(number) for number, name in enumerate(sites, 1)}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator, run_id, playing = await trained(hub, stack, plan, kept)
        assert (await playing[0].heard("run_ended")).completed
        request = o.ProposeExchangeRequest(run_id=run_id, purpose=PURPOSE, valid_ms=WEEK_MS)
        await operator.call("ProposeExchange", request)
        await playing[0].say_yes()
        code, refused = await say(world, "exchange", "close-answers")
        assert code == RefusedError.exit_code and "fewer than two" in refused["error"]["what"]
        await playing[1].say_yes()
        code, shown = await say(world, "exchange", "close-answers")
        assert (code, shown["exchange"]["state"]) == (0, "sealing")
        assert shown["exchange"]["refused"] == ["west"]
        assert not (await playing[2].heard("exchange_closed")).completed
        for one in playing[:2]:
            await one.heard("seal_experts")
        events = hub.coordinator.store.query(
            "SELECT action FROM operator_events ORDER BY seq DESC LIMIT 2"
        )
        assert events == [("exchange close-answers",)] * 2


@in_loop
async def test_a_sealed_expert_that_comes_while_the_exchange_ends_is_told_so(world: World) -> None:
    plan = frozen_plan(expert_exchange="deployment", rounds=1)
    kept = {name: Releasing(number) for number, name in enumerate(SITES, 1)}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        operator, run_id, sites = await trained(hub, stack, plan, kept)
        await sites[0].heard("run_ended")
        request = o.ProposeExchangeRequest(run_id=run_id, purpose=PURPOSE, valid_ms=WEEK_MS)
        await operator.call("ProposeExchange", request)
        for one in sites:
            ref = await one.say_yes()
        cancelled = asyncio.Event()
        part = world.home.spool / "exchange" / ref.exchange_id

        async def slowly() -> AsyncIterator[f.UploadExpertRequest]:
            pair = f.SealedExpertRef(exchange=ref, sender=SITES[0])
            yield f.UploadExpertRequest(
                header=f.SealedExpertHeader(ref=pair, payload_hash=bytes(32), payload_bytes=64)
            )
            yield f.UploadExpertRequest(chunk=f.Chunk(offset=0, data=bytes(32)))
            while not list(part.glob("*.part")):
                await asyncio.sleep(0.01)
            await operator.call("CancelExchange", o.RunRef(run_id=run_id))
            cancelled.set()
            yield f.UploadExpertRequest(chunk=f.Chunk(offset=32, data=bytes(32)))

        connection = sites[0].site.connection
        with pytest.raises(StateError, match="is cancelled"):
            await connection.upload(
                connection.federation.UploadSealedExpert, slowly(), deadline_s=20
            )
        assert cancelled.is_set() and not part.exists()


@in_loop
async def test_no_message_of_an_exchange_is_larger_than_the_contract_has_it(world: World) -> None:
    ref, me = f.ExchangeRef(run_id="r", exchange_id="e"), SITES[0]
    key = f.WrappedKey(sender=me, recipient=SITES[1], wrapped=bytes(1168))
    short = f.WrappedKey(sender=me, recipient=SITES[1], wrapped=bytes(1167))
    huge = f.SignedStatement(statement=bytes(65537), signature=bytes(64))
    async with world.running() as hub, hub.site(me) as site:
        for method, request, error in (
            (
                "SendExpertKeys",
                f.ExpertKeysRequest(ref=ref, site_id=me, keys=[key] * 201),
                MessageTooLargeError,
            ),
            (
                "SendExpertKeys",
                f.ExpertKeysRequest(ref=ref, site_id=me, keys=[short]),
                ProtocolError,
            ),
            (
                "ConfirmExperts",
                f.ConfirmExpertsRequest(ref=ref, site_id=me, receipt=huge),
                MessageTooLargeError,
            ),
            (
                "SendConsent",
                f.ConsentRequest(ref=ref, site_id=me, refusal="x" * 501),
                MessageTooLargeError,
            ),
            (
                "SendConsent",
                f.ConsentRequest(ref=ref, site_id=me),
                ProtocolError,
            ),
            (
                "SendExpertKeys",
                f.ExpertKeysRequest(ref=ref, site_id=me, keys=[key] * 200),
                NotFoundError,
            ),
        ):
            with pytest.raises(error):
                await site.call(method, request)


@pytest.mark.parametrize("valid", ["0d", "7", "1w", "-1d", "1h30m", "٣d"])
def test_a_time_span_is_a_number_and_a_unit(valid: str) -> None:
    done = CliRunner().invoke(main, ["exchange", "propose", "--purpose", "x", "--valid", valid])
    assert done.exit_code == 2 and "no time span" in done.output


def test_a_proposal_has_a_purpose() -> None:
    done = CliRunner().invoke(main, ["exchange", "propose", "--home", "x"])
    assert done.exit_code == 2 and "--purpose" in done.output
