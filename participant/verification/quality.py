"""Whether an image is good enough to make a template from: plain measures and their limits; those of palms.

They are our own, for regions of interest of 128x128 grey levels. On synthetic palms (both presets, 64
images each) sharpness is 0.22 to 1.2; after a Gaussian blur of one pixel 0.07 to 0.29, of two 0.04 to
0.14. Your sensor may need other limits: look at the measures of a few hundred of its images first
(``--json`` shows them). None of them tells a living hand from a picture of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedpalm.data.roi import MAX_ASPECT, MIN_SIDE_PX, Grey, Roi, contrast_of
from fedpalm.errors import QualityError

# Beyond the first limit an image is refused, beyond the second it is used with a warning.
MIN_COVERAGE, GOOD_COVERAGE = 0.5, 0.8
"""Part of the pixels that shows something (grey level > 0)."""
MIN_SHARPNESS, GOOD_SHARPNESS = 0.03, 0.12
"""Deviation of the Laplacian over that of the grey levels: fine detail against coarse."""
GOOD_CONTRAST = 8.0
"""Grey levels; below 4 reading the image refuses it."""
GOOD_SIDE_PX = 128
"""Below, the image is enlarged; below 64 reading it refuses it."""
PALM_NEXT_STEP = (
    f"take another image, cropped to the palm's region of interest: {MIN_SIDE_PX} px or more a side, near "
    f"square (at most 1:{MAX_ASPECT}), with visible creases"
)


@dataclass(frozen=True)
class Quality:
    """What was measured, each by its name, and what to think of it."""

    measures: Mapping[str, float]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {**self.measures, "warnings": list(self.warnings)}


class Limit(NamedTuple):
    """A measure that is beyond a limit, and what to say then."""

    beyond: bool
    words: str


def judged(
    name: str,
    measures: Mapping[str, float],
    refused: Iterable[Limit],
    told: Iterable[Limit],
    next_step: str,
) -> Quality:
    """What the limits make of an image called ``name``.

    Raises:
        QualityError: it is beyond one of ``refused``; the error names the measure.
    """
    for limit in refused:
        if limit.beyond:
            raise QualityError(
                f"{name}: {limit.words}", safe="nothing was compared or stored", next_step=next_step
            )
    return Quality(measures, tuple(f"{name}: {one.words}" for one in told if one.beyond))


def assess_palm(roi: Roi, name: str = "the image") -> Quality:
    """Measure a palm that could be read. Raises QualityError: as :func:`judged`."""
    coverage = float((roi.grey > 0).mean())
    sharpness = sharpness_of(roi.grey)
    side, contrast = min(roi.size_px), contrast_of(roi.grey)
    return judged(
        name,
        {
            "side_px": side,
            "contrast": round(contrast, 2),
            "sharpness": round(sharpness, 3),
            "coverage": round(coverage, 3),
        },
        refused=(
            Limit(
                coverage < MIN_COVERAGE,
                f"only {coverage:.0%} of it shows a palm, {MIN_COVERAGE:.0%} are needed",
            ),
            Limit(
                sharpness < MIN_SHARPNESS,
                f"sharpness {sharpness:.3f}, {MIN_SHARPNESS:g} is needed: blurred, or no palm?",
            ),
        ),
        told=(
            Limit(coverage < GOOD_COVERAGE, f"{coverage:.0%} of it shows a palm"),
            Limit(sharpness < GOOD_SHARPNESS, f"blurred (sharpness {sharpness:.3f})"),
            Limit(contrast < GOOD_CONTRAST, f"little contrast ({contrast:.1f} grey levels)"),
            Limit(side < GOOD_SIDE_PX, f"small ({side} px a side)"),
        ),
        next_step=PALM_NEXT_STEP,
    )


def sharpness_of(grey: Grey) -> float:
    """Of (128, 128) grey levels; 0 for a single level."""
    values = grey.astype(np.float64)
    inner = values[1:-1, 1:-1]
    laplacian = (
        values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * inner
    )
    spread = float(values.std())
    return float(laplacian.std()) / spread if spread > 0 else 0.0
