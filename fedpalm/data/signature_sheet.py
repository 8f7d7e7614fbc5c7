"""Pages of signatures to look at: as they are on paper, and as augmentation redraws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..errors import DataError
from .adaptive_augmentation import SubsetGrowth, redrawn
from .decoding import decode
from .signature_image import RULES
from .signatures import SignatureImages, SignatureRecord

_STRIPE_PX = 8
_PAPER = 255
_FULL_INK = 1.6  # in standardised units, shown black

Tiles = Sequence[Sequence[Image.Image | None]]


def page_of_records(
    rows: Sequence[Sequence[SignatureRecord | None]], path: Path, tile_px: tuple[int, int]
) -> None:
    """Write the images as they are, a list of records a row, None an empty place; one grey PNG.

    Raises:
        DataError: no image, or one that cannot be read.
    """

    def tile(record: SignatureRecord | None) -> Image.Image | None:
        if record is None:
            return None
        _, grey, _ = decode(record.path, RULES)
        return ImageOps.pad(grey, tile_px, color=_PAPER)

    _write([[tile(record) for record in row] for row in rows], path, tile_px)


def page_of_copies(
    images: SignatureImages,
    subsets: Sequence[SubsetGrowth],
    copies: int,
    path: Path,
    rng: np.random.Generator,
) -> None:
    """Write a subset a row: its first signature as prepared, and behind it ``copies`` of its strength.

    Raises:
        DataError: no subset.
    """
    rows: list[list[Image.Image | None]] = []
    for subset in subsets:
        mine = (images.writers == subset.writer) & (images.genuine == subset.genuine)
        first = images.images[np.flatnonzero(mine)[0], 0]
        shown = min(copies, subset.copies)
        redone = [_shown(redrawn(first, subset.strength, rng)) for _ in range(shown)]
        rows.append([_shown(first), None, *redone, *[None] * (copies - shown)])
    _write(rows, path, (images.images.shape[3], images.images.shape[2]))


def _shown(prepared: npt.NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(
        (_PAPER * (1.0 - np.clip(prepared / _FULL_INK, 0.0, 1.0))).astype(np.uint8)
    )


def _write(rows: Tiles, path: Path, tile_px: tuple[int, int]) -> None:
    if not any(tile is not None for row in rows for tile in row):
        raise DataError("a page needs an image")
    width, height = tile_px
    page = Image.new(
        "L",
        (max(len(row) for row in rows) * width, len(rows) * (height + _STRIPE_PX) - _STRIPE_PX),
        _PAPER,
    )
    for at, row in enumerate(rows):
        for column, tile in enumerate(row):
            if tile is not None:
                page.paste(tile, (column * width, at * (height + _STRIPE_PX)))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, format="PNG", optimize=True)
