"""Figures of a set over the sites."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.benchmark.palm.scoring import figures, pack
from fedpalm.evaluation.metrics import eer
from fedpalm.evaluation.pairs import score_pairs


def sets(seed, spread):
    rng = np.random.default_rng(seed)
    labels = np.arange(6).repeat(3)
    found = {}
    for site in ("a", "b"):
        centres = rng.standard_normal((6, 8))
        gallery, probe = centres[labels] + spread * rng.standard_normal((2, 18, 8))
        found[site] = score_pairs(gallery, labels, probe, labels)
    return found


def test_the_mean_is_that_of_the_sites_and_lies_in_its_interval():
    by_site = sets(0, 1.0)
    found = figures(by_site, "open", seed=3, resamples=100)
    each = [eer(one.genuine, one.impostor) for one in by_site.values()]
    assert found["mean"]["eer"] == pytest.approx(np.mean(each))
    assert [found["sites"][site]["eer"] for site in ("a", "b")] == pytest.approx(each)
    low, high = found["mean"]["interval"]
    assert low < found["mean"]["eer"] < high
    assert len(found["draws"]) == 100


def test_two_models_are_resampled_alike_so_that_one_model_differs_from_itself_in_nothing():
    one, same = (figures(sets(0, 1.0), "open", seed=3, resamples=50) for _ in range(2))
    assert one == same
    other = figures(sets(0, 1.0), "open", seed=4, resamples=50)
    assert other["draws"] != one["draws"] and other["mean"]["eer"] == one["mean"]["eer"]


def test_sites_are_drawn_independently():
    by_site = sets(0, 1.0)
    twins = {"a": by_site["a"], "b": by_site["a"]}
    wide = figures({"a": by_site["a"]}, "open", seed=3, resamples=400)
    narrow = figures(twins, "open", seed=3, resamples=400)
    assert np.std(narrow["draws"]) < 0.85 * np.std(wide["draws"])


def test_packed_scores_keep_rates_and_identities():
    by_site = sets(0, 1.0)
    packed = pack({"open": by_site})
    genuine, impostor = packed["open/a/genuine"], packed["open/a/impostor"]
    exact = eer(by_site["a"].genuine, by_site["a"].impostor)
    assert eer(genuine.astype(float), impostor.astype(float)) == pytest.approx(exact, abs=0.01)
    assert (packed["open/a/impostor_identities"] == by_site["a"].impostor_identities).all()
