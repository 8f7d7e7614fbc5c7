"""Masked rounds between real processes: the same integers as without, and nothing of them for the eye."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from coordinator.run_records import RunRecords
from coordinator.store import Store
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.plan import Plan

from .harness import RealFederation, run_cli, run_json
from .rehearsals import encoded_update, expected_model

SITES = ("amber", "birch", "cedar", "dogwood")
PLAN = """
name = "masked"
method = "rehearsal"
rounds = {rounds}
seed = 5
reproducible = true
quorum = 3
join_deadline_s = 20
masking = "secagg"
masking_step_deadline_s = 20
"""
REQUIRED = 'auto_approve = true\nmasking = "required"\n'


@pytest.fixture
def masked(federation: Callable[..., RealFederation], tmp_path: Path) -> RealFederation:
    """A coordinator and four enrolled sites that accept no plan without masking."""
    run = federation("masked", *SITES)
    run.found()
    run.serve()
    for site in run.sites:
        run.enrol(site, None, REQUIRED)
    return run


def _submit(run: RealFederation, rounds: int) -> Path:
    plan, model = run.root / "plan.toml", run.root / "initial.safetensors"
    plan.write_text(PLAN.format(rounds=rounds))
    run_cli("fedpalm", "model", "init", plan, "--out", model, "--parameters", "100003")
    run.submit(plan, model)
    return model


def _plan(run: RealFederation) -> Plan:
    with Store.open(run.coordinator_home / "store.sqlite3") as store:
        (stored,) = RunRecords(store).load()
    return stored.plan


def _committed_survivors(run: RealFederation) -> dict[int, Sequence[str]]:
    """Whose vectors were in the sum of each committed round, by the coordinator's records."""
    with closing(sqlite3.connect(run.coordinator_home / "store.sqlite3")) as db:
        rows = db.execute(
            "SELECT u.round, u.site FROM updates u JOIN attempts a USING (run_id, round, attempt) "
            "WHERE a.model_hash != '' ORDER BY u.round, u.site"
        ).fetchall()
    found: dict[int, list[str]] = {}
    for number, site in rows:
        found.setdefault(number, []).append(site)
    return dict(found)


def test_a_masked_run_reaches_the_model_of_the_plain_one_and_shows_no_update(
    masked: RealFederation, tmp_path: Path
) -> None:
    model = _submit(masked, 2)
    for site in SITES:
        masked.run_site(site)
    masked.operator("start")
    watched = run_cli("coordinator", "watch", "--home", masked.coordinator_home, "--json").stdout
    status = json.loads(watched.splitlines()[-1])
    assert (status["state"], status["masking"]) == ("completed", "secagg")
    plan = _plan(masked)
    assert status["model_hash"] == expected_model(plan)

    (initial,) = load_file(model).values()
    np.testing.assert_array_equal(initial, rehearsal_vector(plan.model_layout, plan.draft.seed))
    plain = {hashlib.sha256(encoded_update(plan, site, 1, initial)).hexdigest() for site in SITES}
    for site in SITES:
        sent = run_json("participant", "egress", "--verify", "--home", masked.site_home(site))
        updates = [one for one in sent["entries"] if one["kind"] == "update"]
        assert len(updates) == 2 and all(one["receipt_ms"] for one in updates)
        assert plain.isdisjoint(one["payload_hash"] for one in updates)
        left = {path.name for path in (masked.site_home(site) / "masking").iterdir()}
        # What was contributed and charged; the secrets of the attempts are erased.
        assert left == {"memory.json", "ledger.json"}


def test_kills_in_masked_rounds_commit_the_exact_sum_of_those_who_were_left(
    masked: RealFederation,
) -> None:
    _submit(masked, 5)
    for site in SITES:
        masked.run_site(site)
    masked.operator("start")
    for number, victim in ((1, "birch"), (2, "coordinator"), (4, "cedar")):
        masked.wait_for(
            lambda n=number: (masked.status_or_none() or {"round": 0})["round"] >= n, "it"
        )
        masked.kill(victim)
        masked.serve() if victim == "coordinator" else masked.run_site(victim)
    status = masked.wait_for(
        lambda: (s := masked.status_or_none()) and s["state"] != "running" and s, "the run"
    )
    assert status["state"] == "completed", (status, masked.logs())
    survivors = _committed_survivors(masked)
    assert set(survivors) == {1, 2, 3, 4, 5}
    assert all(len(sites) >= 3 for sites in survivors.values())
    assert status["model_hash"] == expected_model(_plan(masked), survivors)
