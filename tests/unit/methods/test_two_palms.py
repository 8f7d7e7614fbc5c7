"""Somebody with two palms has two labels, and is one person to differential privacy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpalm.methods.base import RoundContext
from fedpalm.methods.private import units
from fedpalm.plan import PrivacySettings
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

CLIP = 0.5
PALMS = tiny_images(0, people=3)
OWNERS = np.array([0, 1, 1])
"""Of the three palms: the first person has one, the second two."""
TWO_PALMS = replace(PALMS, people=OWNERS[PALMS.labels])


def influence(method, images):
    """Of the second person on one step's sum."""
    found = [
        sums(built(method, private(clip_norm=CLIP), some, Noiseless()), 1)[-1]
        for some in (images, people(PALMS, [0]))
    ]
    return torch.linalg.norm(found[0] - found[1]).item()


@pytest.mark.parametrize("method", ["fedavg", "fedpalm"])
def test_a_person_with_two_palms_moves_the_sum_by_the_clip_norm_at_most(method, monkeypatch):
    unaugmented(monkeypatch)
    assert 0.9 * CLIP < influence(method, TWO_PALMS) <= CLIP * ROUNDING
    assert influence(method, PALMS) > 1.1 * CLIP, "by palm, the same measurement finds more"


def test_both_palms_of_a_person_are_one_unit_and_k_counts_over_both():
    assert [one.tolist() for one in units(TWO_PALMS, PrivacySettings(unit="subject"))] == [
        [0, 1, 2],
        [3, 4, 5, 6, 7, 8],
    ]
    assert len(units(TWO_PALMS, PrivacySettings(unit="record"))) == 9
    site = built("fedavg", private(records=4, steps=8), TWO_PALMS, Noiseless(only=[1]))
    seen, loss = [], site.loss
    site.loss = lambda batch, dropout: seen.append(batch) or loss(batch, dropout)
    site.train_round(RoundContext(1, 3), site.initial_vector())
    assert {len(batch.labels) for batch in seen} == {2 * 4}
    assert {label for batch in seen for label in batch.labels.tolist()} == {1, 2}
    assert len(set(site.learner.head.places.tolist())) == 3, "a place for each palm"
    for batch in seen:
        images = batch.views % len(PALMS.labels)
        assert torch.equal(batch.labels, torch.from_numpy(PALMS.labels)[images])
