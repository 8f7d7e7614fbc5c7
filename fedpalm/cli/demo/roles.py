"""The commands that the people of a federation type, as the demo types them for them.

The demo knows the other programs by their command lines alone: it imports neither.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import StateError, UnavailableError
from .settings import FEDERATION
from .supervisor import Child, Supervisor

COMMAND_TIMEOUT_S = 120.0
EVALUATION_TIMEOUT_S = 1200.0
NO_MATCH = 17
"""Exit code of ``fedpalm-participant verify`` that worked and found no match."""

Argv = Sequence[str | Path]


@dataclass(frozen=True)
class Operator:
    """The host institution: founds the federation, admits sites, starts runs."""

    home: Path
    supervisor: Supervisor

    def found(self) -> None:
        self._say("init", "--federation", FEDERATION, "--listen", "127.0.0.1:0")

    def serve(self) -> Child:
        return self.supervisor.start("coordinator", self._argv("serve"), lasting=True)

    def invite(self, sites: Sequence[str], folder: Path) -> None:
        """Write one invitation a site; the newest of a site is the one that counts."""
        self._say("invite", *sites, "--out", folder)

    def approve(self, site: str, fingerprint: str) -> None:
        """Let in whoever asks as ``site``, if it is the request with this fingerprint."""
        self._say("sites", "approve", site, "--fingerprint", fingerprint)

    def submit(self, plan: Path, model: Path) -> str:
        return str(self._say("plan", "submit", plan, "--model", model)["run_id"])

    def start(self, run_id: str) -> None:
        self._say("start", "--run", run_id)

    def resume(self, run_id: str) -> None:
        self._say("resume", "--run", run_id)

    def status(self, run_id: str) -> dict[str, Any]:
        return dict(self._say("status", "--run", run_id))

    def listening(self) -> bool:
        """Whether a coordinator answers."""
        try:
            self._say("status", "--all")
        except UnavailableError:
            return False
        return True

    def watch(self, run_id: str, *, exchange: bool = False) -> Child:
        """A process that writes the run's status to its log, a JSON line at every change."""
        until = ["--exchange"] if exchange else []
        argv = self._argv("watch", "--run", run_id, *until)
        return self.supervisor.start("watch", [*argv, "--json"])

    def propose_exchange(self, run_id: str, purpose: str) -> None:
        self._say("exchange", "propose", "--run", run_id, "--purpose", purpose)

    def export(self, run_id: str, round_number: int, out: Path) -> None:
        self._say("export", "--run", run_id, "--round", str(round_number), "--out", out)

    def _say(self, *arguments: str | Path) -> Any:
        return self.supervisor.run_json(
            "operator", self._argv(*arguments), timeout_s=COMMAND_TIMEOUT_S
        )

    def _argv(self, *arguments: str | Path) -> Argv:
        return [sys.executable, "-m", "coordinator", *arguments, "--home", self.home]


@dataclass(frozen=True)
class SitePerson:
    """Whoever answers for one site."""

    name: str
    home: Path
    supervisor: Supervisor

    def join(
        self,
        invitation: Path,
        images: Path,
        modality: str,
        backbone: str | None = None,
        policy: Path | None = None,
    ) -> dict[str, Any]:
        """Ask to join, or fetch the answer: ``state`` is waiting (with the fingerprint) or member."""
        limits: Argv = [] if policy is None else ["--policy", policy]
        chosen: Argv = [] if backbone is None else ["--backbone", backbone]
        data: Argv = ["--data", images, "--modality", modality, *chosen]
        return dict(
            self.supervisor.run_json(
                f"{self.name}-person",
                self._argv("join", invitation, *data, *limits, "--no-wait"),
                timeout_s=COMMAND_TIMEOUT_S,
                also_fine=(StateError.exit_code,),
            )
        )

    def review_plan(self, run_id: str) -> dict[str, Any]:
        return dict(self._say("review", run_id))

    def approve_plan(self, run_id: str) -> None:
        self._say("approve", run_id)

    def run(self) -> Child:
        return self.supervisor.start(self.name, self._argv("run"), lasting=True)

    def approve_exchange(self, run_id: str) -> None:
        self._say("exchange", "approve", run_id)

    def status(self) -> Any:
        return self._say("status")

    def egress(self) -> Any:
        return self._say("egress", "--verify")

    def budget(self) -> Any:
        return self._say("budget")

    def evaluate(self, *arguments: str | Path) -> Any:
        return self._say("evaluate", *arguments, timeout_s=EVALUATION_TIMEOUT_S)

    def calibrate(self, fmr: float) -> dict[str, Any]:
        """The threshold of the open set."""
        said = ("calibrate", "--mode", "open", "--fmr", str(fmr))
        return dict(self._say(*said, timeout_s=EVALUATION_TIMEOUT_S)["thresholds"][0])

    def enrol(self, subject: str, images: Sequence[str | Path]) -> None:
        self._say("enrol", subject, *images, "--replace")

    def verify(self, subject: str, image: str | Path) -> dict[str, Any]:
        """Match or not: both are a result."""
        return dict(self._say("verify", subject, image, also_fine=(NO_MATCH,)))

    def _say(
        self,
        *arguments: str | Path,
        timeout_s: float = COMMAND_TIMEOUT_S,
        also_fine: Sequence[int] = (),
    ) -> Any:
        return self.supervisor.run_json(
            f"{self.name}-person",
            self._argv(*arguments),
            timeout_s=timeout_s,
            also_fine=also_fine,
        )

    def _argv(self, *arguments: str | Path) -> Argv:
        return [sys.executable, "-m", "participant", *arguments, "--home", self.home]
