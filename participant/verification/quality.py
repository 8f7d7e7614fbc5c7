"""Whether an image is good enough to make a template from: four plain measures and their limits.

They are our own, for regions of interest of 128x128 grey levels. On synthetic palms (both presets, 64
images each) sharpness is 0.22 to 1.2; after a Gaussian blur of one pixel 0.07 to 0.29, of two 0.04 to
0.14. Your sensor may need other limits: look at the measures of a few hundred of its images first
(``--json`` shows them). None of them tells a living hand from a picture of one.
"""

from __future__ import annotations

from dataclasses import dataclass

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
NEXT_STEP = (
    f"take another image, cropped to the palm's region of interest: {MIN_SIDE_PX} px or more a side, near "
    f"square (at most 1:{MAX_ASPECT}), with visible creases"
)


@dataclass(frozen=True)
class Quality:
    """What was measured, and what to think of it."""

    side_px: int
    contrast: float
    sharpness: float
    coverage: float
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "side_px": self.side_px,
            "contrast": round(self.contrast, 2),
            "sharpness": round(self.sharpness, 3),
            "coverage": round(self.coverage, 3),
            "warnings": list(self.warnings),
        }


def assess(roi: Roi, name: str = "the image") -> Quality:
    """Measure an image that could be read.

    Raises:
        QualityError: a measure is beyond its limit; the error names it.
    """
    coverage = float((roi.grey > 0).mean())
    sharpness = sharpness_of(roi.grey)
    if coverage < MIN_COVERAGE:
        raise _refused(
            name, f"only {coverage:.0%} of it shows a palm, {MIN_COVERAGE:.0%} are needed"
        )
    if sharpness < MIN_SHARPNESS:
        raise _refused(
            name, f"sharpness {sharpness:.3f}, {MIN_SHARPNESS:g} is needed: blurred, or no palm?"
        )
    side, contrast = min(roi.size_px), contrast_of(roi.grey)
    looked_at = (
        (coverage < GOOD_COVERAGE, f"{coverage:.0%} of it shows a palm"),
        (sharpness < GOOD_SHARPNESS, f"blurred (sharpness {sharpness:.3f})"),
        (contrast < GOOD_CONTRAST, f"little contrast ({contrast:.1f} grey levels)"),
        (side < GOOD_SIDE_PX, f"small ({side} px a side)"),
    )
    warnings = tuple(f"{name}: {words}" for poor, words in looked_at if poor)
    return Quality(side, contrast, sharpness, coverage, warnings)


def sharpness_of(grey: Grey) -> float:
    """Of (128, 128) grey levels; 0 for a single level."""
    values = grey.astype(np.float64)
    inner = values[1:-1, 1:-1]
    laplacian = (
        values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * inner
    )
    spread = float(values.std())
    return float(laplacian.std()) / spread if spread > 0 else 0.0


def _refused(name: str, why: str) -> QualityError:
    return QualityError(
        f"{name}: {why}", safe="nothing was compared or stored", next_step=NEXT_STEP
    )
