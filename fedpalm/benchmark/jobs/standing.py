"""What is kept of a job's rounds, and where an interrupted job goes on: its checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import safetensors
import safetensors.numpy

from ...layout import FloatVector
from ...methods.base import SiteMethod, Tensors
from ..simulate import RoundMetrics, Standing
from .results import Store, whole

_DIGITS = 6


@dataclass
class History:
    """What is kept of the rounds: metrics (means over the sites), seconds, the open set on the way."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    convergence: list[dict[str, float]] = field(default_factory=list)


class Clock:
    """Seconds of training a round; evaluation and checkpoints do not count."""

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, history: History) -> None:
        history.seconds.append(round(time.perf_counter() - self._wall, 4))
        history.cpu_seconds.append(round(time.process_time() - self._cpu, 4))


def means(metrics: RoundMetrics) -> dict[str, float]:
    """A round's metrics, averaged over the sites that report them."""
    found: dict[str, list[float]] = {}
    for values in metrics.values():
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: float(f"{np.mean(values):.{_DIGITS}g}") for name, values in sorted(found.items())}


def save_checkpoint(
    store: Store,
    job: str,
    number: int,
    shared: FloatVector,
    sites: Mapping[str, SiteMethod],
    history: History,
) -> None:
    """Put the state after round ``number`` aside."""
    tensors: Tensors = {"shared": shared}
    for name, site in sites.items():
        tensors |= {f"{name}/{key}": one for key, one in site.state().items()}
    notes = {"job": job, "rounds": str(number), "history": json.dumps(vars(history))}
    with whole(store.checkpoint_file(job)) as partial:
        safetensors.numpy.save_file(tensors, partial, notes)


def load_checkpoint(
    store: Store, job: str, sites: Iterable[str]
) -> tuple[Standing | None, History]:
    """Where the job stands; one that cannot be read, or is another job's, counts as none."""
    path = store.checkpoint_file(job)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            notes = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if notes["job"] != job:
            return None, History()
        shared = tensors.pop("shared")
        states: dict[str, Tensors] = {name: {} for name in sites}
        for name, tensor in tensors.items():
            site, _, key = name.partition("/")
            states[site][key] = tensor
        history = History(**json.loads(notes["history"]))
        return Standing(int(notes["rounds"]), shared, states), history
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None, History()
