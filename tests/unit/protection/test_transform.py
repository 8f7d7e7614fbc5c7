"""Cancelable templates: one key, one transform, on every machine; another key, another identity."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import spearmanr

from fedpalm.errors import TemplateError
from fedpalm.protection import KEY_BYTES, Transform, score, scores

LENGTH, SIZE = 512, 512
SPREAD = 0.5 / np.sqrt(8 * SIZE)
"""Standard deviation of a score by chance."""


def key(number: int) -> bytes:
    return hashlib.sha256(b"test key %d" % number).digest()


def gaussians(rows: int, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """(rows, length) float32, directions alike likely."""
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.standard_normal((rows, length)).astype(np.float32)


def at_cosine(base: np.ndarray, cosines: np.ndarray, seed: int) -> np.ndarray:
    """A row for every cosine, at that cosine to ``base`` (D,)."""
    unit = base / np.linalg.norm(base)
    other = gaussians(len(cosines), len(base), seed)
    other -= np.outer(other @ unit, unit)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return (np.outer(cosines, unit) + np.sqrt(1 - cosines**2)[:, None] * other).astype(np.float32)


# --- the same everywhere --------------------------------------------------------------------------


def whole_numbers(rows: int, length: int) -> np.ndarray:
    """Templates that no library's random numbers have a part in."""
    return (np.arange(rows * length, dtype=np.int64) ** 2 * 7919 % 2003 - 1001).reshape(
        rows, length
    ).astype(np.float32)  # fmt: skip


def test_signs_are_those_of_the_first_release_on_every_machine():
    """Stored templates are compared with new ones: a change here asks every subject to enrol again."""
    found = Transform.of(bytes(range(32)), 512).apply(whole_numbers(2, 512))
    assert found.shape == (2, 512) and found.dtype == np.uint8
    assert found[0, :12].tolist() == [192, 237, 91, 177, 223, 147, 13, 177, 135, 144, 234, 135]
    assert hashlib.sha256(found.tobytes()).hexdigest() == (
        "1167c75f81d9927e4ef7dd71ac6ed9339f1f9a23a44dfbceb0c49dcf8fa1c06c"
    )
    padded = Transform.of(bytes(range(32)), 300).apply(whole_numbers(2, 300))
    assert hashlib.sha256(padded.tobytes()).hexdigest() == (
        "f7531efc96431d082cb0ba043d2d039c47e018c1ec4ba2d35c6454475d666cdb"
    )


@pytest.mark.parametrize(("length", "size_bytes"), [(512, 512), (300, 100), (3, 5)])
def test_signs_are_those_of_rotated_templates(length, size_bytes):
    """Against dense matrices, put together from the keystream by another way."""
    transform = Transform.of(key(0), length, size_bytes=size_bytes)
    flips = transform._flips[:, :, 0, :].astype(np.float64)
    _, size, blocks = flips.shape
    template = gaussians(1, length)[0]
    padded = np.zeros(size)
    padded[:length] = template
    coordinates = []
    for block in range(blocks):
        turned = padded
        for one in flips[:, :, block]:
            turned = sylvester(size) @ (one * turned)
        assert np.isclose(turned @ turned, float(size) ** 3 * padded @ padded)  # a rotation
        coordinates.append(turned)
    expected = np.concatenate(coordinates)[: 8 * size_bytes]
    found = np.unpackbits(transform.apply(template[None])[0], bitorder="little")
    assert found.tolist() == (expected > 0).tolist()


def sylvester(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def test_a_batch_is_transformed_as_its_rows_one_by_one():
    templates, transform = gaussians(70), Transform.of(key(1), LENGTH)
    alone = np.concatenate([transform.apply(row[None]) for row in templates])
    assert np.array_equal(transform.apply(templates), alone)
    assert transform.apply(templates[:0]).shape == (0, SIZE)


@settings(max_examples=40)
@given(
    template=arrays.arrays(
        np.float32, 40, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    ).filter(lambda row: np.abs(row).max() > 1e-20),
    power=st.integers(-40, 40),
    secret=st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
)
def test_only_the_direction_counts(template, power, secret):
    transform = Transform.of(secret, 40)
    found = transform.apply(template[None])
    # Powers of two are exact. What falls below the smallest number has another direction.
    scaled = np.ldexp(template, power)
    if np.array_equal(np.ldexp(scaled, -power), template):
        assert np.array_equal(transform.apply(scaled[None]), found)


def test_the_largest_numbers_do_not_overflow():
    template = gaussians(1)
    huge = template * np.float32(2.0**125 / 2)
    assert np.isfinite(huge).all()
    transform = Transform.of(key(2), LENGTH)
    assert np.array_equal(transform.apply(huge), transform.apply(template))


# --- what is kept, and what is not ----------------------------------------------------------------


@pytest.mark.parametrize("length", [LENGTH, 256])
def test_one_key_keeps_the_order_of_similarity(length):
    base = gaussians(1, length)[0]
    cosines = np.linspace(-0.2, 0.98, 60)
    transform = Transform.of(key(3), length)
    reference = transform.apply(base[None])[0]
    found = scores(transform.apply(at_cosine(base, cosines, seed=1)), reference)
    assert spearmanr(cosines, found).statistic > 0.99
    assert np.abs(found - (1 - np.arccos(cosines) / np.pi)).max() < 5 * SPREAD  # the angle itself
    assert scores(reference, reference) == 1.0


@pytest.mark.parametrize("length", [LENGTH, 256])
def test_different_keys_make_unrelated_templates_of_one_person(length):
    """50 keys: all pairs within five standard deviations of chance, their mean within four of its own."""
    template = gaussians(1, length)
    made = np.concatenate([Transform.of(key(10 + n), length).apply(template) for n in range(50)])
    pairs = scores(made[:, None], made[None])[np.triu_indices(50, 1)]
    assert abs(pairs.mean() - 0.5) < 4 * SPREAD / np.sqrt(len(pairs))
    assert np.abs(pairs - 0.5).max() < 5 * SPREAD


@pytest.mark.parametrize("shape", ["one feature", "all alike", "two features", "short"])
def test_no_sign_is_preferred_for_templates_that_are_far_from_even(shape):
    """What a rotation hides least well: a template along an axis. Within 1 % of the signs over 60 keys."""
    length = 3 if shape == "short" else LENGTH
    template = np.zeros((1, length), dtype=np.float32)
    template[0, : {"all alike": LENGTH, "two features": 2}.get(shape, 1)] = 1.0
    made = np.concatenate([Transform.of(key(100 + n), length).apply(template) for n in range(60)])
    signs = np.unpackbits(made, axis=1)
    assert abs(signs.mean() - 0.5) < 0.01
    assert np.abs(signs.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(60)  # nor at any one place


def test_length_and_size_are_part_of_the_key():
    template = gaussians(1, 256)
    first = Transform.of(key(4), 512).apply(np.pad(template, ((0, 0), (0, 256))))
    padded = Transform.of(key(4), 511).apply(np.pad(template, ((0, 0), (0, 255))))
    fewer = Transform.of(key(4), 512, size_bytes=511).apply(np.pad(template, ((0, 0), (0, 256))))
    assert abs(scores(first, padded)[0] - 0.5) < 5 * SPREAD
    assert abs(scores(first[:, :511], fewer)[0] - 0.5) < 5 * SPREAD


def test_nothing_printed_tells_the_key():
    secret = key(5)
    transform = Transform.of(secret, LENGTH)
    with pytest.raises(TemplateError) as caught:
        Transform.of(secret + b"x", LENGTH)
    for text in (repr(transform), str(transform), str(caught.value)):
        assert secret.hex() not in text and repr(secret) not in text


# --- scores ---------------------------------------------------------------------------------------


def test_many_scores_are_those_of_pairs_one_by_one():
    transform = Transform.of(key(6), LENGTH)
    probes, references = transform.apply(gaussians(5)), transform.apply(gaussians(7, seed=1))
    found = scores(probes[:, None], references)
    assert found.shape == (5, 7)
    for i, probe in enumerate(probes):
        assert scores(probe, references).tolist() == found[i].tolist()
        for j, reference in enumerate(references):
            assert score(probe, reference) == found[i, j]


def test_a_score_is_the_part_of_equal_signs():
    probe = np.array([0b0000_0000, 0b1111_1111], dtype=np.uint8)
    assert score(probe, np.array([0b0000_0111, 0b1111_1110], dtype=np.uint8)) == 0.75
    assert score(probe, ~probe) == 0.0 and score(probe, probe) == 1.0


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_of_another_size_is_refused(size):
    with pytest.raises(TemplateError, match=f"{size} bytes"):
        Transform.of(bytes(size), LENGTH)


@pytest.mark.parametrize(
    "given", [{"length": 0}, {"length": 65_537}, {"size_bytes": 0}, {"size_bytes": 65_537}]
)
def test_parameters_out_of_range_are_refused(given):
    with pytest.raises(TemplateError):
        Transform.of(key(0), **({"length": LENGTH} | given))


@pytest.mark.parametrize("shape", [(512,), (1, 511), (1, 513), (1, 1, 512)])
def test_templates_of_another_shape_are_refused(shape):
    with pytest.raises(TemplateError, match="512"):
        Transform.of(key(0), LENGTH).apply(np.ones(shape, dtype=np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_template_that_is_not_finite_is_refused(value):
    templates = gaussians(3)
    templates[1, 7] = value
    with pytest.raises(TemplateError, match="zero or not finite"):
        Transform.of(key(0), LENGTH).apply(templates)


def test_a_zero_template_is_refused_and_not_given_a_direction():
    templates = gaussians(3)
    templates[2] = 0.0
    with pytest.raises(TemplateError, match="zero or not finite"):
        Transform.of(key(0), LENGTH).apply(templates)


@pytest.mark.parametrize(
    ("probe", "reference"),
    [
        (np.zeros(4, np.uint8), np.zeros(5, np.uint8)),
        (np.zeros(1, np.uint8), np.zeros(4, np.uint8)),
        (np.zeros(4, np.int64), np.zeros(4, np.uint8)),
        (np.zeros((1, 4), np.uint8), np.zeros(4, np.uint8)),
        (np.zeros(0, np.uint8), np.zeros(0, np.uint8)),
    ],
    ids=["another m", "one byte", "not bytes", "not a row", "nothing"],
)
def test_what_is_not_of_one_transform_is_not_compared(probe, reference):
    with pytest.raises(TemplateError, match="protected templates"):
        score(probe, reference)


def test_protection_needs_neither_torch_nor_scikit_learn():
    told = "import sys, fedpalm.protection; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
