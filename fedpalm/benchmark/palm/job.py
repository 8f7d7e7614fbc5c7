"""One job: train, look at the open set on the way, score both sets at the end, write the result.

After every round the state is put aside; a job that was interrupted goes on from there and ends with
the same bits. Run as ``python -m fedpalm.benchmark.palm.job FOLDER < job.json``: says one JSON line a
round on stdout, and ``{"error": ...}`` if it fails.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ... import __version__
from ...errors import FedPalmError
from ...layout import FloatVector
from ...methods.base import SiteMethod, Tensors
from ..simulate import LOCAL, RoundMetrics, SimulationResult, Standing, simulate
from . import cost, scoring
from .config import Job
from .data import site_data
from .results import Store, whole

_PACKAGES = ("numpy", "torch", "scikit-learn")
_DIGITS = 6

OnProgress = Callable[[int], None]
"""Called with the number of rounds that are done."""


@dataclass
class History:
    """What is kept of the rounds: metrics (means over the sites), seconds, the open set on the way."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    convergence: list[dict[str, float]] = field(default_factory=list)


def run_job(job: Job, store: Store, progress: OnProgress) -> None:
    """Do the job, or what is left of it, and write its result.

    Raises:
        ConfigError: the method cannot be built.
        DataError: the images cannot be used, or the model diverged.
    """
    plan = job.plan()
    data = site_data(job.config, job.seed)
    standing, history = _load_checkpoint(store, job)
    progress(standing.rounds if standing is not None else 0)
    clock = _Clock()

    def on_round(
        number: int, shared: FloatVector, sites: Mapping[str, SiteMethod], metrics: RoundMetrics
    ) -> None:
        clock.stop(history)
        history.rounds.append(means(metrics))
        if number % job.config.evaluate_every == 0 or number == job.config.rounds:
            eer = scoring.mean_open_eer(sites, data, shared)
            history.convergence.append({"round": number, "eer": eer})
        _save_checkpoint(store, job, number, shared, sites, history)
        progress(number)
        clock.start()

    clock.start()
    ended = simulate(
        plan,
        job.variant.method,
        {name: one.train for name, one in data.items()},
        on_round,
        exchange=job.variant.exchange,
        standing=standing,
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
    found: dict[str, list[float]] = {}
    for site, values in metrics.items():
        own: dict[str, float] = {}
        for name, value in values.items():
            kind, _, rest = name.partition(".")
            if kind == "routing":
                which, _, expert = rest.partition(".")
                expert = {site: "own", "_global": "global"}.get(expert, "others")
                name = f"routing.{which}.{expert}"
            own[name] = own.get(name, 0.0) + value
        for name, value in own.items():
            found.setdefault(name, []).append(value)
    return {name: float(f"{np.mean(values):.{_DIGITS}g}") for name, values in sorted(found.items())}


class _Clock:
    """Seconds of training a round; evaluation and checkpoints do not count."""

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, history: History) -> None:
        history.seconds.append(round(time.perf_counter() - self._wall, 4))
        history.cpu_seconds.append(round(time.process_time() - self._cpu, 4))


def _result(
    job: Job,
    ended: SimulationResult,
    by_set: Mapping[str, Mapping[str, Any]],
    history: History,
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
        "versions": versions(),
        "machine": {
            "cpus": os.cpu_count(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
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


def versions() -> dict[str, str]:
    found = {"fedpalm": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _save_checkpoint(
    store: Store,
    job: Job,
    number: int,
    shared: FloatVector,
    sites: Mapping[str, SiteMethod],
    history: History,
) -> None:
    tensors: Tensors = {"shared": shared}
    for name, site in sites.items():
        tensors |= {f"{name}/{key}": one for key, one in site.state().items()}
    notes = {"job": job.hash, "rounds": str(number), "history": json.dumps(vars(history))}
    with whole(store.checkpoint_file(job.hash)) as partial:
        safetensors.numpy.save_file(tensors, partial, notes)


def _load_checkpoint(store: Store, job: Job) -> tuple[Standing | None, History]:
    """Where the job stands; one that cannot be read, or is another job's, counts as none."""
    path = store.checkpoint_file(job.hash)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            notes = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if notes["job"] != job.hash:
            return None, History()
        shared = tensors.pop("shared")
        states: dict[str, Tensors] = {name: {} for name in job.config.site_names}
        for name, tensor in tensors.items():
            site, _, key = name.partition("/")
            states[site][key] = tensor
        history = History(**json.loads(notes["history"]))
        return Standing(int(notes["rounds"]), shared, states), history
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None, History()


def _say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    try:
        job = Job.from_json(json.load(sys.stdin))
        run_job(job, Store(Path(sys.argv[1])), lambda done: _say({"rounds": done}))
    except FedPalmError as error:
        _say({"error": error.what, "next_step": error.next_step})
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
