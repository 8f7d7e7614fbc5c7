from __future__ import annotations

import numpy as np
import pytest

from fedpalm.methods.base import RoundContext
from fedpalm.methods.normalise import SHRINKAGE, within_class
from fedpalm.methods.site import build_site
from fedpalm.plan import TrainingSettings

PEOPLE, EACH, LENGTH = 30, 20, 6


@pytest.fixture
def people():
    """Unit templates whose first direction differs much within a person, and labels."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((PEOPLE, LENGTH))
    labels = np.repeat(np.arange(PEOPLE), EACH)
    spread = np.array([3.0, 0.1, 0.1, 0.1, 0.1, 0.1])
    templates = centres[labels] + spread * rng.standard_normal((len(labels), LENGTH))
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    return templates.astype(np.float32), labels


def test_the_projection_whitens_the_shrunk_within_class_covariance(people):
    templates, labels = people
    normaliser = within_class(templates, labels)
    covariance = np.zeros((LENGTH, LENGTH))
    for person in range(PEOPLE):
        covariance += EACH * np.cov(templates[labels == person].T, bias=True)
    covariance /= len(templates)
    shrunk = (1 - SHRINKAGE) * covariance
    shrunk += SHRINKAGE * np.trace(covariance) / LENGTH * np.eye(LENGTH)
    whitened = normaliser.projection.T @ shrunk @ normaliser.projection
    np.testing.assert_allclose(whitened, np.eye(LENGTH), atol=1e-4)
    np.testing.assert_allclose(normaliser.mean, templates.mean(axis=0), atol=1e-6)


def test_people_are_further_apart_afterwards(people):
    templates, labels = people
    normalised = within_class(templates, labels)(templates)
    np.testing.assert_allclose(np.linalg.norm(normalised, axis=1), 1.0, atol=1e-5)
    same = labels[:, None] == labels[None, :]

    def gap(rows):
        scores = rows @ rows.T
        return scores[same].mean() - scores[~same].mean()

    assert gap(normalised) > gap(templates) + 0.1


@pytest.mark.parametrize("method", ["local", "fedavg", "fedkd", "fedpalm"])
def test_every_method_can_normalise_what_it_embeds(method, images):
    plain = build_site(method, TrainingSettings(), 5, "a", images)
    normalised = build_site(method, TrainingSettings(normalise_templates=True), 5, "a", images)
    shared = plain.initial_vector()
    for site in (plain, normalised):
        site.train_round(RoundContext(1, 2), shared)
    assert {name: one.tobytes() for name, one in plain.state().items()} == {
        name: one.tobytes() for name, one in normalised.state().items()
    }
    for templates in ("closed_templates", "open_templates"):
        before = getattr(plain, templates)(images.images, shared)
        after = getattr(normalised, templates)(images.images, shared)
        assert after.shape == before.shape
        assert not np.allclose(after, before, atol=1e-2)
        np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1.0, atol=1e-5)
