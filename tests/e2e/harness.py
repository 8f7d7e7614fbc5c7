"""A federation of real processes on loopback, driven only through the commands a person would type."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.commands import PATIENCE_S, environment, run_program

AGREEABLE = "auto_approve = true\n"
"""A policy under which a site approves any plan within the default limits by itself."""


def run_cli(
    module: str, *arguments: str | Path, ok: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; with ``ok`` a non-zero exit fails the test with its output."""
    done = run_program(module, *arguments)
    if ok:
        assert done.returncode == 0, f"{module} {arguments}: {done.stdout}\n{done.stderr}"
    return done


def run_json(module: str, *arguments: str | Path) -> Any:
    """Run one command with --json and parse what it prints."""
    return json.loads(run_cli(module, *arguments, "--json").stdout)


@dataclass
class RealFederation:
    """One coordinator and its sites, each with a home below ``root``."""

    root: Path
    sites: tuple[str, ...]
    federation: str = "trial"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def coordinator_home(self) -> Path:
        return self.root / "coordinator"

    def site_home(self, site: str) -> Path:
        return self.root / site

    def found(self) -> None:
        """Make the coordinator's home (CA, identities)."""
        run_cli(
            "coordinator", "init", "--home", self.coordinator_home,
            "--federation", self.federation, "--listen", "127.0.0.1:0",
        )  # fmt: skip

    def enrol(self, site: str, data: Path | None, policy: str = AGREEABLE) -> None:
        """Invitation, join and approval, as the people at both ends do it; needs ``serve`` before."""
        invitation, home = self.invite(site), self.site_home(site)
        limits = self.root / f"{site}.policy.toml"
        limits.write_text(policy)
        self._start(
            f"join-{site}", "participant", "join", invitation, "--home", home,
            "--policy", limits, *(("--data", data) if data else ()),
        )  # fmt: skip
        self.approve(site)
        joined = self.processes.pop(f"join-{site}")
        assert joined.wait(timeout=PATIENCE_S) == 0, self.logs()

    def invite(self, site: str) -> Path:
        """The invitation file of a site."""
        self.operator("invite", site, "--out", self.root)
        return self.root / f"{site}.invitation"

    def approve(self, site: str) -> None:
        """Approve the request with the fingerprint that the site shows, once it waits for that."""
        self.wait_for(lambda: site in self.waiting(), f"{site} to ask")
        shown = run_json("participant", "status", "--home", self.site_home(site))["asked_with"]
        self.operator("sites", "approve", site, "--fingerprint", shown)

    def waiting(self) -> list[str]:
        """Sites whose requests wait for the operator."""
        return [one["site"] for one in self.operator("sites")["waiting"]]

    @property
    def address(self) -> str:
        return (self.coordinator_home / "listen").read_text().strip()

    def serve(self) -> None:
        """Start the coordinator and wait until it listens."""
        self._start("coordinator", "coordinator", "serve", "--home", self.coordinator_home)
        self.wait_for(lambda: self.status_or_none() is not None, "the coordinator to listen")

    def run_site(self, site: str) -> None:
        self._start(site, "participant", "run", "--home", self.site_home(site))

    def _start(self, name: str, module: str, *arguments: str | Path) -> None:
        log = (self.root / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        log.close()

    def submit(self, plan: Path, model: Path) -> str:
        reply = self.operator("plan", "submit", plan, "--model", model)
        return str(reply["run_id"])

    def operator(self, *arguments: str | Path) -> Any:
        return run_json("coordinator", *arguments, "--home", self.coordinator_home)

    def status_or_none(self) -> Any:
        done = run_cli("coordinator", "status", "--home", self.coordinator_home, "--json", ok=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def kill(self, name: str) -> None:
        """kill -9, no goodbye."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wait_for(self, condition: Any, what: str, patience_s: float = PATIENCE_S) -> Any:
        """Poll until ``condition()`` is truthy; a dead process or lost patience fails with the logs."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if value := condition():
                return value
            for name, process in self.processes.items():
                code = process.poll()
                assert code in (None, 0), f"{name} died ({code}) waiting for {what}\n{self.logs()}"
            time.sleep(0.1)
        raise AssertionError(f"gave up waiting for {what}\n{self.logs()}")

    def logs(self) -> str:
        tails = []
        for log in sorted(self.root.glob("*.log")):
            tails.append(f"--- {log.name}\n" + log.read_text(errors="replace")[-3000:])
        return "\n".join(tails)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
