"""Scores and error rates of claims, against plain loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpalm.data.signature_image import load_signature
from fedpalm.data.signature_splits import SignatureTrial, split_signatures
from fedpalm.data.signatures import SignatureRecord
from fedpalm.data.synthetic_signatures import synthetic_signatures
from fedpalm.errors import DataError
from fedpalm.evaluation.metrics import eer
from fedpalm.evaluation.signatures import (
    ClaimScores,
    Forged,
    claim_resamples,
    claim_scores,
    evaluate_claims,
    pool_claims,
    score_claims,
)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    (records,) = synthetic_signatures(tmp_path_factory.mktemp("cache"), 1, 6, 6, 2, seed=3)
    return split_signatures(records, 3, "amber").open


def shrunk(images):
    """(N, 256) templates that keep a little of what an image shows."""
    return images.reshape(len(images), 16, 8, 16, 8).mean(axis=(2, 4)).reshape(len(images), -1)


def drawn(seed=0, writers=5, genuine=4, forged=6, gap=1.0):
    rng = np.random.default_rng(seed)
    of_genuine = np.repeat(np.arange(writers, dtype=np.int32), genuine)
    of_forged = np.repeat(np.arange(writers, dtype=np.int32), forged)
    skilled = Forged(rng.normal(0, 1, of_forged.size), of_forged)
    return ClaimScores(
        rng.normal(gap, 1, of_genuine.size), of_genuine, {"skilled": skilled}, writers
    )


def test_a_claim_is_compared_with_the_name_that_is_claimed_and_counted_for_its_writer():
    def signed(writer, text, number):
        return SignatureRecord(Path(f"{writer}-{text}-{number}"), writer, text=text, author=writer)

    every = {(w, t): [signed(w, t, n) for n in range(2)] for w in "ab" for t in "xy"}
    references = tuple(one[0] for one in every.values())
    genuine = tuple(one[1] for one in every.values())
    simple = (replace(every["b", "x"][1], identity="a", kind="simple"),)
    axes = {key: np.eye(4)[at] for at, key in enumerate(every)}
    templates = {r.path: axes[r.writer, r.text] for one in every.values() for r in one}
    found = score_claims(SignatureTrial(references, genuine, (), simple, ()), templates, 1)
    assert found.genuine.tolist() == [1.0] * 4 and found.genuine_writer.tolist() == [0, 0, 1, 1]
    assert found.forged["simple"].scores.tolist() == [0.0]
    assert found.forged["simple"].writer.tolist() == [0] and found.writers == 2


def test_a_claim_is_scored_against_the_mean_of_the_first_references_as_a_loop_does(trial):
    seen = []

    def embed(images):
        seen.append(len(images))
        return shrunk(images)

    found = claim_scores(trial, embed, 2)

    def template(path):
        one = shrunk(load_signature(path)[None])[0].astype(float)
        return one / np.linalg.norm(one)

    for kind, claims in (
        ("genuine", trial.genuine),
        ("random", trial.random),
        ("skilled", trial.skilled),
    ):
        expected = []
        for claim in claims:
            own = [r for r in trial.references if r.writer == claim.writer][:2]
            mean = sum(template(r.path) for r in own) / 2
            expected.append(mean @ template(claim.path) / np.linalg.norm(mean))
        scores = found.genuine if kind == "genuine" else found.forged[kind].scores
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert "simple" not in found.forged
    paths = {r.path for part in vars(trial).values() for r in part}
    assert seen == [len(paths)], "an image that is several claims is embedded once"


def test_more_references_than_a_writer_has_are_refused(trial):
    with pytest.raises(DataError, match="4 references of every writer"):
        claim_scores(trial, shrunk, 4)


def test_a_template_that_is_nothing_is_refused(trial):
    with pytest.raises(DataError, match="zero or not finite"):
        claim_scores(trial, lambda images: np.zeros((len(images), 4)), 1)


def test_rates_are_those_of_plain_loops():
    scores = drawn()
    report = evaluate_claims(scores, seed=1, resamples=40)["skilled"]
    forged = scores.forged["skilled"]
    assert report.eer == eer(scores.genuine, forged.scores)
    own = [
        eer(scores.genuine[scores.genuine_writer == at], forged.scores[forged.writer == at])
        for at in range(5)
    ]
    assert report.user_eer == pytest.approx(np.mean(own))
    assert report.eer_interval[0] <= report.eer <= report.eer_interval[1]
    assert (report.genuine, report.forged) == (20, 30)


def test_a_draw_is_the_rate_of_the_claims_of_the_drawn_writers_repeated():
    scores = drawn(seed=4)
    forged = scores.forged["skilled"]
    draws = claim_resamples(scores, "skilled", seed=9, resamples=12)
    rng = np.random.Generator(np.random.Philox(9))
    for global_, of_users in zip(draws.eer, draws.user_eer, strict=True):
        picks = rng.integers(0, 5, 5)
        genuine = np.concatenate([scores.genuine[scores.genuine_writer == p] for p in picks])
        false = np.concatenate([forged.scores[forged.writer == p] for p in picks])
        assert global_ == pytest.approx(eer(genuine, false))
        rates = [
            eer(scores.genuine[scores.genuine_writer == p], forged.scores[forged.writer == p])
            for p in picks
        ]
        assert of_users == pytest.approx(np.mean(rates))


def test_two_models_of_one_trial_are_drawn_alike():
    one, other = drawn(seed=4), drawn(seed=4)
    shifted = ClaimScores(
        other.genuine + 1,
        other.genuine_writer,
        {k: Forged(f.scores + 1, f.writer) for k, f in other.forged.items()},
        other.writers,
    )
    first = claim_resamples(one, "skilled", seed=2, resamples=20)
    second = claim_resamples(shifted, "skilled", seed=2, resamples=20)
    np.testing.assert_allclose(first.eer, second.eer)


def test_without_an_error_in_any_draw_the_interval_ends_at_the_rule_of_three():
    report = evaluate_claims(drawn(gap=100.0), seed=1, resamples=20)["skilled"]
    assert report.eer == 0.0
    assert report.eer_interval == (0.0, 3 / 20)


def test_writers_of_different_sites_are_different_and_a_missing_kind_is_left_out():
    one = drawn(seed=1, writers=2)
    forged = one.forged["skilled"]
    two = ClaimScores(one.genuine, one.genuine_writer, {"random": forged}, 2)
    both = pool_claims([one, two])
    assert both.writers == 4
    assert both.genuine_writer.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert set(both.forged["skilled"].writer) == {0, 1}
    assert set(both.forged["random"].writer) == {2, 3}
    assert set(evaluate_claims(both, seed=0, resamples=5)) == {"random", "skilled"}


def test_a_kind_against_nobody_with_genuine_claims_is_left_out():
    forged = Forged(np.array([0.1, 0.2]), np.array([1, 1], np.int32))
    scores = ClaimScores(np.array([0.9]), np.array([0], np.int32), {"simple": forged}, 2)
    assert evaluate_claims(scores, seed=0) == {}


def test_a_trial_without_a_genuine_probe_is_refused(trial):
    empty = SignatureTrial(trial.references, (), trial.skilled, (), ())
    with pytest.raises(DataError, match="no genuine signature"):
        claim_scores(empty, shrunk, 1)
