"""A demo of signatures: every site has its own backbone, and shares what others have, too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...benchmark.simulate import RoundMetrics, simulate
from ...data.records import by_identity
from ...data.signature_sheet import page_of_records
from ...data.signature_splits import SignatureSplit, SignatureTrial
from ...data.signatures import Claimed, SignatureRecord, by_claim
from ...evaluation.claim_file import claims_from_json, claims_to_json, read_claims
from ...evaluation.signatures import ClaimScores, claim_scores, pool_claims
from ...fedmh_settings import FedMHSettings
from ...layout import FloatVector
from ...methods.base import SiteMethod
from ...plan import Plan
from .claims import estimates_of, learning, mean_of_sites, round_of, rounds_of
from .federation import Federation
from .figures import Estimate, OpenReport, SiteReport, SiteRound
from .plans import bound_plan, checkpoints
from .roles import SitePerson
from .settings import DemoSettings
from .subject import Chosen, Measured, Newcomer
from .workspace import Workspace
from .writers import (
    MOST_REFERENCES,
    choose_writers,
    largest_fit,
    references_of,
    training_signatures,
    write_writers,
    writers_split,
)

CONTENDERS = {
    "fedavg": FedMHSettings(receipt="replace", guidance="off", augmentation="off"),
    "local": FedMHSettings(receipt="keep"),
}
"""What FedMH is compared with, as settings of its plan."""
_SAMPLE_WRITERS, _SAMPLE_EACH, _SAMPLE_TILE_PX = 3, 4, (160, 80)

ByForgery = dict[str, dict[str, Estimate]]
"""Estimates by kind of forgery, then contender."""


class Signatures:
    """The :class:`.subject.Subject` of signatures."""

    def largest_fit(self, source: str, sites: int) -> int:
        return largest_fit(source, sites)

    def choose(self, settings: DemoSettings) -> Chosen:
        return functools.partial(write_writers, settings=settings, writers=choose_writers(settings))

    def compare(
        self,
        workspace: Workspace,
        settings: DemoSettings,
        contender: str,
        told: Callable[[int], None],
    ) -> dict[str, Any]:
        splits = {site: writers_split(workspace, site) for site in settings.site_names}
        images = {site: training_signatures(split) for site, split in splits.items()}
        references = references_of(list(splits.values()))
        rounds: dict[str, list[SiteRound]] = {site: [] for site in splits}

        def on_round(
            number: int, _: FloatVector, sites: Mapping[str, SiteMethod], metrics: RoundMetrics
        ) -> None:
            for site, own in metrics.items():
                rounds[site].append(round_of(number, own))
            told(number)

        plan = bound_plan(settings, fedmh=CONTENDERS[contender])
        result = simulate(plan, settings.method, images, on_round)

        def scored(site: str, trial: SignatureTrial) -> dict[str, Any]:
            embed = functools.partial(result.sites[site].open_templates, shared=result.shared)
            return claims_to_json(claim_scores(trial, embed, references))

        return {
            "claims": {
                site: {"closed": scored(site, split.closed), "open": scored(site, split.open)}
                for site, split in splits.items()
            },
            "rounds": {site: [one.model_dump() for one in own] for site, own in rounds.items()},
        }

    def evaluate(self, federation: Federation, workspace: Workspace, plan: Plan) -> None:
        """Each site its closed and its open writers, with its own model."""
        names = federation.settings.site_names
        references = references_of([writers_split(workspace, site) for site in names])
        federation.evaluate(
            lambda site: [
                *("--references", str(references)),
                *("--scores", workspace.claims(site)),
            ]
        )
        federation.export(checkpoints(federation.settings.rounds)[-1:])
        for person in federation.people:
            told = functools.partial(_told, person)
            workspace.once(f"rounds {person.name}", told)

    def measured(self, workspace: Workspace, plan: Plan, others: Mapping[str, Any]) -> Measured:
        settings = workspace.load()
        names = settings.site_names
        splits = {site: writers_split(workspace, site) for site in names}
        ours: str = settings.method
        claims = {ours: {site: read_claims(workspace.claims(site)) for site in names}}
        rounds = {ours: {site: workspace.steps[f"rounds {site}"] for site in names}}
        for name, other in others.items():
            claims[name] = {site: _claims(own) for site, own in other["claims"].items()}
            rounds[name] = other["rounds"]
        told = {
            name: {site: [SiteRound(**one) for one in own] for site, own in of_sites.items()}
            for name, of_sites in rounds.items()
        }

        def rates(site: str, mode: str) -> ByForgery:
            return _by_kind(
                {name: estimates_of(own[site][mode], settings.seed) for name, own in claims.items()}
            )

        def report(site: str, split: SignatureSplit) -> SiteReport:
            closed, open_ = rates(site, "closed"), rates(site, "open")
            return SiteReport(
                site=site,
                backbone=settings.backbones[site],
                training_identities=len(split.writers),
                open_identities=len(split.open_writers),
                images=len(_paths(split.closed, split.open).union(r.path for r in split.train)),
                closed=closed.pop("random"),
                closed_forgeries=closed,
                open=open_.pop("random"),
                open_forgeries=open_,
                rounds=tuple(told[ours][site]),
            )

        open_ = {name: {site: own[site]["open"] for site in names} for name, own in claims.items()}
        means = _by_kind({name: mean_of_sites(own, settings.seed) for name, own in open_.items()})
        open_set = OpenReport(
            identities=sum(len(split.open_writers) for split in splits.values()),
            images=sum(len(_paths(split.open)) for split in splits.values()),
            references=references_of(list(splits.values())),
            estimates=means.pop("random"),
            forgeries=means,
            one_threshold=_by_kind(
                {
                    name: estimates_of(pool_claims(list(own.values())), settings.seed)
                    for name, own in open_.items()
                }
            ),
            learning={name: learning(list(own.values())) for name, own in told.items()},
        )
        sites = tuple(report(site, split) for site, split in splits.items())
        return Measured(sites, open_set, plan.groups)

    def newcomer(self, workspace: Workspace, settings: DemoSettings, site: str) -> Newcomer:
        """A skilled forgery if somebody made one, else the same name by another writer if they have it."""
        trial = writers_split(workspace, site).open
        claimed = trial.genuine[0].claimed
        kind, forgeries = ("skilled", trial.skilled) if trial.skilled else ("simple", trial.simple)
        claims = {
            "genuine": _first(trial.genuine, claimed),
            "impostor": _first(trial.random, claimed),
            "forgery": _first(forgeries, claimed),
        }
        enrolled = by_claim(trial.references)[claimed][:MOST_REFERENCES]
        return Newcomer(
            tuple(record.path for record in enrolled),
            {name: record.path for name, record in claims.items() if record is not None},
            kind if claims["forgery"] is not None else "",
        )

    def sample(self, workspace: Workspace, settings: DemoSettings) -> bytes | None:
        """A page: of synthetic signatures only, for a report holds no biometric image."""
        if not settings.drawn:
            return None
        train = writers_split(workspace, settings.site_names[0]).train
        rows: list[list[SignatureRecord | None]] = []
        for group in list(by_identity(train).values())[:_SAMPLE_WRITERS]:
            genuine = [one for one in group if one.genuine][:_SAMPLE_EACH]
            forged = [one for one in group if one.kind == "skilled"][: _SAMPLE_EACH // 2]
            rows.append([*genuine, *forged])
        page_of_records(rows, workspace.sample, _SAMPLE_TILE_PX)
        return workspace.sample.read_bytes()


def _told(person: SitePerson) -> list[dict[str, Any]]:
    """What the site has kept of its rounds."""
    run = person.status()["run"]
    return [one.model_dump() for one in rounds_of(run["metrics_by_round"])]


def _claims(values: Mapping[str, Any]) -> dict[str, ClaimScores]:
    return {mode: claims_from_json(own) for mode, own in values.items()}


def _by_kind(found: Mapping[str, Mapping[str, Estimate]]) -> ByForgery:
    """From contender, then kind, to kind, then contender; all of them have the same kinds."""
    kinds = dict.fromkeys(kind for own in found.values() for kind in own)
    return {kind: {name: own[kind] for name, own in found.items()} for kind in kinds}


def _first(records: Sequence[SignatureRecord], claimed: Claimed) -> SignatureRecord | None:
    return next((record for record in records if record.claimed == claimed), None)


def _paths(*trials: SignatureTrial) -> set[Path]:
    return {
        record.path
        for trial in trials
        for part in (trial.references, trial.genuine, trial.skilled, trial.simple, trial.random)
        for record in part
    }
