"""Synthetic signatures: movement by the model, forgeries unlike the writer, the same for a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedpalm.data.signature_capture import draw_desk
from fedpalm.data.signature_image import load_signatures, preflight_signatures
from fedpalm.data.signature_motion import (
    MAX_STROKES,
    MIN_STROKES,
    STEP_S,
    Plan,
    draw_plan,
    forge,
    move,
    sign,
)
from fedpalm.data.signature_sets import open_signatures
from fedpalm.data.synthetic_signatures import synthetic_signatures
from fedpalm.errors import DataError


def _pixels(record):
    with Image.open(record.path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def _one(length=2.0, start=0.1, mu=-1.5, sigma=0.2, theta_s=0.3, theta_e=1.4):
    values = (np.array([value]) for value in (length, start, mu, sigma, theta_s, theta_e))
    return Plan(*values, down=np.array([True]))


@given(seed=st.integers(0, 10**6))
def test_a_plan_keeps_to_the_model_s_ranges(seed):
    plan = draw_plan(np.random.default_rng(seed))
    assert MIN_STROKES <= len(plan.length) <= MAX_STROKES
    assert (plan.length > 0).all() and plan.down.any()
    assert ((plan.mu >= -2.0) & (plan.mu <= -1.0)).all()
    assert ((plan.sigma >= 0.1) & (plan.sigma <= 0.4)).all()
    assert (np.diff(plan.start_s) > 0).all()


def test_a_stroke_has_its_length_its_end_and_the_speed_of_a_lognormal():
    plan = _one()
    path = move(plan, np.random.default_rng(0))
    steps = np.hypot(*np.diff(path.xy, axis=0).T)
    assert steps.sum() == pytest.approx(2.0, rel=0.005)
    turn = plan.theta_e - plan.theta_s
    end = 2.0 / turn * np.array([np.sin(1.4) - np.sin(0.3), np.cos(0.3) - np.cos(1.4)])
    np.testing.assert_allclose(path.xy[-1], end, atol=0.01)
    t = np.arange(len(path.speed)) * STEP_S  # since t0, where the path begins
    density = np.exp(-((np.log(np.maximum(t, 1e-9)) + 1.5) ** 2) / (2 * 0.2**2))
    density /= np.maximum(t, 1e-9) * 0.2 * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(path.speed[2:-2], 2.0 * density[2:-2], atol=0.15)


def test_a_stroke_that_hardly_turns_is_a_line():
    path = move(_one(theta_s=0.5, theta_e=0.5), np.random.default_rng(0))
    direction = np.arctan2(*path.xy[-1][::-1])
    assert direction == pytest.approx(0.5, abs=1e-3)
    assert np.hypot(*path.xy[-1]) == pytest.approx(2.0, rel=0.005)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_a_forgery_is_slower_trembles_and_lifts_the_pen_elsewhere(seed):
    plan = draw_plan(np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    forged = forge(plan, rng)
    assert 1.3 <= forged.slow <= 2.2 and forged.tremor > 0
    assert len(forged.down) != len(plan.down) or (forged.down != plan.down).any()
    slow = move(replace(forged, tremor=0.0), rng)
    fast = move(replace(forged, tremor=0.0, slow=1.0), rng)
    assert len(slow.xy) == pytest.approx(forged.slow * len(fast.xy), abs=2)
    np.testing.assert_allclose(slow.xy[-1], fast.xy[-1], atol=0.02)
    assert np.median(slow.speed) < np.median(fast.speed)


def test_a_forger_is_further_from_the_plan_than_its_writer():
    plan = draw_plan(np.random.default_rng(3))
    genuine, forged = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        genuine.append(np.std(sign(plan, rng).length / plan.length))
        # The same plan with the forger's noise: its strokes are as many where no lift is added.
        copied = forge(plan, rng)
        if len(copied.length) == len(plan.length):
            forged.append(np.std(copied.length / plan.length))
    assert 0.04 < np.mean(genuine) < 0.06
    assert 2.0 * np.mean(genuine) < np.mean(forged) < 4.5 * np.mean(genuine)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return synthetic_signatures(cache, 2, 3, 3, 2, seed=5)


def test_the_same_seed_draws_the_same_images_whatever_else_is_drawn(site, tmp_path):
    fewer = synthetic_signatures(tmp_path, 1, 2, 2, 1, seed=5)[0]
    drawn = {(r.writer, r.kind, r.path.name): _pixels(r) for r in site[0]}
    for record in fewer:
        np.testing.assert_array_equal(
            _pixels(record), drawn[record.writer, record.kind, record.path.name]
        )


def test_every_signature_has_its_own_pixels_and_can_be_used(site, tmp_path):
    records = [record for row in site for record in row]
    other = synthetic_signatures(tmp_path, 1, 1, 1, 1, seed=6)[0]
    assert len({_pixels(r).tobytes() for r in records + other}) == len(records) + 2 == 32
    report = preflight_signatures(records)
    assert (report.images, report.identities) == (30, 6)
    assert not {r.writer for r in site[0]} & {r.writer for r in site[1]}


def test_a_forgery_looks_less_like_the_writer_s_own_than_they_do_to_each_other(site):
    within, across = [], []
    for row in site:
        images = load_signatures(row)
        flat = images.images.reshape(len(row), -1)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        for writer in range(images.classes):
            own = flat[(images.writers == writer) & images.genuine]
            false = flat[(images.writers == writer) & ~images.genuine]
            within.append((own @ own.T)[np.triu_indices(len(own), 1)].mean())
            across.append((own @ false.T).mean())
    assert np.mean(within) > np.mean(across)


def test_a_site_s_folder_is_read_back_by_the_folder_reader(site):
    folder = site[0][0].path.parents[2]
    read = open_signatures(folder)
    assert {(r.path, r.writer, r.kind) for r in read} == {
        (r.path, r.writer, r.kind) for r in site[0]
    }


def test_the_default_set_keeps_its_pixels(site):
    """Whoever changes these figures raises GENERATOR_VERSION."""
    figures = []
    for row in site:
        pixels = np.stack([_pixels(record) for record in row]).astype(float)
        figures.append((pixels.mean(), pixels.std()))
    expected = [(240.072, 22.540), (221.484, 40.019)]
    np.testing.assert_allclose(figures, expected, atol=0.002)


def test_a_harmed_cache_is_made_again(tmp_path):
    first = synthetic_signatures(tmp_path, 1, 1, 2, 0, seed=1)[0]
    before = _pixels(first[0])
    first[0].path.write_bytes(b"")
    again = synthetic_signatures(tmp_path, 1, 1, 2, 0, seed=1)[0]
    np.testing.assert_array_equal(_pixels(again[0]), before)
    assert len(list(tmp_path.iterdir())) == 1


def test_desks_lie_apart_in_proportion_to_the_spread():
    pens = {
        spread: np.std([draw_desk(np.random.default_rng(s), spread).pen_px for s in range(200)])
        for spread in (0.0, 0.5, 1.0)
    }
    assert pens[0.0] == 0.0
    assert pens[0.5] == pytest.approx(pens[1.0] / 2)


@pytest.mark.parametrize(
    "change",
    [
        {"sites": 0},
        {"genuine": 0},
        {"forged": -1},
        {"seed": -1},
        {"difficulty": 3.5},
        {"site_spread": -1},
    ],
)
def test_parameters_out_of_range_draw_nothing(tmp_path, change):
    values = {"sites": 1, "writers_per_site": 1, "genuine": 1, "forged": 1, "seed": 1} | change
    with pytest.raises(DataError):
        synthetic_signatures(tmp_path / "cache", **values)
    assert not (tmp_path / "cache").exists()
