"""The network's input, and images that are no region of interest."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fedpalm.data.loading import load_images
from fedpalm.data.records import ImageRecord
from fedpalm.data.roi import load_roi, preflight, read_roi, standardise
from fedpalm.errors import DataError


def _save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def _palm(height=150, width=150):
    y, x = np.mgrid[0:height, 0:width]
    return (120 + 60 * np.sin(x / 9.0) * np.cos(y / 7.0)).astype(np.uint8)


def test_input_has_zero_mean_and_unit_deviation_over_pixels_above_zero(tmp_path):
    roi = load_roi(_save(tmp_path / "a.png", _palm()))
    assert roi.shape == (1, 128, 128)
    assert roi.dtype == np.float32
    assert abs(float(roi.mean())) < 1e-5
    assert abs(float(roi.std()) - 1) < 1e-5


def test_pixels_of_value_zero_stay_zero_and_do_not_count(tmp_path):
    pixels = _palm(128, 128)
    pixels[:40] = 0
    roi = load_roi(_save(tmp_path / "a.png", pixels))[0]
    assert (roi[:40] == 0).all()
    assert abs(float(roi[40:].mean())) < 1e-5
    assert abs(float(roi[40:].std()) - 1) < 1e-5


def test_an_affine_change_of_grey_levels_gives_the_same_input(tmp_path):
    pixels = (_palm(128, 128) // 2) * 2
    one = load_roi(_save(tmp_path / "a.png", pixels))
    two = load_roi(_save(tmp_path / "b.png", pixels // 2 + 40))
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_formats_give_the_same_input(tmp_path, suffix):
    expected = load_roi(_save(tmp_path / "reference.png", _palm()))
    np.testing.assert_array_equal(load_roi(_save(tmp_path / f"a.{suffix}", _palm())), expected)


def test_sixteen_bit_levels_are_scaled_not_clipped(tmp_path):
    wide = _palm().astype(np.uint16) * 257
    expected = load_roi(_save(tmp_path / "8.png", _palm()))
    np.testing.assert_array_equal(load_roi(_save(tmp_path / "16.png", wide)), expected)
    np.testing.assert_array_equal(load_roi(_save(tmp_path / "16.tif", wide)), expected)


def test_colour_is_read_as_grey_and_transparency_as_outside(tmp_path):
    grey = _palm(128, 128)
    rgba = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    rgba[:30, :, 3] = 0
    roi = load_roi(_save(tmp_path / "a.png", rgba))[0]
    assert (roi[:30] == 0).all()
    assert (roi[30:] != 0).mean() > 0.99


def _bomb(side: int) -> bytes:
    """A PNG that claims side x side pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _png(tmp_path, pixels) -> bytes:
    return _save(tmp_path / "source.png", pixels).read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda t: b"", "not a png, jpg, bmp or tif image"),
        (lambda t: b"GIF89a" + bytes(100), "not a png, jpg, bmp or tif image"),
        (lambda t: _png(t, _palm())[:2000], "damaged or unreadable"),
        (lambda t: _bomb(30_000), "more than 50000000 pixels"),
        (lambda t: _bomb(10_000), "more than 50000000 pixels"),
        (lambda t: _bomb(7_100), "more than 50000000 pixels"),
        (lambda t: _png(t, _palm(63, 63)), "63x63 px is too small"),
        (lambda t: _png(t, _palm(100, 140)), "140x100 px is not near square"),
        (lambda t: _png(t, np.full((128, 128), 90, np.uint8)), "contrast 0.0 grey levels"),
        (lambda t: _png(t, np.zeros((128, 128), np.uint8)), "contrast 0.0 grey levels"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(tmp_path, content, says):
    path = tmp_path / "a.png"
    path.write_bytes(content(tmp_path))
    with pytest.raises(DataError) as caught:
        load_roi(path)
    assert says in caught.value.what
    assert str(path) in caught.value.what
    assert caught.value.next_step


def test_a_damaged_byte_inside_the_pixels_is_refused(tmp_path):
    data = bytearray(_png(tmp_path, _palm()))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match="damaged or unreadable"):
        load_roi(tmp_path / "a.png")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_roi(tmp_path / "gone.png")


def test_preflight_reports_sizes_and_contrast(tmp_path):
    records = [
        ImageRecord(_save(tmp_path / "a.png", _palm(100, 110)), "x"),
        ImageRecord(_save(tmp_path / "b.png", _palm(140, 150)), "x"),
        ImageRecord(_save(tmp_path / "c.png", _palm() // 4), "y"),
    ]
    report = preflight(records).to_json()
    assert report["images"] == 3
    assert report["identities"] == 2
    assert report["images_per_identity"] == [1, 2]
    assert report["width_px"] == [110, 150]
    assert report["height_px"] == [100, 150]
    low, high = report["contrast"]
    assert 5 < low < 10 < high < 40


def test_preflight_and_loading_name_every_bad_image_at_once(tmp_path):
    good = ImageRecord(_save(tmp_path / "good.png", _palm()), "x")
    bad = [ImageRecord(tmp_path / f"bad{n}.png", "x") for n in range(7)]
    for look in (preflight, load_images):
        with pytest.raises(DataError) as caught:
            look([good, *bad])
        assert "7 of 8 images cannot be used" in caught.value.what
        assert "and 2 more" in caught.value.what


def test_preflight_of_nothing_is_refused():
    with pytest.raises(DataError, match="no images"):
        preflight([])


def test_labels_follow_the_given_class_order(tmp_path):
    records = [
        ImageRecord(_save(tmp_path / "a.png", _palm()), "x"),
        ImageRecord(_save(tmp_path / "b.png", _palm()), "y"),
    ]
    assert load_images(records).labels.tolist() == [0, 1]
    loaded = load_images(records, classes=("y", "unused", "x"))
    assert loaded.labels.tolist() == [2, 0]
    assert loaded.labels.dtype == np.int64
    assert loaded.classes == ("y", "unused", "x")
    assert loaded.images.shape == (2, 1, 128, 128)
    with pytest.raises(DataError, match="outside the class order: y"):
        load_images(records, classes=("x",))
    with pytest.raises(DataError, match="twice"):
        load_images(records, classes=("x", "y", "x"))
    with pytest.raises(DataError, match="no images"):
        load_images([])


def test_a_file_its_bytes_and_its_pixels_are_one_image(tmp_path):
    path = _save(tmp_path / "a.png", _palm(150, 140))
    found = [read_roi(source) for source in (path, path.read_bytes(), _palm(150, 140))]
    assert {one.size_px for one in found} == {(140, 150)}
    for one in found:
        assert one.grey.shape == (128, 128) and one.grey.dtype == np.uint8
        np.testing.assert_array_equal(standardise(one.grey), load_roi(path))


def test_colours_count_as_they_do_in_a_file(tmp_path):
    rgb = np.stack([_palm(), _palm().T, _palm()[::-1]], axis=2)
    from_file = read_roi(_save(tmp_path / "a.png", rgb))
    np.testing.assert_array_equal(read_roi(rgb).grey, from_file.grey)


@pytest.mark.parametrize(
    "source",
    [b"", b"no image", np.zeros((128, 128), np.uint8), _palm(200, 100), _palm(60, 60),
     _palm().astype(np.float64), np.zeros((128, 128, 4), np.uint8), np.zeros(5, np.uint8)],
    ids=["nothing", "text", "blank", "oblong", "small", "floats", "four channels", "a row"],
)  # fmt: skip
def test_bytes_and_pixels_that_are_no_region_of_interest_are_refused(source):
    with pytest.raises(DataError):
        read_roi(source)
