"""``plan submit`` and ``plan amend`` against a coordinator that runs."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from coordinator.cli.view import run_json, run_line, run_text
from coordinator.masking_records import SpentModel
from fedpalm.errors import ConfigError, NotFoundError, RoundAbortedError, StateError
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.plan import Plan
from fedpalm.wire.v1 import operator_pb2 as o
from tests.simulation.federation import encoded_update, rehearsal_plan
from tests.support.aio import in_loop
from tests.support.commands import run_program
from tests.support.coordinator import Site, World
from tests.support.servicer import live_identity

A, B, C = "site-000", "site-001", "site-002"
PLAN = rehearsal_plan(sites=2, rounds=3)
DRAFT = """
name = "simulated"
method = "rehearsal"
rounds = {rounds}
seed = 11
reproducible = true
quorum = {quorum}
join_deadline_s = 60
round_deadline_s = 600
"""


class Desk:
    """The operator's terminal."""

    def __init__(self, world: World, folder: Path, plan: Plan = PLAN) -> None:
        self.home, self.folder = world.home.root, folder
        live_identity(world.home.operator, world.people["operator"])
        vector = rehearsal_vector(plan.model_layout, plan.draft.seed)
        self.model = folder / "initial.safetensors"
        layout = json.dumps(plan.model_layout.to_json())
        metadata = {"layout": layout, "expert_layout": "[]"}
        tensors = plan.model_layout.unflatten(vector)
        safetensors.numpy.save_file(tensors, self.model, metadata)

    def draft(self, rounds: int, quorum: int = 2, masking: str = "none") -> Path:
        path = self.folder / f"plan-{rounds}-{quorum}.toml"
        path.write_text(DRAFT.format(rounds=rounds, quorum=quorum) + f'masking = "{masking}"\n')
        return path

    async def say(self, *words: object) -> tuple[int, list[dict[str, Any]]]:
        """Exit code of a command, and what it printed, a JSON value a line."""
        arguments = (*words, "--home", self.home, "--json")
        done = await asyncio.to_thread(run_program, "coordinator", *arguments)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    async def ask(self, *words: object) -> dict[str, Any]:
        code, printed = await self.say(*words)
        assert code == 0, printed
        return printed[-1]

    async def fail(self, error: type[Exception], *words: object) -> str:
        code, printed = await self.say(*words)
        assert code == error.exit_code, printed  # type: ignore[attr-defined]
        return str(printed[-1]["error"]["what"])


async def train(site: Site, stack: AsyncExitStack, run_id: str, plan: Plan) -> None:
    """Approve, join, and deliver one round."""
    telling = await stack.enter_async_context(site.instructions())
    while (await anext(telling)).run_offer.run_id != run_id:
        pass
    await site.answer(run_id, plan)
    await site.join(run_id, plan)
    while (told := await anext(telling)).WhichOneof("kind") != "train":
        pass
    start = rehearsal_vector(plan.model_layout, plan.draft.seed)
    payload = encoded_update(plan, site.name, 1, start)
    await site.upload(site.header(told.train, plan, payload), payload)
    while (await anext(telling)).WhichOneof("kind") != "round_closed":
        pass


@in_loop
async def test_a_plan_is_submitted_started_and_watched_with_one_command(tmp_path: Path) -> None:
    world = World(tmp_path / "home", A, B)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        desk = Desk(world, tmp_path)
        operator = await stack.enter_async_context(hub.operator())
        command = ("plan", "submit", desk.draft(3), "--model", desk.model, "--start", "--watch")
        watching = asyncio.create_task(desk.say(*command))
        runs: list[o.RunStatus] = []
        while not (runs and runs[0].state == "running"):
            await asyncio.sleep(0.1)
            runs = list((await operator.call("ListRuns", o.ListRunsRequest())).runs)
        site = await stack.enter_async_context(hub.site(A))
        plan = hub.coordinator.conductor.plan(runs[0].run_id)
        await site.answer(runs[0].run_id, plan)
        await operator.call("AbortRun", o.AbortRunRequest(reason="enough"))
        code, printed = await watching
        assert code == RoundAbortedError.exit_code
        assert printed[0]["run_id"] == runs[0].run_id
        assert (printed[-2]["state"], printed[-2]["approved"]) == ("aborted", [A])
        assert (printed[-2]["awaited"], printed[-2]["roster"]) == ([B], [A, B])
        assert "enough" in printed[-1]["error"]["what"]


@in_loop
async def test_a_plan_with_backbones_is_for_the_sites_that_it_names_unless_others_are_chosen(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "home", A, B, C)
    backbones = f'[backbones]\n{A} = "signet"\n{B} = "signet"\n'
    grouped = rehearsal_plan(sites=2, rounds=3, backbones={A: "signet", B: "signet"})
    async with world.running():
        desk = Desk(world, tmp_path, grouped)
        draft = desk.draft(3)
        draft.write_text(draft.read_text() + backbones)
        model = ("--model", desk.model)
        told = await desk.fail(
            ConfigError, "plan", "submit", draft, *model, "--site", A, "--site", C
        )
        assert f"backbones and roster differ in {B}, {C}" in told
        reply = await desk.ask("plan", "submit", draft, *model)
        assert reply["roster"] == [A, B]


@in_loop
async def test_a_site_that_is_removed_takes_its_backbone_out_of_the_plan_and_one_that_comes_has_to_name_it(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "home", A, B, C)
    own = {A: "signet", B: "signet", C: "resnet"}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        conductor = hub.coordinator.conductor
        without = {name: backbone for name, backbone in own.items() if name != C}
        desk = Desk(world, tmp_path, rehearsal_plan(sites=2, rounds=3, backbones=without))
        draft = desk.draft(3)
        text = draft.read_text()
        listed = "".join(f'{name} = "{backbone}"\n' for name, backbone in own.items())
        draft.write_text(f"{text}[backbones]\n{listed}")
        # No layout names a trunk of resnets, so C shares nothing but the projection.
        run_id = (await desk.ask("plan", "submit", draft, "--model", desk.model))["run_id"]
        fewer = await desk.ask("plan", "amend", run_id, "--remove", C)
        assert conductor.plan(fewer["run_id"]).draft.backbones == without
        assert fewer["roster"] == [A, B]
        why = await desk.fail(ConfigError, "plan", "amend", fewer["run_id"], "--add", C)
        assert f"backbones and roster differ in {C}" in why
        resnets = desk.folder / "resnets.toml"
        resnets.write_text(draft.read_text().replace("signet", "resnet"))
        why = await desk.fail(ConfigError, "plan", "amend", fewer["run_id"], resnets, "--add", C)
        assert "holds a trunk of signet, and no site of the new roster" in why
        back = await desk.ask("plan", "amend", fewer["run_id"], draft, "--add", C)
        assert conductor.plan(back["run_id"]).draft.backbones == own


@in_loop
async def test_an_amended_run_goes_on_from_its_newest_model_with_another_roster(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "home", A, B, C)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        desk, conductor = Desk(world, tmp_path), hub.coordinator.conductor
        roster = ("--site", A, "--site", B)
        model = ("--model", desk.model)
        run_id = (await desk.ask("plan", "submit", desk.draft(3), *model, *roster, "--start"))[
            "run_id"
        ]
        plan = conductor.plan(run_id)
        sites = [await stack.enter_async_context(hub.site(name)) for name in (A, B)]
        await asyncio.gather(*(train(site, stack, run_id, plan) for site in sites))

        assert C in await desk.fail(NotFoundError, "plan", "amend", run_id, "--remove", C)
        why = await desk.fail(NotFoundError, "plan", "amend", run_id, "--add", "mallory")
        assert "mallory" in why
        await desk.fail(ConfigError, "plan", "amend", run_id, "--remove", B)
        assert "no round is left" in await desk.fail(
            StateError, "plan", "amend", run_id, desk.draft(1)
        )
        assert not conductor.run(run_id).over

        said = await desk.ask(
            "plan", "amend", run_id, "--add", C, "--remove", B, "--reason", "b left"
        )
        old, new = conductor.run(run_id), conductor.plan(said["run_id"])
        assert (old.state, old.reason) == ("aborted", "amended: b left")
        assert (new.roster, new.draft.rounds, said["rounds"]) == ((A, C), 2, 2)
        assert new.initial_model == old.model_hash != plan.initial_model
        assert new.continues is not None and new.continues.rounds_done == 1

        again = await desk.ask("plan", "amend", said["run_id"], desk.draft(9))
        assert conductor.plan(again["run_id"]).draft.rounds == 8
        assert conductor.plan(again["run_id"]).roster == (A, C)
        assert conductor.plan(again["run_id"]).rounds_before == 1
        why = await desk.fail(StateError, "plan", "amend", said["run_id"])
        assert "continued by" in why


@in_loop
async def test_a_run_is_not_ended_for_a_plan_that_masking_cannot_work_with(tmp_path: Path) -> None:
    world = World(tmp_path / "home", A, B, C)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        desk, conductor = Desk(world, tmp_path), hub.coordinator.conductor
        few, enough = desk.draft(3, 2, "secagg"), desk.draft(3, 3, "secagg")
        why = await desk.fail(ConfigError, "plan", "submit", few, "--model", desk.model)
        assert "masking among 3 sites" in why and not conductor.run_ids()
        said = await desk.ask("plan", "submit", enough, "--model", desk.model)
        assert "all 3 sites" in said["warning"]
        why = await desk.fail(ConfigError, "plan", "amend", said["run_id"], few)
        assert "masking among 3 sites" in why
        assert not conductor.run(said["run_id"]).over
        assert "all 3 sites" in (await desk.ask("start"))["warnings"][0]


@in_loop
async def test_a_spent_model_starts_no_masked_run_until_one_value_of_it_is_moved(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "home", A, B, C)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        desk, conductor = Desk(world, tmp_path), hub.coordinator.conductor
        submit = ("plan", "submit", desk.draft(3, 3, "secagg"), "--model", desk.model)
        run_id = (await desk.ask(*submit, "--start"))["run_id"]
        conducted = conductor._loop.conducted(run_id)
        assert conducted.run.current is not None
        spent = replace(conducted.run.current, spent=True)
        conducted.run = replace(conducted.run, current=spent)
        hub.coordinator.runs.write(SpentModel(spent.model_hash, run_id, spent.ref))

        assert "asked for shares" in await desk.fail(StateError, "plan", "amend", run_id)
        assert not conductor.run(run_id).over
        assert "give shares for a model once" in await desk.fail(StateError, *submit)
        said = await desk.ask(*submit, "--changed")
        vector = rehearsal_vector(PLAN.model_layout, PLAN.draft.seed).astype("<f4")
        vector[0] = np.nextafter(vector[0], np.float32(np.inf))
        changed = hashlib.sha256(vector.tobytes()).hexdigest()
        assert conductor.plan(said["run_id"]).initial_model == changed
        unmasked = desk.draft(3, 2)
        assert await desk.ask("plan", "submit", unmasked, "--model", desk.model)


@in_loop
async def test_a_completed_run_is_not_amended_but_its_exported_model_starts_another(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "home", A, B)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(world.running())
        desk = Desk(world, tmp_path)
        said = await desk.ask("plan", "submit", desk.draft(1), "--model", desk.model, "--start")
        plan = hub.coordinator.conductor.plan(said["run_id"])
        sites = [await stack.enter_async_context(hub.site(name)) for name in (A, B)]
        await asyncio.gather(*(train(site, stack, said["run_id"], plan) for site in sites))
        why = await desk.fail(StateError, "plan", "amend", said["run_id"], desk.draft(5))
        assert "completed" in why
        assert len(hub.coordinator.conductor.run_ids()) == 1

        out = tmp_path / "global.safetensors"
        exported = await desk.ask("export", "--run", said["run_id"], "--out", out)
        again = await desk.ask("plan", "submit", desk.draft(5), "--model", out)
        began = hub.coordinator.conductor.plan(again["run_id"])
        assert began.initial_model == exported["model_hash"] != plan.initial_model
        assert began.continues is None and began.expert_layout == plan.expert_layout


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("running", "1 of 3: amber; refused: birch; waiting for cedar"),
        ("aborted", "1 of 3: amber; refused: birch"),
    ],
)
def test_a_person_sees_who_has_approved_and_who_is_waited_for(state: str, line: str) -> None:
    status = o.RunStatus(
        state=state, roster=["amber", "birch", "cedar"], approved=["amber"], refused=["birch"]
    )
    console = Console(width=120, file=io.StringIO(), highlight=False)
    console.print(run_text(status))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert [one.strip() for one in printed.splitlines() if "approved" in one] == [
        f"approved  {line}"
    ]
    assert "approved 1/3" in run_line(status)


def test_a_person_sees_which_step_of_masking_is_waited_for_and_what_is_warned_of() -> None:
    status = o.RunStatus(
        state="running",
        masking="secagg",
        masking_step="inputs",
        cohort=["amber", "birch", "cedar"],
        warnings=["masking needs all 3 sites"],
    )
    console = Console(width=120, file=io.StringIO(), highlight=False)
    console.print(run_text(status))
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(one.split()) for one in console.file.getvalue().splitlines()]
    assert "masking secagg, waiting for inputs" in lines
    assert "warning masking needs all 3 sites" in lines
    assert "masking inputs" in run_line(status)
    shown = run_json(status)
    assert (shown["masking"], shown["masking_step"]) == ("secagg", "inputs")
    assert shown["warnings"] == ["masking needs all 3 sites"]


def test_a_reason_is_shown_on_one_line_that_moves_no_terminal() -> None:
    evil = "x\x1b]0;title\x07\x1b[2J\nrun  completed"
    status = o.RunStatus(
        state="aborted",
        reason=evil,
        warnings=[evil],
        exchange=o.ExchangeStatus(state="x", reason=evil),
    )
    console = Console(width=200, file=io.StringIO(), force_terminal=True)
    console.print(run_text(status))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.count("run  completed") == 3
    assert not any(line.startswith("run  completed") for line in shown.splitlines())
    assert "\x1b]" not in shown and "\x1b[2J" not in shown and "\x07" not in shown
