"""Six sites with three backbones between real processes, masked: one sum, a mean of each group."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from safetensors.numpy import load_file

from coordinator.run_records import RunRecords
from coordinator.store import Store
from participant.config import Home

from .harness import RealFederation, run_cli, run_json
from .rehearsals import encoded_update, expected_model

BACKBONES = {
    "amber": "signet",
    "birch": "signet",
    "cedar": "signet",
    "dogwood": "resnet",
    "elder": "resnet",
    "fir": "compnet",
}
SIGNETS = ("amber", "birch", "cedar")
PLAN = """
name = "grouped"
method = "rehearsal"
rounds = 2
seed = 5
reproducible = true
quorum = 4
join_deadline_s = 30
max_attempts = 5
masking = "secagg"
masking_step_deadline_s = 10

[backbones]
"""
REQUIRED = 'auto_approve = true\nmasking = "required"\nmin_cohort = 3\n'


@pytest.fixture
def run(federation: Callable[..., RealFederation]) -> RealFederation:
    """A coordinator and six enrolled sites, each with the backbone that it chose in its own settings."""
    made = federation("grouped", *BACKBONES)
    made.found()
    made.serve()
    for site, backbone in BACKBONES.items():
        made.enrol(site, None, REQUIRED)
        choose(made, site, backbone)
    return made


def choose(run: RealFederation, site: str, backbone: str) -> None:
    """Write a site's own backbone into its settings, as its person does."""
    home = Home(run.site_home(site))
    home.save(home.load().model_copy(update={"backbone": backbone}))


def submit(run: RealFederation, backbones: dict[str, str]) -> str:
    plan, model = run.root / "plan.toml", run.root / "initial.safetensors"
    plan.write_text(PLAN + "".join(f'{site} = "{name}"\n' for site, name in backbones.items()))
    run_cli("fedpalm", "model", "init", plan, "--out", model, "--parameters", "100003")
    return run.submit(plan, model)


def states(run: RealFederation, site: str) -> list[str]:
    """How a site stands to the plans that it was offered."""
    with closing(sqlite3.connect(run.site_home(site) / "site.sqlite3")) as db:
        return [state for (state,) in db.execute("SELECT state FROM plans")]


def attempts(run: RealFederation) -> list[tuple[str, str]]:
    """Model and reason of each attempt, in order."""
    with closing(sqlite3.connect(run.coordinator_home / "store.sqlite3")) as db:
        return db.execute(
            "SELECT model_hash, reason FROM attempts ORDER BY round, attempt"
        ).fetchall()


def test_each_group_is_averaged_over_those_who_have_it_inside_one_masked_sum(
    run: RealFederation,
) -> None:
    choose(run, "fir", "resnet")
    run_id = submit(run, BACKBONES)
    for site in BACKBONES:
        run.run_site(site)
    run.wait_for(lambda: "refused" in states(run, "fir"), "fir's no")
    review = run_json("participant", "review", run_id, "--home", run.site_home("fir"))
    assert review["policy"]["violations"] == [
        "backbone: the plan has compnet for this site, participant.toml says resnet"
    ]
    run.kill("fir")
    choose(run, "fir", "compnet")
    run_cli("participant", "approve", run_id, "--home", run.site_home("fir"))
    run.run_site("fir")
    # Whoever comes after the start of a round that it said no to is not in it, and masking needs all six.
    run.wait_for(lambda: len(run.status_or_none()["joined"]) == 6, "all to join")
    run.operator("start")
    # Enough sites for the sum over everybody, too few of the signets: nothing is opened without this one.
    run.wait_for(lambda: len(attempts(run)) >= 1, "the first attempt")
    run.kill("birch")
    run.run_site("birch")
    status = run.wait_for(
        lambda: (s := run.status_or_none()) and s["state"] in ("completed", "paused") and s,
        "the end",
    )
    assert (status["state"], status["masking"]) == ("completed", "secagg"), run.logs()
    with Store.open(run.coordinator_home / "store.sqlite3") as store:
        (stored,) = RunRecords(store).load()
    plan = stored.plan
    assert plan.groups == {
        "trunk.signet": SIGNETS,
        "projection": tuple(BACKBONES),
        "task": tuple(BACKBONES),
    }
    with closing(sqlite3.connect(run.coordinator_home / "store.sqlite3")) as db:
        rows = db.execute(
            "SELECT round, survivors FROM attempts WHERE model_hash <> '' ORDER BY round"
        ).fetchall()
    survivors = {number: tuple(json.loads(sites)) for number, sites in rows}
    assert all(set(SIGNETS) <= set(sites) for sites in survivors.values())
    assert status["model_hash"] == expected_model(plan, survivors)

    assert review["groups"] == {name: list(sites) for name, sites in plan.groups.items()}
    tensors = load_file(run.root / "initial.safetensors")
    initial = plan.model_layout.flatten(tensors)
    values = np.frombuffer(encoded_update(plan, "fir", 1, initial), "<u4")
    trunk = plan.parameter_groups[0].span
    assert not values[trunk].any() and values[trunk.stop :].any()
