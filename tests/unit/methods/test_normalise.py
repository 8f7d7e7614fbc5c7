from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpalm.methods.base import RoundContext
from fedpalm.methods.normalise import SHRINKAGE, UNIT, OwnPeople, covariance_within, normaliser
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
    made = normaliser(templates.mean(axis=0), covariance_within(templates, labels))
    covariance = np.zeros((LENGTH, LENGTH))
    for person in range(PEOPLE):
        covariance += EACH * np.cov(templates[labels == person].T, bias=True)
    covariance /= len(templates)
    shrunk = (1 - SHRINKAGE) * covariance
    shrunk += SHRINKAGE * np.trace(covariance) / LENGTH * np.eye(LENGTH)
    whitened = made.projection.T @ shrunk @ made.projection
    np.testing.assert_allclose(whitened, np.eye(LENGTH), atol=1e-4)


def test_people_are_further_apart_afterwards(people):
    templates, labels = people
    normalised = OwnPeople(
        templates.mean(axis=0), covariance_within(templates, labels)
    ).normaliser()(templates)
    np.testing.assert_allclose(np.linalg.norm(normalised, axis=1), 1.0, atol=1e-5)
    same = labels[:, None] == labels[None, :]

    def gap(rows):
        scores = rows @ rows.T
        return scores[same].mean() - scores[~same].mean()

    assert gap(normalised) > gap(templates) + 0.1


@pytest.mark.parametrize("kind", ["site", "federation"])
@pytest.mark.parametrize("method", ["local", "fedavg", "fedkd", "fedpalm"])
def test_every_method_can_normalise_what_it_embeds(method, kind, images):
    plain = build_site(method, TrainingSettings(), 5, "a", images)
    normalised = build_site(method, TrainingSettings(template_normaliser=kind), 5, "a", images)
    for site in (plain, normalised):
        site.train_round(RoundContext(1, 2), site.initial_vector())
    trained = normalised.state()
    for name, tensor in plain.state().items():
        assert trained[name].tobytes() == tensor.tobytes(), f"{name}: it changes no training"
    templates = [
        (
            site.open_templates(images.images, site.initial_vector()),
            site.closed_templates(images.images, site.initial_vector()),
        )
        for site in (plain, normalised)
    ]
    (before, closed), (after, closed_too) = templates
    assert closed.tobytes() == closed_too.tobytes()
    assert after.shape == before.shape
    assert not np.allclose(after, before, atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("method", ["fedavg", "fedpalm"])
def test_the_shared_covariance_is_that_of_the_model_as_it_came(method, images):
    training = TrainingSettings(template_normaliser="federation")
    site = build_site(method, training, 5, "a", images)
    shared = site.initial_vector()
    update = site.train_round(RoundContext(1, 2), shared)
    covariance = site.layout.unflatten(update.delta)["open_set.normaliser.within"] * UNIT
    assert np.linalg.eigvalsh(covariance).min() > -1e-6
    again = site.layout.unflatten(site.train_round(RoundContext(1, 2), shared).delta)
    np.testing.assert_array_equal(again["open_set.normaliser.within"] * UNIT, covariance)


def test_the_own_and_the_shared_covariance_count_alike(people):
    templates, labels = people
    own = OwnPeople(templates.mean(axis=0), covariance_within(templates, labels))
    theirs = OwnPeople(own.mean, np.diag([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) / 100)
    expected = normaliser(own.mean, (own.within + theirs.within) / 2)
    np.testing.assert_allclose(
        own.normaliser(theirs.to_share()).projection, expected.projection, rtol=1e-5
    )
    alone = own.normaliser(torch.zeros(LENGTH, LENGTH)).projection
    np.testing.assert_array_equal(alone, own.normaliser().projection)
