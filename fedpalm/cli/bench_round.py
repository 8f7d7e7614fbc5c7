"""What a round costs beyond moving its bytes: rehearsal rounds of real processes against raw streams.

The sites run method ``rehearsal``: they train nothing, but fetch, encode, persist, log and upload as
always. The raw streams move the same bytes between as many clients and one server over mTLS with no
application: once plain, once with SHA-256 on both ends and an fsync at the receiver. Raw streams are
measured before and after the rounds, so that a machine whose speed drifts favours neither.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark.raw_stream import raw_round_seconds
from ..errors import RoundAbortedError, StateError
from .byte_counter import ByteCounter
from .demo.supervisor import Supervisor

PLAN = """
name = "bench"
method = "rehearsal"
rounds = {rounds}
reproducible = true
quorum = {sites}
"""
COMMAND_S = 120.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class RoundBench:
    """``rounds`` rounds of ``sites`` real sites with a model of ``parameters``, below ``folder``."""

    folder: Path
    sites: int
    parameters: int
    rounds: int

    @property
    def model_bytes(self) -> int:
        return 4 * self.parameters

    def measure(self, say: Say) -> dict[str, Any]:
        """Seconds, bytes and ratios. Raises FedPalmError if a process fails."""
        raw = {False: [self._raw(False)], True: [self._raw(True)]}
        with ExitStack() as stack:
            supervisor = stack.enter_context(Supervisor(self.folder / "logs"))
            say(f"founding a federation of {self.sites} sites")
            idle, pid, address = self._serve(supervisor)
            counter = stack.enter_context(ByteCounter(address))
            for number in range(1, self.sites + 1):
                # One site's bytes are counted; the forwarder would slow them all.
                self._enrol(
                    supervisor, f"site-{number}", counter.address if number == 1 else address
                )
            say(f"running {self.rounds} rounds of {self.model_bytes / 1e6:.0f} MB")
            seconds, sent = self._rounds(supervisor, counter)
            peak = _memory_bytes(pid, "VmHWM")
        for careful in (False, True):
            raw[careful].append(self._raw(careful))
        plain, hashed = statistics.median(raw[False]), statistics.median(raw[True])
        median = statistics.median(seconds)
        return {
            "sites": self.sites,
            "parameters": self.parameters,
            "round_s": {"median": median, "all": seconds},
            "raw_s": {"plain": raw[False], "hashed_and_fsynced": raw[True]},
            "round_over_plain": median / plain,
            "round_over_hashed_and_fsynced": median / hashed,
            "coordinator_bytes": {"idle": idle, "peak": peak},
            "peak_over_idle_in_model_sizes": (peak - idle) / self.model_bytes,
            "site_sent_over_4d": sent / self.model_bytes,
        }

    def _raw(self, careful: bool) -> float:
        return raw_round_seconds(
            self.sites, self.model_bytes, self.model_bytes, hashed=careful, fsync=careful
        )

    def _coordinator(self, supervisor: Supervisor, name: str, *arguments: str | Path) -> Any:
        argv = [sys.executable, "-m", "coordinator", *arguments, "--home", self.folder / "home"]
        return supervisor.run_json(name, argv, timeout_s=COMMAND_S)

    def _serve(self, supervisor: Supervisor) -> tuple[int, int, str]:
        """Start a coordinator: its resident bytes when idle, its process id, its address."""
        self._coordinator(
            supervisor, "init", "init", "--federation", "bench", "--listen", "127.0.0.1:0"
        )
        home = self.folder / "home"
        child = supervisor.start(
            "coordinator", [sys.executable, "-m", "coordinator", "serve", "--home", home]
        )
        until = time.monotonic() + COMMAND_S
        while not (home / "listen").exists() and time.monotonic() < until:
            supervisor.check()
            time.sleep(0.05)
        self._coordinator(supervisor, "status", "status")
        address = (home / "listen").read_text(encoding="utf-8").strip()
        return _memory_bytes(child.process.pid, "VmRSS"), child.process.pid, address

    def _enrol(self, supervisor: Supervisor, site: str, address: str) -> None:
        """Invite a site, let it join, and have it dial ``address`` from then on."""
        home, policy = self.folder / site, self.folder / "policy.toml"
        policy.write_text("auto_approve = true\n", encoding="utf-8")
        self._coordinator(supervisor, f"invite-{site}", "invite", site, "--out", self.folder)
        join: list[str | Path] = [sys.executable, "-m", "participant", "join",
                                  self.folder / f"{site}.invitation", "--policy", policy,
                                  "--no-wait", "--home", home]  # fmt: skip
        asked = supervisor.run_json(
            f"join-{site}", join, timeout_s=COMMAND_S, also_fine=(StateError.exit_code,)
        )
        self._coordinator(
            supervisor, f"approve-{site}", "sites", "approve", site,
            "--fingerprint", asked["fingerprint"],
        )  # fmt: skip
        supervisor.run_json(f"join-{site}", join, timeout_s=COMMAND_S)
        settings = home / "participant.toml"
        lines = [
            f'coordinator = "{address}"' if line.startswith("coordinator = ") else line
            for line in settings.read_text(encoding="utf-8").splitlines()
        ]
        settings.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _rounds(self, supervisor: Supervisor, counter: ByteCounter) -> tuple[list[float], float]:
        """Seconds per round, and the counted site's bytes sent per round."""
        plan, model = self.folder / "plan.toml", self.folder / "initial.safetensors"
        plan.write_text(PLAN.format(rounds=self.rounds + 1, sites=self.sites), encoding="utf-8")
        make: list[str | Path] = [
            sys.executable,
            "-m",
            "fedpalm",
            "model",
            "init",
            plan,
            "--out",
            model,
        ]
        supervisor.run_json(
            "model", [*make, "--parameters", str(self.parameters)], timeout_s=COMMAND_S
        )
        self._coordinator(supervisor, "submit", "plan", "submit", plan, "--model", model)
        for number in range(1, self.sites + 1):
            home = self.folder / f"site-{number}"
            supervisor.start(
                f"site-{number}", [sys.executable, "-m", "participant", "run", "--home", home]
            )
        watch = supervisor.start(
            "watch",
            [
                sys.executable,
                "-m",
                "coordinator",
                "watch",
                "--json",
                "--home",
                self.folder / "home",
            ],
            read_stdout=True,
        )
        self._coordinator(supervisor, "start", "start")
        ends: list[tuple[float, int]] = []
        last: dict[str, Any] = {"state": "unwatched", "reason": "", "round": 0}
        assert watch.process.stdout is not None
        for line in watch.process.stdout:
            now, status = time.monotonic(), json.loads(line)
            if status["round"] > last["round"] > 0 or status["state"] == "completed":
                ends.append((now, counter.sent))
            last = status
        if last["state"] != "completed":
            raise RoundAbortedError(
                f"the run ended {last['state']}: {last['reason']}",
                next_step=f"look at {supervisor.logs}",
            )
        # The first round holds the sites' start; it is left out.
        steps = list(itertools.pairwise(ends))
        return (
            [after[0] - before[0] for before, after in steps],
            statistics.median(after[1] - before[1] for before, after in steps),
        )


def _memory_bytes(pid: int, field: str) -> int:
    """A figure of /proc/<pid>/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)
