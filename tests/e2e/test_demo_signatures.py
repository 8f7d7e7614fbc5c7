"""``fedpalm demo --method fedmh``: signatures, from invitations to the report, by real processes."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedpalm.benchmark.simulate import simulate
from fedpalm.cli.demo.plans import bound_plan
from fedpalm.cli.demo.workspace import Workspace
from fedpalm.cli.demo.writers import training_signatures, writers_split

from .test_demo import PATIENCE_S, TINY, demo


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and ``--json`` of a small demo."""
    folder = tmp_path_factory.mktemp("signatures") / "run"
    done = subprocess.run(
        demo("--method", "fedmh", *TINY, "--out", folder, "--json"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout)


def test_rates_of_both_kinds_of_forgery_are_told_for_every_contender_with_intervals(
    told: tuple[Path, dict[str, Any]],
):
    _, report = told
    names = {"fedmh", "fedavg", "local"}
    open_set = report["open_set"]
    assert set(open_set["forgeries"]) == {"skilled"}
    assert (open_set["identities"], open_set["references"]) == (6, 2)
    tables = [open_set["estimates"], open_set["forgeries"]["skilled"]]
    for site in report["sites"]:
        assert site["backbone"] == "signet"
        tables += [site["open"], site["closed"], site["closed_forgeries"]["skilled"]]
    for estimates in tables:
        assert set(estimates) == names
        for one in estimates.values():
            assert 0 <= one["low"] <= one["high"] <= 1 and one["genuine"] and one["impostor"]
    assert {name: len(points) for name, points in open_set["learning"].items()} == dict.fromkeys(
        names, 2
    )


def test_sites_tell_how_far_they_went_and_how_their_tasks_stood(
    told: tuple[Path, dict[str, Any]],
):
    folder, report = told
    assert set(report["groups"]) == {"trunk.signet", "projection", "task"}
    for site in report["sites"]:
        assert [one["round"] for one in site["rounds"]] == [1, 2]
        for one in site["rounds"]:
            assert set(one["etas"]) == set(report["groups"])
            assert all(0 <= eta <= 1 for eta in one["etas"].values())
            assert -1 <= one["cosine"] <= 1 and 0 <= one["user_weight"] <= 1
        egress = {item["kind"]: item for item in site["egress"]}
        assert egress["update"]["bytes"] == 2 * 4 * (report["parameters"] + len(report["groups"]))
        assert "sealed_expert" not in egress
    settings = (folder / "sites" / "site-1" / "participant.toml").read_text()
    assert 'backbone = "signet"' in settings and 'modality = "signature"' in settings


def test_masked_rounds_end_with_the_model_that_the_plan_gives_in_one_process_bit_for_bit(
    told: tuple[Path, dict[str, Any]],
):
    folder, report = told
    workspace = Workspace(folder)
    settings = workspace.load()
    images = {s: training_signatures(writers_split(workspace, s)) for s in settings.site_names}
    result = simulate(bound_plan(settings), settings.method, images)
    assert report["lost_rounds"] == []
    assert report["model_hash"] == hashlib.sha256(result.shared.astype("<f4").tobytes()).hexdigest()


def test_two_writers_a_site_set_no_threshold_and_nobody_is_verified(
    told: tuple[Path, dict[str, Any]],
):
    folder, report = told
    assert report["in_use"] is None
    assert "cannot be told from" in (folder / "logs" / "site-1-person.log").read_text()


def test_the_page_is_of_signatures_and_all_promised_files_are_there(
    told: tuple[Path, dict[str, Any]],
):
    folder, report = told
    html = (folder / "report.html").read_text()
    assert report["run_id"] in html and "skilled" in html and "<svg" in html
    assert "data:image/png" in html
    for plot in ("rates", "writers", "forgeries"):
        assert (folder / "plots" / f"{plot}.png").stat().st_size > 10_000
    for path in report["files"].values():
        assert (folder / path).exists(), path
