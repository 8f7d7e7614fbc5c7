"""Figures of membership inference, and one small training that they are about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedpalm.attack.membership import (
    NOT_PRIVATE,
    PRIVATE,
    MembershipTrial,
    _figures,
    _likeness,
    _nearness,
)


def test_members_that_always_score_higher_are_all_found():
    found = _figures(np.linspace(1, 2, 40), np.linspace(-1, 0, 40))
    assert found == {"auc": 1.0, "auc_error": 0.0, "tpr": 1.0, "fpr": 0.05}


def test_guessing_has_an_auc_of_a_half_with_the_error_of_its_size():
    """Hanley and McNeil at 0.5 is about the Mann-Whitney law's sqrt((n + m + 1) / (12 n m))."""
    rng = np.random.default_rng(1)
    found = [_figures(*rng.normal(size=(2, 30))) for _ in range(300)]
    areas = np.array([one["auc"] for one in found])
    assert np.mean(areas) == pytest.approx(0.5, abs=0.02)
    expected = np.sqrt(61 / (12 * 900))
    assert np.median([one["auc_error"] for one in found]) == pytest.approx(expected, rel=0.05)
    assert areas.std() == pytest.approx(expected, rel=0.2)


def test_likeness_is_the_mean_cosine_of_two_templates_of_a_person():
    templates = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    assert _likeness(templates)[0] == pytest.approx(1 / 3)


def test_nearness_is_to_the_nearest_prototype_of_the_mean():
    templates = np.array([[[1.0, 0.0], [0.8, 0.6]], [[0.0, -1.0], [0.0, -1.0]]])
    prototypes = np.eye(2, dtype=np.float32)
    mean = np.array([0.9, 0.3]) / np.hypot(0.9, 0.3)
    np.testing.assert_allclose(_nearness(templates, prototypes), [mean[0], 0.0], atol=1e-7)


def test_a_trial_trains_and_tells_epsilon_beside_both_attacks(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPALM_CACHE", str(tmp_path))
    privacy = PRIVATE.model_copy(update={"steps": 1, "population": 2})
    trial = MembershipTrial(people=2, images=2, privacy=privacy)
    found = trial.run(1)
    assert (found["members"], found["non_members"]) == (2, 2)
    assert set(found["attacks"]) == {"similarity", "prototype"}
    assert 0 < found["epsilon"] < 5
    without = replace(trial, privacy=NOT_PRIVATE).run(1)
    assert without["epsilon"] is None
    assert all(0 <= one["auc"] <= 1 for one in without["attacks"].values())
