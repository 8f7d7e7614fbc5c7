"""Synthetic palms: the same for a seed, different where they should be, whole or not there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedpalm.data.palm_anatomy import bezier_control, border_point, grow_palm
from fedpalm.data.palm_capture import capture, draw_sensor
from fedpalm.data.palms import cache_root, contact_sheet, synthetic_palms
from fedpalm.data.roi import preflight
from fedpalm.errors import DataError


def _pixels(record):
    with Image.open(record.path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_the_same_seed_draws_the_same_images_in_another_cache(tmp_path):
    one = synthetic_palms(tmp_path / "one", 2, 2, 2, seed=5)
    two = synthetic_palms(tmp_path / "two", 2, 2, 2, seed=5)
    for a, b in zip(one[0] + one[1], two[0] + two[1], strict=True):
        assert a.identity == b.identity
        np.testing.assert_array_equal(_pixels(a), _pixels(b))


def test_an_image_does_not_depend_on_how_many_others_are_drawn(tmp_path):
    few = synthetic_palms(tmp_path, 1, 2, 2, seed=5)
    many = synthetic_palms(tmp_path, 2, 3, 3, seed=5)
    wanted = {(r.identity, r.path.name): _pixels(r) for r in many[0]}
    for record in few[0]:
        np.testing.assert_array_equal(_pixels(record), wanted[record.identity, record.path.name])


def test_records_are_regions_of_interest_with_names_disjoint_across_sites(tmp_path):
    sites = synthetic_palms(tmp_path, 3, 2, 2, seed=1)
    names = [{r.identity for r in site} for site in sites]
    assert [len(n) for n in names] == [2, 2, 2]
    assert len(set().union(*names)) == 6
    report = preflight([r for site in sites for r in site])
    assert report.images == 12
    assert report.width_px == report.height_px == (128, 128)


def test_seed_site_identity_sample_and_difficulty_each_change_the_pixels(tmp_path):
    sites = synthetic_palms(tmp_path, 2, 2, 2, seed=1)
    drawn = [_pixels(r) for site in sites for r in site]
    drawn += [_pixels(r) for r in synthetic_palms(tmp_path, 1, 1, 1, seed=2)[0]]
    drawn += [_pixels(r) for r in synthetic_palms(tmp_path, 1, 1, 1, seed=1, difficulty=0.5)[0]]
    assert len({image.tobytes() for image in drawn}) == len(drawn) == 10


def test_the_default_set_keeps_its_pixels(tmp_path):
    """Whoever changes these figures raises GENERATOR_VERSION."""
    figures = []
    for site in synthetic_palms(tmp_path, 3, 2, 3, seed=7):
        pixels = np.stack([_pixels(record) for record in site]).astype(float)
        figures.append((pixels.mean(), pixels.std(), np.abs(np.diff(pixels, axis=1)).mean()))
    expected = [(142.399, 31.492, 4.153), (129.785, 26.799, 5.359), (134.701, 22.448, 6.201)]
    np.testing.assert_allclose(figures, expected, atol=0.002)


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0, 3.0])
def test_sensors_lie_apart_in_proportion_to_the_spread(spread):
    sensors = [draw_sensor(np.random.default_rng(site), spread) for site in range(400)]
    scales = np.array([sensor.scale for sensor in sensors])
    assert scales.std() == pytest.approx(spread * 0.12 / np.sqrt(12), rel=0.1, abs=1e-12)
    assert scales.mean() == pytest.approx(1.0, abs=0.02)
    assert min(min(s.noise, s.blur_px, s.gradient) for s in sensors) >= 0
    bent = [s for s in sensors if s.turn_deg != 0 or s.gamma != 1]
    assert len(bent) == (400 if spread > 1 else 0)


def test_an_image_of_the_farthest_sensors_can_be_used(tmp_path):
    sites = synthetic_palms(tmp_path, 8, 1, 2, seed=4, difficulty=2.0, site_spread=3.0)
    assert preflight([r for site in sites for r in site]).images == 16


def test_site_spread_changes_the_pixels_and_the_folder(tmp_path):
    near = synthetic_palms(tmp_path, 1, 1, 1, seed=1)[0][0]
    far = synthetic_palms(tmp_path, 1, 1, 1, seed=1, site_spread=2.0)[0][0]
    assert near.path != far.path
    assert (_pixels(near) != _pixels(far)).any()


def test_a_second_call_reuses_the_files(tmp_path):
    first = synthetic_palms(tmp_path, 1, 2, 2, seed=1)[0]
    written = [r.path.stat().st_mtime_ns for r in first]
    again = synthetic_palms(tmp_path, 1, 2, 2, seed=1)[0]
    assert again == first
    assert [r.path.stat().st_mtime_ns for r in again] == written
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("harm", ["missing", "altered", "no manifest", "broken manifest"])
def test_a_harmed_cache_is_made_again(tmp_path, harm):
    first = synthetic_palms(tmp_path, 1, 2, 2, seed=1)[0]
    before = [_pixels(r) for r in first]
    manifest = first[0].path.parents[1] / "manifest.json"
    if harm == "missing":
        first[1].path.unlink()
    elif harm == "altered":
        first[1].path.write_bytes(first[0].path.read_bytes())
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("[]")
    again = synthetic_palms(tmp_path, 1, 2, 2, seed=1)[0]
    for record, pixels in zip(again, before, strict=True):
        np.testing.assert_array_equal(_pixels(record), pixels)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_generation_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(DataError, match="cannot be written"):
            synthetic_palms(tmp_path, 1, 1, 1, seed=1)
    assert list(tmp_path.iterdir()) == []
    assert len(synthetic_palms(tmp_path, 1, 1, 1, seed=1)[0]) == 1


@pytest.mark.parametrize(
    ("arguments", "difficulty", "spread"),
    [
        ((0, 1, 1, 1), 1.0, 1.0),
        ((1, 1, 1, -1), 1.0, 1.0),
        ((1, 10_000, 1, 1), 1.0, 1.0),
        ((1, 1, 1, 1), 3.5, 1.0),
        ((1, 1, 1, 1), 1.0, -0.1),
        ((1, 1, 1, 1), 1.0, float("nan")),
    ],
)
def test_parameters_out_of_range_are_refused(tmp_path, arguments, difficulty, spread):
    with pytest.raises(DataError):
        synthetic_palms(tmp_path, *arguments, difficulty=difficulty, site_spread=spread)


def test_two_images_of_a_palm_differ_more_as_difficulty_rises():
    palm = grow_palm(np.random.default_rng(1))
    sensor = draw_sensor(np.random.default_rng(2))

    def likeness(difficulty: float) -> float:
        views = [capture(palm, sensor, np.random.default_rng(k), difficulty) for k in range(8)]
        flat = np.corrcoef([v.ravel() for v in views])
        return float(flat[~np.eye(8, dtype=bool)].mean())

    easy, middle, hard = likeness(0.0), likeness(1.0), likeness(2.0)
    assert easy > middle > hard


def test_two_images_of_a_palm_are_more_alike_than_two_palms():
    sensor = draw_sensor(np.random.default_rng(2))
    palms = [grow_palm(np.random.default_rng(k)) for k in range(6)]
    views = [
        capture(p, sensor, np.random.default_rng([i, k]), 0.5)
        for i, p in enumerate(palms)
        for k in range(3)
    ]
    likeness = np.corrcoef([v.ravel() for v in views])
    same = np.kron(np.eye(6), np.ones((3, 3))).astype(bool)
    assert likeness[same & ~np.eye(18, dtype=bool)].mean() > likeness[~same].mean() + 0.2


def test_no_pixel_of_a_palm_counts_as_outside():
    palm = grow_palm(np.random.default_rng(1))
    dark = capture(palm, draw_sensor(np.random.default_rng(2)), np.random.default_rng(3), 3.0)
    assert dark.min() >= 1


@given(st.floats(-8, 8))
def test_a_border_point_lies_on_the_border(t):
    x, y = border_point(t)
    assert 0 <= x <= 1
    assert 0 <= y <= 1
    assert min(x, 1 - x, y, 1 - y) < 1e-9


def test_the_border_runs_clockwise_from_the_top_left():
    corners = border_point(np.array([0.0, 1.0, 2.0, 3.0, 4.0, -0.5, 1.5]))
    assert corners.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0], [0, 0.5], [1, 0.5]]


def test_the_control_point_is_off_the_chord_by_the_bulge():
    head, tail = np.array([0.0, 0.0]), np.array([2.0, 0.0])
    assert bezier_control(head, tail, 0.25).tolist() == [1.0, 0.5]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDPALM_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("FEDPALM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "fedpalm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "fedpalm"


def test_a_contact_sheet_lays_the_images_out_in_rows(tmp_path):
    records = synthetic_palms(tmp_path / "cache", 1, 1, 3, seed=1)[0]
    contact_sheet(records, tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (256, 256)
    np.testing.assert_array_equal(pixels[128:, :128], _pixels(records[2]))
    assert (pixels[128:, 128:] == 255).all()


def test_a_contact_sheet_may_set_people_apart(tmp_path):
    records = synthetic_palms(tmp_path / "cache", 2, 2, 2, seed=1)
    contact_sheet(records[0] + records[1], tmp_path / "sheet.png", columns=4, group=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (256, 4 * 128 + 8)
    assert (pixels[:, 256:264] == 255).all()
    np.testing.assert_array_equal(pixels[128:, 264:392], _pixels(records[1][2]))
