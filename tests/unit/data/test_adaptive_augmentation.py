"""Adaptive augmentation: targets reached exactly, strength by the formula, the truth of a sample kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.data.adaptive_augmentation import (
    Target,
    adaptive_augmentation,
    growth,
    redrawn,
    target_size,
)
from fedpalm.data.signature_capture import capture, draw_desk
from fedpalm.data.signature_image import MARGIN_PX, frame, read_signature, standardise_ink
from fedpalm.data.signature_motion import draw_plan, move
from fedpalm.data.signatures import SignatureImages
from fedpalm.errors import DataError

sizes_of_subsets = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4
).filter(lambda sizes: any(map(any, sizes)))
targets = st.builds(Target, st.floats(0.0, 1.0), st.sampled_from((0.0, 0.5, 1.0, 1.5, 2.0)))


def _signature(seed: int) -> np.ndarray:
    """A scribble of its own, prepared."""
    rng = np.random.default_rng(seed)
    ink = np.zeros((90, 120), dtype=np.float32)
    walk = np.cumsum(rng.normal(0, 1.2, (260, 2)), axis=0)
    at = np.clip(walk + np.array([45, 60]), 2, 87).astype(int)
    for row, column in at:
        ink[row - 1 : row + 2, column - 1 : column + 2] = 255
    return standardise_ink(frame(ink))


SCRIBBLES = [_signature(seed) for seed in range(12)]


def _written(seed: int) -> np.ndarray:
    """A synthetic signature, prepared: strokes as thin as real ones."""
    rng = np.random.default_rng(seed)
    pixels = capture(move(draw_plan(rng), rng), draw_desk(rng), rng)
    return standardise_ink(read_signature(pixels).ink)


def _images(sizes: list[tuple[int, int]]) -> SignatureImages:
    rows = [
        (writer, genuine)
        for writer, (own, false) in enumerate(sizes)
        for genuine, count in ((True, own), (False, false))
        for _ in range(count)
    ]
    return SignatureImages(
        np.stack([SCRIBBLES[at % 12] for at in range(len(rows))])[:, None],
        np.array([writer for writer, _ in rows], dtype=np.int64),
        np.array([genuine for _, genuine in rows]),
        len(sizes),
    )


def _count(images: SignatureImages, writer: int, genuine: bool) -> int:
    return int(((images.writers == writer) & (images.genuine == genuine)).sum())


@settings(max_examples=15)
@given(sizes=sizes_of_subsets, target=targets, seed=st.integers(0, 99))
def test_every_subset_reaches_the_target_exactly_and_none_is_made_of_nothing(sizes, target, seed):
    images = _images(sizes)
    more = adaptive_augmentation(
        images,
        mode="adaptive",
        target=target,
        strength_max=0.8,
        rng=np.random.default_rng(seed),
    )
    size = target_size(images, target)
    present = [n for pair in sizes for n in pair if n]
    assert size == target.times * np.quantile(present, target.quantile)
    for writer, pair in enumerate(sizes):
        for genuine, n in zip((True, False), pair, strict=True):
            assert _count(more, writer, genuine) == (max(n, math.ceil(size)) if n else 0)
    np.testing.assert_array_equal(more.images[: len(images.images)], images.images)
    assert more.classes == images.classes


@given(sizes=sizes_of_subsets, target=targets, strength=st.floats(0.0, 1.0))
def test_strength_is_s_max_times_what_is_missing(sizes, target, strength):
    images = _images(sizes)
    size = target_size(images, target)
    for subset in growth(images, "adaptive", target, strength):
        missing = max(0.0, 1.0 - subset.samples / size) if size else 0.0
        assert subset.strength == pytest.approx(strength * missing)
        assert subset.copies == max(0, math.ceil(size - subset.samples))
        assert 0.0 <= subset.strength <= strength


def test_with_a_target_above_the_largest_subset_no_kind_is_told_by_having_copies():
    """Else only the few forgeries would be changed ones, and to be changed would mean to be forged."""
    images = _images([(6, 2), (6, 2)])
    by_kind = {
        times: {
            one.genuine for one in growth(images, "adaptive", Target(1.0, times), 1.0) if one.copies
        }
        for times in (1.0, 2.0)
    }
    assert by_kind == {1.0: {False}, 2.0: {True, False}}


@given(sizes=sizes_of_subsets, target=targets)
def test_uniform_spends_what_adaptive_spends_in_proportion_to_the_sizes(sizes, target):
    images = _images(sizes)
    adaptive = growth(images, "adaptive", target, 0.6)
    uniform = growth(images, "uniform", target, 0.6)
    copies = sum(subset.copies for subset in adaptive)
    assert sum(subset.copies for subset in uniform) == copies
    spent = [sum(s.copies * s.strength for s in each) for each in (adaptive, uniform)]
    assert spent[0] == pytest.approx(spent[1])
    assert len({subset.strength for subset in uniform}) == 1
    total = sum(subset.samples for subset in uniform)
    assert all(abs(s.copies - copies * s.samples / total) < 1 for s in uniform)


def test_a_copy_stays_what_its_original_is(monkeypatch):
    """Copies are marked by their original instead of redrawn: none crosses over to another subset."""
    sizes = [(5, 2), (1, 3), (0, 4)]
    images = _images(sizes)
    marked = SignatureImages(
        np.broadcast_to(
            np.arange(len(images.images), dtype=np.float32)[:, None, None, None],
            images.images.shape,
        ),
        images.writers,
        images.genuine,
        images.classes,
    )
    monkeypatch.setattr(
        "fedpalm.data.adaptive_augmentation.redrawn", lambda image, strength, rng: image
    )
    for mode in ("uniform", "adaptive"):
        more = adaptive_augmentation(
            marked,
            mode=mode,
            target=Target(1.0, 2.0),
            strength_max=1.0,
            rng=np.random.default_rng(1),
        )
        assert len(more.images) > len(images.images)
        original = more.images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(more.writers, images.writers[original])
        np.testing.assert_array_equal(more.genuine, images.genuine[original])
        used = np.bincount(original[len(images.images) :], minlength=len(images.images))
        for writer in range(3):
            for genuine in (True, False):
                turns = used[(images.writers == writer) & (images.genuine == genuine)]
                assert turns.size == 0 or turns.max() - turns.min() <= 1


def test_off_changes_nothing():
    images = _images([(4, 1), (2, 0)])
    same = adaptive_augmentation(
        images, mode="off", target=Target(1.0, 2.0), strength_max=1.0, rng=np.random.default_rng(0)
    )
    assert same is images


def test_the_same_generator_state_gives_the_same_copies_and_another_gives_others():
    images = _images([(4, 1), (2, 0)])

    def drawn(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return adaptive_augmentation(
            images, mode="adaptive", target=Target(1.0, 2.0), strength_max=0.7, rng=rng
        ).images

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert (drawn(1) != drawn(2)).any()


@settings(max_examples=20)
@given(at=st.integers(0, 11), seed=st.integers(0, 10**6), strength=st.floats(0.01, 1.0))
def test_a_copy_is_framed_and_weighed_as_a_prepared_signature_is(at, seed, strength):
    copy = redrawn(SCRIBBLES[at], strength, np.random.default_rng(seed))
    assert copy.shape == (128, 128) and copy.dtype == np.float32
    assert np.isfinite(copy).all() and (copy >= 0).all()
    assert (copy**2).sum() / copy.sum() == pytest.approx(1.0, rel=1e-4)
    assert (copy[:MARGIN_PX] == 0).all() and (copy[:, -MARGIN_PX:] == 0).all()
    rows, columns = np.flatnonzero(copy.any(axis=1)), np.flatnonzero(copy.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) >= 128 - 2 * MARGIN_PX - 2


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6])
def test_copies_are_on_average_as_bold_and_as_sharp_as_their_originals(strength):
    """Else a network would learn that forgeries, being fewer and copied more, have soft strokes."""

    def bold(image: np.ndarray) -> float:
        return float((image > 0.3).mean())

    def sharp(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image, axis=0)).sum() / image.sum())

    originals = [_written(seed) for seed in range(24)]
    rng = np.random.default_rng(0)
    pairs = [(image, redrawn(image, strength, rng)) for image in originals]
    for measure in (bold, sharp):
        ratio = np.mean([measure(copy) / measure(image) for image, copy in pairs])
        assert 0.9 < ratio < 1.15


def test_a_stronger_copy_is_further_from_its_original():
    def distance(strength: float) -> float:
        return float(
            np.mean(
                [
                    np.abs(redrawn(image, strength, np.random.default_rng(at)) - image).mean()
                    for at, image in enumerate(SCRIBBLES)
                ]
            )
        )

    distances = [distance(strength) for strength in (0.0, 0.1, 0.4, 1.0)]
    assert distances[0] == 0.0
    assert distances == sorted(distances)


@pytest.mark.parametrize(
    ("mode", "target", "strength"),
    [
        ("more", Target(1.0, 2.0), 0.5),
        ("adaptive", Target(1.5, 2.0), 0.5),
        ("adaptive", Target(-0.1, 2.0), 0.5),
        ("adaptive", Target(1.0, -0.5), 0.5),
        ("adaptive", Target(1.0, float("inf")), 0.5),
        ("adaptive", Target(1.0, float("nan")), 0.5),
        ("adaptive", Target(1.0, 2.0), 1.1),
    ],
)
def test_settings_out_of_range_are_refused(mode, target, strength):
    with pytest.raises(DataError):
        growth(_images([(2, 1)]), mode, target, strength)
