"""The whole protocol between real processes, with deltas that cost nothing to make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from coordinator.run_records import RunRecords
from coordinator.store import Store
from fedpalm.methods.base import RoundContext
from fedpalm.methods.contribution import codec_for, rounding_key
from fedpalm.methods.rehearsal import RehearsalMethod
from fedpalm.methods.rules import server_rule
from fedpalm.plan import Plan

from .harness import RealFederation, run_cli, run_json

ROUNDS = 3
PARAMETERS = 1_000_001
PLAN = f"""
name = "rehearsal"
method = "rehearsal"
rounds = {ROUNDS}
seed = 5
reproducible = true
quorum = 3
"""


@pytest.fixture
def rehearsed(
    federation: Callable[..., RealFederation], tmp_path: Path
) -> tuple[RealFederation, Path, Path]:
    """A coordinator with three enrolled sites, a plan and its initial model."""
    plan, model = tmp_path / "plan.toml", tmp_path / "initial.safetensors"
    plan.write_text(PLAN)
    run_cli("fedpalm", "model", "init", plan, "--out", model, "--parameters", str(PARAMETERS))
    run = federation("rehearsal", "amber", "birch", "cedar")
    run.found()
    run.serve()
    for site in run.sites:
        run.enrol(site, None)
    return run, plan, model


def _expected(bound: Plan, vector: np.ndarray) -> np.ndarray:
    """The run again, in one process and with plain integer arithmetic."""
    codec, rule = codec_for(bound), server_rule(bound.draft.method)
    for number in range(1, bound.draft.rounds + 1):
        total = np.zeros(codec.length, dtype=np.int64)
        for site in bound.roster:
            update = RehearsalMethod(bound, site).train_round(
                RoundContext(number, bound.draft.rounds), vector
            )
            encoded = codec.encode(
                update.delta, update.weight, update.stats, rounding_key(bound, site, number)
            )
            total += encoded.view(np.int32)
        modular = (total % 2**32).astype(np.uint32)
        vector = rule.step(
            vector,
            codec.decode_deltas(modular[: codec.parameters]),
            codec.decode_stats(modular[codec.parameters :]),
        )
    return vector


def _plan_and_initial(run: RealFederation, model: Path) -> tuple[Plan, np.ndarray]:
    with Store.open(run.coordinator_home / "store.sqlite3") as store:
        (stored,) = RunRecords(store).load()
    (initial,) = load_file(model).values()
    return stored.plan, initial


def test_three_sites_and_a_coordinator_reach_the_model_that_one_process_computes(
    rehearsed: tuple[RealFederation, Path, Path], tmp_path: Path
) -> None:
    run, plan, model = rehearsed
    run.submit(plan, model)
    for site in run.sites:
        run.run_site(site)
    run.operator("start")
    watched = run_cli("coordinator", "watch", "--home", run.coordinator_home, "--json").stdout
    status = json.loads(watched.splitlines()[-1])
    assert status["state"] == "completed"
    assert status["round"] == ROUNDS and status["attempt"] == 1
    assert status["delivered"] == list(run.sites)

    out = tmp_path / "model.safetensors"
    exported = run.operator("export", "--out", out)
    assert exported["model_hash"] == status["model_hash"]
    (vector,) = load_file(out).values()
    assert vector.shape == (PARAMETERS,)

    np.testing.assert_array_equal(vector, _expected(*_plan_and_initial(run, model)))

    newest = set()
    for site in run.sites:
        home = ("--home", run.site_home(site))
        receipts = run_json("participant", "egress", "--with-coordinator", *home)["receipts"]
        assert receipts == {
            "verified": ROUNDS,
            "untrusted": [],
            "without": [],
            "listed_by_coordinator_only": [],
        }
        chain = run_json("participant", "manifests", *home)
        assert len(chain["manifests"]) == ROUNDS
        assert chain["manifests"][-1]["countersigned_by"] == list(run.sites)
        newest.add(chain["newest_hash"])
    assert len(newest) == 1


def test_kills_at_any_moment_on_both_sides_change_no_bit(
    rehearsed: tuple[RealFederation, Path, Path],
) -> None:
    run, plan, model = rehearsed
    plan.write_text(PLAN.replace(f"rounds = {ROUNDS}", "rounds = 9"))
    run.submit(plan, model)
    for site in run.sites:
        run.run_site(site)
    run.operator("start")
    for number, victims in ((2, ["coordinator"]), (4, ["birch"]), (6, ["coordinator", "amber"])):
        run.wait_for(lambda n=number: (run.status_or_none() or {"round": 0})["round"] >= n, "it")
        for victim in victims:
            run.kill(victim)
        for victim in victims:
            run.serve() if victim == "coordinator" else run.run_site(victim)
    status = run.wait_for(
        lambda: (s := run.status_or_none()) and s["state"] == "completed" and s, "the run"
    )
    wanted = _expected(*_plan_and_initial(run, model)).astype("<f4").tobytes()
    assert status["model_hash"] == hashlib.sha256(wanted).hexdigest()
