"""From what the processes left to the report."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from ... import __version__
from ...errors import StateError
from ...plan import Plan
from .figures import Budget, Egress, Report, SiteReport
from .in_use import read_back
from .scoring import CONFIDENCE
from .settings import DemoSettings
from .subject import Subject
from .workspace import Workspace

_PACKAGES = ("torch", "numpy", "scikit-learn", "grpcio", "cryptography")


IN_USE = "in use"
"""The step of the journal that :mod:`.in_use` makes."""


def build_report(
    workspace: Workspace,
    settings: DemoSettings,
    subject: Subject,
    plan: Plan,
    command: str,
    *,
    resumed: bool,
) -> Report:
    """The report, from the journal and ``results/``.

    Raises:
        StateError: the coordinator ran another plan than the comparisons did.
    """
    steps = workspace.steps
    status = steps["trained"]
    if status["plan_hash"] != plan.hash.hex():
        raise StateError(
            f"the run's plan is {status['plan_hash'][:16]}, the comparisons' {plan.hash.hex()[:16]}",
            next_step="start anew with another --out",
        )
    others = {name: _load(workspace, name) for name in settings.contenders[1:]}
    measured = subject.measured(workspace, plan, others)
    return Report(
        name=workspace.root.name,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        command=command,
        settings=settings,
        versions=_versions(),
        machine={
            "cpus": os.cpu_count() or 1,
            "platform": f"{platform.system()} {platform.machine()}",
        },
        run_id=status["run_id"],
        plan_hash=status["plan_hash"],
        model_hash=status["model_hash"],
        parameters=plan.model_layout.size,
        expert_parameters=plan.released_layout.size,
        groups=dict(measured.groups),
        confidence=CONFIDENCE,
        sites=tuple(_with_log(workspace, settings, site) for site in measured.sites),
        open_set=measured.open_set,
        in_use=read_back(settings.site_names[0], steps[IN_USE]),
        timings_s=workspace.timings_s,
        resumed=resumed,
        lost_rounds=tuple(status["lost_rounds"]),
        files=_files(settings),
    )


def _with_log(workspace: Workspace, settings: DemoSettings, site: SiteReport) -> SiteReport:
    """What the site's own log says, too."""
    totals = workspace.steps[f"egress {site.site}"]["totals"]
    budget = _budget(workspace.steps[f"budget {site.site}"]) if settings.private else None
    egress = tuple(Egress(kind=kind, **total) for kind, total in totals.items())
    return site.model_copy(update={"egress": egress, "budget": budget})


def _budget(told: Mapping[str, Any]) -> Budget:
    (account,) = told["accounts"]
    return Budget(
        spent=account["epsilon_spent"],
        budget=account["epsilon_budget"],
        delta=account["delta"],
        people=told["people"],
        steps=account["steps"],
    )


def _load(workspace: Workspace, method: str) -> dict[str, Any]:
    return dict(json.loads(workspace.result(method).read_text(encoding="utf-8")))


def _versions() -> dict[str, str]:
    versions = {"fedpalm": __version__, "python": platform.python_version()}
    return versions | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _files(settings: DemoSettings) -> dict[str, str]:
    final = Workspace.model_name(settings.rounds)
    return {
        "figures of this page": "report.json",
        "plots": "plots/",
        "final global model": f"models/{final}",
        "plan": "plan.toml",
        "who is at which site": "data/",
        "homes of the sites": "sites/",
        "home of the coordinator": "coordinator/",
        "what every process said": "logs/",
    }
