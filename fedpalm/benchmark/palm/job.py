"""One job: train, look at the open set on the way, score both sets at the end, write the result.

After every round the state is put aside; a job that was interrupted goes on from there and ends with
the same bits. Run as ``python -m fedpalm.benchmark.palm.job FOLDER < job.json``: says one JSON line a
round on stdout, and ``{"error": ...}`` if it fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ...layout import FloatVector
from ...methods.base import SiteMethod
from ..jobs import process, standing
from ..jobs.results import Store
from ..simulate import LOCAL, RoundMetrics, SimulationResult, simulate
from . import cost, scoring
from .config import Job
from .data import site_data


def run_job(job: Job, store: Store, progress: process.OnProgress) -> None:
    """Do the job, or what is left of it, and write its result.

    Raises:
        ConfigError: the method cannot be built.
        DataError: the images cannot be used, or the model diverged.
    """
    plan = job.plan()
    data = site_data(job.config, job.seed)
    begun, history = standing.load_checkpoint(store, job.hash, job.config.site_names)
    progress(begun.rounds if begun is not None else 0)
    clock = standing.Clock()

    def on_round(
        number: int, shared: FloatVector, sites: Mapping[str, SiteMethod], metrics: RoundMetrics
    ) -> None:
        clock.stop(history)
        history.rounds.append(means(metrics))
        if number % job.config.evaluate_every == 0 or number == job.config.rounds:
            eer = scoring.mean_open_eer(sites, data, shared)
            history.convergence.append({"round": number, "eer": eer})
        standing.save_checkpoint(store, job.hash, number, shared, sites, history)
        progress(number)
        clock.start()

    clock.start()
    ended = simulate(
        plan,
        job.variant.method,
        {name: one.train for name, one in data.items()},
        on_round,
        exchange=job.variant.exchange,
        standing=begun,
    )
    by_set = {
        which: {
            name: scoring.scores(site, getattr(data[name], which), ended.shared, which)
            for name, site in ended.sites.items()
        }
        for which in scoring.SETS
    }
    store.write(job.hash, _result(job, ended, by_set, history), scoring.pack(by_set))
    store.checkpoint_file(job.hash).unlink(missing_ok=True)


def means(metrics: RoundMetrics) -> dict[str, float]:
    """A round's metrics, averaged over the sites that report them.

    Routing names experts by site; here they are ``own``, ``global`` or ``others``.
    """
    renamed: RoundMetrics = {}
    for site, values in metrics.items():
        own = renamed[site] = {}
        for name, value in values.items():
            kind, _, rest = name.partition(".")
            if kind == "routing":
                which, _, expert = rest.partition(".")
                expert = {site: "own", "_global": "global"}.get(expert, "others")
                name = f"routing.{which}.{expert}"
            own[name] = own.get(name, 0.0) + value
    return standing.means(renamed)


def _result(
    job: Job,
    ended: SimulationResult,
    by_set: Mapping[str, Mapping[str, Any]],
    history: standing.History,
) -> dict[str, Any]:
    config, data = job.config, job.config.data
    return {
        "experiment": job.experiment,
        "variant": job.variant_name,
        "method": job.variant.method,
        "exchange": job.variant.exchange,
        "seed": job.seed,
        "config": {
            "data": data.name,
            "fingerprint": job.fingerprint,
            **data.model_dump(include={"identities", "images", "difficulty", "site_spread"}),
            **config.model_dump(include={"sites", "rounds", "evaluate_every", "resamples"}),
            "training": job.training.model_dump(),
        },
        "versions": process.versions(),
        "machine": process.machine(),
        "figures": {
            which: scoring.figures(by_site, which, job.seed, config.resamples)
            for which, by_site in by_set.items()
        },
        "convergence": history.convergence,
        "rounds": history.rounds,
        "bytes": cost.NOTHING
        if job.variant.method == LOCAL
        else cost.bytes_of(job.plan(), history.rounds),
        "seconds": history.seconds,
        "cpu_seconds": history.cpu_seconds,
        "epsilon": None,
        "randomness": "seeded: not private" if job.training.privacy.unit != "none" else None,
        "model": model_hash(ended),
    }


def model_hash(ended: SimulationResult) -> dict[str, str]:
    """Hex SHA-256 of the ``shared`` vector as real processes name it, and of all sites' ``states``."""
    states = hashlib.sha256()
    for name in sorted(ended.sites):
        tensors = ended.sites[name].state()
        for key in sorted(tensors):
            states.update(f"{name}/{key}".encode() + tensors[key].tobytes())
    shared = hashlib.sha256(ended.shared.astype("<f4").tobytes()).hexdigest()
    return {"shared": shared, "states": states.hexdigest()}


MODULE = "fedpalm.benchmark.palm.job"


def main() -> None:
    process.serve(lambda spec, store, said: run_job(Job.from_json(spec), store, said))


if __name__ == "__main__":
    main()
