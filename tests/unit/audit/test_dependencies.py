"""An auditor needs the base installation and dp-accounting: no torch, no opacus, no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fedpalm.pki.bundle import pem_of
from tests.support.audit import World, written

# What the site extra brings, and sockets: the import or the call ends the program.
BLOCKED = """
import socket, sys
class Blocked:
    names = ("torch", "opacus", "torchvision", "sklearn", "matplotlib", "PIL", "participant", "coordinator")
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"an auditor has no {name}")
sys.meta_path.insert(0, Blocked())
def refuse(*args, **kwargs):
    raise AssertionError("an auditor is offline")
socket.socket.connect = refuse
from fedpalm.__main__ import main
sys.argv = ["fedpalm", *sys.argv[1:]]
main()
"""


def test_a_bundle_is_verified_and_reported_without_what_trains(tmp_path: Path, masked: World):
    bundle = written(tmp_path, masked.bundle())
    trust = written(tmp_path, pem_of(masked.own.anchors), "ca.pem")
    page = tmp_path / "report.html"
    for command in (["verify"], ["report", "--out", str(page)]):
        done = subprocess.run(
            [sys.executable, "-c", BLOCKED, "audit", *command, str(bundle), "--trust", str(trust)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "holds" in done.stdout
    assert "The bundle holds" in page.read_text()


def test_a_finding_is_the_programs_exit_code(tmp_path: Path, masked: World):
    bundle = written(tmp_path, masked.bundle()[:-1])
    trust = written(tmp_path, pem_of(masked.own.anchors), "ca.pem")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "audit", "verify", str(bundle), "--trust", str(trust)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 26 and "malformed" in done.stdout
