"""The coordinator as a process: ready with a line, alone in its home, quick, and gone when told."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpalm.errors import ConfigError, KeyFileError, StateError


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "coordinator", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("process") / "home"
    done = run("init", "--home", home, "--federation", "trial", "--listen", "127.0.0.1:0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["federation"] == "trial"
    return home


@contextmanager
def serving(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A coordinator that has said that it is ready, and that line."""
    process = subprocess.Popen(
        command("serve", "--home", home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_answers_its_operator_and_stops_when_told(
    home: Path, number: signal.Signals
) -> None:
    with serving(home) as (process, line):
        address = (home / "listen").read_text().strip()
        assert line == f"ready: coordinator of trial on {address}\n"
        status = run("status", "--home", home, "--json")
        assert (status.returncode, json.loads(status.stdout)) == (0, {"runs": []})
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


def test_it_takes_as_many_open_files_as_it_may(home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with serving(home) as (process, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_home_has_one_coordinator_at_a_time_even_after_a_kill(home: Path) -> None:
    with serving(home) as (first, _):
        second = run("serve", "--home", home)
        assert second.returncode == StateError.exit_code
        assert "another coordinator serves this home" in second.stderr
        assert first.poll() is None
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with serving(home) as (_, line):
            assert line.startswith("ready:")


def test_it_serves_without_any_library_that_could_run_a_model(home: Path) -> None:
    """Looks into the process that serves: nothing of torch is mapped, and nothing was imported."""
    with serving(home) as (process, _):
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "numpy" in maps
        assert not [line for line in maps.splitlines() if "torch" in line or "opacus" in line]


def test_a_home_that_is_not_there_or_lost_its_key_is_refused_by_name(
    home: Path, tmp_path: Path
) -> None:
    nothing = run("serve", "--home", tmp_path)
    assert nothing.returncode == ConfigError.exit_code
    assert "coordinator.toml" in nothing.stderr
    key = home / "tls" / "tls.key"
    moved = key.rename(tmp_path / "tls.key")
    try:
        keyless = run("serve", "--home", home)
    finally:
        moved.rename(key)
    assert keyless.returncode == KeyFileError.exit_code
    assert "tls.key" in keyless.stderr
    key.chmod(0o644)
    try:
        assert run("serve", "--home", home).returncode == KeyFileError.exit_code
    finally:
        key.chmod(0o600)


def test_a_second_init_changes_nothing(home: Path) -> None:
    before = {
        path: path.read_bytes() for path in home.rglob("*") if path.suffix in (".key", ".pem")
    }
    done = run("init", "--home", home, "--federation", "other")
    assert done.returncode == StateError.exit_code
    assert before == {path: path.read_bytes() for path in before}


def test_an_operator_without_a_coordinator_is_told_to_start_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run("init", "--home", home, "--federation", "trial").returncode == 0
    done = run("status", "--home", home, "--json")
    assert done.returncode == 5
    assert "serve" in json.loads(done.stdout)["error"]["next_step"]
