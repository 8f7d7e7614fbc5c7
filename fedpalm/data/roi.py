"""Region-of-interest images: the check that they are one, and the network's input.

FedPalm takes images already cropped to the region of interest; it does not find the palm in a
photograph. A pixel of value 0 means "outside the palm" and stays 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import DataError
from .decoding import ImageRules, decode, refuse
from .records import SIDE_PX as SIDE_PX
from .records import ImageRecord, by_identity, problems_error

MIN_SIDE_PX = 64
MAX_ASPECT = 1.25
MIN_CONTRAST = 4.0
"""Least standard deviation of grey levels (of 255) over pixels > 0."""

NEXT_STEP = (
    f"give images cropped to the palm's region of interest: {MIN_SIDE_PX} px or more a side, near "
    f"square (at most 1:{MAX_ASPECT}), with visible creases; or take these files out"
)
_RULES = ImageRules(
    min_side_px=MIN_SIDE_PX,
    max_aspect=MAX_ASPECT,
    too_small="is too small for a region of interest",
    too_long="is not near square: not a cropped palm",
    behind=0,
    next_step=NEXT_STEP,
)

Image32 = npt.NDArray[np.float32]
Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Roi:
    """A checked region of interest: ``grey`` (128, 128) uint8; (width, height) of what it was made from."""

    grey: Grey
    size_px: tuple[int, int]


@dataclass(frozen=True)
class PreflightReport:
    """What a look at every image found; pairs are (least, greatest), contrast in grey levels."""

    images: int
    identities: int
    images_per_identity: tuple[int, int]
    width_px: tuple[int, int]
    height_px: tuple[int, int]
    contrast: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "identities": self.identities,
            "images_per_identity": list(self.images_per_identity),
            "width_px": list(self.width_px),
            "height_px": list(self.height_px),
            "contrast": [round(c, 2) for c in self.contrast],
        }


def load_roi(path: Path) -> Image32:
    """Read one image as network input.

    Grey, resized to 128x128 with antialiasing, then zero mean and unit standard deviation over
    pixels > 0; pixels of value 0 stay 0.

    Returns:
        (1, 128, 128) float32.
    Raises:
        DataError: unreadable, damaged, too large to decode safely, or not a region of interest.
    Source: Liang et al. 2021, CompNet (doi 10.1109/LSP.2021.3103475), as released.
    """
    return standardise(read_roi(path).grey)


def standardise(grey: Grey) -> Image32:
    """(128, 128) grey levels -> (1, 128, 128): mean 0 and deviation 1 over pixels > 0, the others 0."""
    inside = grey > 0
    values = grey[inside].astype(np.float64)
    out = np.zeros((1, SIDE_PX, SIDE_PX), dtype=np.float32)
    out[0][inside] = (values - values.mean()) / values.std()
    return out


def preflight(records: Sequence[ImageRecord]) -> PreflightReport:
    """Read every image once and report sizes and contrast.

    Raises:
        DataError: no record at all, or one message for all images that cannot be used.
    """
    if not records:
        raise DataError("there are no images", next_step="name a source that holds some")
    sizes: list[tuple[int, int]] = []
    contrasts: list[float] = []
    problems: list[str] = []
    for record in records:
        try:
            roi = read_roi(record.path)
        except DataError as error:
            problems.append(error.what)
        else:
            sizes.append(roi.size_px)
            contrasts.append(contrast_of(roi.grey))
    if problems:
        raise problems_error(
            f"{len(problems)} of {len(records)} images cannot be used", problems, NEXT_STEP
        )
    counts = [len(group) for group in by_identity(records).values()]
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    return PreflightReport(
        images=len(records),
        identities=len(counts),
        images_per_identity=(min(counts), max(counts)),
        width_px=(min(widths), max(widths)),
        height_px=(min(heights), max(heights)),
        contrast=(min(contrasts), max(contrasts)),
    )


def contrast_of(grey: Grey) -> float:
    """Standard deviation of the grey levels > 0; 0 where there are none."""
    inside = grey[grey > 0].astype(np.float64)
    return float(inside.std()) if inside.size > 1 else 0.0


def read_roi(source: Path | bytes | npt.NDArray[Any]) -> Roi:
    """Read and check one image: a file, the bytes of one, or pixels.

    Args:
        source: pixels are (H, W) or (H, W, 3) uint8, as they would stand in a file.
    Raises:
        DataError: unreadable, damaged, too large to decode safely, or not a region of interest.
    """
    name, grey, size = decode(source, _RULES)
    return _checked(name, grey, size)


def _checked(name: str, grey: Image.Image, size: tuple[int, int]) -> Roi:
    small = np.asarray(
        grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR, reducing_gap=3.0),
        dtype=np.uint8,
    )
    contrast = contrast_of(small)
    if contrast < MIN_CONTRAST:
        raise refuse(
            name,
            f"contrast {contrast:.1f} grey levels, at least {MIN_CONTRAST:g} needed: blank?",
            NEXT_STEP,
        )
    return Roi(small, size)
