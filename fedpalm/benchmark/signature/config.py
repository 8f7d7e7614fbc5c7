"""What the benchmark is told, the jobs that follow, and the hash that names a job's result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from ...canonical import canonical_json, domain_hash
from ...errors import ConfigError
from ...fedmh_settings import SIGNATURE_TRAINING, FedMHSettings
from ...methods.fedmh_template import fedmh_template
from ...plan import MAX_SITES, Plan, PlanDraft, TrainingSettings
from ...settings import Settings, parse_settings
from ..jobs.choices import Seeds, among
from .contenders import CONTENDERS, Contender

BENCHMARK_VERSION = 1
"""Raised whenever the same job would give another result; it is part of every job's hash."""

Preset = Literal["smoke", "quick", "full"]
DataName = Literal["synthetic", "real"]
"""Drawn signatures, or those of a folder."""

BACKBONES = ("signet", "resnet", "compnet")
"""In turn, site after site."""

MEME = "resnet"
"""Backbone of FML's shared model: the smallest of the three."""


class SyntheticSettings(Settings):
    """Writers a site, half of whom train, and their signatures (docs/data/signatures.md)."""

    writers: int = Field(10, ge=4, le=9999)
    genuine: int = Field(20, ge=2, le=9999)
    forged: int = Field(10, ge=0, le=9999)


class RealSettings(Settings):
    """Somebody's signatures. Without ``source`` there are none, and the benchmark says so.

    ``writers`` a site at most; None takes all.
    """

    source: str | None = None
    writers: int | None = Field(None, ge=4, le=9999)


class BenchConfig(Settings):
    """A benchmark: every contender with every seed on every set of signatures."""

    synthetic: SyntheticSettings = SyntheticSettings()
    real: RealSettings = RealSettings()
    sites: int = Field(6, ge=3, le=MAX_SITES)
    rounds: int = Field(10, ge=1, le=10_000)
    seeds: Seeds = (0,)
    variants: Annotated[tuple[str, ...], AfterValidator(among(CONTENDERS))] = tuple(CONTENDERS)
    training: TrainingSettings = TrainingSettings(**SIGNATURE_TRAINING)
    references: tuple[int, ...] = (1, 5, 10)
    resamples: int = Field(200, ge=20, le=100_000)
    """Draws of writers behind every interval."""

    @field_validator("references")
    @classmethod
    def _references(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        if not counts or min(counts) < 1:
            raise ValueError("name one number of references or more, each 1 or more")
        return tuple(sorted(set(counts)))

    @property
    def backbones(self) -> dict[str, str]:
        """By site."""
        width = len(str(self.sites))
        return {
            f"site-{number + 1:0{width}d}": BACKBONES[number % len(BACKBONES)]
            for number in range(self.sites)
        }


# Not seed 0: on its writers ``augmentation_times`` was chosen.
_PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "synthetic": {"writers": 4, "genuine": 4, "forged": 3},
        "real": {"writers": 4},
        "rounds": 2,
        "references": (1, 2),
        "resamples": 20,
        "seeds": (1,),
        "training": SIGNATURE_TRAINING | {"local_epochs": 1},
    },
    "quick": {"synthetic": {"writers": 24, "forged": 6}, "rounds": 4, "seeds": (1,)},
    "full": {
        "synthetic": {"writers": 60, "genuine": 20, "forged": 20},
        "rounds": 40,
        "seeds": (1, 2, 3),
        "resamples": 1000,
    },
}


def preset(name: Preset) -> BenchConfig:
    """The settings that go by a name; all of their numbers stand above."""
    return BenchConfig.model_validate(_PRESETS[name])


@dataclass(frozen=True)
class Job:
    """One contender with one seed, trained on ``data``: what a result depends on.

    ``fingerprints``: of every set of signatures that the benchmark has, by name. All but ``data`` are sets
    that nobody trained on.
    """

    config: BenchConfig
    variant_name: str
    data: DataName
    seed: int
    fingerprints: Mapping[DataName, str]

    @property
    def contender(self) -> Contender:
        return CONTENDERS[self.variant_name]

    @property
    def label(self) -> str:
        return f"{self.variant_name}, {self.data}, seed {self.seed}"

    @property
    def rounds(self) -> int:
        return self.config.rounds

    @property
    def threads(self) -> int:
        return self.config.training.threads

    @cached_property
    def experiment(self) -> str:
        """Hex name of what all jobs share that may be compared."""
        return domain_hash("bench-signature/v1", canonical_json(self._common())).hex()[:16]

    @cached_property
    def hash(self) -> str:
        """Hex name of the result: changes with everything that can change it."""
        values = self._common() | {
            "variant": self.variant_name,
            "sharing": self.contender.sharing,
            "contender": self.contender.settings.model_dump(),
            "on": self.data,
            "seed": self.seed,
        }
        return domain_hash("bench-signature-job/v1", canonical_json(values)).hex()[:24]

    def _common(self) -> dict[str, Any]:
        config = self.config.model_dump(exclude={"seeds", "variants"})
        del config["real"][
            "source"
        ]  # where it lies can change no result; the fingerprint says what it is
        return config | {
            "version": BENCHMARK_VERSION,
            "fingerprints": dict(self.fingerprints),
            "fedmh": FedMHSettings().model_dump(),
        }

    def plan(self, backbones: Mapping[str, str], shared: Iterable[str]) -> Plan:
        """A plan of these sites whose layout names the trunks ``shared``."""
        template = fedmh_template(tuple(shared), self.seed)
        return Plan(
            federation="benchmark",
            draft=PlanDraft(
                name="benchmark",
                method="fedmh",
                rounds=self.config.rounds,
                seed=self.seed,
                reproducible=True,
                quorum=len(backbones),
                training=self.config.training,
                backbones=dict(backbones),
                fedmh=self.contender.settings,
            ),
            roster=tuple(backbones),
            layout=tuple(template.layout.to_json()),
            initial_model=hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "variant": self.variant_name,
            "data": self.data,
            "seed": self.seed,
            "fingerprints": dict(self.fingerprints),
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Job:
        """Inverse of :meth:`to_json`. Raises ConfigError: it is another job to this version."""
        config = parse_settings(BenchConfig, value["config"], "job")
        job = cls(config, value["variant"], value["data"], value["seed"], value["fingerprints"])
        if job.hash != value["hash"]:
            raise ConfigError(
                "the job was made by another version of this package",
                next_step="run the benchmark again, with one version on all machines",
            )
        return job


def jobs_of(
    config: BenchConfig, fingerprints: Mapping[DataName, str], shard: tuple[int, int] = (1, 1)
) -> list[Job]:
    """All jobs, or part k of n: every job is in exactly one part."""
    every = [
        Job(
            config.model_copy(update={"variants": (name,), "seeds": (seed,)}),
            name,
            data,
            seed,
            fingerprints,
        )
        for seed in config.seeds
        for data in fingerprints
        for name in config.variants
    ]
    return every[shard[0] - 1 :: shard[1]]
