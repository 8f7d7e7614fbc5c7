"""The built wheel, installed alone: an editable install would hide files that the wheel forgot."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SMOKE = """
import importlib.resources, importlib.util, pkgutil, sys
import coordinator, participant, fedpalm
assert "site-packages" in fedpalm.__file__, fedpalm.__file__
for absent in ("torch", "opacus", "sklearn"):
    assert importlib.util.find_spec(absent) is None, absent
files = importlib.resources.files("fedpalm")
assert (files / "proto/fedpalm/wire/v1/federation.proto").is_file()
assert (importlib.resources.files("coordinator") / "schema.sql").is_file()
import coordinator.server, fedpalm.transport, fedpalm.ledger, fedpalm.secagg.codec
"""


def test_the_wheel_carries_all_that_a_coordinator_needs_and_no_torch(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel],
        check=True,
        cwd=tmp_path,
    )
    subprocess.run([python, "-c", SMOKE], check=True, cwd=tmp_path)
    for script in ("fedpalm", "fedpalm-coordinator", "fedpalm-participant"):
        done = subprocess.run(
            [tmp_path / "env" / "bin" / script, "--help"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0 and "Usage" in done.stdout, done.stderr
    home = tmp_path / "home"
    subprocess.run(
        [
            tmp_path / "env" / "bin" / "fedpalm-coordinator", "init", "--home", home,
            "--federation", "trial", "--listen", "127.0.0.1:0",
        ],
        check=True,
        cwd=tmp_path,
    )  # fmt: skip
