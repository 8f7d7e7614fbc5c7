"""Intervals that know that scores of one person hang together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import DataError
from fedpalm.evaluation.bootstrap import _Levels, eer_interval, rate_intervals
from fedpalm.evaluation.metrics import eer
from fedpalm.evaluation.pairs import pool_scores, score_pairs


def _set(identities, images, seed, spread=1.0, decimals=12):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), images)
    centres = rng.normal(size=(identities, 12))
    gallery, probe = (centres[labels] + spread * rng.normal(size=(labels.size, 12)) for _ in "gp")
    scores = score_pairs(gallery, labels, probe, labels)
    scores.genuine[:] = np.round(scores.genuine, decimals)
    scores.impostor[:] = np.round(scores.impostor, decimals)
    return scores


@given(
    seed=st.integers(0, 1000),
    times=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    decimals=st.sampled_from([1, 12]),
)
@settings(max_examples=60)
def test_weights_equal_writing_each_pair_out_as_often_as_it_was_drawn(seed, times, decimals):
    if sum(t > 0 for t in times) < 2:
        times = [1, 2, 0, 1]
    scores = _set(4, 2, seed, decimals=decimals)
    drawn = np.array(times)
    genuine = np.repeat(scores.genuine, drawn[scores.genuine_identity])
    pairs = scores.impostor_identities
    impostor = np.repeat(scores.impostor, drawn[pairs[:, 0]] * drawn[pairs[:, 1]])
    weighted = _Levels(scores).eer(drawn.astype(np.float64))
    assert weighted == pytest.approx(eer(genuine, impostor), abs=1e-12)


def test_the_interval_is_seeded_and_holds_the_estimate():
    scores = _set(12, 4, 0, spread=1.5)
    low, high = eer_interval(scores, seed=3)
    assert (low, high) == eer_interval(scores, seed=3)
    assert (low, high) != eer_interval(scores, seed=4)
    assert 0 <= low < eer(scores.genuine, scores.impostor) < high <= 1


def test_more_confidence_is_wider():
    scores = _set(12, 4, 0, spread=1.5)
    low, high = eer_interval(scores, seed=3, confidence=0.95)
    inner_low, inner_high = eer_interval(scores, seed=3, confidence=0.5)
    assert low < inner_low < inner_high < high


def test_copies_of_an_image_do_not_narrow_the_interval():
    """Ten copies of every probe are no new evidence; resampling single scores would think so."""
    rng = np.random.default_rng(1)
    labels = np.arange(10)
    centres = rng.normal(size=(10, 6))
    gallery, probe = (centres + 1.2 * rng.normal(size=(10, 6)) for _ in "gp")
    once = score_pairs(gallery, labels, probe, labels)
    often = score_pairs(gallery, labels, np.repeat(probe, 10, axis=0), np.repeat(labels, 10))
    assert eer_interval(often, seed=0) == pytest.approx(eer_interval(once, seed=0), abs=1e-9)


def test_pooled_sites_are_each_drawn_in_full():
    """With one identity in a site, that identity is in every draw: its pairs never vanish."""
    first = _set(2, 3, 0)
    pooled = pool_scores([first, _set(2, 3, 1), _set(2, 3, 2)])
    low, high = eer_interval(pooled, seed=0, resamples=50)
    assert 0 <= low <= high <= 1


def test_perfect_separation_leaves_room_for_what_so_few_pairs_cannot_show():
    labels = np.array([0, 0, 1, 1, 2, 2])
    templates = np.eye(3)[labels]
    scores = score_pairs(templates, labels, templates, labels)
    assert eer_interval(scores, seed=0) == (0.0, 3 / len(scores.genuine))


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (10, 0.0), (10, 1.0)])
def test_bounds_that_make_no_interval_are_refused(resamples, confidence):
    with pytest.raises(DataError, match="an interval needs"):
        eer_interval(_set(3, 2, 0), seed=0, resamples=resamples, confidence=confidence)


def test_draws_without_both_kinds_of_pair_are_made_again():
    """With two identities every second draw repeats one of them and holds no impostor pair."""
    low, high = eer_interval(_set(2, 2, 0, spread=2.0), seed=0, resamples=50)
    assert 0 <= low <= high <= 1


def test_the_rates_at_a_threshold_lie_in_their_intervals_and_follow_the_seed():
    scores = _set(12, 4, 5, spread=1.6)
    threshold = float(np.quantile(scores.impostor, 0.9))
    fmr = float((scores.impostor >= threshold).mean())
    fnmr = float((scores.genuine < threshold).mean())
    found = rate_intervals(scores, threshold, seed=1)
    for rate, (low, high) in zip((fmr, fnmr), found, strict=True):
        assert low <= rate <= high and high - low < 0.5
    assert rate_intervals(scores, threshold, seed=1) == found
    assert rate_intervals(scores, threshold, seed=2) != found
    wider = rate_intervals(scores, threshold, seed=1, confidence=0.99)
    assert wider[0][1] - wider[0][0] > found[0][1] - found[0][0]


def test_a_threshold_without_errors_has_the_rule_of_three_for_an_end():
    scores = _set(6, 3, 0, spread=0.01)
    fmr, fnmr = rate_intervals(scores, 0.9, seed=0)
    assert fmr == (0.0, 3.0 / scores.impostor.size)
    assert fnmr == (0.0, 3.0 / scores.genuine.size)


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (10, 0.0), (10, 1.0)])
def test_rates_without_an_interval_are_refused(resamples, confidence):
    with pytest.raises(DataError):
        rate_intervals(_set(4, 2, 0), 0.5, seed=0, resamples=resamples, confidence=confidence)
