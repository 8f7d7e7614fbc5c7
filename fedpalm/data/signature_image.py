"""How a signature becomes network input: found on its paper, cropped, centred, padded, standardised.

The same steps for training, benchmark and daily use. Paper is exactly 0 and ink positive, so padding is
paper: unlike a palm, a signature has no mean removed (ink would otherwise look like paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from ..errors import DataError
from .decoding import ImageRules, decode, refuse
from .records import SIDE_PX, by_identity, problems_error
from .roi import PreflightReport
from .signatures import SignatureImages, SignatureRecord, by_claim

MARGIN_PX = 8
"""Paper on all sides of the ink: what a training view turns and moves stays inside."""

MIN_INK_LEVELS = 24.0
"""Least difference between the mean grey of ink and of paper, of 255."""

MIN_INK_PX = 24
MAX_INK_SHARE = 0.5
NEXT_STEP = (
    "give one signature to an image, dark on light paper or light on dark, without lines or stamps, "
    "16 px or more a side; or take these files out"
)

RULES = ImageRules(
    min_side_px=16,
    max_aspect=20.0,
    too_small="is too small for a signature",
    too_long="is too long and narrow for a signature",
    behind=255,
    next_step=NEXT_STEP,
)
_WORK_PX = 1024  # a larger scan is halved until its longer side is below twice this
_PAPER_BLOCKS = 8
_PAPER_QUANTILE = 80
_SPECK_SHARE = 0.002
_FULL_INK_QUANTILE = 95

Image32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Signature:
    """A checked signature: ``ink`` (128, 128) uint8, 0 paper to 255 full ink; (width, height) of the
    image it was found in, and there of the box around its ink; ``levels``, grey levels between its ink and
    its paper."""

    ink: npt.NDArray[np.uint8]
    size_px: tuple[int, int]
    box_px: tuple[int, int]
    levels: float


def read_signature(source: Path | bytes | npt.NDArray[Any]) -> Signature:
    """Find the ink of one image: a file, the bytes of one, or pixels.

    The paper's own shade and uneven light are removed, ink is what is darker than Otsu's threshold
    (lighter, on dark paper), specks are dropped; the box around the ink goes to the middle of a square
    with a margin of 8 px, its shape kept.

    Args:
        source: pixels are (H, W) or (H, W, 3) uint8, as they would stand in a file.
    Raises:
        DataError: unreadable, damaged, too large to decode safely, blank, or not ink on paper.
    """
    name, grey, size = decode(source, RULES)
    factor = max(1, max(grey.size) // _WORK_PX)
    darkness = _darkness(np.asarray(grey.reduce(factor) if factor > 1 else grey, dtype=np.float32))
    threshold, levels = _otsu(darkness)
    if levels < MIN_INK_LEVELS:
        raise refuse(name, f"ink and paper differ by {levels:.0f} grey levels: blank?", NEXT_STEP)
    mask = _without_specks(darkness > threshold)
    if mask.sum() < MIN_INK_PX:
        raise refuse(name, f"{int(mask.sum())} pixels of ink: blank?", NEXT_STEP)
    if mask.mean() > MAX_INK_SHARE:
        raise refuse(name, f"{mask.mean():.0%} of it is ink: not a signature on paper", NEXT_STEP)
    height, width = (factor * (side.stop - side.start) for side in box_of(mask))
    ink = frame(np.where(mask, darkness, np.float32(0.0)))
    return Signature(ink, size, (width, height), levels)


def frame(ink: Image32) -> npt.NDArray[np.uint8]:
    """(H, W) ink, not all 0 -> its box, as large as fits, in the middle of 128x128; full ink is 255."""
    box = ink[box_of(ink)]
    full = np.percentile(box[box > 0], _FULL_INK_QUANTILE)
    scale = (SIDE_PX - 2 * MARGIN_PX) / max(box.shape)
    height, width = (max(1, round(side * scale)) for side in box.shape)
    image = Image.fromarray(np.minimum(box * (255.0 / full), 255.0).astype(np.float32))
    small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    out = np.zeros((SIDE_PX, SIDE_PX), dtype=np.uint8)
    top, left = (SIDE_PX - height) // 2, (SIDE_PX - width) // 2
    out[top : top + height, left : left + width] = np.rint(np.clip(small, 0.0, 255.0))
    return out


def standardise_ink(ink: npt.NDArray[Any]) -> Image32:
    """(H, W) ink -> float32 whose mean over the ink, weighed by the ink, is 1; paper stays 0.

    The weight keeps the faint rims of strokes, many or few as the scaling leaves them, out of the scale.
    """
    values = np.maximum(np.asarray(ink, dtype=np.float32), np.float32(0.0))
    mass = float(values.sum())
    return values * np.float32(mass / float((values**2).sum())) if mass else values


def load_signature(path: Path) -> Image32:
    """Read one image as network input: (1, 128, 128) float32. Raises DataError."""
    return standardise_ink(read_signature(path).ink)[None]


def load_signatures(records: Sequence[SignatureRecord]) -> SignatureImages:
    """Read records in their order; what is claimed is numbered in sorted order.

    Raises:
        DataError: no records, or one message for all images that cannot be used.
    """
    if not records:
        raise DataError("there are no signatures to load")
    index = {claimed: number for number, claimed in enumerate(by_claim(records))}
    images = np.empty((len(records), 1, SIDE_PX, SIDE_PX), dtype=np.float32)
    problems: list[str] = []
    for at, record in enumerate(records):
        try:
            images[at] = load_signature(record.path)
        except DataError as error:
            problems.append(error.what)
    _raise_all(problems, len(records))
    return SignatureImages(
        images,
        np.asarray([index[r.claimed] for r in records], dtype=np.int64),
        np.asarray([r.genuine for r in records], dtype=np.bool_),
        len(index),
    )


def preflight_signatures(records: Sequence[SignatureRecord]) -> PreflightReport:
    """Read every image once and report sizes and contrast (grey levels between ink and paper).

    Raises:
        DataError: no record at all, or one message for all images that cannot be used.
    """
    if not records:
        raise DataError("there are no signatures", next_step="name a source that holds some")
    found: list[Signature] = []
    problems: list[str] = []
    for record in records:
        try:
            found.append(read_signature(record.path))
        except DataError as error:
            problems.append(error.what)
    _raise_all(problems, len(records))
    counts = [len(group) for group in by_identity(records).values()]
    widths, heights = zip(*(one.size_px for one in found), strict=True)
    levels = [one.levels for one in found]
    return PreflightReport(
        images=len(records),
        identities=len(counts),
        images_per_identity=(min(counts), max(counts)),
        width_px=(min(widths), max(widths)),
        height_px=(min(heights), max(heights)),
        contrast=(min(levels), max(levels)),
    )


def _raise_all(problems: Sequence[str], images: int) -> None:
    if problems:
        raise problems_error(
            f"{len(problems)} of {images} images cannot be used", problems, NEXT_STEP
        )


def box_of(ink: npt.NDArray[Any]) -> tuple[slice, slice]:
    """Rows and columns around what is not 0 in (H, W), of which something is not."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _darkness(grey: Image32) -> Image32:
    """Grey levels below the paper, which may be of any shade and unevenly lit; never negative."""
    if np.median(grey) < 128:
        grey = np.float32(255.0) - grey
    high, wide = (side // _PAPER_BLOCKS for side in grey.shape)
    blocks = grey[: high * _PAPER_BLOCKS, : wide * _PAPER_BLOCKS]
    blocks = blocks.reshape(_PAPER_BLOCKS, high, _PAPER_BLOCKS, wide).transpose(0, 2, 1, 3)
    blocks = np.percentile(blocks.reshape(*blocks.shape[:2], -1), _PAPER_QUANTILE, axis=2)
    # A block full of ink has no paper of its own: it takes the shade around it.
    shades = ndimage.maximum_filter(blocks.astype(np.float32), 3)
    paper = Image.fromarray(shades).resize(grey.shape[::-1], Image.Resampling.BILINEAR)
    return np.maximum(np.asarray(paper) - grey, np.float32(0.0))


def _otsu(values: Image32) -> tuple[float, float]:
    """Otsu's threshold, and the difference of the two sides' means."""
    counts = np.bincount(np.rint(values).astype(np.uint8).ravel(), minlength=256)
    middle = np.arange(256)
    below = np.cumsum(counts).astype(np.float64)
    total, mass = below[-1], np.cumsum(counts * middle)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = (mass[-1] - mass) / above - mass / below
        between = np.nan_to_num(below * above * gap**2, nan=0.0)
    best = int(between.argmax())
    return best + 0.5, float(np.nan_to_num(gap[best]))


def _without_specks(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3), dtype=np.int8))
    sizes = np.bincount(labels.ravel())
    keep = sizes >= max(3.0, _SPECK_SHARE * float(mask.sum()))
    keep[0] = False
    kept: npt.NDArray[np.bool_] = keep[labels]
    return kept
