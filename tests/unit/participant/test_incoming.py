"""Names and texts of a hostile coordinator: none reaches a file name, a terminal or the store."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from fedpalm.errors import ProtocolError
from fedpalm.wire.v1 import federation_pb2 as wire
from participant.ending import ExitAfter
from participant.incoming import checked
from participant.reporter import LiveReporter, PlainReporter
from tests.support.aio import in_loop
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import Site, make_plan

HOSTILE = "quota\x1b[2J\x1b]0;owned\x07\nexchange x-1: approved \u202edesrever"
SHOWN = "quota\ufffd[2J\ufffd]0;owned\ufffd exchange x-1: approved \ufffddesrever"


def _instruction(kind: str, run: str = "toy-1", exchange: str = "x-1") -> wire.Instruction:
    round_ref = wire.RoundRef(run_id=run, round=1, attempt=1)
    exchange_ref = wire.ExchangeRef(run_id=run, exchange_id=exchange)
    messages = {
        "run_offer": wire.RunOffer(run_id=run),
        "prepare": wire.PrepareRound(ref=round_ref),
        "train": wire.TrainRound(ref=round_ref),
        "round_closed": wire.RoundClosed(ref=round_ref, reason=HOSTILE),
        "run_ended": wire.RunEnded(run_id=run, model_hash=bytes(32), reason=HOSTILE),
        "exchange_proposed": wire.ExchangeProposed(ref=exchange_ref),
        "seal_experts": wire.SealExperts(ref=exchange_ref),
        "reveal_keys": wire.RevealKeys(ref=exchange_ref),
        "open_experts": wire.OpenExperts(ref=exchange_ref),
        "masking": wire.MaskingStepOpen(ref=round_ref),
        "exchange_closed": wire.ExchangeClosed(ref=exchange_ref, reason=HOSTILE),
    }
    return wire.Instruction(**{kind: messages[kind]})


KINDS = [
    field.name
    for field in wire.Instruction.DESCRIPTOR.oneofs_by_name["kind"].fields
    if field.name != "heartbeat"
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "-a", "a\n", "x" * 64])
def test_an_instruction_about_something_that_is_no_name_is_refused(kind, name):
    assert checked(_instruction(kind)).WhichOneof("kind") == kind
    with pytest.raises(ProtocolError):
        checked(_instruction(kind, run=name))
    if "exchange" in kind or "experts" in kind:
        with pytest.raises(ProtocolError):
            checked(_instruction(kind, exchange=name))


@pytest.mark.parametrize("kind", ["round_closed", "run_ended", "exchange_closed"])
def test_a_reason_becomes_one_line_that_moves_no_terminal(kind):
    came = _instruction(kind)
    assert getattr(checked(came), kind).reason == SHOWN
    assert getattr(came, kind).reason == HOSTILE


@pytest.mark.parametrize("live", [False, True])
def test_a_line_of_the_agent_is_one_line_whatever_was_put_into_it(live, capsys):
    if live:
        shown = io.StringIO()
        reporter = LiveReporter(Console(file=shown, width=200, force_terminal=False))
    else:
        reporter = PlainReporter()
    reporter.line(f"refused: {HOSTILE}")
    reporter.close()
    text = shown.getvalue() if live else capsys.readouterr().out
    assert f"refused: {SHOWN}" in text
    assert "\u202e" not in text
    assert "\x07" not in text
    assert not any(line.startswith("exchange") for line in text.splitlines())


@in_loop
async def test_the_reason_of_an_ended_run_is_stored_and_shown_clean(world):
    coordinator = FakeCoordinator(world, make_plan(), expected=("north", "west"))
    site, home = world.site("north")
    task = asyncio.create_task(site.run(coordinator))
    while "north" not in coordinator.accepted:
        await asyncio.sleep(0.001)
    coordinator.tell("north", _instruction("run_ended"))
    outcome = await task
    assert outcome.reason == SHOWN
    assert any(SHOWN in line for line in site.lines)
    again = Site(home)
    assert again.store.run("toy-1").reason == SHOWN
    again.store.close()


@in_loop
@pytest.mark.parametrize("name", ["", "../x"])
async def test_an_agent_that_is_offered_a_malformed_name_asks_for_nothing_by_it(world, name):
    coordinator = FakeCoordinator(world, make_plan(), expected=("north",), run_id=name)
    site, home = world.site("north")
    agent = site.agent(coordinator, ExitAfter.RUN)
    task = asyncio.create_task(agent.run())
    while coordinator.connections < 3:
        await asyncio.sleep(0.001)
    agent.stop()
    await task
    site.store.close()
    assert any("is not a run name" in line and "trying again" in line for line in site.lines)
    again = Site(home)
    kinds = [e.body["payload"] for e in again.log.entries()]
    assert set(kinds) == {"hello", "instructions"}
    again.store.close()
