"""The agent against a coordinator in memory: what it does, and what no crash makes it do."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fedpalm.errors import (
    DataError,
    EgressRefusedError,
    FedPalmError,
    IdentityError,
    LayoutMismatchError,
    NotOnRosterError,
    RevokedError,
    WrongRoleError,
)
from fedpalm.layout import Layout, TensorSpec
from fedpalm.ledger.bodies import EntryKind
from fedpalm.methods.base import SiteMethod
from fedpalm.plan import Plan
from fedpalm.wire.statements import to_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from participant.agent import MAX_WAITING
from participant.config import Home
from participant.ending import ExitAfter
from participant.outgoing import PayloadKind
from tests.support.agents import running, told, until
from tests.support.aio import in_loop
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import Crash, Site, ToyMethod, World, initial_vector, make_plan

ROUNDS = 3


def _coordinator(world: World, rounds: int = ROUNDS) -> FakeCoordinator:
    return FakeCoordinator(world, make_plan(rounds), expected=("north",))


def _payloads(site_home, kind: PayloadKind):
    site = Site(site_home)
    entries = list(site.log.entries())
    site.log.verify()
    site.store.close()
    return [e.body for e in entries if e.kind is EntryKind.EGRESS and e.body["payload"] == kind]


async def _undisturbed(world: World, rounds: int = ROUNDS) -> FakeCoordinator:
    calm = World(world.root / "calm")
    coordinator = _coordinator(calm, rounds)
    site, _ = calm.site("north")
    await site.run(coordinator)
    return coordinator


@in_loop
async def test_a_run_is_joined_trained_delivered_and_its_final_model_kept(world):
    coordinator = _coordinator(world)
    site, home = world.site("north")
    outcome = await site.run(coordinator)
    assert outcome.completed
    assert coordinator.ended
    assert [(s, r, a) for s, r, a, _ in coordinator.deliveries] == [
        ("north", r, 1) for r in range(1, ROUNDS + 1)
    ]
    assert site.methods[0].trained == [1, 2, 3]
    again = Site(home)
    run = again.store.run("toy-1")
    assert run.state == "completed"
    assert run.model_hash == coordinator.model_hash
    assert again.store.model_path(run.model_hash).read_bytes() == coordinator.models[ROUNDS + 1]
    assert again.store.state_round("toy-1") == ROUNDS


@in_loop
async def test_every_update_is_logged_with_its_hash_size_layout_and_place_and_has_a_receipt(world):
    coordinator = _coordinator(world)
    site, home = world.site("north")
    await site.run(coordinator)
    updates = _payloads(home, PayloadKind.UPDATE)
    assert [u["payload_hash"] for u in updates] == [d[3] for d in coordinator.deliveries]
    for number, update in enumerate(updates, 1):
        assert update["bytes"] == coordinator.codec.payload_bytes
        assert update["layout_hash"] == coordinator.plan.model_layout.hash.hex()
        assert (update["run"], update["round"], update["attempt"]) == ("toy-1", number, 1)
        assert update["recipient"] == "spiffe://unit/coordinator/coordinator"
    again = Site(home)
    receipts = [e.body for e in again.log.entries() if e.kind is EntryKind.RECEIPT]
    assert [r["payload_hash"] for r in receipts] == [u["payload_hash"] for u in updates]


def test_a_crash_at_any_durable_step_changes_no_byte_that_is_sent(world):
    """Every durable step of a whole run dies once; the same command goes on to the same models."""
    asyncio.run(asyncio.wait_for(_crash_at_every_step(world), 240))


async def _crash_at_every_step(world: World) -> None:
    undisturbed = await _undisturbed(world, rounds=2)
    enrolled = world.home("north")
    for crash_at in range(1, 1000):
        coordinator, steps = _coordinator(world, rounds=2), []

        def dies(step: str, steps: list[str] = steps, at: int = crash_at) -> None:
            steps.append(step)
            if len(steps) == at:
                raise Crash(step)

        home = Home(world.root / f"crash-{crash_at}")
        shutil.copytree(enrolled.path, home.path)
        try:
            await Site(home, dies).run(coordinator)
        except Crash:
            coordinator.queues.clear()
            site = Site(home)
            run = site.store.run("toy-1")
            if run is None or run.state == "joined":
                await site.run(coordinator)
            else:
                site.store.close()
        else:
            break
        assert coordinator.models == undisturbed.models, steps[-1]
        _no_round_was_sent_twice_with_other_bytes(coordinator)
    assert crash_at > 40
    assert {"state file written", "update file written", "before commit", "committed"} <= set(steps)


def _no_round_was_sent_twice_with_other_bytes(coordinator: FakeCoordinator) -> None:
    sent: dict[int, set[str]] = {}
    for _, round_number, _, digest in coordinator.deliveries:
        sent.setdefault(round_number, set()).add(digest)
    assert all(len(digests) == 1 for digests in sent.values()), sent


@in_loop
async def test_a_stored_round_is_sent_again_and_never_trained_again(world):
    coordinator = _coordinator(world)
    coordinator.failures["UploadUpdate"] = 1
    site, home = world.site("north")
    agent = site.agent(coordinator, ExitAfter.RUN)
    task = asyncio.create_task(agent.run())
    while coordinator.failures["UploadUpdate"]:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    site.store.close()

    again = Site(home)
    await again.run(coordinator)
    assert site.methods[0].trained + again.methods[0].trained == [1, 2, 3]
    assert coordinator.models == (await _undisturbed(world)).models


@in_loop
async def test_an_interrupted_upload_goes_on_where_it_ended(world):
    coordinator = _coordinator(world)
    coordinator.cut_upload_at = 1000
    site, _ = world.site("north")
    await site.run(coordinator)
    # The fake asserts that the next chunk starts at byte 1000, and hashes the whole.
    assert coordinator.connections == 2
    assert coordinator.models == (await _undisturbed(world)).models


@in_loop
async def test_a_lost_receipt_is_asked_for_instead_of_sending_again(world):
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    coordinator.failures["receipt"] = 1
    site, _ = world.site("north")
    agent = site.agent(coordinator, ExitAfter.RUN)
    task = asyncio.create_task(agent.run())
    while not any(e.kind is EntryKind.RECEIPT for e in site.log.entries()):
        await asyncio.sleep(0.001)
    agent.stop()
    await task
    site.store.close()
    assert len(coordinator.deliveries) == 1


@in_loop
async def test_another_attempt_of_a_round_gets_the_same_bytes_under_its_own_log_entry(world):
    coordinator = _coordinator(world)
    coordinator.abort_attempts = {(2, 1), (2, 2)}
    site, home = world.site("north")
    await site.run(coordinator)
    second = [d for d in coordinator.deliveries if d[1] == 2]
    assert [attempt for _, _, attempt, _ in second] == [1, 2, 3]
    assert len({digest for *_, digest in second}) == 1
    logged = [u["attempt"] for u in _payloads(home, PayloadKind.UPDATE) if u["round"] == 2]
    assert logged == [1, 2, 3]
    assert site.methods[0].trained == [1, 2, 3]


@in_loop
async def test_a_coordinator_that_comes_and_goes_is_dialled_again_until_the_run_is_done(world):
    coordinator = _coordinator(world)
    for method in ("Hello", "Instructions", "JoinRun", "DownloadModel", "UpdateOffset"):
        coordinator.failures[method] = 2
    site, _ = world.site("north")
    outcome = await site.run(coordinator)
    assert outcome.completed
    assert coordinator.connections == 11
    assert coordinator.models == (await _undisturbed(world)).models


@in_loop
async def test_training_outlives_the_connection_it_was_asked_on(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Slow(ToyMethod):
        def train_round(self, context, shared):
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(10)
            return super().train_round(context, shared)

    site.trainer._build = lambda plan, name, images: (
        site.methods.append(Slow(plan, name)) or site.methods[-1]
    )
    task = asyncio.create_task(site.run(coordinator))
    await begun.wait()
    before = coordinator.connections
    coordinator.drop("north")
    while coordinator.connections == before or "north" not in coordinator.queues:
        await asyncio.sleep(0.001)
    go_on.set()
    await task
    assert len(site.methods) == 1
    assert site.methods[0].trained == [1, 2, 3]


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("Hello", IdentityError("the certificate expired")),
        ("Hello", WrongRoleError("not a participant")),
        ("JoinRun", NotOnRosterError("not on the roster")),
        ("JoinRun", LayoutMismatchError("another layout")),
    ],
)
def test_what_no_new_try_can_mend_ends_the_agent_with_its_own_error(world, method, error):
    @in_loop
    async def story() -> None:
        coordinator = _coordinator(world)
        coordinator.errors[method] = error
        site, _ = world.site("north")
        with pytest.raises(type(error)):
            await site.run(coordinator)
        assert coordinator.connections == 1

    story()


@in_loop
async def test_a_fault_of_the_coordinator_without_a_name_is_waited_out(world):
    coordinator = _coordinator(world)
    coordinator.errors["Hello"] = FedPalmError("internal error")
    site, _ = world.site("north")
    task = asyncio.create_task(site.run(coordinator))
    while coordinator.connections < 3:
        await asyncio.sleep(0.001)
    del coordinator.errors["Hello"]
    assert (await task).completed


@in_loop
async def test_a_site_that_is_not_on_the_roster_does_not_join(world):
    coordinator = FakeCoordinator(world, make_plan(sites=("east", "west")), expected=("east",))
    site, home = world.site("north")
    async with running(site, coordinator):
        await told(site, "run toy-1: offer refused: north is not on the roster")
        coordinator.offer_also(make_plan(rounds=1), "toy-2")
        await told(site, "run toy-2: joined")
    assert coordinator.connections == 1
    assert [body["run"] for body in _payloads(home, PayloadKind.JOIN_RUN)] == ["toy-2"]


@in_loop
async def test_a_malformed_countersignature_is_told_and_the_round_goes_on_without_it(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north", "west"))
    good = coordinator.FetchCountersignatures
    forged = [
        wire.SignedStatement(statement=b"x", signature=b"y" * 64, chain=[b"no certificate"]),
        to_wire(replace(world.offer(make_plan()), statement=b"\xff\xfe")),
    ]

    async def bad(site: str, request: wire.RoundRef) -> AsyncIterator[wire.SignedStatement]:
        if forged:
            yield forged.pop()
        async for signed in good(site, request):
            yield signed

    coordinator.FetchCountersignatures = bad  # type: ignore[method-assign]
    site, _ = world.site("north")
    async with running(site, coordinator):
        await until(lambda: coordinator.deliveries)
    assert coordinator.connections == 3
    assert sum("malformed signed statement" in line for line in site.lines) == 2


@in_loop
async def test_more_instructions_than_anybody_could_mean_end_the_connection(world):
    coordinator = FakeCoordinator(world, make_plan(), expected=("north",))
    began = asyncio.Event()

    async def never(site: str, request: wire.DownloadModelRequest) -> AsyncIterator[wire.Chunk]:
        began.set()
        await asyncio.Event().wait()
        yield wire.Chunk()

    coordinator.DownloadModel = never  # type: ignore[method-assign]
    site, _ = world.site("north")
    async with running(site, coordinator):
        await began.wait()
        train = coordinator._train()
        coordinator.tell("north", *[train] * (MAX_WAITING + 1))
        await told(site, f"more than {MAX_WAITING} instructions came while")
        await until(lambda: coordinator.connections > 1)


@in_loop
async def test_a_plan_that_is_refused_while_the_model_comes_is_not_trained(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    download = coordinator.DownloadModel

    async def slow(name: str, request: wire.DownloadModelRequest) -> AsyncIterator[wire.Chunk]:
        site.desk.plans.refuse("toy-1", "stop")
        async for chunk in download(name, request):
            yield chunk

    coordinator.DownloadModel = slow  # type: ignore[method-assign]
    async with running(site, coordinator):
        await told(site, "refused: run toy-1: this site has refused plan")
    assert not site.methods[0].trained


@in_loop
async def test_a_plan_that_is_refused_while_the_images_are_loaded_is_not_trained(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    resume = site.trainer.resume

    def slow(run_id: str, plan: Plan) -> SiteMethod:
        method = resume(run_id, plan)
        if not site.methods[0].trained:
            site.desk.plans.refuse("toy-1", "stop")
        return method

    site.trainer.resume = slow  # type: ignore[method-assign]
    async with running(site, coordinator):
        await told(site, "refused: run toy-1: this site has refused plan")
    assert not site.methods[0].trained


@in_loop
async def test_a_model_of_another_layout_does_not_join(world):
    coordinator = _coordinator(world)
    site, home = world.site("north")

    class Other(ToyMethod):
        layout = Layout((TensorSpec("open_set.expert.weight", (16, 9)),))

    site.trainer._build = lambda plan, name, images: Other(plan, name)
    with pytest.raises(LayoutMismatchError):
        await site.run(coordinator)
    assert not _payloads(home, PayloadKind.JOIN_RUN)


@in_loop
async def test_a_first_round_from_another_model_than_the_plans_is_refused(world):
    coordinator = _coordinator(world)
    coordinator.models[1] = (initial_vector() + 1).astype("<f4").tobytes()
    site, home = world.site("north")
    async with running(site, coordinator):
        await told(site, "round 1 starts from another model than the plan's")
    assert not site.methods[0].trained
    assert not _payloads(home, PayloadKind.UPDATE)


@in_loop
async def test_a_retry_from_another_model_is_not_trained_again_and_nothing_is_sent_for_it(world):
    coordinator = _coordinator(world)
    site, home = world.site("north")
    async with running(site, coordinator):
        await until(lambda: coordinator.deliveries)
        coordinator.expected = ("north", "west")
        await until(lambda: len(coordinator.deliveries) == 2)
        coordinator.models[2] = (initial_vector() + 1).astype("<f4").tobytes()
        coordinator.attempt = 2
        coordinator.tell("north", coordinator._train())
        await told(site, "a retry starts from another model")
    assert len(_payloads(home, PayloadKind.UPDATE)) == 2
    assert site.methods[0].trained == [1, 2]


@in_loop
async def test_an_update_that_carries_a_private_tensor_ends_the_agent_and_is_not_sent(world):
    coordinator = _coordinator(world)
    site, home = world.site("north")

    class Leaky(ToyMethod):
        def train_round(self, context, shared):
            update = super().train_round(context, shared)
            begin = 16 * 8
            secret = self._state["closed_set.embedding.weight"].reshape(-1)
            update.delta[begin : begin + secret.size] = secret - shared[begin : begin + secret.size]
            return update

    site.trainer._build = lambda plan, name, images: Leaky(plan, name)
    with pytest.raises(EgressRefusedError, match=r"closed_set\.embedding\.weight"):
        await site.run(coordinator)
    assert not coordinator.deliveries
    assert not _payloads(home, PayloadKind.UPDATE)
    assert not list(home.state.glob("*.update"))


@in_loop
async def test_stopping_ends_between_steps_and_the_same_command_goes_on(world):
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, home = world.site("north")
    agent = site.agent(coordinator, ExitAfter.RUN)
    task = asyncio.create_task(agent.run())
    while not coordinator.deliveries:
        await asyncio.sleep(0.001)
    agent.stop()
    outcome = await task
    site.store.close()
    assert outcome.completed is None
    coordinator.expected = ("north",)
    coordinator._advance()
    assert (await Site(home).run(coordinator)).completed
    assert coordinator.models == (await _undisturbed(world)).models


@in_loop
async def test_an_aborted_run_is_reported_as_such(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    coordinator.ended = None

    def abort_instead(*_: object) -> wire.JoinRunReply:
        coordinator.ended = False
        coordinator.tell("north", coordinator._run_ended())
        return wire.JoinRunReply()

    coordinator.JoinRun = abort_instead
    outcome = await site.run(coordinator)
    assert outcome.completed is False


@in_loop
async def test_a_new_run_after_one_that_ended_while_the_site_was_away_is_joined(world):
    first = _coordinator(world)
    first.expected = ("north", "west")
    site, home = world.site("north")
    agent = site.agent(first, ExitAfter.RUN)
    task = asyncio.create_task(agent.run())
    while not first.deliveries:
        await asyncio.sleep(0.001)
    agent.stop()
    await task
    site.store.close()

    second = FakeCoordinator(world, make_plan(2), expected=("north",), run_id="toy-2")
    again = Site(home)
    assert (await again.run(second)).completed
    reopened = Site(home)
    assert reopened.store.run("toy-1").state == "left"
    assert reopened.store.run("toy-2").state == "completed"


@in_loop
async def test_a_training_that_fails_while_the_agent_stops_is_reported(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Failing(ToyMethod):
        def train_round(self, context, shared):
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(10)
            raise DataError("an image is gone")

    site.trainer._build = lambda plan, name, images: Failing(plan, name)
    agent = site.agent(coordinator, ExitAfter.RUN)
    task = asyncio.create_task(agent.run())
    await begun.wait()
    agent.stop()
    while not any("waiting for the round in training" in line for line in site.lines):
        await asyncio.sleep(0.001)
    go_on.set()
    await task
    assert any("an image is gone" in line for line in site.lines)


@in_loop
async def test_every_metric_of_a_round_is_told_at_the_site(world):
    class Measuring(ToyMethod):
        def train_round(self, context, shared):
            metrics = {"open.loss": 2.0, "teim.open.alpha": 0.7, "routing.open.east": 0.25}
            return replace(super().train_round(context, shared), metrics=metrics)

    site, _ = world.site("north")
    site.trainer._build = lambda plan, name, images: Measuring(plan, name)
    await site.run(_coordinator(world, 1))
    told = "round 1: trained (open.loss 2, open.alpha 0.7, open<east 0.25)"
    assert any(told in line for line in site.lines)


@in_loop
async def test_new_certificates_are_connected_with_at_once_and_training_goes_on(world):
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, _ = world.site("north")
    renewed = asyncio.Event()

    class Renews:
        async def keep(self, link: object) -> None:
            await renewed.wait()
            renewed.clear()

    site.renewal = Renews()
    async with running(site, coordinator):
        await until(lambda: coordinator.deliveries)
        renewed.set()
        await until(lambda: coordinator.connections == 2)
        coordinator.expected = ("north",)
        coordinator._advance()
        await until(lambda: coordinator.ended)
    assert not any("trying again" in line for line in site.lines)
    assert site.methods[0].trained == [1, 2, 3]


@pytest.mark.parametrize("where", ["Hello", "AnswerPlan", "Instructions", "UpdateOffset"])
def test_a_revoked_site_ends_wherever_it_is_told_so(world, where):
    @in_loop
    async def story() -> None:
        coordinator = _coordinator(world)
        coordinator.errors[where] = RevokedError("site north was revoked")
        site, _ = world.site("north")
        with pytest.raises(RevokedError, match="north was revoked"):
            await site.run(coordinator)
        assert coordinator.connections == 1

    story()


@in_loop
async def test_while_the_policy_cannot_be_read_nothing_is_sent_and_then_the_round_goes_on(world):
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, home = world.site("north")
    async with running(site, coordinator) as task:
        await until(lambda: coordinator.deliveries)
        home.policy.write_text("masking = 'perhaps'\n")
        await told(site, "policy.toml: masking")
        coordinator.expected = ("north",)
        coordinator._advance()
        await told(site, "refused: ")
        assert len(coordinator.deliveries) == 1
        home.policy.write_text("auto_approve = true\n")
        assert (await task).completed
    assert coordinator.ended
    assert coordinator.answers["north", "toy-1"].number == 1
