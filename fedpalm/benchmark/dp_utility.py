"""What differential privacy by person costs in accuracy: open-set EER by epsilon, cold and warm started.

Every cell of the table is one simulated run of the same plan: same people, rounds, steps and clipping,
other noise. ``inf`` is that plan with next to no noise, so the difference to it is the noise's alone;
``0`` is the start, which has seen nobody; ``ordinary`` is what sites would do if nobody asked for privacy:
heads of their own, contrast between people, whole epochs. Noise is drawn from seeds: the figures can be
had again, and the models are private to nobody (docs/results/dp.md).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from ..canonical import canonical_json, domain_hash
from ..data.loading import Trial, load_images, load_trial
from ..data.palms import PRESETS, cache_root, synthetic_palms
from ..data.records import ImageRecord, by_identity
from ..evaluation.pairs import score_pairs
from ..layout import FloatVector
from ..methods.base import SiteImages
from ..methods.pretrain import PublicPalms, pretrain, provenance
from ..methods.site import build_site_method
from ..methods.template import model_template
from ..plan import Plan, PlanDraft, PrivacySettings, TrainingSettings
from ..privacy.accounting import Charge, charged_epsilon, noise_for
from ..settings import Settings
from .jobs.results import whole
from .palm.scoring import difference, figures
from .simulate import simulate

Start = Literal["cold", "warm"]
STARTS: tuple[Start, ...] = ("warm", "cold")
NO_NOISE = 1e-6
"""The noise multiplier of ``inf``: a plan has to name one above 0."""
VERSION = 1
"""Raised whenever the same cell would give another result; it is part of a cell's name."""


class UtilityConfig(Settings):
    """One table. ``epsilons``: 0 is the start itself, ``inf`` no noise."""

    method: Literal["fedavg", "fedpalm"] = "fedavg"
    sites: int = Field(8, ge=2, le=50)
    people: int = Field(200, ge=2, le=9000)
    """Who train, at each site; the plan's declared population too."""
    strangers: int = Field(50, ge=2, le=900)
    """Of each site's open set: nobody trains on them."""
    images: int = Field(4, ge=2, le=20)
    """Of everybody: half of them train or are the gallery, the others are probes."""
    seed: int = Field(0, ge=0, lt=2**32)
    rounds: int = Field(2, ge=1, le=1000)
    epsilons: tuple[float, ...] = (0.0, 1.0, 4.0, 8.0, math.inf)
    ordinary: bool = True
    """With a run without differential privacy too."""
    delta: float = Field(1e-3, gt=0, lt=1)
    cold_learning_rate: float = Field(3e-3, gt=0, le=1)
    """Of a start at random; ``training.learning_rate`` is that of a warm start, which has less to learn."""
    training: TrainingSettings = TrainingSettings(
        learning_rate=3e-4,
        dropout=0.0,
        privacy=PrivacySettings(
            unit="subject", sampling_rate=0.125, steps=4, records=1, trains="expert"
        ),
    )
    public: PublicPalms = PublicPalms()
    resamples: int = Field(500, ge=20, le=100_000)

    @field_validator("epsilons")
    @classmethod
    def _ascending(cls, epsilons: tuple[float, ...]) -> tuple[float, ...]:
        if not epsilons or min(epsilons) < 0 or any(math.isnan(one) for one in epsilons):
            raise ValueError("name one epsilon or more, each 0 or more (inf is no noise)")
        return tuple(sorted(set(epsilons)))

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(f"site-{number:02d}" for number in range(1, self.sites + 1))


@dataclass(frozen=True)
class Cell:
    """One run: where it starts, and the epsilon that its noise is chosen for."""

    config: UtilityConfig
    start: Start
    epsilon: float
    ordinary: bool = False

    @cached_property
    def name(self) -> str:
        """Of its result file: changes with everything that can change the result."""
        left_out = {"epsilons", "ordinary", "public", "cold_learning_rate"}
        values = self.config.model_dump(exclude=left_out) | {
            "learning_rate": self.learning_rate,
            "version": VERSION,
            "public": provenance(self.config.public),
            "start": self.start,
            "epsilon": self.label,
        }
        return domain_hash("bench-dp/v1", canonical_json(values)).hex()[:20]

    @property
    def learning_rate(self) -> float:
        """Of the private runs of this start."""
        config = self.config
        return config.training.learning_rate if self.start == "warm" else config.cold_learning_rate

    @property
    def label(self) -> str:
        """The epsilon, or ``ordinary``."""
        return "ordinary" if self.ordinary else repr(self.epsilon)

    @cached_property
    def noise_multiplier(self) -> float:
        """Least noise that costs at most epsilon over all rounds."""
        if math.isinf(self.epsilon):
            return NO_NOISE
        privacy, steps = self.config.training.privacy, self.config.rounds
        return noise_for(
            self.epsilon, self.config.delta, privacy.sampling_rate, steps * privacy.steps
        )

    def draft(self) -> PlanDraft:
        """The plan that real sites would be asked to approve."""
        config = self.config
        training = config.training.model_dump() | {"learning_rate": self.learning_rate}
        if self.ordinary:
            training = TrainingSettings(backbone=config.training.backbone).model_dump()
        else:
            training["privacy"] |= {"population": config.people}
            if self.epsilon > 0:
                training["privacy"] |= {"noise_multiplier": self.noise_multiplier}
        return PlanDraft(
            name="dp-utility",
            method=config.method,
            rounds=config.rounds,
            seed=config.seed,
            quorum=config.sites,
            expert_exchange="never",
            training=TrainingSettings.model_validate(training),
        )


def cells_of(config: UtilityConfig) -> list[Cell]:
    """All of a table's."""
    found = []
    for start in STARTS:
        found += [Cell(config, start, epsilon) for epsilon in config.epsilons]
        if config.ordinary:
            found.append(Cell(config, start, math.inf, ordinary=True))
    return found


def measure(
    config: UtilityConfig, folder: Path, jobs: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every cell's result; those that ``folder`` has are not run again.

    Palms are drawn and the warm start is trained first, so that processes find them ready.

    Raises:
        DataError: the palms cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = [cell for cell in cells_of(config) if _stored(folder, cell) is None]
    if left:
        tell(f"{len(left)} of {len(cells_of(config))} runs are left")
        _palms(config)
        if any(cell.start == "warm" for cell in left):
            warm_start(config, folder, tell)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_cell, cell, folder): cell for cell in left}
        for done in as_completed(running):
            found, cell = done.result(), running[done]
            tell(
                f"{cell.start}, epsilon {cell.label}: EER {found['mean']['eer']:.4f} "
                f"in {found['seconds']:.0f} s"
            )
    results = [_stored(folder, cell) for cell in cells_of(config)]
    return [one for one in results if one is not None]


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train one cell's model, score every site's strangers with it, store the result."""
    begun = time.perf_counter()
    config, draft = cell.config, cell.draft()
    template = model_template(draft.method, draft.training, draft.seed)
    shared = warm_start(config, folder) if cell.start == "warm" else template.initial
    plan = Plan(
        federation="benchmark",
        draft=draft,
        roster=config.site_names,
        layout=tuple(template.layout.to_json()),
        initial_model=hashlib.sha256(shared.astype("<f4").tobytes()).hexdigest(),
    )
    metrics: tuple[Any, ...] = ()
    if cell.epsilon > 0:
        begin = template.layout.unflatten(shared)
        ended = simulate(plan, draft.method, training_people(config), initial=begin)
        shared, metrics = ended.shared, ended.metrics
    observer = build_site_method(plan, "observer", _nobody())
    scored = {}
    for name, trial in strangers(config).items():
        both = observer.open_templates(np.concatenate([trial.gallery, trial.probe]), shared)
        rows = len(trial.gallery)
        scored[name] = score_pairs(
            both[:rows], trial.gallery_labels, both[rows:], trial.probe_labels
        )
    found = figures(scored, "open", config.seed, config.resamples)
    result = {
        "start": cell.start,
        "epsilon": cell.label,
        "charged": _charged(cell),
        "noise_multiplier": None
        if cell.ordinary or cell.epsilon == 0
        else draft.privacy.noise_multiplier,
        "randomness": "seeded: not private",
        "mean": found["mean"],
        "sites": found["sites"],
        "draws": found["draws"],
        "rounds": [
            {key: float(np.mean([one[key] for one in by_site.values()])) for key in _KEPT}
            for by_site in metrics
        ],
        "seconds": round(time.perf_counter() - begun, 1),
        "config": json.loads(config.model_dump_json(exclude={"epsilons", "ordinary"})),
    }
    with whole(folder / f"{cell.name}.json") as partial:
        partial.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    return result


_KEPT = ("open.loss", "update.max_abs")


def against(
    results: Sequence[Mapping[str, Any]], start: Start, base: str
) -> dict[str, dict[str, Any]]:
    """By epsilon: how much higher the EER is than that of ``base``, same start, paired interval."""
    mine = {one["epsilon"]: one for one in results if one["start"] == start}
    free = mine.get(base)
    if free is None:
        return {}
    return {
        epsilon: {
            "eer": one["mean"]["eer"] - free["mean"]["eer"],
            "interval": difference(np.array(one["draws"]) - np.array(free["draws"])),
        }
        for epsilon, one in mine.items()
        if epsilon != base
    }


def warm_start(
    config: UtilityConfig, folder: Path, tell: Callable[[str], None] | None = None
) -> FloatVector:
    """(P,) of ``fedpalm model pretrain`` for the table's plan; trained once a folder."""
    draft = Cell(config, "warm", math.inf).draft()
    facts = {
        "method": draft.method,
        "backbone": draft.training.backbone,
        "seed": draft.seed,
        "public": provenance(config.public),
    }
    file = folder / f"warm-{domain_hash('bench-dp-warm/v1', canonical_json(facts)).hex()[:20]}.npy"
    if not file.exists():

        def on_round(number: int, loss: float) -> None:
            if tell is not None:
                tell(f"warm start, round {number} of {config.public.rounds}: loss {loss:.3f}")

        trained = pretrain(draft, config.public, on_round).initial
        with whole(file) as partial, partial.open("wb") as stream:
            np.save(stream, trained)
    found: FloatVector = np.load(file, allow_pickle=False)
    return found


@lru_cache(maxsize=1)
def training_people(config: UtilityConfig) -> dict[str, SiteImages]:
    """What every site trains on."""
    found = {}
    for name, (people, _) in _split(config).items():
        loaded = load_images(_half(people, config, first=True))
        found[name] = SiteImages(loaded.images, loaded.labels, len(loaded.classes))
    return found


@lru_cache(maxsize=1)
def strangers(config: UtilityConfig) -> dict[str, Trial]:
    """Every site's open set."""
    return {
        name: load_trial(
            _half(people, config, first=True), _half(people, config, first=False), sorted(people)
        )
        for name, (_, people) in _split(config).items()
    }


People = dict[str, list[ImageRecord]]


def _split(config: UtilityConfig) -> dict[str, tuple[People, People]]:
    """By site: who trains and who is a stranger. Drawn people are alike, so the first ones train."""
    found = {}
    for name, records in zip(config.site_names, _palms(config), strict=True):
        groups = list(by_identity(records).items())
        found[name] = dict(groups[: config.people]), dict(groups[config.people :])
    return found


def _half(people: People, config: UtilityConfig, *, first: bool) -> list[ImageRecord]:
    half = (config.images + 1) // 2
    return [one for group in people.values() for one in (group[:half] if first else group[half:])]


def _palms(config: UtilityConfig) -> list[list[ImageRecord]]:
    return synthetic_palms(
        cache_root(),
        config.sites,
        config.people + config.strangers,
        config.images,
        config.seed,
        *PRESETS["benchmark"],
    )


def _nobody() -> SiteImages:
    return SiteImages(np.empty((0, 1, 128, 128), np.float32), np.empty(0, np.int64), 1)


def _charged(cell: Cell) -> float | None:
    """What the run would cost a site if its noise were secret; None where nothing bounds it."""
    if cell.epsilon == 0:
        return 0.0
    if math.isinf(cell.epsilon):
        return None
    privacy = cell.config.training.privacy
    steps = cell.config.rounds * privacy.steps
    charge = Charge(cell.noise_multiplier, privacy.sampling_rate, steps)
    return charged_epsilon([charge], cell.config.delta)


def _stored(folder: Path, cell: Cell) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / f"{cell.name}.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found
