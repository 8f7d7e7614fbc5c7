"""Views for training: small, seeded changes that leave "outside" outside."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.data import augment as module
from fedpalm.data.augment import augment


def _images(count=6, side=128):
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    waves = [np.sin(x / (7 + k)) + np.cos(y / (9 + k)) for k in range(count)]
    return np.stack(waves)[:, None].astype(np.float32) + np.float32(3)


def test_views_are_seeded_differ_from_each_other_and_leave_the_input_alone():
    images = _images()
    kept = images.copy()
    one, two = augment(images, np.random.default_rng(1)), augment(images, np.random.default_rng(1))
    other = augment(images, np.random.default_rng(2))
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(one, two)
    assert one.shape == images.shape
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert (one != other).mean() > 0.99


def test_a_view_still_looks_like_its_image():
    images = _images()
    views = augment(images, np.random.default_rng(1))
    for image, view in zip(images, views, strict=True):
        assert np.corrcoef(image.ravel(), view.ravel())[0, 1] > 0.3


def test_what_is_outside_the_palm_stays_zero():
    images = _images()
    images[:, :, :48] = 0
    views = augment(images, np.random.default_rng(3))
    assert (views[:, :, :24] == 0).all()
    assert (views[:, :, 80:] != 0).mean() > 0.999


@pytest.fixture
def still(monkeypatch):
    for name in vars(module).copy():
        if name.startswith("MAX_"):
            monkeypatch.setattr(module, name, 0.0)
    return monkeypatch


def test_with_all_bounds_at_zero_a_view_is_its_image(still):
    images = _images()
    np.testing.assert_allclose(augment(images, np.random.default_rng(0)), images, atol=2e-3)


@pytest.mark.parametrize(("shape"), [(2, 1, 128, 128), (1, 1, 64, 96)])
def test_a_turn_moves_each_point_as_the_affine_map_says(still, shape):
    """Against a per-pixel bilinear loop on an image that is linear, where interpolation is exact."""
    still.setattr(module, "MAX_TURN_RAD", 0.09)
    count, _, height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    ramp = (0.01 * x + 0.02 * y + 1).astype(np.float32)
    views = augment(np.tile(ramp, (count, 1, 1, 1)), np.random.default_rng(7))
    rng = np.random.default_rng(7)
    angle = rng.uniform(-0.09, 0.09)
    c, s = np.cos(angle), np.sin(angle)
    source_x = cx + c * (x - cx) - s * (y - cy)
    source_y = cy + s * (x - cx) + c * (y - cy)
    expected = 0.01 * source_x + 0.02 * source_y + 1
    inside = (source_x > 0) & (source_x < width - 2) & (source_y > 0) & (source_y < height - 2)
    np.testing.assert_allclose(views[0, 0][inside], expected[inside], atol=1e-4)


def test_an_empty_batch_stays_empty():
    assert augment(np.empty((0, 1, 128, 128), np.float32), np.random.default_rng(0)).shape[0] == 0
