"""What one person moves of a step's sum, measured: at most C, whatever the person's images are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedpalm.models.public_head import PublicHead, public_prototypes
from fedpalm.plan import PrivacySettings
from fedpalm.privacy.optimizer import PersonOptimizer
from tests.support.private_training import (
    ROUNDING,
    Noiseless,
    built,
    people,
    private,
    sums,
    unaugmented,
)
from tests.unit.methods.conftest import tiny_images

CLIP = 0.5
SETTINGS = PrivacySettings(unit="subject", clip_norm=CLIP, sampling_rate=1, population=1)
EVERYBODY = 6

PERSON = st.fixed_dictionaries(
    {
        "records": st.integers(1, 40),
        "scale": st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e12, 1e30, np.inf, np.nan]),
        "duplicates": st.booleans(),
        "constant": st.booleans(),
        "seed": st.integers(0, 5),
    }
)
"""Inputs of a small network; gradients of the weights grow with the scale."""


def records(person, label):
    """(n, 24) inputs and their labels."""
    drawn = torch.Generator().manual_seed(person["seed"])
    inputs = torch.randn(person["records"], 24, generator=drawn)
    if person["duplicates"]:
        inputs = inputs[:1].repeat(person["records"], 1)
    if person["constant"]:
        inputs = torch.ones_like(inputs)
    return inputs * person["scale"], torch.full((person["records"],), label)


def network():
    """Two layers behind the public head; the second is behind a bend, so that nothing is linear."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
    return body, PublicHead(public_prototypes(20, 8, 0), torch.arange(EVERYBODY), 30.0, 0.5)


def by_person(inputs, labels):
    """As a step takes them: all images of a person in one batch."""
    return [(inputs, labels)]


def by_record(inputs, labels):
    """Plain DP-SGD: every record is clipped alone."""
    return list(zip(inputs.split(1), labels.split(1), strict=True))


def split(inputs, labels):
    """A person's images in two batches, as Opacus's BatchMemoryManager may cut them."""
    return list(zip(inputs.chunk(2), labels.chunk(2), strict=True))


def clipped_sum(everybody, cut):
    """(P,) float64; what is clipped has an id of its own, or the guard would refuse it."""
    body, head = network()
    optimizer = PersonOptimizer(torch.optim.SGD(body.parameters(), lr=1.0), SETTINGS, Noiseless())
    parts = [part for one in everybody for part in cut(*one)]
    for number, (inputs, labels) in enumerate(parts):
        loss = F.cross_entropy(head(body(inputs), labels), labels)
        optimizer.add(number, loss)
    return torch.cat([optimizer._sum(p).flatten() for p in body.parameters()])


def influence(everybody, at, cut=by_person):
    """How far the sum moves when the person at a place is taken out."""
    whole = [records(person, label) for label, person in enumerate(everybody)]
    rest = whole[:at] + whole[at + 1 :]
    return torch.linalg.norm(clipped_sum(whole, cut) - clipped_sum(rest, cut)).item()


def within_the_bound(everybody, at, cut=by_person):
    assert influence(everybody, at, cut) <= CLIP * ROUNDING


@given(st.lists(PERSON, min_size=1, max_size=EVERYBODY), st.data())
def test_one_person_moves_the_sum_by_the_clip_norm_at_most(everybody, data):
    within_the_bound(everybody, data.draw(st.integers(0, len(everybody) - 1)))


ORDINARY = {"scale": 1.0, "duplicates": False, "constant": False}
CROWD = [{"records": 4, "seed": seed, **ORDINARY} for seed in range(3)]
MANY_ALIKE = {"records": 20, "seed": 3, "scale": 1.0, "duplicates": True, "constant": False}


def test_the_bound_is_reached():
    assert influence([*CROWD, MANY_ALIKE], 3) > 0.99 * CLIP


@pytest.mark.parametrize(("cut", "times"), [(by_record, 20), (split, 2)])
def test_the_same_measurement_finds_records_clipped_alone_and_a_person_split(cut, times):
    within_the_bound([*CROWD, MANY_ALIKE], 3)
    with pytest.raises(AssertionError):
        within_the_bound([*CROWD, MANY_ALIKE], 3, cut)
    assert influence([*CROWD, MANY_ALIKE], 3, cut) == pytest.approx(times * CLIP, rel=1e-3)


# --- real sites: two of them that differ in one person, through train_round ---------------------------

METHODS = ["fedavg", "fedkd", "fednova", "fedpalm", "fedpalm-release", "fedper", "fedprox", "hyperfed",
           "moon"]  # fmt: skip
CROWDED = tiny_images(0, people=3)


def adversarial(how):
    """The site with its last person's images replaced."""
    images = CROWDED.images.copy()
    own = images[CROWDED.labels == 2]
    replaced = {
        "huge": own * 1e6,
        "duplicates": np.repeat(own[:1], len(own), axis=0),
        "blank": np.zeros_like(own),
        "not finite": np.full_like(own, np.nan),
    }
    images[CROWDED.labels == 2] = replaced[how]
    return type(CROWDED)(images, CROWDED.labels, 3)


def influence_at_a_site(method, images, training, number=1):
    """Of the last of three people on one step's sum."""
    found = [
        sums(built(method, training, some, Noiseless()), number)[-1]
        for some in (images, people(images, [0, 1]))
    ]
    return torch.linalg.norm(found[0] - found[1]).item()


@pytest.mark.parametrize("method", METHODS)
def test_one_person_moves_the_sum_of_a_real_site_by_the_clip_norm_at_most(method, monkeypatch):
    unaugmented(monkeypatch)
    training = private(clip_norm=CLIP)
    moved = influence_at_a_site(method, CROWDED, training)
    assert 0.9 * CLIP < moved <= CLIP * ROUNDING


@pytest.mark.parametrize("how", ["huge", "duplicates", "blank", "not finite"])
@pytest.mark.parametrize("method", ["fedavg", "fedpalm"])
def test_so_does_an_adversarial_one(method, how, monkeypatch):
    unaugmented(monkeypatch)
    training = private(clip_norm=CLIP, records=2)
    # In the second of three rounds FedPalm's TEIM listens to the frozen expert.
    assert influence_at_a_site(method, adversarial(how), training, 2) <= CLIP * ROUNDING
