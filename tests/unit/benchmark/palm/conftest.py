from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedpalm.benchmark.jobs.results import Store
from fedpalm.benchmark.palm import cost
from fedpalm.benchmark.palm.config import BenchConfig, Job
from fedpalm.benchmark.palm.data import fingerprint
from fedpalm.benchmark.palm.scoring import SETS, figures, pack
from fedpalm.benchmark.palm.variants import VARIANTS
from fedpalm.evaluation.pairs import score_pairs


@pytest.fixture(scope="session")
def palms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of generated palms for all tests."""
    return tmp_path_factory.mktemp("palms")


@pytest.fixture(autouse=True)
def cache(palms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPALM_CACHE", str(palms))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def tiny(**changes: object) -> BenchConfig:
    values: dict[str, object] = {
        "data": {"identities": 4, "images": 4},
        "sites": 2,
        "rounds": 2,
        "seeds": (0,),
        "evaluate_every": 1,
        "resamples": 20,
        "training": {"local_epochs": 1},
    }
    return BenchConfig.model_validate(values | changes)


def tiny_job(variant: str = "fedavg", seed: int = 0, **changes: object) -> Job:
    config = tiny(**changes)
    return Job(config, variant, seed, fingerprint(config.data))


def canned_result(store: Store, job: Job, spread: float) -> None:
    """A result with made-up scores: the larger ``spread``, the more templates lie apart."""
    config = job.config
    rng = np.random.default_rng(job.seed)
    centres = rng.standard_normal((5, 8))
    by_set = {}
    for which in SETS:
        by_set[which] = {}
        for name in config.site_names:
            labels = np.arange(5).repeat(4)
            noise = rng.standard_normal((2, 20, 8))
            gallery, probe = centres[labels] + spread * noise
            by_set[which][name] = score_pairs(gallery, labels, probe, labels)
    teim = {"teim.open.alpha": 0.7, "teim.open.beta": 0.3, "teim.closed.beta": 0.3}
    metrics = {"open.loss": 1.0} | (teim if job.variant.method == "fedpalm" else {})
    result = {
        "experiment": job.experiment,
        "variant": job.variant_name,
        "method": VARIANTS[job.variant_name].method,
        "exchange": VARIANTS[job.variant_name].exchange,
        "seed": job.seed,
        "config": {
            "data": config.data.name,
            "sites": config.sites,
            "rounds": config.rounds,
            "training": config.training.model_dump(),
        },
        "figures": {
            which: figures(by_site, which, job.seed, config.resamples)
            for which, by_site in by_set.items()
        },
        "convergence": [{"round": number, "eer": 0.1 / number} for number in (1, 2)],
        "rounds": [metrics, metrics],
        "bytes": cost.NOTHING,
        "seconds": [1.0, 3.0],
        "cpu_seconds": [1.0, 3.0],
        "epsilon": None,
    }
    store.write(job.hash, result, pack(by_set))
