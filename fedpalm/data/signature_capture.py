"""How a movement becomes an image: a pen, a sheet of paper and a scanner, each a site's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .signature_motion import SCALE_SHARE, SHEAR, TILT_RAD, Array, Path

HEIGHT_PX, WIDTH_PX = 160, 320
_MARGIN_PX = 10.0
_STEP_PX = 0.8
_USUAL_SPEED = 12.0  # x-heights a second, at which a pen draws its usual width


@dataclass(frozen=True)
class Desk:
    """What one site signs with (non-IID).

    ``pen_px`` the usual width, ``flow`` how strongly a slow pen draws wider, ``ink`` and ``paper`` grey
    levels, ``grain`` and ``noise`` of the paper and the scanner in grey levels, ``gradient`` in grey levels
    across the sheet, ``blur_px`` a Gaussian sigma, ``skip`` how easily a fast ballpoint runs dry.
    """

    pen_px: float
    flow: float
    ink: float
    paper: float
    grain: float
    noise: float
    gradient: float
    blur_px: float
    skip: float


def draw_desk(rng: np.random.Generator, spread: float = 1.0) -> Desk:
    """A site's desk; ``spread`` >= 0 scales how far sites lie apart, 0 gives all the same."""

    def draw(low: float, high: float, floor: float = 0.0) -> float:
        middle = (low + high) / 2
        return max(floor, middle + spread * (rng.uniform(low, high) - middle))

    return Desk(
        pen_px=draw(1.6, 4.0, 1.2),
        flow=draw(0.2, 0.5),
        ink=min(110.0, draw(10.0, 90.0)),
        paper=float(np.clip(draw(215.0, 250.0), 190.0, 255.0)),
        grain=draw(1.0, 6.0),
        noise=draw(1.0, 6.0),
        gradient=draw(0.0, 25.0),
        blur_px=draw(0.3, 1.0),
        skip=draw(0.0, 0.5),
    )


def capture(
    path: Path, desk: Desk, rng: np.random.Generator, difficulty: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Scan one signature: (160, 320) uint8.

    Args:
        difficulty: scales pose, the pen's moods and the scan's noise.
    """
    xy = path.xy @ _pose(rng, difficulty).T
    drawn = xy[path.down]
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    room = np.array([WIDTH_PX, HEIGHT_PX]) - 2 * _MARGIN_PX
    scale = float((room / np.maximum(high - low, 1e-6)).min()) * rng.uniform(0.86, 1.0)
    at = (xy - (low + high) / 2) * (scale, -scale) + (WIDTH_PX / 2, HEIGHT_PX / 2)
    slowness = _USUAL_SPEED / np.maximum(path.speed, 1.0)
    width = desk.pen_px * np.clip(slowness**desk.flow, 0.6, 1.7)
    width *= 1.0 + 0.08 * difficulty * rng.normal()
    wet = 1.0 - desk.skip * np.clip(path.speed / _USUAL_SPEED - 1.0, 0.0, 1.5) / 1.5
    ink = _inked(at, width / 2, wet, path.down)
    shape = (HEIGHT_PX, WIDTH_PX)
    grain = ndimage.gaussian_filter(rng.normal(size=shape), 1.0) * 3.5
    ink *= np.clip(1.0 - 0.05 * desk.grain * np.maximum(grain, 0.0), 0.0, 1.0)
    angle = rng.uniform(0.0, 2 * np.pi)
    y, x = np.linspace(-0.5, 0.5, HEIGHT_PX)[:, None], np.linspace(-0.5, 0.5, WIDTH_PX)[None, :]
    paper = desk.paper + desk.gradient * (np.cos(angle) * x + np.sin(angle) * y)
    paper = np.minimum(paper, 255.0) + desk.grain * 0.5 * grain
    grey = paper + (desk.ink - paper) * ink
    grey = ndimage.gaussian_filter(grey, desk.blur_px)
    grey += desk.noise * difficulty * rng.normal(size=shape)
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(grey, 0.0, 255.0)).astype(np.uint8)
    return pixels


def _pose(rng: np.random.Generator, difficulty: float) -> Array:
    """(2, 2): how this one lies on the paper: size, tilt and shear."""
    tilt = TILT_RAD * difficulty * rng.normal()
    stretch = 1.0 + SCALE_SHARE * difficulty * rng.normal(size=2)
    c, s = np.cos(tilt), np.sin(tilt)
    turn = np.array([[c, -s], [s, c]])
    shape = np.array([[stretch[0], SHEAR * difficulty * rng.normal()], [0.0, stretch[1]]])
    out: Array = turn @ shape
    return out


def _inked(at: Array, radius: Array, wet: Array, down: npt.NDArray[np.bool_]) -> Array:
    """Round nibs set down along the path, edges a pixel soft: (H, W) in 0..1."""
    at, radius, wet = _evenly(at, radius, wet, down)
    reach = int(np.ceil(float(radius.max()) + 1.0))
    offsets = np.arange(-reach, reach + 1)
    corner = np.floor(at).astype(np.int64)
    columns = corner[:, 0, None, None] + offsets[None, None, :]
    rows = corner[:, 1, None, None] + offsets[None, :, None]
    distance = np.hypot(columns - at[:, 0, None, None], rows - at[:, 1, None, None])
    cover = np.clip(radius[:, None, None] + 0.5 - distance, 0.0, 1.0) * wet[:, None, None]
    columns, rows = np.broadcast_arrays(columns, rows)
    inside = (columns >= 0) & (columns < WIDTH_PX) & (rows >= 0) & (rows < HEIGHT_PX)
    ink = np.zeros((HEIGHT_PX, WIDTH_PX))
    np.maximum.at(ink, (rows[inside], columns[inside]), cover[inside])
    return ink


def _evenly(
    at: Array, radius: Array, wet: Array, down: npt.NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """The pen-down part of the path, resampled by its length."""
    gone = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(at, axis=0).T))])
    even = np.arange(0.0, gone[-1], _STEP_PX)
    keep = down[np.minimum(np.searchsorted(gone, even), len(down) - 1)]
    even = even[keep]
    place = np.stack([np.interp(even, gone, at[:, axis]) for axis in range(2)], axis=1)
    return place, np.interp(even, gone, radius), np.interp(even, gone, wet)
