"""A demo of palms: one model for all sites, and experts that they exchange."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ...benchmark.simulate import LOCAL, RoundMetrics, simulate
from ...data.palms import contact_sheet
from ...data.records import ImageRecord, by_identity
from ...layout import FloatVector
from ...methods.base import SiteMethod
from ...plan import Plan
from .federation import Federation
from .figures import Point
from .palm_results import (
    closed_results,
    converge,
    open_eer,
    open_report,
    open_results,
    score_warm_start,
    site_report,
)
from .people import (
    choose_people,
    largest_fit,
    open_trial,
    split_of,
    training_images,
    write_open_lists,
    write_people,
)
from .plans import bound_plan, checkpoints, warm_start
from .settings import DemoSettings
from .subject import Chosen, Measured, Newcomer
from .workspace import Workspace

_MOST_ENROLLED = 3
_SAMPLE_ROWS, _SAMPLE_COLUMNS, _SAMPLE_SIDE_PX = 2, 10, 96


class Palms:
    """The :class:`.subject.Subject` of palms."""

    def largest_fit(self, source: str, sites: int) -> int:
        return largest_fit(source, sites)

    def choose(self, settings: DemoSettings) -> Chosen:
        return functools.partial(write_people, settings=settings, people=choose_people(settings))

    def compare(
        self,
        workspace: Workspace,
        settings: DemoSettings,
        contender: str,
        told: Callable[[int], None],
    ) -> dict[str, Any]:
        """Of a private demo: FedAvg with the same noise from seeds, and alone without any, as nothing
        leaves; both from the same warm start."""
        splits = {site: split_of(workspace, site) for site in settings.site_names}
        sites = {site: training_images(split) for site, split in splits.items()}
        trial = open_trial(list(splits.values()))
        points: list[Point] = []

        def on_round(
            number: int, shared: FloatVector, methods: Mapping[str, SiteMethod], _: RoundMetrics
        ) -> None:
            if number in checkpoints(settings.rounds):
                points.append(Point(round=number, eer=open_eer(contender, methods, shared, trial)))
            told(number)

        begin = warm_start(workspace, settings)
        alone = contender == LOCAL
        asked = settings.model_copy(update={"privacy": "none"}) if alone else settings
        plan = bound_plan(asked, None if alone else begin)
        result = simulate(plan, contender, sites, on_round, initial=begin)
        found = open_results(contender, result, trial, settings.seed)
        found["closed"] = closed_results(result, splits, settings.seed)
        found["convergence"] = [point.model_dump() for point in points]
        return found

    def evaluate(self, federation: Federation, workspace: Workspace, plan: Plan) -> None:
        """Each site its closed set; the first one also scores the pooled open set of all sites.

        After the exchange all sites hold the same experts, so the open-set templates of any of them are
        those of all.
        """
        settings = federation.settings
        gallery, probe = workspace.images("open-gallery"), workspace.images("open-probe")
        splits = [split_of(workspace, site) for site in settings.site_names]
        write_open_lists(splits, gallery, probe)
        first = settings.site_names[0]
        federation.evaluate(lambda site: ["--open-set", gallery, probe] if site == first else [])
        federation.export(checkpoints(settings.rounds))
        workspace.once("convergence", lambda: converge(workspace, plan))
        if settings.private:
            workspace.once("warm start", lambda: score_warm_start(workspace, plan))

    def measured(self, workspace: Workspace, plan: Plan, others: Mapping[str, Any]) -> Measured:
        settings = workspace.load()
        sites = tuple(
            site_report(workspace, settings, site, others) for site in settings.site_names
        )
        return Measured(sites, open_report(workspace, settings, others))

    def newcomer(self, workspace: Workspace, settings: DemoSettings, site: str) -> Newcomer:
        split = split_of(workspace, site)
        groups = list(by_identity([*split.open_gallery, *split.open_probe]).values())
        somebody, else_ = groups[0], groups[1]
        return Newcomer(
            tuple(record.path for record in somebody[:-1][:_MOST_ENROLLED]),
            {"genuine": somebody[-1].path, "impostor": else_[-1].path},
        )

    def sample(self, workspace: Workspace, settings: DemoSettings) -> bytes | None:
        """A strip: of synthetic palms only, for a report holds no biometric image."""
        if not settings.drawn:
            return None
        groups = list(by_identity(split_of(workspace, settings.site_names[0]).train).values())
        each = min(_SAMPLE_COLUMNS, *(len(group) for group in groups))
        abreast = max(1, _SAMPLE_COLUMNS // each)
        people = groups[: abreast * max(1, min(_SAMPLE_ROWS, len(groups) // abreast))]
        records: list[ImageRecord] = [record for group in people for record in group[:each]]
        columns = each * min(abreast, len(people))
        contact_sheet(records, workspace.sample, columns, _SAMPLE_SIDE_PX)
        return workspace.sample.read_bytes()
