"""Which comparisons are made, and what is identified."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import DataError
from fedpalm.evaluation.pairs import pool_scores, score_pairs


def _templates(labels, seed, spread=0.6):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(100, 16))
    return (centres[labels] + spread * rng.normal(size=(len(labels), 16))).astype(np.float32)


def _set(labels, seed=0):
    labels = np.asarray(labels, dtype=np.int64)
    return score_pairs(_templates(labels, seed), labels, _templates(labels, seed + 1), labels)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
)
def test_every_probe_meets_every_gallery_template_once(gallery_labels, probe_labels):
    a, b = np.array(gallery_labels), np.array(probe_labels)
    g, p = _templates(a, 1), _templates(b, 2)
    names = sorted({*gallery_labels, *probe_labels})
    genuine, impostor = [], []
    for j, probe_label in enumerate(probe_labels):
        for i, gallery_label in enumerate(gallery_labels):
            x, y = g[i].astype(float), p[j].astype(float)
            cosine = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            pair = (names.index(gallery_label), names.index(probe_label))
            if gallery_label == probe_label:
                genuine.append((cosine, pair[0]))
            else:
                impostor.append((cosine, *pair))
    if not genuine or not impostor:
        with pytest.raises(DataError, match="form no"):
            score_pairs(g, a, p, b)
        return
    scores = score_pairs(g, a, p, b)
    np.testing.assert_allclose(scores.genuine, [s for s, _ in genuine], atol=1e-9)
    assert scores.genuine_identity.tolist() == [k for _, k in genuine]
    np.testing.assert_allclose(scores.impostor, [s for s, *_ in impostor], atol=1e-9)
    assert scores.impostor_identities.tolist() == [list(k) for _, *k in impostor]
    assert scores.identities == len(names)


def test_length_of_a_template_does_not_matter():
    labels = np.array([0, 0, 1, 1])
    g, p = _templates(labels, 1), _templates(labels, 2)
    one, two = score_pairs(g, labels, p, labels), score_pairs(g * 7, labels, p / 3, labels)
    np.testing.assert_allclose(one.genuine, two.genuine, atol=1e-6)
    np.testing.assert_allclose(one.impostor, two.impostor, atol=1e-6)


def test_rank_one_counts_probes_whose_best_score_is_their_own():
    gallery = np.array([[1.0, 0.0], [0.0, 1.0]])
    probe = np.array([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [1.0, 1.0]])
    scores = score_pairs(gallery, np.array([0, 1]), probe, np.array([0, 1, 1, 0]))
    # right, wrong, right, and a tie with another identity: a miss
    assert (scores.rank1_hits, scores.rank1_probes) == (2, 4)


def test_rank_one_leaves_out_probes_without_a_mate():
    gallery, probe = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0]])
    scores = score_pairs(gallery, np.array([0, 1]), probe, np.array([0, 9]))
    assert (scores.rank1_hits, scores.rank1_probes) == (1, 1)


def test_identical_templates_identify_nobody():
    labels = np.array([0, 0, 1, 1])
    scores = score_pairs(np.ones((4, 8)), labels, np.ones((4, 8)), labels)
    assert (scores.rank1_hits, scores.rank1_probes) == (0, 4)
    assert np.ptp(np.r_[scores.genuine, scores.impostor]) == 0


def test_pooling_keeps_scores_identities_and_sites_apart():
    one, two, three = _set([0, 0, 1, 1]), _set([0, 1, 2], 5), _set([4, 4, 7, 7], 9)
    pooled = pool_scores([one, pool_scores([two, three])])
    assert pooled.genuine.tolist() == [*one.genuine, *two.genuine, *three.genuine]
    assert pooled.impostor.size == one.impostor.size + two.impostor.size + three.impostor.size
    assert pooled.site_of_identity.tolist() == [0, 0, 1, 1, 1, 2, 2]
    sites = pooled.site_of_identity[pooled.impostor_identities]
    assert (sites[:, 0] == sites[:, 1]).all()
    assert pooled.genuine_identity.max() == 6
    assert pooled.rank1_probes == 4 + 3 + 4
    assert pooled.rank1_hits == one.rank1_hits + two.rank1_hits + three.rank1_hits


@pytest.mark.parametrize(
    ("gallery", "labels", "says"),
    [
        (np.zeros((0, 4)), np.zeros(0, int), "need"),
        (np.ones(4), np.zeros(4, int), "need"),
        (np.ones((2, 4)), np.zeros(3, int), "need"),
        (np.ones((2, 5)), np.array([0, 1]), "5 features"),
        (np.array([[1.0] * 4, [0.0] * 4]), np.array([0, 1]), "zero or not finite"),
        (np.array([[1.0] * 4, [np.nan] * 4]), np.array([0, 1]), "zero or not finite"),
        (np.ones((2, 4)), np.array([5, 6]), "no genuine pair"),
    ],
)
def test_templates_that_cannot_be_compared_are_refused(gallery, labels, says):
    with pytest.raises(DataError, match=says):
        score_pairs(gallery, labels, np.eye(4)[:2], np.array([0, 1]))


def test_one_identity_alone_is_refused():
    with pytest.raises(DataError, match="no impostor pair"):
        _set([3, 3])


def test_no_score_set_is_refused():
    with pytest.raises(DataError, match="no score sets"):
        pool_scores([])
