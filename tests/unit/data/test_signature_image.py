"""How a signature is found on its paper and becomes network input."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedpalm.data.signature_image import (
    MARGIN_PX,
    load_signature,
    load_signatures,
    preflight_signatures,
    read_signature,
    standardise_ink,
)
from fedpalm.data.signatures import SignatureImages, SignatureRecord
from fedpalm.errors import DataError


def _sheet(
    width: int = 300,
    height: int = 140,
    left: int = 40,
    top: int = 30,
    ink: int = 30,
    paper: int = 235,
) -> np.ndarray:
    """A bold letter L of 160 by 80 pixels."""
    pixels = np.full((height, width), paper, dtype=np.uint8)
    pixels[top : top + 80, left : left + 6] = ink
    pixels[top + 74 : top + 80, left : left + 160] = ink
    return pixels


def test_ink_is_framed_with_its_shape_kept():
    ink = read_signature(_sheet()).ink
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert (columns[0], columns[-1]) == (MARGIN_PX, 127 - MARGIN_PX)
    assert np.ptp(rows) + 1 == pytest.approx(112 / 2, abs=1)
    assert rows[0] + rows[-1] == pytest.approx(127, abs=1)
    assert ink.max() == 255


@settings(max_examples=20)
@given(
    left=st.integers(0, 130),
    top=st.integers(0, 55),
    paper=st.integers(170, 255),
    ink=st.integers(0, 100),
)
def test_place_on_the_sheet_and_shades_of_ink_and_paper_make_no_difference(left, top, paper, ink):
    plain = read_signature(_sheet()).ink.astype(int)
    other = read_signature(_sheet(left=left, top=top, paper=paper, ink=ink)).ink.astype(int)
    assert np.abs(plain - other).max() <= 2


def test_light_ink_on_dark_paper_is_the_same_signature():
    plain, dark = read_signature(_sheet()), read_signature(255 - _sheet())
    np.testing.assert_array_equal(plain.ink, dark.ink)


def test_uneven_light_noise_and_specks_are_not_ink():
    rng = np.random.default_rng(0)
    light = np.linspace(-25, 25, 300)[None, :] + rng.normal(0, 4, (140, 300))
    harmed = np.clip(_sheet(paper=220) + light, 0, 255).astype(np.uint8)
    harmed[3, 5] = harmed[130, 280] = 0
    plain, other = (read_signature(p).ink > 100 for p in (_sheet(), harmed))
    assert (plain != other).mean() < 0.01


def test_ink_is_weighed_to_one_and_paper_is_exactly_nothing(tmp_path: Path):
    Image.fromarray(_sheet()).save(tmp_path / "s.png")
    image = load_signature(tmp_path / "s.png")
    assert image.shape == (1, 128, 128) and image.dtype == np.float32
    assert (image**2).sum() / image.sum() == pytest.approx(1.0, rel=1e-5)
    assert (image >= 0).all() and (image == 0).mean() > 0.8
    assert (standardise_ink(np.zeros((4, 4))) == 0).all()


def test_a_file_its_bytes_and_its_pixels_are_one_signature(tmp_path: Path):
    pixels = _sheet()
    Image.fromarray(pixels).save(tmp_path / "s.png")
    colour = np.stack([pixels] * 3, axis=2)
    sources = [tmp_path / "s.png", (tmp_path / "s.png").read_bytes(), pixels, colour]
    inks = [read_signature(source).ink for source in sources]
    for ink in inks[1:]:
        np.testing.assert_array_equal(ink, inks[0])


def test_what_is_transparent_is_paper():
    pixels = _sheet(paper=255, ink=0)
    rgba = np.zeros((*pixels.shape, 4), dtype=np.uint8)
    rgba[..., 3] = 255 - pixels
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG")
    np.testing.assert_array_equal(read_signature(buffer.getvalue()).ink, read_signature(pixels).ink)


def test_a_large_scan_is_the_same_signature():
    large = np.kron(_sheet(), np.ones((10, 10), dtype=np.uint8))
    difference = read_signature(large).ink.astype(int) - read_signature(_sheet()).ink
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((100, 200), 230, np.uint8), "blank"),
        (np.full((10, 200), 230, np.uint8), "too small"),
        (np.full((20, 500), 230, np.uint8), "too long and narrow"),
        (np.zeros((100, 200, 4), np.uint8), "expected"),
        (np.random.default_rng(0).integers(222, 238, (100, 200), dtype=np.uint8), "blank"),
    ],
)
def test_what_is_no_signature_is_refused(pixels, message):
    with pytest.raises(DataError, match=message):
        read_signature(pixels)


def _record(path: Path, writer: str, kind="genuine") -> SignatureRecord:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_sheet()).save(path)
    return SignatureRecord(path, writer, kind=kind)


def test_records_are_loaded_in_their_order_with_writer_and_truth(tmp_path: Path):
    records = [
        _record(tmp_path / "b.png", "b"),
        _record(tmp_path / "a.png", "a", "skilled"),
        _record(tmp_path / "c.png", "b", "simple"),
    ]
    loaded = load_signatures(records)
    assert loaded.writers.tolist() == [1, 0, 1] and loaded.classes == 2
    assert loaded.genuine.tolist() == [True, False, False]


def test_a_slash_in_a_name_makes_no_two_signatures_one(tmp_path: Path):
    records = [_record(tmp_path / "1.png", "a/b"), _record(tmp_path / "2.png", "a")]
    records[1] = replace(records[1], text="b")
    assert load_signatures(records).classes == 2


def test_all_unusable_files_are_named_at_once(tmp_path: Path):
    records = [_record(tmp_path / f"{n}.png", "a") for n in range(3)]
    records[0].path.write_bytes(b"no image")
    records[2].path.unlink()
    for look in (load_signatures, preflight_signatures):
        with pytest.raises(DataError, match=r"2 of 3 images cannot be used") as caught:
            look(records)
        assert "0.png" in caught.value.what and "2.png" in caught.value.what
    with pytest.raises(DataError):
        load_signatures([])


def test_rows_that_do_not_belong_together_make_no_set():
    image = np.zeros((2, 1, 128, 128), dtype=np.float32)
    writers, genuine = np.zeros(2, dtype=np.int64), np.ones(2, dtype=np.bool_)
    for arguments in (
        (image[:1], writers, genuine, 1),
        (image, writers, genuine[:1], 1),
        (image[:, :, 1:], writers, genuine, 1),
        (image, writers + 1, genuine, 1),
    ):
        with pytest.raises(DataError):
            SignatureImages(*arguments)
