"""From what the processes left to the report."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ... import __version__
from ...errors import StateError
from ...evaluation.report import VerificationReport, evaluate_scores
from ...methods.base import SiteImages
from ...methods.site import build_site_method
from ...plan import Plan
from .comparison import checkpoints
from .figures import Budget, Curve, Egress, Estimate, OpenReport, Point, Report, SiteReport
from .in_use import read_back
from .people import open_trial, split_of
from .scoring import CONFIDENCE, RESAMPLES, Embed, curve_of, eer_only, estimate_of, scores_of
from .settings import DemoSettings
from .workspace import Workspace

_OBSERVER = "observer"
_PACKAGES = ("torch", "numpy", "scikit-learn", "grpcio", "cryptography")


def converge(workspace: Workspace, plan: Plan) -> list[dict[str, Any]]:
    """Open-set EER of the coordinator's stored models, each by itself, without any site's experts."""
    settings = workspace.load()
    trial = open_trial([split_of(workspace, site) for site in settings.site_names])
    points = []
    for number in checkpoints(settings.rounds):
        embed = _by_itself(plan, workspace.model(number))
        points.append(Point(round=number, eer=eer_only(trial, embed)).model_dump())
    return points


def score_warm_start(workspace: Workspace, plan: Plan) -> dict[str, Any]:
    """The open set by the initial model, which has seen nobody's images."""
    settings = workspace.load()
    trial = open_trial([split_of(workspace, site) for site in settings.site_names])
    scores = scores_of(trial, _by_itself(plan, workspace.initial_model))
    report = evaluate_scores(scores, seed=settings.seed, resamples=RESAMPLES)
    return estimate_of(report).model_dump()


def _by_itself(plan: Plan, model: Path) -> Embed:
    """Open-set templates of a stored model: a fresh observer holds no expert, so TEIM is off."""
    nobody = SiteImages(np.empty((0, 1, 128, 128), np.float32), np.empty(0, np.int64), 1)
    shared = plan.model_layout.flatten(safetensors.numpy.load_file(model))
    observer = build_site_method(plan, _OBSERVER, nobody)
    return functools.partial(observer.open_templates, shared=shared)


IN_USE = "in use"
"""The step of the journal that :mod:`.in_use` makes."""


def build_report(
    workspace: Workspace, settings: DemoSettings, plan: Plan, command: str, *, resumed: bool
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
        confidence=CONFIDENCE,
        sites=tuple(_site(workspace, settings, site, others) for site in settings.site_names),
        open_set=_open_set(workspace, settings, others),
        in_use=read_back(settings.site_names[0], steps[IN_USE]),
        timings_s=workspace.timings_s,
        resumed=resumed,
        lost_rounds=tuple(status["lost_rounds"]),
        files=_files(settings),
    )


def _site(
    workspace: Workspace, settings: DemoSettings, site: str, others: Mapping[str, Any]
) -> SiteReport:
    split = split_of(workspace, site)
    parts = (split.train, split.closed_probe, split.open_gallery, split.open_probe)
    own = VerificationReport.from_json(workspace.steps[f"evaluated {site}"]["closed_set"])
    closed: dict[str, Estimate] = {settings.method: estimate_of(own)}
    closed |= {name: Estimate(**other["closed"][site]) for name, other in others.items()}
    totals = workspace.steps[f"egress {site}"]["totals"]
    return SiteReport(
        site=site,
        training_identities=len(split.classes),
        open_identities=len(split.open_classes),
        images=sum(len(part) for part in parts),
        closed=closed,
        egress=tuple(Egress(kind=kind, **total) for kind, total in totals.items()),
        budget=_budget(workspace.steps[f"budget {site}"]) if settings.private else None,
    )


def _budget(told: Mapping[str, Any]) -> Budget:
    (account,) = told["accounts"]
    return Budget(
        spent=account["epsilon_spent"],
        budget=account["epsilon_budget"],
        delta=account["delta"],
        people=told["people"],
        steps=account["steps"],
    )


def _open_set(
    workspace: Workspace, settings: DemoSettings, others: Mapping[str, Any]
) -> OpenReport:
    splits = [split_of(workspace, site) for site in settings.site_names]
    steps = workspace.steps
    own = VerificationReport.from_json(steps[f"evaluated {settings.site_names[0]}"]["open_set"])
    return OpenReport(
        identities=sum(len(split.open_classes) for split in splits),
        images=sum(len(split.open_gallery) + len(split.open_probe) for split in splits),
        estimates={settings.method: estimate_of(own)}
        | {name: Estimate(**other["open"]) for name, other in others.items()},
        local_by_site={
            site: Estimate(**value) for site, value in others["local"]["open_by_site"].items()
        },
        curves={settings.method: curve_of(own)}
        | {name: Curve(**other["curve"]) for name, other in others.items()},
        convergence={settings.method: tuple(Point(**point) for point in steps["convergence"])}
        | {
            name: tuple(Point(**point) for point in other["convergence"])
            for name, other in others.items()
        },
        warm_start=Estimate(**steps["warm start"]) if settings.private else None,
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
