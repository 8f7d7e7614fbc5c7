"""How a palm becomes an image: the hand moves, the light moves, and each site has its own sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .palm_anatomy import (
    CANVAS_PX,
    MARGIN_PX,
    PRINCIPAL,
    SECONDARY,
    SIDE_PX,
    Array,
    Creases,
    Palm,
    frequency_grid,
    smooth_noise,
)

_STEPS = 96  # points along a curve: less than a pixel apart on the longest one


@dataclass(frozen=True)
class Sensor:
    """The conditions of one site; what makes sites differ (non-IID).

    ``brightness`` and ``noise`` in grey levels of 255, ``blur_px`` a Gaussian sigma, ``gradient`` in
    grey levels across the image, ``scale`` and ``contrast`` and ``skin_gain`` factors, ``turn_deg``
    how the device holds or crops every hand, ``gamma`` the exponent of its response.
    """

    brightness: float
    contrast: float
    blur_px: float
    gradient: float
    gradient_angle: float
    noise: float
    scale: float
    skin_gain: float
    turn_deg: float
    gamma: float


def draw_sensor(rng: np.random.Generator, spread: float = 1.0) -> Sensor:
    """Draw a site's conditions.

    Args:
        spread: >= 0, how far sites lie apart: every condition keeps its mean over sites and has its
            distance from it multiplied. 0 gives all sites the same sensor (light from a side of its
            own apart). Up to 1 sites hold hands alike and respond linearly; beyond, each has its
            own ``turn_deg`` and ``gamma`` too.
    """

    def draw(low: float, high: float, floor: float = 0.0) -> float:
        value = rng.uniform(low, high)
        return max(floor, value + (spread - 1.0) * (value - (low + high) / 2))

    beyond = max(0.0, spread - 1.0)
    return Sensor(
        brightness=draw(115.0, 170.0),
        contrast=draw(0.75, 1.15, floor=0.3),
        blur_px=draw(0.35, 0.9),
        gradient=draw(0.0, 40.0),
        gradient_angle=rng.uniform(0.0, 2 * np.pi),
        noise=draw(1.5, 5.0),
        scale=draw(0.94, 1.06),
        skin_gain=draw(0.7, 1.2, floor=0.2),
        turn_deg=beyond * rng.uniform(-6.0, 6.0),
        gamma=float(np.exp(beyond * rng.uniform(-0.35, 0.35))),
    )


def capture(
    palm: Palm, sensor: Sensor, rng: np.random.Generator, difficulty: float
) -> npt.NDArray[np.uint8]:
    """One image of a palm, (128, 128) uint8, values 1..255 (0 means "outside the palm").

    ``difficulty`` >= 0 scales everything that differs between two images of one palm; 0 leaves the
    identity and the sensor alone.
    """
    warp = _placement(sensor, rng, difficulty)
    height = _draw(palm.creases, warp, rng, difficulty)
    back = np.asarray(np.linalg.inv(warp), dtype=np.float64)
    skin, relief = _sample([palm.skin, palm.relief], back)

    light = rng.uniform(0.0, 2 * np.pi)
    slope_y, slope_x = np.gradient(height)
    edge = slope_x * np.cos(light) + slope_y * np.sin(light)
    skin_level = 5.5 * sensor.skin_gain * np.exp(rng.normal(0.0, 0.25 * difficulty))
    relief_level = 12.0 * np.exp(rng.normal(0.0, 0.25 * difficulty))
    image = skin_level * skin + relief_level * relief - 78.0 * height + 30.0 * edge

    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX] / SIDE_PX - 0.5
    across = sensor.gradient * (
        x * np.cos(sensor.gradient_angle) + y * np.sin(sensor.gradient_angle)
    )
    turn = rng.uniform(0.0, 2 * np.pi)
    across += 40.0 * difficulty * rng.uniform(0.0, 1.0) * (x * np.cos(turn) + y * np.sin(turn))
    # Pressure and light change the shading of the mounds from touch to touch.
    shading = 8.0 * smooth_noise(rng, 18.0) + 4.0 * smooth_noise(rng, 8.0)
    image += across + difficulty * shading[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]

    image *= sensor.contrast * np.exp(rng.normal(0.0, 0.12 * difficulty))
    image += sensor.brightness + rng.normal(0.0, 8.0 * difficulty)
    if sensor.gamma != 1.0:
        image = 255.0 * (np.clip(image, 0.0, 255.0) / 255.0) ** sensor.gamma
    image = _blur(image, float(np.hypot(sensor.blur_px, rng.uniform(0.0, 0.8 * difficulty))))
    noise = sensor.noise * np.exp(rng.normal(0.0, 0.2 * difficulty))
    image += noise * rng.standard_normal(image.shape)
    return np.clip(np.rint(image), 1, 255).astype(np.uint8)


def _placement(sensor: Sensor, rng: np.random.Generator, difficulty: float) -> Array:
    """(3, 3) projective map from palm to image coordinates, about the centre."""
    angle = np.deg2rad(sensor.turn_deg + rng.normal(0.0, 3.0 * difficulty))
    scale = sensor.scale * np.exp(rng.normal(0.0, 0.025 * difficulty))
    shear = rng.normal(0.0, 0.02 * difficulty)
    shift = rng.normal(0.0, 0.02 * difficulty, 2)
    tilt = rng.normal(0.0, 0.03 * difficulty, 2)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    centred = np.array([[c, -s + shear, shift[0]], [s, c, shift[1]], [tilt[0], tilt[1], 1.0]])
    to_centre = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    back = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    placement: Array = back @ centred @ to_centre
    return placement


def _project(warp: Array, points: Array) -> Array:
    mapped = points @ warp[:2, :2].T + warp[:2, 2]
    depth = points @ warp[2, :2] + warp[2, 2]
    projected: Array = mapped / depth[..., None]
    return projected


def _draw(creases: Creases, warp: Array, rng: np.random.Generator, difficulty: float) -> Array:
    """Depth of the creases, (128, 128), 0 on plain skin to about 1 in a principal crease."""
    count = len(creases.depth)
    principal = creases.kind == PRINCIPAL
    reach = np.where(principal, 10.0, 2.5)[:, None, None] / 256 * difficulty
    own = rng.uniform(-1.0, 1.0, (count, 3, 2)) * reach
    control = (
        creases.control + own[creases.parent] + np.where(principal, 0.0, 1.0)[:, None, None] * own
    )

    u = np.linspace(0.0, 1.0, _STEPS)
    along = creases.trim[:, :1] + (creases.trim[:, 1:] - creases.trim[:, :1]) * u
    a, b, c = (1 - along) ** 2, 2 * along * (1 - along), along**2
    points = (
        a[..., None] * control[:, None, 0]
        + b[..., None] * control[:, None, 1]
        + c[..., None] * control[:, None, 2]
    )
    waves = np.arange(1, creases.wobble.shape[1] + 1)
    phase = 2 * np.pi * waves * along[..., None]
    sway = (creases.wobble[:, None, :, 0] * np.sin(phase + creases.wobble[:, None, :, 1])).sum(-1)
    chord = control[:, 2] - control[:, 0]
    normal = np.stack([-chord[:, 1], chord[:, 0]], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    span = np.linalg.norm(chord, axis=-1)
    points = points + (sway * np.minimum(1.0, span * 2)[:, None])[..., None] * normal[:, None]
    fade = 1 + (creases.fade[:, None, :, 0] * np.sin(phase + creases.fade[:, None, :, 1])).sum(-1)
    taper = np.minimum(1.0, np.minimum(u / 0.08 + 0.3, (1 - u) / 0.3 + 0.1))
    depth = creases.depth[:, None] * np.clip(fade, 0.15, 1.6) * taper
    depth = depth * np.exp(rng.normal(0.0, 0.15 * difficulty, (count, 1)))

    pixels = _project(warp, points) * SIDE_PX + MARGIN_PX - 0.5
    steps = np.linalg.norm(np.diff(pixels, axis=1), axis=-1)
    length = np.concatenate(
        [steps[:, :1], (steps[:, 1:] + steps[:, :-1]) / 2, steps[:, -1:]], axis=1
    )

    fx, fy = frequency_grid()
    square = fx**2 + fy**2
    total = np.zeros(square.shape, dtype=np.complex128)
    strong = rng.uniform(2.3, 2.7) / 2.355  # full width at half maximum to sigma
    fine = rng.uniform(0.9, 1.1) / 1.6
    for chosen, sigma_px, gain in (
        (principal, strong, 0.75),
        (principal, 3.2 * strong, 0.30),
        (creases.kind == SECONDARY, fine, 0.62),
        (creases.kind > SECONDARY, 0.85 * fine, 0.55),
    ):
        layer = _splat(pixels[chosen], (depth * length)[chosen])
        peak = gain * sigma_px * np.sqrt(2 * np.pi)
        blur = np.exp(-2.0 * (np.pi * sigma_px) ** 2 * square)
        total += peak * np.fft.rfft2(layer) * blur
    canvas = np.fft.irfft2(total, s=(CANVAS_PX, CANVAS_PX))
    height = canvas[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    return 1.0 - np.exp(-np.maximum(height, 0.0))  # crossings saturate


def _splat(pixels: Array, mass: Array) -> Array:
    """Spread points with bilinear weights on the canvas; what lies outside is dropped."""
    x, y, mass = pixels[..., 0].ravel(), pixels[..., 1].ravel(), mass.ravel()
    inside = (x >= 0) & (y >= 0) & (x < CANVAS_PX - 1) & (y < CANVAS_PX - 1)
    x, y, mass = x[inside], y[inside], mass[inside]
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    dx, dy = x - left, y - top
    at = top * CANVAS_PX + left
    index = np.concatenate([at, at + 1, at + CANVAS_PX, at + CANVAS_PX + 1])
    weight = np.concatenate([(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy])
    weight *= np.tile(mass, 4)
    canvas = np.bincount(index, weights=weight, minlength=CANVAS_PX**2).astype(np.float64)
    return canvas.reshape(CANVAS_PX, CANVAS_PX)


def _sample(fields: list[Array], back: Array) -> list[Array]:
    """The canvas fields seen through the inverse placement, (128, 128) each; bilinear."""
    centre = (np.arange(SIDE_PX) + 0.5) / SIDE_PX
    grid = np.stack(np.meshgrid(centre, centre), axis=-1)
    source = np.clip(_project(back, grid) * SIDE_PX + MARGIN_PX - 0.5, 0, CANVAS_PX - 1.001)
    left, top = source[..., 0].astype(np.int64), source[..., 1].astype(np.int64)
    dx, dy = source[..., 0] - left, source[..., 1] - top
    at = top * CANVAS_PX + left
    corners = (
        (at, (1 - dx) * (1 - dy)),
        (at + 1, dx * (1 - dy)),
        (at + CANVAS_PX, (1 - dx) * dy),
        (at + CANVAS_PX + 1, dx * dy),
    )
    return [sum((f.ravel()[i] * w for i, w in corners), np.zeros(at.shape)) for f in fields]


def _blur(image: Array, sigma_px: float) -> Array:
    """Separable Gaussian blur with the border repeated."""
    if sigma_px < 0.05:
        return image
    reach = max(1, int(np.ceil(3 * sigma_px)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(image, pad, mode="edge")
        image = sum(
            (t * np.take(padded, np.arange(k, k + SIDE_PX), axis=axis) for k, t in enumerate(taps)),
            np.zeros((SIDE_PX, SIDE_PX)),
        )
    return image
