"""Error rates against an oracle that tries every threshold one by one."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedpalm.errors import DataError
from fedpalm.evaluation.metrics import auc, d_prime, eer, fnmr_at_fmr, least_threshold, roc

_FINE = st.floats(-1, 1, allow_nan=False, width=32)
_TIED = st.integers(-3, 3).map(lambda k: k / 4)


def _scores(elements, most=25):
    return st.lists(elements, min_size=1, max_size=most).map(
        lambda v: np.array(v, dtype=np.float64)
    )


_PAIRS = st.one_of(
    st.tuples(_scores(_FINE), _scores(_FINE)),
    st.tuples(_scores(_TIED), _scores(_TIED)),
    st.tuples(_scores(st.just(0.5)), _scores(st.just(0.5))),
    st.tuples(_scores(st.floats(0.6, 1)), _scores(st.floats(-1, 0.4))),
)


def _oracle(genuine, impostor) -> list[tuple[Fraction, Fraction]]:
    """(FMR, FNMR) at every distinct score as threshold, from "nothing matches" to "all match"."""
    points = [(Fraction(0), Fraction(1))]
    for threshold in sorted({*genuine.tolist(), *impostor.tolist()}, reverse=True):
        fmr = Fraction(sum(s >= threshold for s in impostor.tolist()), len(impostor))
        fnmr = Fraction(sum(s < threshold for s in genuine.tolist()), len(genuine))
        points.append((fmr, fnmr))
    return points


def _oracle_eer(points) -> Fraction:
    for (fmr0, fnmr0), (fmr1, fnmr1) in pairwise(points):
        if fnmr1 <= fmr1:
            # fmr0 + t (fmr1 - fmr0) = fnmr0 + t (fnmr1 - fnmr0)
            t = (fnmr0 - fmr0) / ((fmr1 - fmr0) - (fnmr1 - fnmr0))
            return fmr0 + t * (fmr1 - fmr0)
    raise AssertionError("the curve never crosses")


@given(_PAIRS)
def test_roc_has_every_operating_point(pair):
    genuine, impostor = pair
    curve = roc(genuine, impostor)
    points = _oracle(genuine, impostor)
    np.testing.assert_allclose(curve.fmr, [float(f) for f, _ in points], atol=1e-12)
    np.testing.assert_allclose(curve.fnmr, [float(f) for _, f in points], atol=1e-12)
    assert np.isinf(curve.thresholds[0])


@given(_PAIRS)
def test_eer_is_where_the_interpolated_roc_crosses_the_diagonal(pair):
    genuine, impostor = pair
    assert eer(genuine, impostor) == pytest.approx(
        float(_oracle_eer(_oracle(genuine, impostor))), abs=1e-12
    )


@given(_PAIRS)
def test_auc_is_the_chance_of_the_genuine_score_being_higher_with_ties_half(pair):
    genuine, impostor = pair
    wins = sum((g > i) + (g == i) / 2 for g in genuine for i in impostor)
    assert auc(genuine, impostor) == pytest.approx(wins / (genuine.size * impostor.size), abs=1e-12)


@given(_PAIRS)
def test_auc_is_scikit_learns(pair):
    genuine, impostor = pair
    truth = np.r_[np.ones(genuine.size), np.zeros(impostor.size)]
    assert auc(genuine, impostor) == pytest.approx(roc_auc_score(truth, np.r_[genuine, impostor]))


@given(_PAIRS, st.sampled_from([0.2, 0.3, 0.5, 1.0]))
def test_fnmr_at_fmr_is_the_least_fnmr_that_keeps_the_fmr(pair, fmr):
    genuine, impostor = pair
    got = fnmr_at_fmr(genuine, impostor, fmr)
    if impostor.size * fmr < 3 - 1e-9:
        assert got is None
    else:
        best = min(fnmr for rate, fnmr in _oracle(genuine, impostor) if float(rate) <= fmr)
        assert got == pytest.approx(float(best), abs=1e-12)


@given(_PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_scores_does_not_matter(pair, shuffle):
    genuine, impostor = (np.array(shuffle.sample(s.tolist(), s.size)) for s in pair)
    assert eer(genuine, impostor) == eer(*pair)
    assert auc(genuine, impostor) == auc(*pair)


@given(_PAIRS)
def test_rates_are_those_of_the_angular_distance(pair):
    """arccos(score) / pi falls as the cosine rises: on well separated scores, the same decisions."""
    genuine, impostor = (np.round(s * 8) / 8 for s in pair)
    angular = [1 - np.arccos(s) / np.pi for s in (genuine, impostor)]
    assert eer(*angular) == pytest.approx(eer(genuine, impostor), abs=1e-12)
    assert auc(*angular) == pytest.approx(auc(genuine, impostor), abs=1e-12)


def test_separated_equal_and_reversed_scores_have_their_known_rates():
    high, low, same = np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3]), np.full(4, 0.5)
    assert eer(high, low) == 0.0
    assert auc(high, low) == 1.0
    assert eer(same, same) == 0.5
    assert auc(same, same) == 0.5
    assert eer(low, high) == 1.0
    assert auc(low, high) == 0.0


@pytest.mark.parametrize(("impostors", "told"), [(299, False), (300, True)])
def test_three_over_the_fmr_impostor_pairs_are_needed(impostors, told):
    rng = np.random.default_rng(0)
    got = fnmr_at_fmr(rng.normal(2, 1, 50), rng.normal(0, 1, impostors), 0.01)
    assert (got is not None) == told


def test_d_prime_of_two_known_distributions():
    genuine, impostor = np.array([1.0, 3.0]), np.array([-1.0, 1.0])
    assert d_prime(genuine, impostor) == pytest.approx(2.0)
    assert d_prime(impostor, genuine) == pytest.approx(-2.0)


def test_d_prime_of_constant_scores_has_no_value():
    assert d_prime(np.ones(3), np.zeros(3)) is None
    assert d_prime(np.array([0.1] * 3), np.array([0.1] * 7)) is None


@pytest.mark.parametrize("metric", [eer, auc, d_prime, roc])
@pytest.mark.parametrize(
    ("genuine", "impostor", "says"),
    [
        ([], [0.1], "no genuine scores"),
        ([0.1], [], "no impostor scores"),
        ([float("nan")], [0.1], "genuine pair is not finite"),
        ([0.1], [float("inf")], "impostor pair is not finite"),
    ],
)
def test_scores_that_mean_nothing_are_refused(metric, genuine, impostor, says):
    with pytest.raises(DataError, match=says):
        metric(np.array(genuine), np.array(impostor))


@pytest.mark.parametrize("fmr", [0.0, -0.1, 1.5])
def test_an_fmr_outside_its_range_is_refused(fmr):
    with pytest.raises(DataError, match="not in"):
        fnmr_at_fmr(np.ones(3), np.zeros(300), fmr)


@given(_PAIRS, st.sampled_from([0.05, 0.2, 0.5, 1.0]))
def test_a_threshold_for_a_rate_decides_as_it_says_and_is_the_most_lenient(pair, target):
    genuine, impostor = pair
    threshold, fmr, fnmr = least_threshold(roc(genuine, impostor), target)
    assert np.isfinite(threshold)
    assert fmr == pytest.approx((impostor >= threshold).mean()) and fmr <= target
    assert fnmr == pytest.approx((genuine < threshold).mean(), abs=1e-12)
    best = min(float(miss) for rate, miss in _oracle(genuine, impostor) if float(rate) <= target)
    assert fnmr == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("target", [0.0, -0.1, 1.1])
def test_a_threshold_for_no_rate_is_refused(target):
    with pytest.raises(DataError):
        least_threshold(roc(np.array([0.9]), np.array([0.1])), target)
