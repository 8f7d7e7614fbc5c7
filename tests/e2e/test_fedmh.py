"""FedMH on signatures: six real sites with three backbones, masked, and one of a group away in a round."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.run_records import RunRecords
from coordinator.store import Store
from fedpalm.benchmark.simulate import simulate
from fedpalm.data.splits import write_signature_list
from fedpalm.data.synthetic_signatures import synthetic_signatures
from participant.config import Home
from participant.figures import figures
from participant.images import training_signatures

from .harness import RealFederation, run_cli, run_json
from .members import enrol_together, rows

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
name = "signatures"
method = "fedmh"
rounds = 2
seed = 5
reproducible = true
quorum = 5
join_deadline_s = 60
round_deadline_s = 120
max_attempts = 5
masking = "secagg"
masking_step_deadline_s = 10

[training]
local_epochs = 1
batch_size = 8

[backbones]
"""
REQUIRED = 'auto_approve = true\nmasking = "required"\nmin_cohort = 3\n'


@pytest.fixture
def run(federation: Callable[..., RealFederation], tmp_path: Path) -> RealFederation:
    """A coordinator and six enrolled sites, each with its own signatures and the backbone that it chose."""
    made = federation("signatures", *BACKBONES)
    made.found()
    made.serve()
    drawn = synthetic_signatures(tmp_path / "drawn", 6, 4, 4, 3, seed=3)
    options: dict[str, Sequence[str | Path]] = {}
    for (site, backbone), records in zip(BACKBONES.items(), drawn, strict=True):
        images = tmp_path / f"{site}.txt"
        write_signature_list(records, images)
        # fir has made up its mind for another one than the plan will say.
        own = "resnet" if site == "fir" else backbone
        options[site] = ("--data", images, "--modality", "signature", "--backbone", own)
    enrol_together(made, *BACKBONES, policy=REQUIRED, options=options)
    return made


def standing(run: RealFederation) -> dict[str, Any]:
    """The run in the coordinator's store; read there, since a command in a loop takes the sites' cores."""
    ((state,),) = rows(run, "SELECT state FROM runs")
    return dict(json.loads(state))


def states(run: RealFederation, site: str) -> list[str]:
    """How a site stands to the plans that it was offered."""
    with closing(sqlite3.connect(run.site_home(site) / "site.sqlite3")) as db:
        return [state for (state,) in db.execute("SELECT state FROM plans")]


def settled(home: Path) -> int:
    """How many models a site has settled."""
    with closing(sqlite3.connect(home / "site.sqlite3")) as db:
        query = "SELECT COUNT(*) FROM vault_items WHERE kind = 'settled-model'"
        (count,) = db.execute(query).fetchone()
    return int(count)


def test_six_sites_with_three_backbones_learn_signatures_in_one_masked_sum(
    run: RealFederation,
) -> None:
    draft, model = run.root / "plan.toml", run.root / "initial.safetensors"
    draft.write_text(PLAN + "".join(f'{site} = "{name}"\n' for site, name in BACKBONES.items()))
    run_cli("fedpalm", "model", "init", draft, "--out", model)
    run_id = run.submit(draft, model)
    for site in BACKBONES:
        run.run_site(site)
    run.wait_for(lambda: "refused" in states(run, "fir"), "fir's no")
    review = run_json("participant", "review", run_id, "--home", run.site_home("fir"))
    assert review["policy"]["violations"] == [
        "backbone: the plan has compnet for this site, participant.toml says resnet"
    ]
    run.kill("fir")
    home = Home(run.site_home("fir"))
    home.save(home.load().model_copy(update={"backbone": "compnet"}))
    run_cli("participant", "approve", run_id, "--home", run.site_home("fir"))
    run.run_site("fir")
    # Whoever comes after the start of a round that it said no to is not in it, and masking needs all six.
    run.wait_for(lambda: len(standing(run)["joined"]) == 6, "all to join")
    run.operator("start")

    # birch is lost between its keys and its boxes: fir, halted, keeps the others waiting for its keys.
    fir = run.root / "fir.log"
    run.wait_for(lambda: "round 2: training" in fir.read_text(), "fir to train")
    run.processes["fir"].send_signal(signal.SIGSTOP)
    keys = "SELECT site FROM masking_messages WHERE round = 2 AND step = 'keys'"
    run.wait_for(lambda: ("birch",) in rows(run, keys), "the keys of birch")
    run.kill("birch")
    run.processes["fir"].send_signal(signal.SIGCONT)
    ended = "SELECT reason FROM attempts WHERE round = 2 AND attempt = 1 AND closed_ms > 0"
    ((reason,),) = run.wait_for(lambda: rows(run, ended), "the end of the attempt")
    assert "2 sites of group trunk.signet, its sum needs 3" in reason
    run.run_site("birch")
    run.wait_for(lambda: standing(run)["state"] in ("completed", "paused"), "the end")
    status = run.operator("status")
    assert (status["state"], status["masking"]) == ("completed", "secagg"), run.logs()

    with Store.open(run.coordinator_home / "store.sqlite3") as store:
        (stored,) = RunRecords(store).load()
    plan = stored.plan
    assert plan.groups == {
        "trunk.signet": SIGNETS,
        "projection": tuple(BACKBONES),
        "task": tuple(BACKBONES),
    }
    assert review["groups"] == {name: list(sites) for name, sites in plan.groups.items()}
    survivors = rows(run, "SELECT survivors FROM attempts WHERE model_hash <> ''")
    assert [json.loads(sites) for (sites,) in survivors] == [list(BACKBONES)] * 2
    settings = {site: Home(run.site_home(site)).load().data for site in BACKBONES}
    images = {
        site: training_signatures(data, site) for site, data in settings.items() if data is not None
    }
    expected = simulate(plan, "fedmh", images)
    assert status["model_hash"] == hashlib.sha256(expected.shared.tobytes()).hexdigest()

    trunk = plan.parameter_groups[0].span
    (update,) = (run.site_home("fir") / "state").glob("*.update")
    values = np.fromfile(update, "<u4")
    assert not values[trunk].any() and values[trunk.stop :].any()
    for site in BACKBONES:
        log = (run.root / f"{site}.log").read_text()
        for number, metrics in enumerate(expected.metrics, 1):
            assert f"round {number}: trained ({figures(metrics[site])})" in log
    shown = run_json("participant", "status", "--home", run.site_home("fir"))["run"]["metrics"]
    assert shown == pytest.approx(expected.metrics[-1]["fir"])
    assert {"guidance.cosine", "guidance.user_weight", "eta.task", "distance.task"} <= shown.keys()
    rates = run_json("participant", "evaluate", "--home", run.site_home("fir"))
    assert rates["open_set"]["forgeries"].keys() == {"random", "skilled"}
    # What verifies people from here on is made by each site while its images are those of the run.
    homes = [run.site_home(site) for site in BACKBONES]
    run.wait_for(lambda: [settled(home) for home in homes] == [1] * 6, "the sites to settle")
