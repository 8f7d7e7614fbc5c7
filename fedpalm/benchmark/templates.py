"""What cancelable templates cost in accuracy and what they hide, on drawn palms.

A model is trained in one process on some people of each site; nobody trains on the others, and a third of
those choose the transform's size (``tuning``), so that the figures of the rest are not of the best of many.
One threshold for all sites, impostors within a site.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from ..data.loading import Trial, load_images, load_trial
from ..data.palms import PRESETS, cache_root, synthetic_palms
from ..data.records import ImageRecord, by_identity
from ..evaluation.bootstrap import eer_interval, eer_resamples
from ..evaluation.metrics import eer, eer_of, roc
from ..evaluation.pairs import ScoreSet, pool_scores
from ..evaluation.unlinkability import chance_level, d_sys, d_sys_interval, linkability
from ..layout import FloatVector
from ..methods.base import SiteImages, SiteMethod
from ..methods.template import model_template
from ..plan import Plan, PlanDraft, TrainingSettings
from ..protection.transform import SIZE_BYTES
from ..settings import Settings
from .palm.scoring import difference
from .simulate import RoundMetrics, simulate
from .template_scores import (
    Keyring,
    claimed_keys,
    invert,
    issued_again,
    own_keys,
    unprotected,
)

Tell = Callable[[str], None]
Trials = dict[str, Trial]
METHOD = "fedavg"


class TemplatesConfig(Settings):
    """One measurement. Of everybody's ``images`` the first half trains or is the gallery."""

    sites: int = Field(4, ge=2, le=50)
    people: int = Field(30, ge=2, le=9000)
    """Who train, at each site."""
    tuning: int = Field(25, ge=3, le=900)
    strangers: int = Field(50, ge=3, le=900)
    images: int = Field(4, ge=2, le=20)
    rounds: int = Field(5, ge=1, le=1000)
    seed: int = Field(0, ge=0, lt=2**32)
    """Of palms, plan, keys and intervals."""
    issues: int = Field(5, ge=1, le=100)
    """How often everybody gets new keys."""
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """Bytes of a protected template that are tried on ``tuning``."""
    inverted: int = Field(10, ge=1, le=900)
    """People a site whose keys are stolen with their templates."""
    resamples: int = Field(500, ge=20, le=100_000)
    training: TrainingSettings = TrainingSettings(template_normaliser="site")

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(f"site-{number:02d}" for number in range(1, self.sites + 1))


QUICK = TemplatesConfig.model_validate(
    {
        "sites": 2,
        "people": 4,
        "tuning": 4,
        "strangers": 6,
        "images": 2,
        "rounds": 1,
        "issues": 2,
        "sizes": [64, SIZE_BYTES],
        "inverted": 2,
        "resamples": 20,
        "training": {"local_epochs": 1, "template_normaliser": "site"},
    }
)
"""Shows that everything runs; its figures say nothing."""


def measure(config: TemplatesConfig, tell: Tell) -> dict[str, Any]:
    """All figures, as JSON holds them.

    Raises:
        DataError: the palms cannot be drawn.
    """
    begun = time.perf_counter()
    tuning, strangers = embed(config, tell)
    trained = time.perf_counter()
    tell("trying sizes of a protected template")
    grid = {
        "unprotected": _eer(pool_scores([unprotected(one) for one in tuning.values()])),
        "protected": [_tried(config, tuning, one) for one in config.sizes],
    }
    tell("scoring everybody under every distribution of keys")
    scored = score_all(config, strangers)
    cases = {name: _case(config, one, scored["unprotected"]) for name, one in scored.items()}
    tell("estimating templates from stolen keys")
    found = {
        "config": config.model_dump(mode="json"),
        "size_bytes": SIZE_BYTES,
        "keys": "seeded: they protect nobody",
        "tuning": grid,
        "cases": cases,
        "chance_d_sys": dict(
            zip(("mean", "greatest"), chance_level(scored["fresh_keys"]), strict=True)
        ),
        "curves": {name: _curve(scored[name]) for name in ("fresh_keys", "own_keys")},
        "stolen": _stolen(config, strangers, scored["unprotected"]),
        "transform_ms": _milliseconds(strangers[config.site_names[0]]),
    }
    ended = time.perf_counter()
    return found | {
        "seconds": {"training": round(trained - begun, 1), "measuring": round(ended - trained, 1)}
    }


def score_all(config: TemplatesConfig, trials: Trials) -> dict[str, ScoreSet]:
    """By distribution of keys: all sites' scores, of all issues."""
    rings = {name: _keyring(config, name, one) for name, one in trials.items()}
    issues = range(config.issues)
    # Two systems an issue: keys 2 n and 2 n + 1.
    return {
        "unprotected": pool_scores([unprotected(one) for one in trials.values()]),
        "own_keys": pool_scores(
            [
                issued_again([own_keys(one, rings[name], 2 * n, 2 * n) for n in issues])
                for name, one in trials.items()
            ]
        ),
        "claimed_keys": pool_scores(
            [
                issued_again([claimed_keys(one, rings[name], 2 * n) for n in issues])
                for name, one in trials.items()
            ]
        ),
        "fresh_keys": pool_scores(
            [
                issued_again([own_keys(one, rings[name], 2 * n, 2 * n + 1) for n in issues])
                for name, one in trials.items()
            ]
        ),
    }


def embed(config: TemplatesConfig, tell: Tell) -> tuple[Trials, Trials]:
    """Train, then the open-set templates of ``tuning`` and of ``strangers``, by site."""
    tell("drawing palms")
    drawn = synthetic_palms(
        cache_root(),
        config.sites,
        config.people + config.tuning + config.strangers,
        config.images,
        config.seed,
        *PRESETS["default"],
    )
    split = {
        name: _Split.of(config, records)
        for name, records in zip(config.site_names, drawn, strict=True)
    }
    draft = PlanDraft(
        name="templates",
        method=METHOD,
        rounds=config.rounds,
        seed=config.seed,
        quorum=config.sites,
        expert_exchange="never",
        training=config.training,
    )
    template = model_template(METHOD, config.training, config.seed)
    plan = Plan(
        federation="benchmark",
        draft=draft,
        roster=config.site_names,
        layout=tuple(template.layout.to_json()),
        initial_model=hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
    )

    def on_round(number: int, _: FloatVector, __: Any, metrics: RoundMetrics) -> None:
        loss = float(np.mean([one["open.loss"] for one in metrics.values()]))
        tell(f"training, round {number} of {config.rounds}: loss {loss:.3f}")

    ended = simulate(plan, METHOD, {name: one.training for name, one in split.items()}, on_round)
    found: tuple[Trials, Trials] = ({}, {})
    for name, one in split.items():
        for into, trial in zip(found, (one.tuning, one.strangers), strict=True):
            into[name] = _templates(ended.sites[name], trial, ended.shared)
    return found


@dataclass(frozen=True)
class _Split:
    """Images of one site."""

    training: SiteImages
    tuning: Trial
    strangers: Trial

    @classmethod
    def of(cls, config: TemplatesConfig, records: list[ImageRecord]) -> _Split:
        """Drawn people are alike, so the first ones train."""
        groups = list(by_identity(records).items())
        first, second = config.people, config.people + config.tuning
        loaded = load_images([one for _, group in groups[:first] for one in group])
        half = (config.images + 1) // 2
        trials = [
            load_trial(
                [one for _, group in part for one in group[:half]],
                [one for _, group in part for one in group[half:]],
                [name for name, _ in part],
            )
            for part in (groups[first:second], groups[second:])
        ]
        training = SiteImages(loaded.images, loaded.labels, len(loaded.classes))
        return cls(training, *trials)


def _templates(site: SiteMethod, trial: Trial, shared: FloatVector) -> Trial:
    both = site.open_templates(np.concatenate([trial.gallery, trial.probe]), shared)
    rows = len(trial.gallery)
    return Trial(both[:rows], trial.gallery_labels, both[rows:], trial.probe_labels)


def _keyring(
    config: TemplatesConfig, site: str, trial: Trial, size_bytes: int = SIZE_BYTES
) -> Keyring:
    return Keyring(config.seed, site, trial.gallery.shape[1], size_bytes)


def _tried(config: TemplatesConfig, trials: Trials, size_bytes: int) -> dict[str, Any]:
    """EER under the claimed person's key, mean and spread of the issues of keys; and how near a thief of
    keys and templates comes, at the first site."""
    rates = []
    for issue in range(config.issues):
        sets = [
            claimed_keys(one, _keyring(config, name, one, size_bytes), issue)
            for name, one in trials.items()
        ]
        rates.append(_eer(pool_scores(sets)))
    name, one = next(iter(trials.items()))
    stolen = invert(one, _keyring(config, name, one, size_bytes), config.inverted)
    return {
        "size_bytes": size_bytes,
        "eer": float(np.mean(rates)),
        "standard_deviation": float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
        "cosine_of_estimate": float(stolen.itself.mean()),
    }


def _eer(scores: ScoreSet) -> float:
    return eer(scores.genuine, scores.impostor)


def _case(config: TemplatesConfig, scores: ScoreSet, base: ScoreSet) -> dict[str, Any]:
    """Rates with intervals; ``above`` the unprotected cosine, people drawn alike in both."""
    seed, resamples = config.seed, config.resamples
    draws, others = (eer_resamples(one, seed=seed, resamples=resamples) for one in (scores, base))
    return {
        "eer": _eer(scores),
        "eer_interval": list(eer_interval(scores, seed=seed, resamples=resamples)),
        "above": _eer(scores) - _eer(base),
        "above_interval": difference(draws - others),
        "d_sys": d_sys(scores.genuine, scores.impostor),
        "d_sys_interval": list(d_sys_interval(scores, seed=seed, resamples=resamples)),
        "mean_genuine": float(scores.genuine.mean()),
        "mean_impostor": float(scores.impostor.mean()),
        "genuine_pairs": scores.genuine.size,
        "impostor_pairs": scores.impostor.size,
        "identities": scores.identities,
    }


def _curve(scores: ScoreSet) -> dict[str, list[float]]:
    found = linkability(scores.genuine, scores.impostor)
    parts = ("edges", "mated", "non_mated", "local")
    return {name: np.round(getattr(found, name), 6).tolist() for name in parts}


def _stolen(config: TemplatesConfig, trials: Trials, base: ScoreSet) -> dict[str, Any]:
    """How near a thief of key and template comes, and whom the unprotected cosine would take him for."""
    found = [
        invert(one, _keyring(config, name, one), config.inverted) for name, one in trials.items()
    ]
    itself = np.concatenate([one.itself for one in found])
    others = np.concatenate([one.others for one in found])
    curve = roc(base.genuine, base.impostor)
    threshold = float(curve.thresholds[np.argmax(curve.fnmr <= eer_of(curve))])
    return {
        "templates": itself.size,
        "cosine_to_itself": float(itself.mean()),
        "cosine_to_other_images": float(others.mean()),
        "genuine_cosine": float(base.genuine.mean()),
        "threshold": threshold,
        "accepted": float(np.mean(others >= threshold)),
        "genuine_accepted": float(np.mean(base.genuine >= threshold)),
    }


def _milliseconds(trial: Trial) -> float:
    """Median of expanding a key and applying it to one template, in milliseconds."""
    keys = Keyring(0, "clock", trial.gallery.shape[1])
    taken = []
    for person in range(200):
        begun = time.perf_counter()
        keys.transform(person, 0).apply(trial.gallery[:1])
        taken.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(taken))
