"""One verification of an enrolled person with all experts of a site, against loops over the experts.

From a palm's region of interest to a score: spectrum, features of the N experts, TEIM for both anchors,
both embeddings, the closed-set template, its cosine with the enrolled one. The ways differ in the features:

    pool         the site's :class:`~fedpalm.models.pool.ExpertPool`, made before
    other choice the same, grouped where the pool is not and the other way round
    naive        a loop over the experts, each called by itself as in training: one spectrum of the image
                 for all of them, kernels built and transformed at every call
    direct       the same loop as one writes it first: ``F.conv2d`` with kernels built at every call
    site call    ``closed_templates``: the pool, the check whether it is stale, the shared model loaded anew

All run in every repeat, in an order that is turned round from one to the next; ratios are taken inside a
repeat, so that a machine whose speed drifts favours none. What the ways give is compared first.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import IntegrityError
from ..methods.fedpalm import FedPalmSite
from ..methods.training import unit
from ..models.build import Expert, prepare
from ..models.compnet import TexturalExpert
from ..models.compnet_spec import STRIDE
from ..models.pool import GROUPED_UP_TO, ExpertPool
from ..plan import TrainingSettings
from .training import another_expert, site_images

POOL, OTHER, NAIVE, DIRECT, CALL = "pool", "other choice", "naive", "direct", "site call"
WAYS = (POOL, OTHER, NAIVE, DIRECT, CALL)

LIMIT = 1e-4
"""Most that a value of a template may differ between ways."""

_SEED, _SITE = 7, "site-0"

Templates = npt.NDArray[np.float32]
Tick = Callable[[str, int, int], None]
"""Told what is done, how often it was done, and how often it will be."""


class Bench:
    """A site with ``experts`` experts, the global one among them, that interact."""

    def __init__(self, experts: int, threads: int) -> None:
        self.site = FedPalmSite(
            TrainingSettings(backbone="compnet", threads=threads), _SEED, _SITE, site_images(10)
        )
        rng = np.random.default_rng(_SEED)
        own = self.site.expert()
        for number in range(1, experts - 1):
            self.site.receive_expert(f"site-{number}", another_expert(own, rng))
        state = self.site.state()
        self.site.load_state(state | {"progress.interacting": np.array(1, np.uint8)})
        self.shared = self.site.initial_vector()
        self.names = tuple(self.site.experts())
        self.experts = tuple(self.site.experts().values())
        self.pool = ExpertPool(self.experts)
        self.choices = {  # by whether they group
            grouped: ExpertPool(self.experts, 2**31 if grouped else 0) for grouped in (True, False)
        }

    def verify(
        self, way: str, images: Templates, enrolled: Templates
    ) -> tuple[Templates, Templates]:
        """(B, 1, 128, 128) images against (D,) -> (B, D) templates and (B,) scores."""
        if way == CALL:
            templates = self.site.closed_templates(images, self.shared)
        else:
            with torch.no_grad():
                found = self._features(way, torch.tensor(images))
                templates = unit(self.site.fused(dict(zip(self.names, found, strict=True))))
        return templates, templates @ enrolled

    def _features(self, way: str, images: Tensor) -> Tensor | list[Tensor]:
        if way == POOL:
            return self.pool(images)
        if way == OTHER:
            return self.choices[len(images) > GROUPED_UP_TO](images)
        if way == DIRECT:
            return [_direct(expert, images) for expert in self.experts]
        inputs = prepare("compnet", images)
        return [expert(inputs) for expert in self.experts]


def measure_verification(
    experts: int, batches: tuple[int, ...], threads: tuple[int, ...], repeats: int, tick: Tick
) -> dict[str, Any]:
    """Figures of ``repeats`` after one that does not count, for every batch size and thread count.

    Raises:
        IntegrityError: the ways do not give the same templates.
    """
    before = torch.get_num_threads()
    try:
        cases = [
            _measure(Bench(experts, count), batch, count, repeats, tick)
            for count in threads
            for batch in batches
        ]
    finally:
        torch.set_num_threads(before)
    return {"experts": experts, "repeats": repeats, "cores": os.cpu_count(), "cases": cases}


def check(found: dict[str, Templates]) -> float:
    """The largest difference of any way's templates from the naive loop's."""
    worst = float(np.max([np.abs(one - found[NAIVE]).max() for one in found.values()]))
    if not worst <= LIMIT:
        raise IntegrityError(f"templates of two ways differ by {worst:.2g}, at most {LIMIT:g}")
    return worst


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """At 95 % from order statistics (no distribution assumed); the range of fewer than six values."""
    ordered, count = sorted(values), len(values)
    left, tail = 0, 0.5**count
    while left + 1 < count // 2 and 2 * (tail + comb(count, left + 1) * 0.5**count) <= 0.05:
        left += 1
        tail += comb(count, left) * 0.5**count
    return ordered[left], ordered[count - 1 - left]


# --- inside ----------------------------------------------------------------------------------------


def _measure(bench: Bench, batch: int, threads: int, repeats: int, tick: Tick) -> dict[str, Any]:
    torch.set_num_threads(threads)
    images = np.resize(site_images(10).images, (batch, 1, 128, 128))
    enrolled = bench.verify(POOL, site_images(10).images[-1:], np.zeros(1024, np.float32))[0][0]
    seconds: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    difference = check({way: bench.verify(way, images, enrolled)[0] for way in WAYS})
    for repeat in range(repeats):
        for way in WAYS[:: 1 if repeat % 2 else -1]:
            begun, begun_cpu = time.perf_counter(), time.process_time()
            bench.verify(way, images, enrolled)
            seconds[way].append(time.perf_counter() - begun)
            cpu[way].append(time.process_time() - begun_cpu)
        tick(f"batch {batch}, {threads} thread(s)", repeat + 1, repeats)
    return {
        "batch": batch,
        "threads": threads,
        "grouped": batch <= GROUPED_UP_TO,
        "difference": difference,
        "load_average": os.getloadavg()[0],
        "ways": {
            way: {
                "latency_s": _spread(seconds[way]),
                "cpu_s": _spread(cpu[way]),
                "images_per_s": batch / statistics.median(seconds[way]),
            }
            for way in WAYS
        },
        "times_faster": {way: _ratio(seconds[way], seconds[POOL]) for way in WAYS[1:]},
        "times_less_cpu": {way: _ratio(cpu[way], cpu[POOL]) for way in WAYS[1:]},
    }


def _direct(expert: Expert, images: Tensor) -> Tensor:
    """The feature of CompNet's expert as one writes it first."""
    assert isinstance(expert, TexturalExpert)
    parts = []
    for block in (expert.large, expert.medium, expert.small):
        responses = F.conv2d(images, block.gabor.kernels(), stride=STRIDE)
        mixed = block.mix(torch.softmax(block.competition.scale * responses, dim=1))
        parts.append(block.reduce(F.max_pool2d(mixed, 2)).flatten(1))
    return torch.cat(parts, dim=1)


def _spread(values: list[float]) -> dict[str, float]:
    low, high = interval_of_median(values)
    return {"median": statistics.median(values), "low": low, "high": high, "min": min(values)}


def _ratio(others: list[float], pooled: list[float]) -> dict[str, float]:
    """Inside each repeat."""
    return _spread([other / own for other, own in zip(others, pooled, strict=True)])
