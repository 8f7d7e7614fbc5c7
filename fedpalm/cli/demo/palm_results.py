"""Figures of palms: from trained models and the journal to rates, curves and the report's tables."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ...benchmark.simulate import LOCAL, SimulationResult
from ...data.loading import Trial
from ...data.splits import SiteSplit
from ...evaluation.pairs import ScoreSet
from ...evaluation.report import VerificationReport, evaluate_scores
from ...layout import FloatVector
from ...methods.base import SiteImages, SiteMethod
from ...methods.site import build_site_method
from ...plan import Plan
from .figures import Curve, Estimate, OpenReport, Point, SiteReport
from .people import closed_trial, open_trial, split_of
from .plans import checkpoints
from .scoring import (
    RESAMPLES,
    Embed,
    curve_of,
    eer_only,
    estimate_of,
    mean_curve,
    mean_estimate,
    scores_of,
)
from .settings import DemoSettings
from .workspace import Workspace

_OBSERVER = "observer"


def open_eer(
    contender: str, methods: Mapping[str, SiteMethod], shared: FloatVector, trial: Trial
) -> float:
    """EER of the shared model, or the mean over sites where nothing is shared."""
    chosen = list(methods.values()) if contender == LOCAL else list(methods.values())[:1]
    eers = [
        eer_only(trial, functools.partial(site.open_templates, shared=shared)) for site in chosen
    ]
    return sum(eers) / len(eers)


def open_results(
    contender: str, result: SimulationResult, trial: Trial, seed: int
) -> dict[str, Any]:
    names = list(result.sites) if contender == LOCAL else list(result.sites)[:1]
    scores: dict[str, ScoreSet] = {
        name: scores_of(
            trial, functools.partial(result.sites[name].open_templates, shared=result.shared)
        )
        for name in names
    }
    reports = {
        name: evaluate_scores(s, seed=seed, resamples=RESAMPLES) for name, s in scores.items()
    }
    if contender == LOCAL:
        estimate: Estimate = mean_estimate(list(scores.values()), seed)
        curve: Curve = mean_curve([curve_of(report) for report in reports.values()])
    else:
        (report,) = reports.values()
        estimate, curve = estimate_of(report), curve_of(report)
    return {
        "open": estimate.model_dump(),
        "curve": curve.model_dump(),
        "open_by_site": {n: estimate_of(r).model_dump() for n, r in reports.items()},
    }


def closed_results(
    result: SimulationResult, splits: Mapping[str, SiteSplit], seed: int
) -> dict[str, Any]:
    found = {}
    for name, site in result.sites.items():
        embed = functools.partial(site.closed_templates, shared=result.shared)
        scores = scores_of(closed_trial(splits[name]), embed)
        report = evaluate_scores(scores, seed=seed, resamples=RESAMPLES)
        found[name] = estimate_of(report).model_dump()
    return found


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


def site_report(
    workspace: Workspace, settings: DemoSettings, site: str, others: Mapping[str, Any]
) -> SiteReport:
    split = split_of(workspace, site)
    parts = (split.train, split.closed_probe, split.open_gallery, split.open_probe)
    own = VerificationReport.from_json(workspace.steps[f"evaluated {site}"]["closed_set"])
    closed: dict[str, Estimate] = {settings.method: estimate_of(own)}
    closed |= {name: Estimate(**other["closed"][site]) for name, other in others.items()}
    return SiteReport(
        site=site,
        training_identities=len(split.classes),
        open_identities=len(split.open_classes),
        images=sum(len(part) for part in parts),
        closed=closed,
    )


def open_report(
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
