"""What the federation is compared with: the same split, seed and method objects, in one process.

Run as ``python -m fedpalm.cli.demo.comparison WORK METHOD`` by the demo, at low priority beside the
real processes; says one JSON line a round on stdout and leaves ``results/<method>.json``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy

from ...benchmark.simulate import LOCAL, RoundMetrics, SimulationResult, simulate
from ...data.loading import Trial
from ...data.splits import SiteSplit
from ...evaluation.pairs import ScoreSet
from ...evaluation.report import evaluate_scores
from ...layout import FloatVector
from ...methods.base import SiteMethod, Tensors
from ...methods.template import model_template
from ...plan import Plan
from .figures import Curve, Estimate, Point
from .people import closed_trial, open_trial, split_of, training_images
from .scoring import (
    RESAMPLES,
    curve_of,
    eer_only,
    estimate_of,
    mean_curve,
    mean_estimate,
    scores_of,
)
from .settings import FEDERATION, DemoSettings
from .workspace import Workspace


def bound_plan(settings: DemoSettings, warm_start: Tensors | None = None) -> Plan:
    """The demo's plan with roster and model, as the coordinator binds it."""
    draft = settings.draft()
    template = model_template(draft.method, draft.training, draft.seed)
    initial = template.initial if warm_start is None else template.layout.flatten(warm_start)
    return Plan.model_validate(
        {
            "federation": FEDERATION,
            "draft": draft,
            "roster": sorted(settings.site_names),
            "layout": template.layout.to_json(),
            "expert_layout": template.expert_layout.to_json(),
            "initial_model": hashlib.sha256(initial.astype("<f4").tobytes()).hexdigest(),
        }
    )


def warm_start(workspace: Workspace, settings: DemoSettings) -> Tensors | None:
    """The initial model of a private demo, once it is trained."""
    return safetensors.numpy.load_file(workspace.initial_model) if settings.private else None


def checkpoints(rounds: int) -> list[int]:
    """Rounds whose model is evaluated on the way: seven or so, the last among them."""
    step = -(-rounds // 6)
    return sorted({*range(step, rounds + 1, step), rounds})


def compare(workspace: Workspace, settings: DemoSettings, method: str) -> None:
    """Train ``method`` in this process and write its result.

    Of a private demo: FedAvg with the same noise from seeds, and alone without any, as nothing leaves;
    both from the same warm start.
    """
    splits = {site: split_of(workspace, site) for site in settings.site_names}
    sites = {site: training_images(split) for site, split in splits.items()}
    trial = open_trial(list(splits.values()))
    points: list[Point] = []

    def on_round(
        number: int, shared: FloatVector, methods: Mapping[str, SiteMethod], _: RoundMetrics
    ) -> None:
        if number in checkpoints(settings.rounds):
            points.append(Point(round=number, eer=_open_eer(method, methods, shared, trial)))
        _say({"round": number, "rounds": settings.rounds})

    begin = warm_start(workspace, settings)
    asked = settings.model_copy(update={"privacy": "none"}) if method == LOCAL else settings
    plan = bound_plan(asked, None if method == LOCAL else begin)
    result = simulate(plan, method, sites, on_round, initial=begin)
    found = _open_results(method, result, trial, settings.seed)
    found["closed"] = _closed_results(result, splits, settings.seed)
    found["convergence"] = [point.model_dump() for point in points]
    workspace.write_json(workspace.result(method), found)


def _open_eer(
    method: str, methods: Mapping[str, SiteMethod], shared: FloatVector, trial: Trial
) -> float:
    """EER of the shared model, or the mean over sites where nothing is shared."""
    chosen = list(methods.values()) if method == LOCAL else list(methods.values())[:1]
    eers = [
        eer_only(trial, functools.partial(site.open_templates, shared=shared)) for site in chosen
    ]
    return sum(eers) / len(eers)


def _open_results(method: str, result: SimulationResult, trial: Trial, seed: int) -> dict[str, Any]:
    names = list(result.sites) if method == LOCAL else list(result.sites)[:1]
    scores: dict[str, ScoreSet] = {
        name: scores_of(
            trial, functools.partial(result.sites[name].open_templates, shared=result.shared)
        )
        for name in names
    }
    reports = {
        name: evaluate_scores(s, seed=seed, resamples=RESAMPLES) for name, s in scores.items()
    }
    if method == LOCAL:
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


def _closed_results(
    result: SimulationResult, splits: Mapping[str, SiteSplit], seed: int
) -> dict[str, Any]:
    found = {}
    for name, site in result.sites.items():
        embed = functools.partial(site.closed_templates, shared=result.shared)
        scores = scores_of(closed_trial(splits[name]), embed)
        report = evaluate_scores(scores, seed=seed, resamples=RESAMPLES)
        found[name] = estimate_of(report).model_dump()
    return found


def _say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    root, method = sys.argv[1:]
    workspace = Workspace(Path(root))
    compare(workspace, workspace.load(), method)


if __name__ == "__main__":
    main()
