"""A demo with differential privacy: a plan that sites allow and can pay for, and a report that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from fedpalm.cli.demo.command import default_folder, resolve
from fedpalm.cli.demo.figures import Budget, Report
from fedpalm.cli.demo.page import page
from fedpalm.cli.demo.people import split_of
from fedpalm.cli.demo.plans import bound_plan
from fedpalm.cli.demo.plots import write_plots
from fedpalm.cli.demo.settings import (
    DELTA,
    MAX_EPSILON,
    PRIVATE_SIZES,
    SYNTHETIC,
    DemoSettings,
    plan_toml,
)
from fedpalm.cli.demo.terminal import summary
from fedpalm.cli.demo.workspace import Workspace
from fedpalm.data.records import ImageRecord
from fedpalm.data.splits import write_list
from fedpalm.plan import PlanDraft
from fedpalm.privacy.accounting import Charge, charged_epsilon
from fedpalm.settings import load_toml, parse_toml
from participant.config import DataSettings
from participant.images import split_records
from participant.policy import Policy, violations

from .conftest import canned_report, estimate

PRIVATE = DemoSettings(privacy="subject", **PRIVATE_SIZES)


def test_nothing_said_a_private_demo_has_more_people_and_fewer_rounds():
    assert resolve(SYNTHETIC, 4, None, None, None, "fedpalm", 0, "secagg", "subject") == PRIVATE
    plain = resolve(SYNTHETIC, 4, None, None, None, "fedpalm", 0, "secagg", "none")
    assert plain == DemoSettings()
    assert default_folder(PRIVATE) != default_folder(DemoSettings())


def test_its_sites_allow_the_plan_and_can_pay_for_it_with_a_round_to_spare():
    policy = parse_toml(Policy, PRIVATE.policy_toml().encode(), "policy.toml")
    plan = bound_plan(PRIVATE)
    assert violations(policy, plan) == []
    assert (policy.privacy, policy.max_epsilon, policy.delta) == ("required", MAX_EPSILON, DELTA)
    privacy = plan.draft.privacy
    assert (privacy.population, policy.people) == (PRIVATE.identities, 2 * PRIVATE.identities)
    rounds = plan.draft.rounds + 1
    charge = Charge(privacy.noise_multiplier, privacy.sampling_rate, rounds * privacy.steps)
    assert charged_epsilon([charge], DELTA) <= MAX_EPSILON


@pytest.mark.parametrize("settings", [PRIVATE, DemoSettings()])
def test_the_demo_looks_at_the_split_that_its_sites_make(tmp_path: Path, settings: DemoSettings):
    workspace = Workspace(tmp_path / "demo")
    workspace.open(settings)
    records = []
    for name in range(12):
        for image in "abcd":
            path = tmp_path / f"{name}" / f"{image}.png"
            path.parent.mkdir(exist_ok=True)
            path.touch()
            records.append(ImageRecord(path, f"palm-{name}", person=f"{name // 2}"))
    write_list(records, workspace.images("site-1"))
    # What `join --data` without further options means.
    data = DataSettings(source=str(workspace.images("site-1")))
    assert split_of(workspace, "site-1") == split_records(data, "site-1", settings.privacy)
    plan = settings.draft()
    assert plan.privacy.unit == settings.privacy


def test_the_written_plan_reads_back_as_the_same_draft(tmp_path: Path):
    path = tmp_path / "plan.toml"
    path.write_text(plan_toml(PRIVATE.draft()))
    assert load_toml(PlanDraft, path) == PRIVATE.draft()


def test_more_people_than_delta_allows_are_refused():
    with pytest.raises(ValidationError, match="could give one away"):
        DemoSettings(privacy="subject", identities=round(1 / DELTA))


def private_report() -> Report:
    plain = canned_report({"fedpalm": 0.12, "fedavg": 0.13, "local": 0.2})
    budget = Budget(spent=7.123, budget=8.0, delta=DELTA, people=40, steps=18)
    sites = tuple(site.model_copy(update={"budget": budget}) for site in plain.sites)
    open_set = plain.open_set.model_copy(update={"warm_start": estimate(0.17)})
    return plain.model_copy(update={"settings": PRIVATE, "sites": sites, "open_set": open_set})


def test_the_page_says_what_was_spent_and_what_the_warm_start_does_alone(tmp_path: Path):
    report = private_report()
    html = page(report, write_plots(report, tmp_path), None)
    assert "What differential privacy cost" in html
    assert html.count("<td>7.123</td>") == len(report.sites)
    assert "17.0\u00a0%" in html and "reproducible = true" not in html
    plain = canned_report({"fedpalm": 0.12, "fedavg": 0.13, "local": 0.2})
    assert "differential privacy" not in page(plain, write_plots(plain, tmp_path), None)


def test_the_terminal_says_it_too(tmp_path: Path):
    console = Console(width=160, record=True, file=(tmp_path / "shown").open("w"))
    console.print(summary(private_report(), Workspace(tmp_path)))
    shown = console.export_text()
    assert "epsilon spent" in shown and "7.123" in shown and "17.0 %" in shown
