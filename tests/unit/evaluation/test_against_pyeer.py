"""Operating points and EER against pyeer, which others report biometric results with.

pyeer gives an interval, [low, high] of FMR and FNMR at the threshold next to the crossing, and its
midpoint; ours is where the lines between the operating points cross, which lies inside. pyeer's curve
ends at the highest score, so it has no crossing if that score alone lets too many impostors in.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyeer.eer_stats import calculate_roc, get_eer_values

from fedpalm.evaluation.metrics import eer, roc


def theirs(genuine, impostor):
    """(low, high, midpoint) of the EER by pyeer, through its own ROC."""
    _, fmr, fnmr = calculate_roc(genuine, impostor)
    if fmr[-1] > fnmr[-1]:
        return fnmr[-1], fmr[-1], None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, low, high, midpoint = get_eer_values(fmr, fnmr)
    return low, high, midpoint


def assert_alike(genuine, impostor):
    thresholds, fmr, fnmr = calculate_roc(genuine, impostor)
    curve = roc(genuine, impostor)
    assert np.isinf(curve.thresholds[0])
    np.testing.assert_array_equal(curve.thresholds[:0:-1], thresholds)
    np.testing.assert_allclose(curve.fmr[:0:-1], fmr, atol=1e-12)
    np.testing.assert_allclose(curve.fnmr[:0:-1], fnmr, atol=1e-12)
    low, high, midpoint = theirs(genuine, impostor)
    ours = eer(genuine, impostor)
    assert low - 1e-12 <= ours <= high + 1e-12
    if midpoint is not None:
        assert abs(ours - midpoint) <= (high - low) / 2 + 1e-12


def arrays(values, most=60):
    return st.lists(values, min_size=1, max_size=most).map(lambda v: np.array(v, dtype=np.float64))


FINE = st.floats(-1, 1, allow_nan=False, width=32).map(lambda value: value + 0.0)
TIED = st.integers(-3, 3).map(lambda k: k / 4)


@given(st.one_of(st.tuples(arrays(FINE), arrays(FINE)), st.tuples(arrays(TIED), arrays(TIED))))
def test_any_scores_have_the_points_and_the_eer_of_pyeer(pair):
    assert_alike(*pair)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 900), (300, 300), (2000, 5000)])
def test_normal_scores_of_every_overlap(shift, sizes):
    rng = np.random.default_rng(len(sizes))
    genuine, impostor = rng.normal(shift, 1, sizes[0]), rng.normal(0, 1, sizes[1])
    assert_alike(genuine, impostor)
    _, _, midpoint = theirs(genuine, impostor)
    if midpoint is not None:
        assert eer(genuine, impostor) == pytest.approx(midpoint, abs=1 / min(sizes))


@pytest.mark.parametrize(
    ("genuine", "impostor"),
    [
        ([0.9, 0.8], [0.1, 0.2, 0.3]),
        ([0.1, 0.2], [0.8, 0.9, 0.7]),
        ([0.5] * 4, [0.5] * 3),
        ([0.5] * 4, [0.5, 0.4]),
        ([0.5, 0.4], [0.5] * 4),
        ([0.0], [0.0]),
        ([1.0], [-1.0]),
        ([-1.0, 1.0], [-1.0, 1.0]),
    ],
)
def test_degenerate_scores(genuine, impostor):
    assert_alike(np.array(genuine), np.array(impostor))


def test_where_rates_meet_at_a_threshold_both_say_the_same():
    rng = np.random.default_rng(0)
    for _ in range(20):
        genuine, impostor = rng.normal(1, 1, 400), rng.normal(0, 1, 400)
        low, high, midpoint = theirs(genuine, impostor)
        assert low == high
        assert eer(genuine, impostor) == pytest.approx(midpoint, abs=1e-12)
