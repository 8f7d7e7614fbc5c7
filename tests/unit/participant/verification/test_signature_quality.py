"""Which images of signatures are refused, which warned of, and that real and drawn ones pass."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fedpalm.data.signature_image import read_signature
from fedpalm.data.synthetic_signatures import synthetic_signatures
from fedpalm.errors import QualityError
from participant.verification.signature_quality import assess_signature


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """(160, 320) uint8."""
    cache = tmp_path_factory.mktemp("drawn")
    ((record, *_),) = synthetic_signatures(cache, 1, 1, 1, 0, seed=3)
    with Image.open(record.path) as image:
        return np.asarray(image.convert("L"))


def told(pixels: np.ndarray) -> str:
    return " ".join(assess_signature(read_signature(pixels)).warnings)


def test_a_good_signature_passes_without_a_word_and_with_its_measures(drawn: np.ndarray):
    quality = assess_signature(read_signature(drawn))
    assert quality.warnings == ()
    measures = quality.to_json()
    assert set(measures) == {
        *("ink_width_px", "ink_height_px", "levels", "ink_share", "sharpness", "warnings")
    }
    assert 112 <= measures["ink_width_px"] <= 320 and 0 < measures["ink_share"] < 0.2


def test_the_size_is_that_of_the_ink_in_the_image_not_of_the_paper(drawn: np.ndarray):
    on_much_paper = np.pad(drawn, 300, mode="edge")
    for pixels in (drawn, on_much_paper):
        quality = assess_signature(read_signature(pixels))
        width, height = quality.measures["ink_width_px"], quality.measures["ink_height_px"]
        assert 0 < height < 160 and 112 <= width <= 320


def test_what_is_small_is_told_and_what_is_tiny_refused(drawn: np.ndarray):
    image = Image.fromarray(drawn)
    assert "small (the ink is" in told(np.asarray(image.resize((96, 48))))
    with pytest.raises(QualityError, match=r"px across, 32 are needed"):
        assess_signature(read_signature(np.asarray(image.resize((30, 16)))))


def test_what_is_faint_is_told(drawn: np.ndarray):
    faint = 255 - (255 - drawn.astype(float)) * 0.33
    assert "faint" in told(faint.astype(np.uint8))


def test_what_is_blurred_is_told_and_what_is_smeared_refused():
    strokes = np.full((200, 300), 255, np.uint8)
    for rows, columns in (
        *((slice(40, 160), slice(50, 62)), (slice(40, 160), slice(140, 152))),
        *((slice(40, 52), slice(50, 250)), (slice(148, 160), slice(50, 250))),
    ):
        strokes[rows, columns] = 0

    def blurred(radius: float) -> np.ndarray:
        return np.asarray(Image.fromarray(strokes).filter(ImageFilter.GaussianBlur(radius)))

    assert "blurred" not in told(strokes)
    assert "blurred" in told(blurred(4))
    with pytest.raises(QualityError, match="sharpness"):
        told(blurred(10))


def test_a_block_and_a_stroke_are_no_signature():
    for rows, columns in ((slice(60, 140), slice(80, 220)), (slice(98, 103), slice(20, 280))):
        pixels = np.full((200, 300), 255, np.uint8)
        pixels[rows, columns] = 20
        with pytest.raises(QualityError, match="not a signature") as refused:
            assess_signature(read_signature(pixels), "a.png")
        assert refused.value.what.startswith("a.png: ")


def test_real_signatures_pass_without_a_word():
    """Where FEDPALM_DATA names the folder of the cross-media signatures: every twentieth of them."""
    home = os.environ.get("FEDPALM_DATA")
    if not home:
        pytest.skip("FEDPALM_DATA is unset: no real signature was looked at")
    paths = sorted(Path(home, "cross-media-signatures", "bin").rglob("*.png"))[::20]
    assert len(paths) > 100
    assert [w for one in paths for w in assess_signature(read_signature(one)).warnings] == []
