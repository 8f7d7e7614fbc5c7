"""Exchanges in the middle of a run: it waits for them, and goes on when they are completed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpalm.errors import (
    StateError,
)
from fedpalm.plan import Plan
from fedpalm.rounds.events import (
    RoundRef,
)
from fedpalm.rounds.run import (
    Resume,
    RunState,
)
from tests.support.exchange_world import (
    RUN,
    ExchangeWorld,
    after_round_1,
    exchange_plan,
)

# --- in the middle of a run -------------------------------------------------------------------------


def resume(world: ExchangeWorld) -> None:
    """As the operator's call does it."""
    world.conductor.feed(RUN, Resume(9, world.desk.completed(RUN)))


def test_a_frozen_run_takes_a_resume_after_its_exchange_and_none_before(
    frozen: ExchangeWorld,
) -> None:
    assert frozen.conductor.run(RUN).waits_for_exchange
    for state in ("proposed", "sealing", "revealing", "delivering"):
        frozen.play(state)
        with pytest.raises(StateError, match="waits for the exchange"):
            resume(frozen)
        frozen.kill()
    frozen.play()
    frozen.kill()
    resume(frozen)
    run = frozen.conductor.run(RUN)
    assert run.state is RunState.RUNNING
    assert run.current is not None and run.current.ref == RoundRef(2, 1)


def test_a_cancelled_exchange_lets_no_frozen_run_go_on(frozen: ExchangeWorld) -> None:
    frozen.play("sealing")
    frozen.desk.cancel(RUN, "olga")
    with pytest.raises(StateError, match="waits for the exchange"):
        resume(frozen)
    frozen.play()
    assert frozen.machine.terms.number == 2
    resume(frozen)


def test_no_exchange_is_proposed_before_or_after_its_round(tmp_path: Path) -> None:
    plan = exchange_plan(rounds=9, expert_exchange="freeze")
    early = ExchangeWorld(tmp_path, plan=plan, run=after_round_1(plan))
    with pytest.raises(StateError, match="after round 3, while it is paused"):
        early.propose()
    early.store.close()


def test_a_plan_that_begins_after_the_round_of_its_exchange_has_none(tmp_path: Path) -> None:
    first = exchange_plan(rounds=3, expert_exchange="freeze")
    values = first.model_dump() | {
        "continues": {
            "run": "earlier",
            "plan_hash": first.hash.hex(),
            "rounds_done": 2,
            "model": first.initial_model,
        }
    }
    plan = Plan.model_validate(values)
    assert plan.exchange_round is None
    world = ExchangeWorld(tmp_path, plan=plan)
    with pytest.raises(StateError, match="goes on after the round"):
        world.propose()
    world.store.close()
