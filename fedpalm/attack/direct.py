"""Direct tests: noise, draws and influence, read off what the path releases about people made up for it.

Where a test is not about noise, the plan's noise is made so small that sums can be read exactly.
"""

from __future__ import annotations

import numpy as np

from ..plan import PrivacySettings
from .findings import Finding, certain
from .probe import Person, Released, TrainingPath
from .statistics import of_correlation, of_rate, of_scale, of_shape, of_spread

_SILENT = 1e-9
"""A noise multiplier that hides nothing."""
_HUGE = 1e6
_ROUNDING = 1e-6
"""What float32 gradients may add to an influence, relative to C; the bound that is promised."""
_SAME = 1e-5
"""Difference, relative to C, below which two contributions are the same."""

_RECORDS = 4


def direct(path: TrainingPath) -> list[Finding]:
    """All tests on the model whose gradients the auditor chooses."""
    return [*noise(path), *draws(path), *influence(path)]


def noise(path: TrainingPath) -> list[Finding]:
    """People without any gradient: what is released is noise alone, in this run and in the next."""
    privacy = PrivacySettings(
        unit="subject",
        noise_multiplier=1.3,
        clip_norm=0.7,
        sampling_rate=0.25,
        population=40,
        steps=6,
    )
    std = privacy.noise_multiplier * privacy.clip_norm
    nobody: list[Person] = [[(0, 0.0)] for _ in range(6)]
    runs = [path.released(nobody, 4000, privacy) for _ in range(2)]
    every = np.concatenate(runs)
    greatest, chance = of_correlation(list(every))
    return [
        Finding(
            "direct",
            "noise variance",
            of_scale(every, std),
            f"{np.square(every / std).mean():.3f} of sigma^2 C^2",
            "1",
        ),
        Finding(
            "direct",
            "noise distribution",
            of_shape(every, std),
            f"{np.mean(np.abs(every) > 2 * std):.4f} beyond 2 sigma C",
            "0.0455",
        ),
        Finding(
            "direct",
            "noise reuse",
            chance,
            f"correlation {greatest:.3f} at most, of {len(every)} steps in two runs",
            "0",
        ),
    ]


def draws(path: TrainingPath) -> list[Finding]:
    """Everybody has a coordinate of their own: it shows who was drawn, and what for."""
    people, rate = 300, 0.2
    privacy = PrivacySettings(
        unit="subject", noise_multiplier=_SILENT, sampling_rate=rate, population=people, steps=40
    )
    sums = path.released([[(at, _HUGE)] for at in range(people)], people, privacy)
    drawn = np.abs(sums) > 0.1 * privacy.clip_norm
    sizes = drawn.sum(axis=1)
    shown = sums[drawn]
    off = float(np.abs(shown / privacy.clip_norm - 1).max()) if shown.size else 1.0
    return [
        Finding(
            "direct", "sampling rate", of_rate(drawn, rate), f"{drawn.mean():.4f} drawn", f"{rate}"
        ),
        Finding(
            "direct",
            "sizes of draws",
            of_spread(drawn, rate, 1),
            f"variance {sizes.var():.1f}",
            f"{people * rate * (1 - rate):.1f} (Poisson)",
        ),
        Finding(
            "direct",
            "draws of a person",
            of_spread(drawn, rate, 0),
            f"variance {drawn.sum(axis=0).var():.2f}",
            f"{len(drawn) * rate * (1 - rate):.2f} (independent)",
        ),
        certain(
            "direct",
            "declared divisor",
            off <= _SAME,
            f"a clipped person counts {1 + off:.3g} C at most or least",
            "1 C whoever else is drawn",
        ),
    ]


def adversaries(at: int) -> dict[str, Person]:
    """People who would like to count for more than C; coordinates from ``at`` on are theirs."""
    return {
        "huge gradient": [(at, _HUGE)],
        "many records": [(at + k, _HUGE) for k in range(5 * _RECORDS)],
        "the same record many times": [(at, 3.0)] * (5 * _RECORDS),
        "records at right angles": [(at + k, 10.0) for k in range(_RECORDS)],
        "gradient just above C": [(at, 1.0 + 1e-3)],
        "gradient below C": [(at, 0.25)],
    }


def influence(path: TrainingPath) -> list[Finding]:
    """How far one person moves the clipped sum, and whether that depends on the others."""
    privacy = PrivacySettings(
        unit="subject",
        noise_multiplier=_SILENT,
        sampling_rate=1.0,
        population=10,
        steps=1,
        records=_RECORDS,
    )
    others: list[Person] = [[(k, 5.0), (k + 1, -3.0)] for k in range(9)]
    length = 64

    def total(people: list[Person]) -> Released:
        (found,) = path.released(people, length, privacy)
        return np.asarray(found, dtype=np.float64)

    without = total(others)
    alone_without = total([])
    moved, coupled, who, with_whom = 0.0, 0.0, "", ""
    for name, person in adversaries(20).items():
        contribution = total([person, *others]) - without
        norm = float(np.linalg.norm(contribution)) / privacy.clip_norm
        if norm > moved:
            moved, who = norm, name
        if len(set(person)) <= _RECORDS:  # the records that are taken of more are random
            difference = contribution - (total([person]) - alone_without)
            if (found := float(np.linalg.norm(difference)) / privacy.clip_norm) > coupled:
                coupled, with_whom = found, name
    return [
        certain(
            "direct",
            "influence of a person",
            moved <= 1 + _ROUNDING,
            f"{moved:.7g} C ({who})",
            "1 C at most",
        ),
        certain(
            "direct",
            "influence on others",
            coupled <= _SAME,
            f"{coupled:.2g} C ({with_whom})",
            "0",
        ),
    ]
