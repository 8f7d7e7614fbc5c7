"""What a plan with differential privacy may not ask for: the refusal, and the leak that it prevents.

The leaks are measured with the refusal gone round: training settings and sites know nothing of it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fedpalm.losses.hybrid import hybrid_loss
from fedpalm.methods.base import RoundContext
from fedpalm.plan import PlanDraft, TrainingSettings
from fedpalm.privacy.randomness import SeededRandom
from tests.support.private_training import (
    ROUNDING,
    Noiseless,
    built,
    people,
    private,
    sums,
    unaugmented,
)

from .conftest import tiny_images

CLIP = 1.0

REFUSED = [
    ({"reproducible": True}, {}, "no noise", "Set reproducible = false"),
    (
        {},
        {"contrast_weight": 0.2, "cross_entropy_weight": 0.8},
        "clipping bounds nobody's influence",
        "Set it to 0",
    ),
    ({"method": "fedbn"}, {}, "statistics of a batch", "Use a method without it"),
    ({}, {"expert_norm": "site"}, "running statistics are not noised", "expert_norm = 'none'"),
    ({}, {"template_normaliser": "federation"}, "is not noised", "Set 'site'"),
]


@pytest.mark.parametrize(("plan", "training", "why", "way_out"), REFUSED)
def test_a_plan_that_would_leak_is_refused_with_the_reason_and_the_way_out(
    plan, training, why, way_out
):
    asked = {"name": "leaky", "method": "fedpalm", "rounds": 3} | plan
    with pytest.raises(ValidationError) as refused:
        PlanDraft(**asked, training=training | {"privacy": {"unit": "subject"}})
    assert why in str(refused.value)
    assert way_out in str(refused.value)
    PlanDraft(**asked, training=training)


# --- a loss or a layer that sees a whole batch ------------------------------------------------------


class Joint:
    """A step as everybody else takes it: one batch of all people, each one's gradient then clipped.

    Every person has two records of 16 values; a linear layer and a head of the same people are trained.
    """

    def __init__(self, settings, norm=False):
        self.settings = settings
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.head = torch.randn(40, 8)

    def gradients(self, records):
        """(people, P) gradients of the layer, clipped; ``records`` (people, 2, 16)."""
        inputs = records.flatten(0, 1)
        labels = torch.arange(len(records)).repeat_interleave(2)
        before = self.layer(inputs).detach().requires_grad_()
        after = self.norm(before)
        loss = hybrid_loss(after @ self.head.T, after, labels, self.settings).total
        # Of the sum, not of the mean: a mean would share out the change of the count as well.
        (rows,) = torch.autograd.grad(loss * len(labels), before)
        by_record = torch.cat([rows[:, :, None] * inputs[:, None, :], rows[:, :, None]], dim=2)
        whole = by_record.view(len(records), 2, -1).sum(dim=1).double()
        return whole * (CLIP / whole.norm(dim=1, keepdim=True)).clamp(max=1)


def neighbours(count=32):
    """A crowd, and what one more brings who is far from them all."""
    crowd = torch.randn(count, 2, 16, generator=torch.Generator().manual_seed(1))
    return crowd, torch.cat([crowd, 30 * crowd[:1]])


def changed_and_influence(joint):
    """How many of the others' gradients one more person changes, and how far their sum moves."""
    without, having = (joint.gradients(records) for records in neighbours())
    apart = (having[:-1] - without).norm(dim=1)
    influence = (having.sum(dim=0) - without.sum(dim=0)).norm().item()
    return int((apart > 1e-4 * CLIP).sum()), influence


COUPLED = TrainingSettings(contrast_weight=0.2, cross_entropy_weight=0.8)
ALONE = TrainingSettings(contrast_weight=0.0, cross_entropy_weight=1.0)


def test_without_what_is_refused_one_person_changes_nobody_elses_gradient():
    changed, influence = changed_and_influence(Joint(ALONE))
    assert changed == 0
    assert influence <= CLIP * ROUNDING


def test_a_contrast_between_people_changes_everybodys_gradient():
    changed, influence = changed_and_influence(Joint(COUPLED))
    assert changed >= 31
    assert influence > 1.1 * CLIP


def test_batch_normalisation_changes_everybodys_gradient():
    changed, influence = changed_and_influence(Joint(ALONE, norm=True))
    assert changed == 32
    assert influence > 2 * CLIP


# --- un-noised state of a site, in the real path ----------------------------------------------------

PEOPLE = tiny_images(0, people=4)


def with_a_bright_one():
    """Four people, and the same without the fourth, whose images have ten times the contrast."""
    images = PEOPLE.images.copy()
    images[PEOPLE.labels == 3] *= 10
    having = type(PEOPLE)(images, PEOPLE.labels, 4)
    return having, people(having, [0, 1, 2])


@pytest.mark.parametrize(("norm", "changed"), [("none", False), ("site", True)])
def test_running_statistics_carry_a_person_who_is_not_drawn_into_everybodys_gradient(
    norm, changed, monkeypatch
):
    """MOON holds what learns against embeddings that they normalise."""
    unaugmented(monkeypatch)
    still = {"dropout": 0.0, "learning_rate": 1e-30, "moon_mu": 100.0}
    training = private({"expert_norm": norm, **still}, clip_norm=CLIP)
    found = []
    for images in with_a_bright_one():
        site = built("moon", training, images, Noiseless())
        shared = site.initial_vector()
        site.train_round(RoundContext(1, 3), shared)
        site.randomness.only = [0, 1, 2]
        found.append(sums(site, 2, shared=shared + np.float32(0.01))[0])
    apart = torch.linalg.norm(found[0] - found[1]).item()
    assert apart > 0.01 * CLIP if changed else apart < 1e-4 * CLIP


def test_running_statistics_are_moved_by_a_person_and_by_no_noise(monkeypatch):
    unaugmented(monkeypatch)
    still = {"dropout": 0.0, "learning_rate": 1e-30}
    leaky = private(still, clip_norm=1e-3, noise_multiplier=100)
    name = "private.expert.small.norm.running_var"
    kept = []
    for images, seed in zip((*with_a_bright_one(), with_a_bright_one()[0]), (1, 1, 2), strict=True):
        site = built("fedbn", leaky, images, SeededRandom(seed))
        site.train_round(RoundContext(1, 3), site.initial_vector())
        kept.append(site.state()[name])
    having, without, other_noise = kept
    assert np.linalg.norm(having - without) > 10 * 1e-3
    np.testing.assert_allclose(having, other_noise, rtol=1e-4)


def test_an_averaged_covariance_carries_a_person_past_clipping_and_noise(monkeypatch):
    unaugmented(monkeypatch)
    leaky = private({"template_normaliser": "federation"}, clip_norm=1e-3, noise_multiplier=100)
    shared = []
    for images, seed in zip((*with_a_bright_one(), with_a_bright_one()[0]), (1, 1, 2), strict=True):
        site = built("fedavg", leaky, images, SeededRandom(seed))
        update = site.train_round(RoundContext(1, 3), site.initial_vector())
        shared.append(site.layout.unflatten(update.delta)["open_set.normaliser.within"])
    having, without, other_noise = shared
    assert np.linalg.norm(having - without) > 10 * 1e-3
    np.testing.assert_array_equal(having, other_noise)


class Overheard(SeededRandom):
    """Remembers the noise that it gave."""

    def __init__(self, seed):
        super().__init__(seed)
        self.noise = []

    def normal(self, shape, std):
        self.noise.append(super().normal(shape, std))
        return self.noise[-1].clone()


def test_noise_from_a_known_seed_can_be_taken_off_again():
    """Whoever knows the seed trains on images of their own; what is left is the clipped sum itself."""
    training = private(clip_norm=CLIP, noise_multiplier=50)
    released = sums(built("fedavg", training, PEOPLE, SeededRandom(1)), 1)[0]
    theirs = type(PEOPLE)(np.zeros_like(PEOPLE.images), PEOPLE.labels, 4)
    sums(built("fedavg", training, theirs, known := Overheard(1)), 1)
    noise = torch.cat([one.flatten() for one in known.noise])
    exact = sums(built("fedavg", training, PEOPLE, Noiseless()), 1)[0]
    assert (released - exact).norm() > 1000 * CLIP
    assert (released - noise - exact).norm() < 0.02 * CLIP
