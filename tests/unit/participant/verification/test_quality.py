"""What is refused, what is warned of, and what passes without a word."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fedpalm.data.roi import read_roi
from fedpalm.errors import QualityError
from participant.verification.quality import assess_palm, sharpness_of
from tests.support.verification import palm


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def test_a_good_image_passes_without_a_word():
    quality = assess_palm(read_roi(palm(1)))
    assert quality.warnings == ()
    assert quality.measures["side_px"] == 128 and quality.measures["coverage"] == 1.0
    assert quality.to_json()["warnings"] == []


def test_sharpness_falls_with_every_blur():
    found = [sharpness_of(blurred(palm(1), radius)) for radius in (0.0, 1.0, 2.0, 4.0)]
    assert found == sorted(found, reverse=True)


def test_what_is_blurred_is_told_and_what_is_a_smear_is_refused():
    assert "blurred" in assess_palm(read_roi(blurred(palm(1), 3)), "a.png").warnings[0]
    ramp = np.tile(np.linspace(1, 254, 128).astype(np.uint8), (128, 1))
    with pytest.raises(QualityError, match=r"a\.png: sharpness"):
        assess_palm(read_roi(ramp), "a.png")


def test_an_image_that_is_mostly_empty_is_refused():
    for rows, outcome in ((100, "refused"), (40, "told"), (0, "passed")):
        pixels = palm(1)
        pixels[:rows] = 0
        roi = read_roi(pixels)
        if outcome == "refused":
            with pytest.raises(QualityError, match="shows a palm"):
                assess_palm(roi)
        else:
            told = any("shows a palm" in warning for warning in assess_palm(roi).warnings)
            assert told == (outcome == "told")


def test_little_contrast_and_a_small_image_are_told():
    pale = (128 + (palm(1).astype(float) - 128) * 0.13).astype(np.uint8)
    assert any("contrast" in warning for warning in assess_palm(read_roi(pale)).warnings)
    small = np.ascontiguousarray(palm(1)[::2, ::2])
    assert any("small (64 px" in warning for warning in assess_palm(read_roi(small)).warnings)
