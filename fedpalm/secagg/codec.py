"""Exact fixed-point encoding of weighted updates: integers add in any order to the same sum.

A site contributes ``[w * delta | stats]``; each value is clipped to its bound, scaled in float64 and
rounded once, stochastically, to an integer modulo 2**32. The scale is the largest power of two that
leaves headroom for the sum over the whole roster, so overflow is impossible by construction. The
same integers travel with and without masking. With groups of parameters every group has its own weight
and, since fewer sites add up in it, its own scale; a site's integers are zero where it is no member.

Source: stochastic rounding and modular aggregation as in Bonawitz et al. 2017 (section 4), with the
weight inside the vector.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

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
from ..groups import EVERYBODY, Group
from ..layout import FloatVector

Encoded = npt.NDArray[np.uint32]
BYTES_PER_VALUE = 4
_HALF_RANGE = 2**31
_MAX_SCALE = 2**40
_LEAST = 128
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
        groups: of the parameters, in their order; in place of the weight, each has one. Empty: there is
            one group, of everybody.

    Raises:
        CodecOverflowError: the bounds leave less than eight bits for a value.
        LayoutMismatchError: the groups are not the parameters, or there are statistics beside weights.
    """

    sites: int
    parameters: int
    clip_abs: float
    max_weight: int
    stats: tuple[str, ...] = ("weight",)
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        edges = [0, *(group.end for group in self.groups)]
        if self.groups and (
            [*(group.begin for group in self.groups), self.parameters] != edges
            or self.stats != ("weight",)
        ):
            raise LayoutMismatchError(
                "groups are parts of the vector, each with a weight and no more"
            )
        bound = self.max_weight * self.clip_abs
        if self.sites < 1 or not 0 < bound < math.inf or not self.stats:
            raise CodecOverflowError("sites, clip_abs and max_weight must be positive and finite")
        if min(self.delta_scale * bound, self.stat_scale * self.max_weight) < _LEAST:
            raise CodecOverflowError(
                f"{self.sites} sites x weight {self.max_weight} x clip {self.clip_abs:g} leave no "
                "headroom in 32 bits",
                next_step="lower codec.max_weight or codec.clip_abs in the plan",
            )

    @property
    def delta_scale(self) -> float:
        """Integer units per unit of w * delta, where every site contributes."""
        return _scale_for(self.sites, self.max_weight * self.clip_abs)

    def scale_of(self, group: Group) -> float:
        """The same in a group, of whose members alone the headroom has to be enough."""
        sites = len(group.members) if self.groups else self.sites
        return _scale_for(sites, self.max_weight * self.clip_abs)

    @cached_property
    def parts(self) -> tuple[Group, ...]:
        """The groups; without any, one that names no member."""
        return self.groups or (Group(EVERYBODY, 0, self.parameters, ()),)

    @property
    def tail(self) -> tuple[str, ...]:
        """Names of the scalars behind the deltas, in their order."""
        return tuple(f"weight.{one.name}" for one in self.groups) or self.stats

    def stats_of(self, stats: Mapping[str, float], group: Group) -> Mapping[str, float]:
        """What of the decoded tail belongs to a group, under the names that rules know."""
        return {"weight": stats[f"weight.{group.name}"]} if self.groups else stats

    def _has(self, group: Group, site: str) -> bool:
        return not self.groups or site in group.members

    @property
    def stat_scale(self) -> float:
        """Integer units per unit of a statistic."""
        return _scale_for(self.sites, float(self.max_weight))

    @property
    def length(self) -> int:
        """Values in an encoded update: P deltas and the statistics."""
        return self.parameters + len(self.tail)

    @property
    def payload_bytes(self) -> int:
        return self.length * BYTES_PER_VALUE

    def encode(
        self,
        delta: FloatVector,
        weight: float,
        stats: Mapping[str, float],
        rounding_key: bytes,
        site: str = "",
    ) -> Encoded:
        """Encode one site's contribution.

        Args:
            delta: (P,) float32; entries beyond ``clip_abs`` are clipped.
            weight: in [0, max_weight].
            stats: the statistics after the weight, each in [-max_weight, max_weight].
            rounding_key: 32 bytes; one key, one vector. Random, or derived in seeded runs.
            site: whose contribution, where there are groups.

        Returns:
            (P + k,) uint32, two's complement modulo 2**32.

        Raises:
            LayoutMismatchError: another shape; or a value that is not zero outside the site's groups.
            NonFiniteUpdateError, CodecOverflowError
        """
        if delta.shape != (self.parameters,) or delta.dtype != np.float32:
            raise LayoutMismatchError(
                f"delta is {delta.dtype} {delta.shape}, the codec wants float32 ({self.parameters},)"
            )
        own = [self._has(group, site) for group in self.parts]
        if not any(own):
            raise LayoutMismatchError(f"{site[:63]!r} is in no group", safe="nothing was encoded")
        tail = np.array(
            [*(weight * has for has in own), *(stats[name] for name in self.stats[1:])], np.float64
        )
        if not (0 <= weight <= self.max_weight) or (np.abs(tail) > self.max_weight).any():
            raise CodecOverflowError(
                f"weight or statistic outside the plan's bound {self.max_weight}",
                safe="nothing was encoded",
                next_step="raise codec.max_weight in a new plan",
            )
        keystream = Cipher(algorithms.AES(rounding_key), modes.CTR(bytes(16))).encryptor()
        encoded = np.empty(self.length, dtype=np.uint32)
        for group, has in zip(self.parts, own, strict=True):
            if not has:
                if delta[group.span].any():
                    raise LayoutMismatchError(
                        f"{site[:63]} is not of group {group.name} and has values there",
                        safe="nothing was encoded",
                    )
                encoded[group.span] = 0
                continue
            scale = weight * self.scale_of(group)
            for begin, end in _blocks(group.begin, group.end):
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
                random = keystream.update(_ZEROS[: 4 * (end - begin)])
                _round_into(encoded[begin:end], block, random)
        tail *= self.stat_scale
        _round_into(encoded[self.parameters :], tail, keystream.update(_ZEROS[: 4 * tail.size]))
        return encoded

    def check_encoded(self, block: Encoded, begin: int, site: str = "") -> None:
        """Refuse integers that :meth:`encode` cannot have made.

        Without masking the receiver can hold every site to the bounds that the headroom counts on.

        Args:
            block: (B,) uint32, values ``begin`` to ``begin + B`` of one encoded update.
            site: whose, where there are groups.
        Raises:
            ProtocolError: a value beyond its bound, a negative weight, or any value but zero outside the
                site's groups.
        """
        values, end = block.view(np.int32), begin + len(block)
        within = all(
            _within(values[group.within(begin, end)], self._delta_bound(group, site))
            for group in self.parts
        )
        first = max(self.parameters - begin, 0)
        stat_bound = math.ceil(self.max_weight * self.stat_scale)
        for at, value in enumerate(values[first:].tolist(), max(begin - self.parameters, 0)):
            least = 0 if at < len(self.parts) else -stat_bound
            of_another = at < len(self.parts) and not self._has(self.parts[at], site)
            within = within and least <= value <= (0 if of_another else stat_bound)
        if not within:
            raise ProtocolError(
                "the update holds values outside the plan's bounds"
                + (" or the site's groups" if self.groups else ""),
                safe="it does not count",
                next_step="the site must send what its own software encoded",
            )

    def _delta_bound(self, group: Group, site: str) -> int:
        if not self._has(group, site):
            return 0
        return math.ceil(self.max_weight * self.clip_abs * self.scale_of(group))

    def check_sum_stats(self, total: Encoded, sites: Collection[str]) -> None:
        """Refuse a sum of statistics that no updates of these sites made by :meth:`encode` have.

        Args:
            total: (k,) uint32, modular sum of the tails.
            sites: whose updates were summed.
        Raises:
            MaskingError: a weight that is not above zero, or a value beyond its bound times the sites that
                have it.
        """
        values = total.view(np.int32).tolist()
        bound = math.ceil(self.max_weight * self.stat_scale)
        for group, value in zip(self.parts, values[: len(self.parts)], strict=True):
            count = self._count(group, sites)
            if not (0 < value <= count * bound or value == count == 0):
                raise _impossible_sum(f"weight {value / self.stat_scale:g} of {count} sites")
        if any(abs(value) > len(sites) * bound for value in values[len(self.parts) :]):
            raise _impossible_sum(f"a statistic beyond that of {len(sites)} sites")

    def check_sum_deltas(
        self, total: Encoded, group: Group, sites: Collection[str], weight: float
    ) -> None:
        """Refuse a sum of deltas that no updates of these sites and this total weight have.

        Each entry is at most ``weight * clip_abs``, and a unit more for each rounding: of the deltas, and
        of the weights themselves.

        Args:
            total: (B,) uint32, modular sum of a block of deltas of ``group``.
            sites: whose updates were summed.
            weight: of the group, as decoded.
        Raises:
            MaskingError: an entry beyond that.
        """
        count = self._count(group, sites)
        most = (weight + count / self.stat_scale) * self.clip_abs
        bound = math.ceil(most * self.scale_of(group)) + count
        if not _within(total.view(np.int32), bound):
            raise _impossible_sum(f"a value beyond {most:g}, at weight {weight:g} of {count} sites")

    def _count(self, group: Group, sites: Collection[str]) -> int:
        return sum(self._has(group, site) for site in sites)

    def decode_deltas(self, total: Encoded, group: Group | None = None) -> npt.NDArray[np.float64]:
        """(B,) modular sum of deltas, of one group if there are any -> (B,) float64 sum of w * delta."""
        return total.view(np.int32).astype(np.float64) / self.scale_of(group or self.parts[0])

    def decode_stats(self, total: Encoded) -> dict[str, float]:
        """(k,) modular sum of the tail -> total per statistic."""
        values = total.view(np.int32).astype(np.float64) / self.stat_scale
        return dict(zip(self.tail, values.tolist(), strict=True))


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


def _within(values: npt.NDArray[np.int32], bound: int) -> bool:
    return not values.size or bool(-bound <= values.min() <= values.max() <= bound)


def _blocks(begin: int, end: int) -> Iterator[tuple[int, int]]:
    for at in range(begin, end, _BLOCK):
        yield at, min(at + _BLOCK, end)
