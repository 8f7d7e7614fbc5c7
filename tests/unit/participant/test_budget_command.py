"""``fedpalm-participant budget`` and the forecast in ``review``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedpalm.errors import BudgetError
from fedpalm.privacy.accounting import Charge, charged_epsilon
from participant.cli import main
from participant.review import review_plan
from participant.store import NewUpdate
from tests.support.participant import Site, World, initial_vector, make_plan, make_private_plan

DELTA = 1e-5
POLICY = f"delta = {DELTA}\npeople = 1000\nmax_epsilon = 3\n"
UPDATE = NewUpdate(b"m" * 32, b"l" * 32, b"update")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, policy=POLICY)


def _epsilon(rounds: int) -> float:
    return charged_epsilon([Charge(4.0, 1.0, 2)] * rounds, DELTA)


def _trained(site: Site, rounds: int, plan: Any, run_id: str = "toy-1") -> None:
    for number in range(1, rounds + 1):
        _, state = site.trainer.train(run_id, plan, number, initial_vector(), site.gate.budget)
        private = plan.draft.privacy.unit != "none"
        pay = partial(site.gate.budget.committed, run_id, number) if private else None
        site.store.commit_round(run_id, number, state, UPDATE, pay=pay)


def _run(home: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["budget", *words, "--home", str(home)])


def _json(home: Path, *words: str) -> dict[str, Any]:
    shown = _run(home, *words, "--json")
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.output)


def test_it_tells_what_is_spent_what_is_left_and_what_the_rest_of_the_plan_would_cost(world):
    site, home = world.site("north")
    plan = make_private_plan(rounds=10)
    world.agreed(site, plan)
    _trained(site, 2, plan)
    site.store.close()
    found = _json(home.path)
    (account,) = found["accounts"]
    assert account == {
        "unit": "subject",
        "epsilon_spent": _epsilon(2),
        "epsilon_left": 3 - _epsilon(2),
        "epsilon_budget": 3.0,
        "delta": DELTA,
        "steps": 4,
    }
    fit = found["plan"]["rounds_that_fit"]
    assert _epsilon(2 + fit) <= 3 < _epsilon(3 + fit)
    assert (found["plan"]["rounds"], found["plan"]["epsilon_after"]) == (8, _epsilon(10))
    shown = _run(home.path).output
    assert f"By subject: epsilon {_epsilon(2):.3f} spent of 3" in shown
    assert f"Run toy-1: {fit} of its 8 rounds fit." in shown
    assert "WARNING: the budget allows" in shown


def test_a_plan_is_forecast_before_anybody_has_approved_it(world):
    site, home = world.site("north")
    plan = make_private_plan(rounds=2)
    site.desk.plans.propose("toy-1", plan, world.offer(plan))
    for found in (_json(home.path), _json(home.path, "--plan", "toy-1")):
        assert found["plan"]["epsilon_after"] == _epsilon(2)
        assert found["plan"]["rounds_that_fit"] == 2
    assert not site.log.verify().size


def test_the_review_of_a_plan_says_what_it_protects_and_what_it_would_cost(world):
    site, _ = world.site("north")
    plan = make_private_plan(rounds=10)
    site.desk.plans.propose("toy-1", plan, world.offer(plan))
    review = review_plan(site.desk.plans, site.desk.plans.plan("toy-1"))
    (section,) = (one for one in review.sections if one.title == "Differential privacy")
    said = " ".join(section.lines)
    assert "By person" in said
    assert "2 steps: each draws every person with probability 1, clips to 1" in said
    assert f"10 further rounds of this plan would bring it to {_epsilon(10):.3f}" in said
    assert "WARNING: the budget allows" in said
    assert review.data["privacy"]["epsilon"] == _epsilon(10)
    assert review.data["privacy"]["delta"] == DELTA


def test_without_a_delta_the_review_says_that_the_cost_is_not_known(world):
    world.policy = ""
    site, home = world.site("north")
    plan = make_private_plan()
    site.desk.plans.propose("toy-1", plan, world.offer(plan))
    review = review_plan(site.desk.plans, site.desk.plans.plan("toy-1"))
    words = " ".join(review.data["privacy"]["words"])
    assert "not known: policy.toml names no delta" in words
    assert review.data["privacy"]["epsilon"] is None
    asked = _run(home.path, "--json")
    assert asked.exit_code == BudgetError.exit_code
    assert "below 1 / people" in json.loads(asked.output)["error"]["next_step"]


def test_rounds_without_differential_privacy_are_told_beside_the_account(world):
    site, home = world.site("north")
    plan = make_plan()
    world.agreed(site, plan)
    _trained(site, 2, plan)
    site.store.close()
    assert _json(home.path)["rounds_without"] == 2
    shown = _run(home.path).output
    assert "WARNING: 2 rounds were trained without differential privacy" in shown
    assert "costs nothing" in shown


def test_a_log_goes_from_one_home_to_the_next_by_a_file(world, tmp_path):
    site, home = world.site("north")
    plan = make_private_plan()
    world.agreed(site, plan)
    _trained(site, 3, plan)
    site.store.close()
    copy = str(tmp_path / "copy")
    assert _json(home.path, "export", copy)["entries"] > 6
    _, new = World(tmp_path / "new", policy=POLICY).site("north")
    taken = _json(new.path, "inherit", copy)
    assert taken["charges_taken_over"] == 1
    assert taken["accounts"][0]["epsilon_spent"] == _epsilon(3)
    assert _json(new.path)["plan"] is None
    assert _run(new.path, "inherit", copy).exit_code == 8
