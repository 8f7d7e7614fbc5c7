"""What a benchmark is told, the jobs that follow, and the hash that names a job's result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ...canonical import canonical_json, domain_hash
from ...data.palms import PRESETS
from ...data.readers import SourceKind
from ...errors import ConfigError
from ...methods.template import model_template
from ...plan import MAX_SITES, Plan, PlanDraft, TrainingSettings
from ...settings import Settings, parse_settings
from ..jobs.choices import Seeds, among
from ..simulate import LOCAL, plan_for
from .variants import METHODS, VARIANTS, Variant

BENCHMARK_VERSION = 1
"""Raised whenever the same job would give another result; it is part of every job's hash."""

SYNTHETIC = "synthetic-palm"
Preset = Literal["smoke", "quick", "paper"]


class DataSettings(Settings):
    """Where images come from. ``identities`` a site: half train, half are the open set.

    ``identities`` None deals out everybody (a real source only); ``images`` of an identity at most.
    ``difficulty`` and ``site_spread`` are those of synthetic palms (docs/data/synthetic.md).
    """

    source: str = SYNTHETIC
    kind: SourceKind = "auto"
    identities: int | None = Field(20, ge=4, le=9999)
    images: int | None = Field(10, ge=4, le=9999)
    difficulty: float = Field(PRESETS["benchmark"].difficulty, ge=0, le=3)
    site_spread: float = Field(PRESETS["benchmark"].site_spread, ge=0, le=3)

    @property
    def name(self) -> str:
        """What tables call it: the generator, or the layout of the source."""
        return SYNTHETIC if self.source == SYNTHETIC else self.kind


class BenchConfig(Settings):
    """A benchmark: every variant with every seed."""

    data: DataSettings = DataSettings()
    sites: int = Field(8, ge=2, le=MAX_SITES)
    rounds: int = Field(20, ge=1, le=10_000)
    seeds: Seeds = (0,)
    variants: Annotated[tuple[str, ...], AfterValidator(among(VARIANTS))] = METHODS
    training: TrainingSettings = TrainingSettings()
    evaluate_every: int = Field(5, ge=1, le=10_000)
    """Rounds between two looks at the open set on the way."""
    resamples: int = Field(500, ge=20, le=100_000)
    """Draws of identities behind every interval."""

    @property
    def site_names(self) -> tuple[str, ...]:
        width = len(str(self.sites))
        return tuple(f"site-{number:0{width}d}" for number in range(1, self.sites + 1))


def _named(training: TrainingSettings) -> dict[str, Any]:
    """What a hash covers; results without DP keep the names from before there was any."""
    if training.privacy.unit == "none":
        return training.model_dump(exclude={"privacy"})
    return training.model_dump() | {"split": "by own hashes"}


_PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "data": {"identities": 8, "images": 4},
        "sites": 2,
        "rounds": 2,
        "evaluate_every": 1,
        "resamples": 50,
        "training": {"local_epochs": 1},
    },
    "quick": {
        "data": {"identities": 20, "images": 10},
        "sites": 8,
        "rounds": 12,
        "evaluate_every": 4,
        "training": {"local_epochs": 2},
    },
    "paper": {
        "data": {"identities": 60, "images": 10},
        "sites": 8,
        "rounds": 60,
        "evaluate_every": 10,
        "resamples": 1000,
        "seeds": (0, 1, 2),
        "training": {"local_epochs": 2},
    },
}


def preset(name: Preset) -> BenchConfig:
    """The settings that go by a name; all of their numbers stand above."""
    return BenchConfig.model_validate(_PRESETS[name])


@dataclass(frozen=True)
class Job:
    """One variant with one seed on one set of images, ``fingerprint``: what a result depends on."""

    config: BenchConfig
    variant_name: str
    seed: int
    fingerprint: str

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.variant_name]

    @property
    def label(self) -> str:
        return f"{self.variant_name}, seed {self.seed}"

    @property
    def rounds(self) -> int:
        return self.config.rounds

    @property
    def threads(self) -> int:
        return self.training.threads

    @cached_property
    def training(self) -> TrainingSettings:
        """The benchmark's, with what the variant sets differently."""
        values = self.config.training.model_dump() | dict(self.variant.training)
        return TrainingSettings.model_validate(values)

    @cached_property
    def experiment(self) -> str:
        """Hex name of what all jobs share that may be compared: data, sites, rounds and training."""
        return domain_hash("bench-experiment/v1", canonical_json(self._common())).hex()[:16]

    @cached_property
    def hash(self) -> str:
        """Hex name of the result: changes with everything that can change it."""
        values = self._common() | {
            "variant": self.variant_name,
            "method": self.variant.method,
            "exchange": self.variant.exchange,
            "training": _named(self.training),
            "seed": self.seed,
        }
        return domain_hash("bench-job/v1", canonical_json(values)).hex()[:24]

    def _common(self) -> dict[str, Any]:
        config = self.config
        return {
            "version": BENCHMARK_VERSION,
            "data": self.fingerprint,
            "identities": config.data.identities,
            "images": config.data.images,
            "sites": config.sites,
            "rounds": config.rounds,
            "training": _named(config.training),
            "evaluate_every": config.evaluate_every,
            "resamples": config.resamples,
        }

    def plan(self) -> Plan:
        """The plan whose run by real processes gives this job's model.

        Without an exchange at R/3, which no plan can ask for; for ``local`` that of FedAvg.

        Raises:
            ConfigError: the method is not built yet.
        """
        method = "fedavg" if self.variant.method == LOCAL else self.variant.method
        template = model_template("fedavg", self.training, self.seed)
        plan = Plan(
            federation="benchmark",
            draft=PlanDraft(
                name="benchmark",
                method="fedavg",
                rounds=self.config.rounds,
                seed=self.seed,
                reproducible=self.training.privacy.unit == "none",
                quorum=self.config.sites,
                training=self.training,
            ),
            roster=self.config.site_names,
            layout=tuple(template.layout.to_json()),
            initial_model=hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
        )
        return plan_for(plan, method)

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "variant": self.variant_name,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Job:
        """Inverse of :meth:`to_json`. Raises ConfigError: it is another job to this version."""
        config = parse_settings(BenchConfig, value["config"], "job")
        job = cls(config, value["variant"], value["seed"], value["fingerprint"])
        if job.hash != value["hash"]:
            raise ConfigError(
                "the job was made by another version of this package",
                next_step="run the benchmark again, with one version on all machines",
            )
        return job


def jobs_of(config: BenchConfig, fingerprint: str, shard: tuple[int, int] = (1, 1)) -> list[Job]:
    """All jobs, or part k of n: every job is in exactly one part."""
    every = [
        Job(
            config.model_copy(update={"variants": (name,), "seeds": (seed,)}),
            name,
            seed,
            fingerprint,
        )
        for seed in config.seeds
        for name in config.variants
    ]
    return every[shard[0] - 1 :: shard[1]]
