"""Exact fixed-point encoding of weighted updates: integers add in any order to the same sum.

A site contributes ``[w * delta | stats]``; each value is clipped to its bound, scaled in float64 and
rounded once, stochastically, to an integer modulo 2**32. The scale is the largest power of two that
leaves headroom for the sum over the whole roster, so overflow is impossible by construction. The
same integers travel with and without masking.

Source: stochastic rounding and modular aggregation as in Bonawitz et al. 2017 (section 4), with the
weight inside the vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import (
    CodecOverflowError,
    LayoutMismatchError,
    MaskingError,
    NonFiniteUpdateError,
    ProtocolError,
)
from ..layout import FloatVector

Encoded = npt.NDArray[np.uint32]
BYTES_PER_VALUE = 4
_HALF_RANGE = 2**31
_MAX_SCALE = 2**40
_BLOCK = 1 << 16
"""Values handled at a time: their float64, keystream and integers fit in cache."""
_ZEROS = bytes(4 * _BLOCK)


def _scale_for(sites: int, bound: float) -> float:
    """The largest power of two s with sites * ceil(bound * s) < 2**31."""
    scale = 2.0 ** math.floor(math.log2(min(_HALF_RANGE / (sites * bound), _MAX_SCALE)))
    while sites * (math.ceil(bound * scale) + 1) >= _HALF_RANGE:
        scale /= 2
    return scale


@dataclass(frozen=True)
class FixedPointCodec:
    """Fixed-point parameters of a run; both sides derive them from the plan.

    Args:
        sites: roster size n.
        parameters: P, length of the delta.
        clip_abs: bound B on each |delta| entry, in parameter units.
        max_weight: bound on the weight (and on each further statistic).
        stats: names of the scalars behind the delta, the weight first.

    Raises:
        CodecOverflowError: the bounds leave less than eight bits for a value.
    """

    sites: int
    parameters: int
    clip_abs: float
    max_weight: int
    stats: tuple[str, ...] = ("weight",)

    def __post_init__(self) -> None:
        bound = self.max_weight * self.clip_abs
        if self.sites < 1 or not 0 < bound < math.inf or not self.stats:
            raise CodecOverflowError("sites, clip_abs and max_weight must be positive and finite")
        if min(self.delta_scale * bound, self.stat_scale * self.max_weight) < 128:
            raise CodecOverflowError(
                f"{self.sites} sites x weight {self.max_weight} x clip {self.clip_abs:g} leave no "
                "headroom in 32 bits",
                next_step="lower codec.max_weight or codec.clip_abs in the plan",
            )

    @property
    def delta_scale(self) -> float:
        """Integer units per unit of w * delta."""
        return _scale_for(self.sites, self.max_weight * self.clip_abs)

    @property
    def stat_scale(self) -> float:
        """Integer units per unit of a statistic."""
        return _scale_for(self.sites, float(self.max_weight))

    @property
    def length(self) -> int:
        """Values in an encoded update: P deltas and the statistics."""
        return self.parameters + len(self.stats)

    @property
    def payload_bytes(self) -> int:
        return self.length * BYTES_PER_VALUE

    def encode(
        self, delta: FloatVector, weight: float, stats: Mapping[str, float], rounding_key: bytes
    ) -> Encoded:
        """Encode one site's contribution.

        Args:
            delta: (P,) float32; entries beyond ``clip_abs`` are clipped.
            weight: in [0, max_weight].
            stats: the statistics after the weight, each in [-max_weight, max_weight].
            rounding_key: 32 bytes; one key, one vector. Random, or derived in seeded runs.

        Returns:
            (P + k,) uint32, two's complement modulo 2**32.

        Raises:
            LayoutMismatchError, NonFiniteUpdateError, CodecOverflowError
        """
        if delta.shape != (self.parameters,) or delta.dtype != np.float32:
            raise LayoutMismatchError(
                f"delta is {delta.dtype} {delta.shape}, the codec wants float32 ({self.parameters},)"
            )
        tail = np.array([weight, *(stats[name] for name in self.stats[1:])], dtype=np.float64)
        if not (0 <= weight <= self.max_weight) or (np.abs(tail) > self.max_weight).any():
            raise CodecOverflowError(
                f"weight or statistic outside the plan's bound {self.max_weight}",
                safe="nothing was encoded",
                next_step="raise codec.max_weight in a new plan",
            )
        keystream = Cipher(algorithms.AES(rounding_key), modes.CTR(bytes(16))).encryptor()
        encoded = np.empty(self.length, dtype=np.uint32)
        scale = weight * self.delta_scale
        for begin, end in _blocks(self.parameters):
            block = delta[begin:end].astype(np.float64)
            # No block of finite float32 values has an infinite float64 sum.
            with np.errstate(invalid="ignore"):
                finite = math.isfinite(block.sum())
            if not finite:
                raise NonFiniteUpdateError(
                    "the update holds NaN or infinity", safe="nothing was encoded"
                )
            np.clip(block, -self.clip_abs, self.clip_abs, out=block)
            block *= scale
            _round_into(encoded[begin:end], block, keystream.update(_ZEROS[: 4 * (end - begin)]))
        tail *= self.stat_scale
        _round_into(encoded[self.parameters :], tail, keystream.update(_ZEROS[: 4 * tail.size]))
        return encoded

    def check_encoded(self, block: Encoded, begin: int) -> None:
        """Refuse integers that :meth:`encode` cannot have made.

        Without masking the receiver can hold every site to the bounds that the headroom counts on.

        Args:
            block: (B,) uint32, values ``begin`` to ``begin + B`` of one encoded update.
        Raises:
            ProtocolError: a value beyond its bound, or a negative weight.
        """
        values = block.view(np.int32)
        split = min(max(self.parameters - begin, 0), len(values))
        delta_bound = math.ceil(self.max_weight * self.clip_abs * self.delta_scale)
        stat_bound = math.ceil(self.max_weight * self.stat_scale)
        deltas, tail = values[:split], values[split:]
        at_weight = split < len(values) and begin <= self.parameters
        if (
            (split and not -delta_bound <= deltas.min() <= deltas.max() <= delta_bound)
            or (tail.size and not -stat_bound <= tail.min() <= tail.max() <= stat_bound)
            or (at_weight and tail[0] < 0)
        ):
            raise ProtocolError(
                "the update holds values outside the plan's bounds",
                safe="it does not count",
                next_step="the site must send what its own software encoded",
            )

    def check_sum_stats(self, total: Encoded, sites: int) -> None:
        """Refuse a sum of statistics that no ``sites`` updates made by :meth:`encode` have.

        Args:
            total: (k,) uint32, modular sum of the tails.
        Raises:
            MaskingError: a weight that is not above zero, or a value beyond ``sites`` times its bound.
        """
        values = total.view(np.int32)
        bound = sites * math.ceil(self.max_weight * self.stat_scale)
        if values[0] <= 0 or not -bound <= values.min() <= values.max() <= bound:
            raise _impossible_sum(f"weight {values[0] / self.stat_scale:g} of {sites} sites")

    def check_sum_deltas(self, total: Encoded, sites: int, weight: float) -> None:
        """Refuse a sum of deltas that no ``sites`` updates of this total weight have.

        Each entry is at most ``weight * clip_abs``, and a unit more for each rounding: of the deltas, and
        of the weights themselves.

        Args:
            total: (B,) uint32, modular sum of a block of deltas.
            weight: as decoded.
        Raises:
            MaskingError: an entry beyond that.
        """
        values = total.view(np.int32)
        most = (weight + sites / self.stat_scale) * self.clip_abs
        bound = math.ceil(most * self.delta_scale) + sites
        if values.size and not -bound <= values.min() <= values.max() <= bound:
            raise _impossible_sum(f"a value beyond {most:g}, at weight {weight:g} of {sites} sites")

    def decode_deltas(self, total: Encoded) -> npt.NDArray[np.float64]:
        """(B,) modular sum of deltas -> (B,) float64 sum of w * delta."""
        return total.view(np.int32).astype(np.float64) / self.delta_scale

    def decode_stats(self, total: Encoded) -> dict[str, float]:
        """(k,) modular sum of the tail -> total per statistic."""
        values = total.view(np.int32).astype(np.float64) / self.stat_scale
        return dict(zip(self.stats, values.tolist(), strict=True))


def add_into(total: Encoded, other: Encoded) -> None:
    """total += other modulo 2**32, in place; order does not matter."""
    np.add(total, other, out=total)


def _impossible_sum(what: str) -> MaskingError:
    return MaskingError(
        f"the masked sum is none of updates within the plan's bounds ({what}): some site masked or "
        "encoded wrongly, and which one cannot be told",
        safe="it is no model; every single update stays masked",
        next_step="if it happens again, compare the sites' software, then go on with fewer: plan amend",
    )


def _round_into(out: Encoded, values: npt.NDArray[np.float64], random: bytes) -> None:
    """out = floor(values + u), u uniform on multiples of 2**-32 in [0, 1): unbiased, once, in float64."""
    uniform = np.multiply(np.frombuffer(random, dtype="<u4"), 2.0**-32, dtype=np.float64)
    uniform += values
    np.floor(uniform, out=uniform)
    out.view(np.int32)[:] = uniform


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, length, _BLOCK):
        yield begin, min(begin + _BLOCK, length)
