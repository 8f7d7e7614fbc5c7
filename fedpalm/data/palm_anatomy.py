"""What makes one synthetic palm: its creases, its skin, its relief. Fixed for an identity.

Creases are quadratic Bezier curves between two points on the border of the region of interest
(principal) or inside it (secondary), after Zhao et al. 2022, arXiv:2203.05703. Coordinates are in
units of the region's side: x to the right, y downwards, both 0..1. The skin is band-passed noise
that follows an orientation field, on a canvas with a margin so that a sample may move.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SIDE_PX = 128
MARGIN_PX = 16
CANVAS_PX = SIDE_PX + 2 * MARGIN_PX

# (head t, tail t, bulge s, probability); t runs clockwise round the border from the top left corner.
_PRINCIPAL = (
    ((0.00, 0.20), (1.20, 1.60), (0.13, 0.16), 0.99),
    ((-0.25, 0.00), (1.80, 2.25), (-0.20, -0.10), 0.99),
    ((-0.50, -0.20), (2.30, 2.80), (-0.12, -0.10), 0.99),
    ((1.00, 2.00), (2.50, 3.00), (-0.12, -0.10), 0.10),
)
PRINCIPAL, SECONDARY, WRINKLE = 0, 1, 2
_WOBBLES = 4


@dataclass(frozen=True)
class Creases:
    """K curves, all sampled alike.

    ``control`` (K, 3, 2) head, control and tail point; ``trim`` (K, 2) the part of 0..1 that is
    drawn; ``depth`` (K,) 1 for a full principal crease; ``kind`` (K,) PRINCIPAL, SECONDARY or
    WRINKLE; ``parent`` (K,) the curve whose jitter it shares (a strand moves with its crease);
    ``wobble`` and ``fade`` (K, 4, 2) amplitude and phase of sines along the curve.
    """

    control: Array
    trim: Array
    depth: Array
    kind: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]
    wobble: Array
    fade: Array


@dataclass(frozen=True)
class Palm:
    """One identity: creases, skin and relief on the canvas (CANVAS_PX, CANVAS_PX), zero mean."""

    creases: Creases
    skin: Array
    relief: Array


def grow_palm(rng: np.random.Generator) -> Palm:
    """Draw one identity."""
    return Palm(_creases(rng), _skin(rng), _relief(rng))


def border_point(t: Array | float) -> Array:
    """The point at perimeter coordinate ``t`` (any real, modulo 4), (..., 2)."""
    t = np.mod(np.asarray(t, dtype=np.float64), 4.0)
    x = np.clip(np.minimum(t, 3.0 - t), 0.0, 1.0)
    y = np.clip(np.minimum(t - 1.0, 4.0 - t), 0.0, 1.0)
    return np.stack([x, y], axis=-1)


def bezier_control(head: Array, tail: Array, bulge: Array | float) -> Array:
    """Control point: chord midpoint + bulge x length x normal (the chord turned left on screen)."""
    chord = tail - head
    normal_times_length = np.stack([-chord[..., 1], chord[..., 0]], axis=-1)
    return (head + tail) / 2 + np.asarray(bulge)[..., None] * normal_times_length


def _creases(rng: np.random.Generator) -> Creases:
    control: list[Array] = []
    trim: list[tuple[float, float]] = []
    depth: list[float] = []
    kind: list[int] = []
    parent: list[int] = []

    def add(points: Array, span: tuple[float, float], deep: float, of: int, like: int = -1) -> None:
        control.append(points)
        trim.append(span)
        depth.append(deep)
        kind.append(of)
        parent.append(len(control) - 1 if like < 0 else like)

    for head_t, tail_t, bulge, probability in _PRINCIPAL:
        present = rng.random() < probability
        head, tail = border_point(rng.uniform(*head_t)), border_point(rng.uniform(*tail_t))
        points = np.stack([head, bezier_control(head, tail, rng.uniform(*bulge)), tail])
        span = (0.5 * rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0))
        deep, strands = rng.uniform(0.75, 1.0), int(rng.integers(1, 4))
        if not present:
            continue
        add(points, span, deep, PRINCIPAL)
        mother = len(control) - 1
        for _ in range(strands):
            # A strand leaves its crease somewhere and runs beside it: forks, islands, doubled ends.
            start = rng.uniform(0.15, 0.8)
            length = rng.uniform(0.15, 0.35)
            away = points + rng.normal(0.0, 0.02, (3, 2)) + rng.normal(0.0, 0.012, 2)
            add(away, (start, min(1.0, start + length)), rng.uniform(0.3, 0.6), SECONDARY, mother)

    for _ in range(int(rng.integers(5, 15))):
        middle = rng.uniform(0.05, 0.95, 2)
        angle, length = rng.uniform(0.0, np.pi), rng.uniform(0.2, 0.7)
        half = length / 2 * np.array([np.cos(angle), np.sin(angle)])
        head, tail = middle - half, middle + half
        bulge_s = float(np.clip(rng.normal(0.0, 0.4), -0.6, 0.6)) * 0.6
        points = np.stack([head, bezier_control(head, tail, bulge_s), tail])
        add(points, (0.0, 1.0), rng.uniform(0.3, 0.75), SECONDARY)

    for _ in range(int(rng.integers(35, 65))):
        middle = rng.uniform(-0.05, 1.05, 2)
        angle, length = rng.normal(0.9, 0.6), rng.uniform(0.05, 0.22)
        half = length / 2 * np.array([np.cos(angle), np.sin(angle)])
        points = np.stack([middle - half, middle + rng.normal(0.0, 0.015, 2), middle + half])
        add(points, (0.0, 1.0), rng.uniform(0.2, 0.6), WRINKLE)

    count = len(control)
    waves = np.arange(1, _WOBBLES + 1)
    wobble = np.stack(
        [
            rng.normal(0.0, 0.007, (count, _WOBBLES)) / np.sqrt(waves),
            rng.uniform(0.0, 2 * np.pi, (count, _WOBBLES)),
        ],
        axis=-1,
    )
    fade = np.stack(
        [
            rng.normal(0.0, 0.18, (count, _WOBBLES)),
            rng.uniform(0.0, 2 * np.pi, (count, _WOBBLES)),
        ],
        axis=-1,
    )
    return Creases(
        np.stack(control),
        np.asarray(trim),
        np.asarray(depth),
        np.asarray(kind, dtype=np.int64),
        np.asarray(parent, dtype=np.int64),
        wobble,
        fade,
    )


@lru_cache(maxsize=1)
def frequency_grid() -> tuple[Array, Array]:
    """(fx, fy) in cycles a pixel, shaped for the real FFT of the canvas."""
    fy, fx = np.meshgrid(np.fft.fftfreq(CANVAS_PX), np.fft.rfftfreq(CANVAS_PX), indexing="ij")
    return fx, fy


def smooth_noise(rng: np.random.Generator, sigma_px: float) -> Array:
    """Gaussian-filtered white noise on the canvas, zero mean, unit standard deviation."""
    fx, fy = frequency_grid()
    spectrum = np.fft.rfft2(rng.standard_normal((CANVAS_PX, CANVAS_PX)))
    spectrum *= np.exp(-2.0 * (np.pi * sigma_px) ** 2 * (fx**2 + fy**2))
    spectrum[0, 0] = 0.0
    field: Array = np.fft.irfft2(spectrum, s=(CANVAS_PX, CANVAS_PX))
    field /= field.std()
    return field


_ANGLES = 8


@lru_cache(maxsize=1)
def _ridge_filters() -> Array:
    """(8, CANVAS_PX, CANVAS_PX // 2 + 1) band-pass filters, one an orientation; period about 4 px."""
    fx, fy = frequency_grid()
    radius, angle = np.hypot(fx, fy), np.arctan2(fy, fx)
    band = np.exp(-((radius - 0.24) ** 2) / (2 * 0.05**2))
    directions = np.arange(_ANGLES) * np.pi / _ANGLES
    return np.stack([band * np.cos(angle - d) ** 8 for d in directions])


def _skin(rng: np.random.Generator) -> Array:
    """Ridges along a flow that circles the ball of the thumb (lower left), with blotches."""
    y, x = np.mgrid[0:CANVAS_PX, 0:CANVAS_PX] / CANVAS_PX
    centre = np.array([rng.uniform(-0.3, 0.1), rng.uniform(0.9, 1.3)])
    # The wave vector points away from the thumb, so the ridges run round it.
    wave_angle = np.arctan2(y - centre[1], x - centre[0]) + 0.5 * smooth_noise(rng, 18.0)
    spectrum = np.fft.rfft2(rng.standard_normal((CANVAS_PX, CANVAS_PX)))
    layers = np.fft.irfft2(spectrum[None] * _ridge_filters(), s=(CANVAS_PX, CANVAS_PX))
    directions = np.arange(_ANGLES)[:, None, None] * np.pi / _ANGLES
    weights = np.cos(wave_angle[None] - directions) ** 8
    ridges: Array = (layers * weights).sum(axis=0)
    ridges *= 1.0 + 0.35 * smooth_noise(rng, 10.0)
    ridges /= ridges.std()
    return _normalised(ridges + 0.5 * smooth_noise(rng, 2.5) + 0.5 * smooth_noise(rng, 6.0))


def _relief(rng: np.random.Generator) -> Array:
    """Shading of the mounds: bright ball of the thumb, heel and finger bases, darker hollow."""
    y, x = (np.mgrid[0:CANVAS_PX, 0:CANVAS_PX] - MARGIN_PX) / SIDE_PX
    relief = np.zeros((CANVAS_PX, CANVAS_PX))
    for (cx, cy), size, height in (
        ((0.10, 0.95), 0.40, 1.0),
        ((0.95, 0.95), 0.38, 0.8),
        ((0.55, 0.05), 0.30, 0.6),
        ((0.95, 0.25), 0.28, 0.5),
        ((0.58, 0.55), 0.25, -0.7),
    ):
        cx, cy = cx + rng.normal(0.0, 0.03), cy + rng.normal(0.0, 0.03)
        scale = size * rng.uniform(0.9, 1.1)
        relief += (
            height
            * rng.uniform(0.85, 1.15)
            * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * scale**2))
        )
    relief += 0.1 * smooth_noise(rng, 20.0)
    return _normalised(relief)


def _normalised(field: Array) -> Array:
    zero_mean: Array = field - field.mean()
    zero_mean /= zero_mean.std()
    return zero_mean
