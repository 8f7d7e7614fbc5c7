"""``fedpalm demo`` as a newcomer meets it: cut off in the middle, taken up again, and finished."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedpalm.benchmark.simulate import simulate
from fedpalm.cli.demo.people import split_of, training_images
from fedpalm.cli.demo.plans import bound_plan
from fedpalm.cli.demo.workspace import Workspace

PATIENCE_S = 420.0
TINY = ("--sites", "3", "--identities", "2", "--images", "4", "--rounds", "2", "--seed", "7")


def demo(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "fedpalm", "demo", *map(str, arguments)]


def processes_about(folder: Path) -> list[str]:
    """Command lines of live processes that name ``folder``."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if process.name.isdigit() and str(folder) in line and int(process.name) != os.getpid():
            found.append(line)
    return found


def interrupt_after(folder: Path, sign: str, number: signal.Signals) -> int:
    """Start the tiny demo, signal it once it has said ``sign``, and give back its exit code."""
    said = folder.with_suffix(".stderr")
    with said.open("wb") as stream:
        process = subprocess.Popen(
            demo(*TINY, "--out", folder), stderr=stream, stdout=subprocess.DEVNULL
        )
    until = time.monotonic() + PATIENCE_S
    while sign not in said.read_text():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until, said.read_text()
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and ``--json`` of a demo that was interrupted in its second round."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert interrupt_after(folder, "rounds 1/2", signal.SIGINT) == 130
    if sys.platform == "linux":
        assert processes_about(folder) == []
    done = subprocess.run(
        demo(*TINY, "--out", folder, "--json"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on with" in done.stderr
    if sys.platform == "linux":
        assert processes_about(folder) == []
    return folder, json.loads(done.stdout)


def test_an_interrupted_demo_goes_on_with_the_run_it_had_begun(told: tuple[Path, dict[str, Any]]):
    folder, report = told
    coordinator_log = (folder / "logs" / "operator.log").read_text()
    submitted = {
        json.loads(line)["run_id"]
        for line in coordinator_log.splitlines()
        if line.startswith('{"run_id"') and "next" in json.loads(line)
    }
    assert submitted == {report["run_id"]}
    assert report["resumed"] is True


def test_the_report_has_every_figure_with_its_interval(told: tuple[Path, dict[str, Any]]):
    _, report = told
    names = {"fedpalm", "fedavg", "local"}
    for estimates in (report["open_set"]["estimates"], *(s["closed"] for s in report["sites"])):
        assert set(estimates) == names
        for one in estimates.values():
            assert 0 <= one["low"] <= one["high"] <= 1 and one["genuine"] and one["impostor"]
    assert {s["site"] for s in report["sites"]} == {"site-1", "site-2", "site-3"}
    assert set(report["open_set"]["curves"]) == names
    assert [p["round"] for p in report["open_set"]["convergence"]["fedpalm"]] == [1, 2]


def test_two_people_a_site_set_no_threshold_and_nobody_is_verified(
    told: tuple[Path, dict[str, Any]],
):
    folder, report = told
    assert report["in_use"] is None
    said = (folder / "logs" / "site-1-person.log").read_text()
    assert "cannot be told from" in said


def test_the_report_tells_what_left_each_site(told: tuple[Path, dict[str, Any]]):
    _, report = told
    parameters, expert = report["parameters"], report["expert_parameters"]
    assert 0 < expert < parameters / 100
    for site in report["sites"]:
        egress = {item["kind"]: item for item in site["egress"]}
        # A round that was cut off may be sent twice: never fewer, and each of the vector's size.
        assert egress["update"]["count"] >= 2
        assert egress["update"]["bytes"] == egress["update"]["count"] * 4 * (parameters + 1)
        # One for both others; its keys went in a message of their own.
        assert egress["sealed_expert"]["count"] == 1
        assert 4 * expert < egress["sealed_expert"]["bytes"] < 4 * expert + 8192
        assert egress["expert_keys"]["count"] == 1
        assert egress["consent"]["count"] == 1
        for step in ("keys", "boxes", "agreement", "reveal"):
            assert egress[f"masking_{step}"]["count"] >= 2, step


def test_masked_rounds_end_with_the_model_that_the_plan_gives_in_one_process_bit_for_bit(
    told: tuple[Path, dict[str, Any]],
):
    folder, report = told
    workspace = Workspace(folder)
    settings = workspace.load()
    assert settings.masked
    images = {site: training_images(split_of(workspace, site)) for site in settings.site_names}
    result = simulate(bound_plan(settings), settings.method, images)
    digest = hashlib.sha256(result.shared.astype("<f4").tobytes()).hexdigest()
    # The interruption may have come while shares were given: then a round is lost, and told.
    assert (report["model_hash"] == digest) == (report["lost_rounds"] == [])


def test_all_promised_files_are_there(told: tuple[Path, dict[str, Any]]):
    folder, report = told
    assert json.loads((folder / "report.json").read_text())["run_id"] == report["run_id"]
    html = (folder / "report.html").read_text()
    assert report["run_id"] in html and "<svg" in html and "<script" not in html
    for plot in ("roc", "convergence"):
        assert (folder / "plots" / f"{plot}.png").stat().st_size > 10_000
    for path in report["files"].values():
        assert (folder / path).exists(), path


def test_no_private_key_of_a_site_lies_outside_its_home(told: tuple[Path, dict[str, Any]]):
    folder, _ = told
    keys = {path.relative_to(folder).parts[:2] for path in folder.rglob("*.key")}
    assert {part[0] for part in keys} <= {"sites", "coordinator"}
    for path in folder.rglob("*.key"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_finished_demo_shows_its_report_again_and_starts_nothing(
    told: tuple[Path, dict[str, Any]],
):
    folder, report = told
    logs = {path: path.stat().st_size for path in (folder / "logs").iterdir()}
    done = subprocess.run(
        demo(*TINY, "--out", folder, "--json"), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0 and json.loads(done.stdout) == report
    assert {path: path.stat().st_size for path in (folder / "logs").iterdir()} == logs


def test_other_settings_do_not_touch_a_demo_that_is_there(told: tuple[Path, dict[str, Any]]):
    folder, _ = told
    done = subprocess.run(
        demo("--sites", "4", "--out", folder, "--json"), capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "other settings" in json.loads(done.stdout)["error"]["what"]


def test_a_useless_data_folder_is_refused_before_anything_is_made(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        demo("--data", tmp_path / "empty", "--out", tmp_path / "run", "--json"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["code"] == "data"
    assert not (tmp_path / "run").exists()
