"""A FedPalm round at a site against a plain PyTorch loop of the same mathematics.

The loop is the tests' oracle (``tests/oracles/fedpalm_round.py``), so it is found in a clone of the
repository only. Both train the same round from the same state on the same threads and take turns; what
they end at is compared after every turn. A round here is one after the warm-up: TEIM on, closed-set
expert frozen, experts of other sites in the pool.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.profiler import ProfilerActivity, profile

from ..data.augment import augment
from ..errors import IntegrityError, UnavailableError
from ..layout import FloatVector
from ..methods.base import RoundContext, SiteImages, Tensors
from ..methods.fedpalm import FedPalmSite
from ..plan import TrainingSettings

WAYS = ("here", "plain", "plain, features shared")
"""Ours; the plain loop; the same where every expert sees a batch once instead of once a model."""

MODEL_LIMIT, LOSS_LIMIT = 1e-2, 1e-4
"""Most that ways may differ: relative L2 of what a round moved, and relative mean losses.

Adam divides a gradient by its own size: a weight whose gradient is hardly more than rounding takes full
steps in a direction that rounding decides, so moved weights agree less well than gradients do.
"""

_SEED, _SITE = 7, "site-0"
_CONTEXT = RoundContext(round=2, rounds=3)
_SPREAD = 0.05

Tick = Callable[[str, int, int], None]
"""Told what is done, how often it was done, and how often it will be."""


@dataclass(frozen=True)
class Load:
    """A round: images at the site (five a person), experts in the pool beside the open-set one."""

    images: int
    experts: int
    threads: int = 1

    @property
    def training(self) -> TrainingSettings:
        """FedPalm as written, which is what the plain loop trains."""
        return TrainingSettings(backbone="compnet", threads=self.threads)

    @property
    def passes(self) -> int:
        """How often a round takes an image, in two views each time."""
        return self.images * self.training.local_epochs


class Outcome(NamedTuple):
    """What a round ends at: ``shared`` and ``private`` tensors by name, mean losses of both models."""

    shared: Mapping[str, npt.NDArray[Any]]
    private: Mapping[str, npt.NDArray[Any]]
    losses: Mapping[str, float]


class Bench:
    """One site before a round, and the ways to train it; each call begins at the same state."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.images = site_images(load.images)
        self.site = FedPalmSite(load.training, _SEED, _SITE, self.images)
        rng = np.random.default_rng(_SEED)
        for number in range(1, load.experts):
            self.site.receive_expert(f"site-{number}", another_expert(self.site.expert(), rng))
        self.vector: FloatVector = self.site.initial_vector()
        self.shared: Tensors = dict(self.site.layout.unflatten(self.vector))
        self.private: Tensors = self.site.state()
        self.plain_round = _plain_round()

    def train(self, way: str) -> tuple[Outcome, float, float]:
        """Train the round one way; also its seconds, and its CPU seconds of all threads."""
        self.site.load_state(self.private)
        begun, begun_cpu = time.perf_counter(), time.process_time()
        if way == WAYS[0]:
            update = self.site.train_round(_CONTEXT, self.vector)
        else:
            plain = self.plain_round(
                self.load.training, _SEED, _SITE, _CONTEXT.round, self.images, self.shared,
                self.private, share_features=way == WAYS[2],
            )  # fmt: skip
        seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
        if way != WAYS[0]:
            return Outcome(plain.shared, plain.private, plain.losses), seconds, cpu
        shared = self.site.layout.unflatten(self.vector + update.delta)
        return Outcome(shared, self.site.state(), update.metrics), seconds, cpu

    def differences(self, here: Outcome, plain: Outcome) -> dict[str, float]:
        """Of ours from the plain loop's: relative L2 of what moved, largest relative loss difference."""
        return {
            "shared": _moved_apart(here.shared, plain.shared, self.shared),
            "private": _moved_apart(here.private, plain.private, self.private),
            "losses": max(abs(here.losses[n] / loss - 1) for n, loss in plain.losses.items()),
        }


def measure_training(load: Load, repeats: int, tick: Tick) -> dict[str, Any]:
    """Figures of ``repeats`` turns after one that does not count, for ``--json``.

    Raises:
        IntegrityError: the plain loop ends at another model.
        UnavailableError: the plain loop is not here; this is no clone of the repository.
    """
    bench = Bench(load)
    seconds: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    worst: dict[str, float] = defaultdict(float)
    for turn in range(repeats + 1):
        outcomes = {}
        for way in WAYS:
            outcomes[way], wall, busy = bench.train(way)
            if turn:
                seconds[way].append(wall)
                cpu[way].append(busy)
        for way in WAYS[1:]:
            for name, found in bench.differences(outcomes[WAYS[0]], outcomes[way]).items():
                worst[name] = max(worst[name], found)
        check(worst)
        tick("turns", turn, repeats)
    peaks = {}
    for done, way in enumerate(WAYS, 1):
        peaks[way] = _peak_bytes(load, way)
        tick("memory", done, len(WAYS))
    return {
        "images": load.images,
        "experts": load.experts,
        "threads": load.threads,
        "local_epochs": load.training.local_epochs,
        "batch_size": load.training.batch_size,
        "repeats": repeats,
        "ways": {
            way: {
                "round_s": _spread(seconds[way]),
                "cpu_s": _spread(cpu[way]),
                "images_per_s": load.passes / statistics.median(seconds[way]),
                "images_per_cpu_s": load.passes / statistics.median(cpu[way]),
                "peak_over_idle_bytes": peaks[way],
            }
            for way in WAYS
        },
        "times_faster": {way: _ratio(seconds[way], seconds[WAYS[0]]) for way in WAYS[1:]},
        "times_less_cpu": {way: _ratio(cpu[way], cpu[WAYS[0]]) for way in WAYS[1:]},
        "differences": dict(worst),
        "profile_s": profile_round(bench),
    }


def check(differences: Mapping[str, float]) -> None:
    """Raise IntegrityError if two ways of a round differ by more than rounding explains."""
    for name, found in differences.items():
        limit = LOSS_LIMIT if name == "losses" else MODEL_LIMIT
        if not found <= limit:
            raise IntegrityError(
                f"the plain loop's {name} differ: {found:.2g} relative, at most {limit:g}"
            )


# --- where the time goes ---------------------------------------------------------------------------

PARTS = (
    ("convolution, backward", ("convolution_backward",)),
    ("convolution, forward", ("convolution", "conv2d")),
    ("Gabor filters in the frequency domain", ("_fft_", "bmm", "_PhaseConv")),
    ("embedding layer (and other matrix products)", ("addmm", "mm")),
    ("Adam", ("_fused_adam_", "Optimizer.")),
    ("softmax and pooling", ("softmax", "max_pool")),
    ("copies and zeros", ("copy_", "cat", "fill_", "zero", "index", "empty", "gather")),
)
"""Parts of a round by what an operation's name holds; the first that fits counts."""
OTHER, AUGMENTATION, PYTHON = "other tensor operations", "augmentation", "Python and the rest"


def profile_round(bench: Bench) -> dict[str, float]:
    """Seconds of our round by part, under the profiler, which makes small operations dearer."""
    bench.site.load_state(bench.private)
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        bench.site.train_round(_CONTEXT, bench.vector)
        whole = time.perf_counter() - begun
    parts: dict[str, float] = dict.fromkeys([name for name, _ in PARTS] + [OTHER], 0.0)
    for event in profiler.key_averages():
        parts[part_of(event.key)] += event.self_cpu_time_total / 1e6
    training = bench.load.training
    begun = time.perf_counter()
    for _ in range(2 * min(training.views, training.local_epochs)):
        augment(bench.images.images, np.random.default_rng(_SEED))
    parts[AUGMENTATION] = time.perf_counter() - begun
    parts[PYTHON] = max(0.0, whole - sum(parts.values()))
    return parts


def part_of(operation: str) -> str:
    """The part of a round that an operation of the profiler belongs to."""
    for name, marks in PARTS:
        if any(mark in operation for mark in marks):
            return name
    return OTHER


# --- inside ----------------------------------------------------------------------------------------


def site_images(count: int) -> SiteImages:
    """Smooth random textures, one a person, with noise; what is on them costs no time."""
    rng = np.random.default_rng(_SEED)
    people = max(2, count // 5)
    labels = np.arange(count, dtype=np.int64) % people
    textures = rng.standard_normal((people, 1, 16, 16)).repeat(8, axis=2).repeat(8, axis=3)
    images = textures[labels] + 0.3 * rng.standard_normal((count, 1, 128, 128))
    return SiteImages(images.astype(np.float32), labels, people)


def another_expert(expert: Tensors, rng: np.random.Generator) -> Tensors:
    """An expert of the same origin that learnt something else."""
    return {
        name: (tensor * (1 + _SPREAD * rng.standard_normal(tensor.shape))).astype(np.float32)
        for name, tensor in expert.items()
    }


def _plain_round() -> Callable[..., Any]:
    """The tests' loop, from the clone that this package lies in."""
    root = Path(__file__).parents[2]
    with _importable(root):
        try:
            found: Callable[..., Any] = import_module("tests.oracles.fedpalm_round").fedpalm_round
        except ModuleNotFoundError as error:
            raise UnavailableError(
                f"the plain loop to measure against is not here: no {error.name}",
                next_step="clone the repository and run `make bench-train` there",
            ) from error
    return found


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def _moved_apart(
    here: Mapping[str, npt.NDArray[Any]],
    plain: Mapping[str, npt.NDArray[Any]],
    before: Mapping[str, npt.NDArray[Any]],
) -> float:
    """|here - plain| / |plain - before| over all tensors of the plain loop."""
    apart = sum(float(np.sum((here[n] - plain[n]) ** 2, dtype=np.float64)) for n in plain)
    moved = sum(float(np.sum((plain[n] - before[n]) ** 2, dtype=np.float64)) for n in plain)
    return float(np.sqrt(apart / moved))


def _peak_bytes(load: Load, way: str) -> int:
    """Most that a round holds beyond the site before it, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_peak_here, load, way).result()


def _peak_here(load: Load, way: str) -> int:
    from .resident import peak_resident_bytes, reset_peak, resident_bytes

    bench = Bench(load)
    reset_peak()
    idle = resident_bytes()
    bench.train(way)
    return peak_resident_bytes() - idle


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ratio(others: list[float], ours: list[float]) -> dict[str, float]:
    """Inside each turn."""
    return _spread([other / own for other, own in zip(others, ours, strict=True)])
