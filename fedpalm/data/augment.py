"""Random views of training images: small moves and small changes of light, in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_TURN_RAD = 0.09
MAX_STRETCH = 0.06
MAX_SHEAR = 0.03
MAX_SHIFT_PX = 6.0
MAX_GAIN = 0.2
MAX_LIGHT = 0.3
MAX_NOISE = 0.25
MAX_BLUR = 0.7

Images = npt.NDArray[np.float32]


def augment(images: Images, rng: np.random.Generator) -> Images:
    """One random view of each image; evaluation never uses it.

    Each image is turned, stretched, sheared and shifted (bilinear, border repeated), blurred a
    little, lit unevenly and given noise. A pixel whose nearest source is exactly 0 (outside the
    palm) is 0. Deterministic in ``rng``.

    Args:
        images: (N, 1, H, W) float32, standardised. Not changed.
    Returns:
        (N, 1, H, W) float32.
    """
    count, _, height, width = images.shape
    out = np.empty_like(images)
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    for at in range(count):  # one image at a time stays inside the cache: faster than the batch
        view, outside = _moved(images[at, 0], y, x, rng)
        view += np.float32(rng.uniform(0.0, MAX_BLUR)) * (_binomial(view) - view)
        across, down, level = rng.uniform(-MAX_LIGHT, MAX_LIGHT, 3).astype(np.float32)
        view *= np.float32(1.0 + rng.uniform(-MAX_GAIN, MAX_GAIN))
        view += across * x + down * y + level / 2
        noise = rng.standard_normal((height, width), dtype=np.float32)
        view += np.float32(rng.uniform(0.0, MAX_NOISE)) * noise
        view[outside] = 0.0
        out[at, 0] = view
    return out


def _moved(
    image: Images, y: Images, x: Images, rng: np.random.Generator
) -> tuple[Images, npt.NDArray[np.bool_]]:
    """The image under a random affine map, and where its nearest source pixel is 0."""
    height, width = image.shape
    turn = rng.uniform(-MAX_TURN_RAD, MAX_TURN_RAD)
    stretch_x, stretch_y = 1.0 + rng.uniform(-MAX_STRETCH, MAX_STRETCH, 2)
    shear = rng.uniform(-MAX_SHEAR, MAX_SHEAR)
    shift_x, shift_y = rng.uniform(-MAX_SHIFT_PX, MAX_SHIFT_PX, 2)
    c, s = np.cos(turn), np.sin(turn)
    half_w, half_h = (width - 1) / 2, (height - 1) / 2
    source_x = np.float32(half_w * c * stretch_x) * x + np.float32(half_h * (shear - s)) * y
    source_y = np.float32(half_w * s) * x + np.float32(half_h * c * stretch_y) * y
    source_x += np.float32(half_w + shift_x)
    source_y += np.float32(half_h + shift_y)
    np.clip(source_x, 0.0, width - 1.001, out=source_x)
    np.clip(source_y, 0.0, height - 1.001, out=source_y)
    left, top = source_x.astype(np.int32), source_y.astype(np.int32)
    source_x -= left
    source_y -= top
    corner = top * width + left
    flat = image.ravel()
    a, b = flat[corner], flat[corner + 1]
    a += source_x * (b - a)
    d, e = flat[corner + width], flat[corner + width + 1]
    d += source_x * (e - d)
    nearest = corner + (source_x > 0.5) + width * (source_y > 0.5)
    a += source_y * (d - a)
    return a, flat[nearest] == 0.0


def _binomial(image: Images) -> Images:
    """1-2-1 blur both ways, border repeated."""
    for axis in (0, 1):
        image = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        n = image.shape[axis] - 2
        before, here, after = (np.take(image, range(k, k + n), axis=axis) for k in range(3))
        image = np.float32(0.25) * (before + after) + np.float32(0.5) * here
    return image
