"""Rehearsal: the whole protocol with pseudo-random deltas, no images and no training.

A federation runs it to try its network, its limits and its restarts before anybody trains, and the
benchmark runs it to time a round without the cost of training. Shared: a vector of the plan's
layout. Stays at the site: nothing, there is nothing. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..canonical import domain_hash
from ..errors import ConfigError, LayoutMismatchError
from ..groups import foreign_to
from ..layout import FloatVector, Layout
from ..plan import Plan
from .base import RoundContext, SiteUpdate, Tensors

_BLOCK = 1 << 16
_DELTA_ABS = 0.01
_MAX_WEIGHT = 16


def rehearsal_vector(layout: Layout, seed: int) -> FloatVector:
    """(P,) float32 in [-0.01, 0.01), the shared vector of round 0, from the seed and layout alone."""
    return _uniform(domain_hash("rehearsal/initial", str(seed).encode(), layout.hash), layout.size)


class RehearsalMethod:
    """One site's half: a delta and a weight drawn from (plan seed, site, round)."""

    def __init__(self, plan: Plan, site: str) -> None:
        self.layout = plan.model_layout
        self.expert_layout = plan.released_layout
        self._seed = plan.draft.seed
        self._delta_abs = min(_DELTA_ABS, plan.draft.codec.clip_abs)
        self._max_weight = min(_MAX_WEIGHT, plan.draft.codec.max_weight)
        self._site = site
        self._foreign = foreign_to(site, plan.parameter_groups)

    def initial_vector(self) -> FloatVector:
        return rehearsal_vector(self.layout, self._seed)

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        """Draw a delta, (P,) float32 in [-0.01, 0.01), and a whole weight in 1..16.

        The delta is zero in groups of parameters that the site is not of.

        Raises:
            LayoutMismatchError: ``shared`` is not a float32 vector of the layout.
        """
        if shared.shape != (self.layout.size,) or shared.dtype != np.float32:
            raise LayoutMismatchError(
                f"got {shared.dtype} {shared.shape}, layout float32 ({self.layout.size},)"
            )
        key = domain_hash(
            "rehearsal/delta",
            str(self._seed).encode(),
            self._site.encode(),
            context.round.to_bytes(4, "big"),
        )
        delta = _uniform(key, self.layout.size, self._delta_abs)
        for group in self._foreign:
            delta[group.span] = 0
        return SiteUpdate(delta=delta, weight=float(1 + key[0] % self._max_weight))

    def state(self) -> Tensors:
        return {}

    def load_state(self, tensors: Tensors) -> None:
        if tensors:
            raise LayoutMismatchError(f"rehearsal has no state, got {sorted(tensors)[:5]}")

    def expert(self) -> Tensors:
        raise _nothing_trained("expert")

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        raise _nothing_trained("expert")

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        raise _nothing_trained("template")

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        raise _nothing_trained("template")


def _nothing_trained(what: str) -> ConfigError:
    return ConfigError(
        f"method 'rehearsal' trains nothing, so it has no {what}",
        next_step="run a plan whose method is 'fedavg' or 'fedpalm'",
    )


def _uniform(key: bytes, length: int, bound: float = _DELTA_ABS) -> FloatVector:
    """(length,) float32, uniform in [-bound, bound), from an AES-CTR keystream: same on any machine."""
    keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    vector = np.empty(length, dtype=np.float32)
    for begin, end in _blocks(length):
        draw = np.frombuffer(keystream.update(bytes(4 * (end - begin))), dtype="<i4")
        vector[begin:end] = draw * (bound / 2**31)
    return vector


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, length, _BLOCK):
        yield begin, min(begin + _BLOCK, length)
