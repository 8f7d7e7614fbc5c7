"""More views of the signatures that a site has few of: fewer samples, more copies, stronger changes.

A subset is one writer's genuine signatures, or the forgeries of that writer. A subset of n samples gets
ceil((T - n)+) copies of strength s_max (1 - n/T); a copy keeps the writer and the truth of its original.
T is a multiple of the largest subset's size, or of a quantile of the sizes. With twice the largest every
subset has copies; with the largest itself, where forgeries are few, only forgeries have any, and whatever
changes a copy tells a forgery.
Hold samples out before, never after: a copy of a held-out sample is that sample.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..errors import DataError
from .signature_image import frame, standardise_ink
from .signatures import SignatureImages

AugmentationMode = Literal["off", "uniform", "adaptive"]

MAX_TURN_RAD = 0.18
MAX_STRETCH = 0.12
MAX_SHEAR = 0.18
MAX_ELASTIC_PX = 5.0
MAX_THICKER = 0.3
MAX_THINNER = 0.9
"""Bounds of a copy's changes at strength 1; at strength s each is s times as large.

A stroke's thickness changes by a share of the step from a pixel to its darkest neighbour. The two bounds
differ so that copies are, on average, as bold as originals: thinning ends where nothing is left to take.
"""

_ELASTIC_KNOTS = 5
_SHARPER = 1.5  # undoes what interpolation blurs: a copy must not be told by soft strokes
_FAINT = 0.05  # of the darkest pixel: below it there is paper
_ROOM_PX = 24  # around the original, so that nothing of it is lost before it is framed anew
Image32 = npt.NDArray[np.float32]


class Target(NamedTuple):
    """T: ``times`` (>= 0) the ``quantile`` (0..1) of the sizes of a site's subsets; 1 is the largest."""

    quantile: float
    times: float


@dataclass(frozen=True)
class SubsetGrowth:
    """What one subset is given: its size before, how many copies, of what strength."""

    writer: int
    genuine: bool
    samples: int
    copies: int
    strength: float


def target_size(images: SignatureImages, target: Target) -> float:
    """T of these images.

    A subset without a sample is not one: nothing can be copied into it. 0 if there is none at all.

    Raises:
        DataError: a quantile outside 0..1, or not a multiple.
    """
    if not (0.0 <= target.quantile <= 1.0 and 0.0 <= target.times < math.inf):
        raise DataError(
            f"{target.times} times the quantile {target.quantile} is no size: a quantile is between 0 and "
            "1, a multiple 0 or more"
        )
    sizes = [size for _, _, size in _subsets(images)]
    return target.times * float(np.quantile(sizes, target.quantile)) if sizes else 0.0


def growth(
    images: SignatureImages,
    mode: AugmentationMode,
    target: Target,
    strength_max: float,
) -> tuple[SubsetGrowth, ...]:
    """How each subset grows, by writer, genuine ones first.

    ``uniform`` spends as many copies as ``adaptive``, in proportion to the subsets' sizes and all of the
    mean strength of its copies: what differs between the two is only where the effort goes.

    Raises:
        DataError: another mode, a target that is none or a strength outside 0..1.
    """
    if mode not in get_args(AugmentationMode):
        raise DataError(f"{mode!r} is not one of {', '.join(get_args(AugmentationMode))}")
    if not 0.0 <= strength_max <= 1.0:
        raise DataError(f"the greatest strength {strength_max} is not between 0 and 1")
    size = target_size(images, target)
    grown = [
        SubsetGrowth(
            writer,
            genuine,
            n,
            max(0, math.ceil(size - n)),
            strength_max * max(0.0, 1.0 - n / size) if size else 0.0,
        )
        for writer, genuine, n in _subsets(images)
    ]
    copies = sum(one.copies for one in grown)
    if mode == "off" or not copies:
        return tuple(SubsetGrowth(s.writer, s.genuine, s.samples, 0, 0.0) for s in grown)
    if mode == "adaptive":
        return tuple(grown)
    strength = sum(one.copies * one.strength for one in grown) / copies
    shares = _apportioned(copies, [one.samples for one in grown])
    return tuple(
        SubsetGrowth(s.writer, s.genuine, s.samples, share, strength)
        for s, share in zip(grown, shares, strict=True)
    )


def adaptive_augmentation(
    images: SignatureImages,
    *,
    mode: AugmentationMode,
    target: Target,
    strength_max: float,
    rng: np.random.Generator,
) -> SignatureImages:
    """The images, unchanged and in their order, and behind them the copies that :func:`growth` asks for.

    The samples of a subset take turns as originals, so they are copied equally often but for one.
    Deterministic in ``rng``.

    Raises:
        DataError: as :func:`growth`.
    """
    copies: list[Image32] = []
    originals: list[int] = []
    for subset in growth(images, mode, target, strength_max):
        rows = np.flatnonzero(
            (images.writers == subset.writer) & (images.genuine == subset.genuine)
        )
        order = rng.permutation(rows)
        for turn in range(subset.copies):
            row = int(order[turn % len(order)])
            originals.append(row)
            copies.append(redrawn(images.images[row, 0], subset.strength, rng))
    if not copies:
        return images
    rows = np.asarray(originals, dtype=np.int64)
    return SignatureImages(
        np.concatenate([images.images, np.stack(copies)[:, None]]),
        np.concatenate([images.writers, images.writers[rows]]),
        np.concatenate([images.genuine, images.genuine[rows]]),
        images.classes,
    )


def redrawn(image: Image32, strength: float, rng: np.random.Generator) -> Image32:
    """One changed copy of a prepared signature: affine map, elastic map, stroke thickness.

    Args:
        image: (128, 128) float32, paper 0, some ink.
        strength: 0..1; 0 changes nothing.
    Returns:
        (128, 128) float32, framed and standardised as its original was.
    """
    if strength == 0.0:
        return image.copy()
    image = np.pad(image, _ROOM_PX)
    height, width = image.shape
    turn = rng.uniform(-MAX_TURN_RAD, MAX_TURN_RAD) * strength
    stretch_x, stretch_y = 1.0 + rng.uniform(-MAX_STRETCH, MAX_STRETCH, 2) * strength
    shear = rng.uniform(-MAX_SHEAR, MAX_SHEAR) * strength
    matrix = np.array(
        [
            [stretch_y * math.cos(turn), -math.sin(turn)],
            [math.sin(turn) + shear, stretch_x * math.cos(turn)],
        ]
    )
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    at = np.indices(image.shape).reshape(2, -1)
    source = (matrix @ (at - centre[:, None])) + centre[:, None]
    knots = rng.uniform(-MAX_ELASTIC_PX, MAX_ELASTIC_PX, (2, _ELASTIC_KNOTS, _ELASTIC_KNOTS))
    down, across = _spread(height), _spread(width)
    for axis in range(2):
        source[axis] += strength * (down @ knots[axis] @ across.T).ravel()
    moved = ndimage.map_coordinates(image, source.reshape(2, height, width), order=1)
    moved += _SHARPER * (moved - ndimage.uniform_filter(moved, 3))
    moved[moved < _FAINT * moved.max()] = 0.0
    change = rng.uniform(-MAX_THINNER, MAX_THICKER) * strength
    moved += change * (ndimage.grey_dilation(moved, (3, 3)) - moved)
    return standardise_ink(frame(np.maximum(moved, np.float32(0.0))))


@functools.cache
def _spread(side: int) -> npt.NDArray[np.float64]:
    """(side, knots): values between evenly spaced knots by cubic splines, as a matrix of them."""
    knots = np.eye(_ELASTIC_KNOTS)
    columns = [ndimage.zoom(knot, side / _ELASTIC_KNOTS, order=3) for knot in knots]
    return np.stack(columns, axis=1)


def _subsets(images: SignatureImages) -> list[tuple[int, bool, int]]:
    """(writer, genuine, size) of every subset with a sample in it, by writer, genuine ones first."""
    return [
        (writer, genuine, count)
        for writer in range(images.classes)
        for genuine in (True, False)
        if (count := int(((images.writers == writer) & (images.genuine == genuine)).sum()))
    ]


def _apportioned(total: int, sizes: list[int]) -> list[int]:
    """``total`` in proportion to ``sizes``, in whole numbers: largest remainders, ties to the first."""
    exact = [total * size / sum(sizes) for size in sizes]
    shares = [math.floor(share) for share in exact]
    by_rest = sorted(range(len(sizes)), key=lambda at: shares[at] - exact[at])
    for at in by_rest[: total - sum(shares)]:
        shares[at] += 1
    return shares
