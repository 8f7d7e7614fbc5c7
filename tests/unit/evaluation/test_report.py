"""The report says what the metrics say, and survives JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedpalm.errors import DataError
from fedpalm.evaluation.metrics import auc, d_prime, eer, fnmr_at_fmr, roc
from fedpalm.evaluation.pairs import pool_scores, score_pairs
from fedpalm.evaluation.report import (
    MAX_CURVE_POINTS,
    VerificationReport,
    evaluate_scores,
    evaluate_templates,
)


def _experiment(identities=20, images=5, seed=0, spread=1.3):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), images)
    centres = rng.normal(size=(identities, 24))
    gallery, probe = (centres[labels] + spread * rng.normal(size=(labels.size, 24)) for _ in "gp")
    return gallery.astype(np.float32), labels, probe.astype(np.float32), labels


def test_a_report_holds_the_metrics_of_its_scores():
    experiment = _experiment()
    scores = score_pairs(*experiment)
    report = evaluate_templates(*experiment, seed=1)
    assert report.eer == eer(scores.genuine, scores.impostor)
    assert report.auc == auc(scores.genuine, scores.impostor)
    assert report.d_prime == d_prime(scores.genuine, scores.impostor)
    assert report.fnmr_at == {
        0.01: fnmr_at_fmr(scores.genuine, scores.impostor, 0.01),
        0.001: fnmr_at_fmr(scores.genuine, scores.impostor, 0.001),
    }
    assert report.rank1 == scores.rank1_hits / 100
    assert (report.identities, report.genuine_pairs, report.impostor_pairs) == (20, 500, 9500)
    low, high = report.eer_interval
    assert low < report.eer < high


def test_a_report_survives_json():
    report = evaluate_templates(*_experiment(identities=4, images=2), seed=1)
    assert report.fnmr_at[0.001] is None
    assert VerificationReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_report_of_constant_scores_survives_json():
    labels = np.array([0, 0, 1, 1])
    report = evaluate_templates(np.ones((4, 3)), labels, np.ones((4, 3)), labels, seed=0)
    assert (report.eer, report.auc, report.d_prime, report.rank1) == (0.5, 0.5, None, 0.0)
    assert VerificationReport.from_json(json.loads(json.dumps(report.to_json()))) == report


@pytest.mark.parametrize("spread", [0.01, 1.3, 3.0])
def test_the_thinned_curve_keeps_its_ends_its_order_and_its_shape(spread):
    scores = score_pairs(*_experiment(spread=spread))
    full = roc(scores.genuine, scores.impostor)
    points = np.array(evaluate_scores(scores, seed=0, resamples=1).roc)
    assert 2 <= len(points) <= MAX_CURVE_POINTS
    assert points[0].tolist() == [0.0, 1.0]
    assert points[-1].tolist() == [1.0, 0.0]
    assert (np.diff(points[:, 0]) >= 0).all()
    assert (np.diff(points[:, 1]) <= 0).all()
    area = float(np.trapezoid(1 - points[:, 1], points[:, 0]))
    assert area == pytest.approx(auc(scores.genuine, scores.impostor), abs=2e-3)
    on_curve = set(zip(full.fmr.tolist(), full.fnmr.tolist(), strict=True))
    assert set(map(tuple, points.tolist())) <= on_curve


def test_the_thinned_curve_keeps_points_at_low_fmr():
    points = np.array(evaluate_templates(*_experiment(), seed=0, resamples=1).roc)
    assert ((points[:, 0] > 0) & (points[:, 0] < 0.01)).sum() >= 10


def test_a_report_on_pooled_sites_counts_pairs_within_sites_only():
    sites = [score_pairs(*_experiment(identities=4, images=2, seed=k)) for k in range(3)]
    report = evaluate_scores(pool_scores(sites), seed=0)
    assert report.identities == 12
    assert report.genuine_pairs == 3 * 4 * 4
    assert report.impostor_pairs == 3 * 4 * 3 * 4


@pytest.mark.parametrize(
    "harm",
    [
        {"eer": None},
        {"eer_interval": [0.1]},
        {"fnmr_at": 3},
        {"roc": [[1]]},
        {"genuine_pairs": "many"},
    ],
)
def test_a_malformed_report_is_refused(harm):
    value = evaluate_templates(*_experiment(identities=4, images=2), seed=1).to_json()
    with pytest.raises(DataError, match="malformed"):
        VerificationReport.from_json(value | harm)
    with pytest.raises(DataError, match="malformed"):
        VerificationReport.from_json({})
