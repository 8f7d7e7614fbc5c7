from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpalm.models.arcface import ArcFace
from fedpalm.models.public_head import PublicHead, public_prototypes


def test_prototypes_are_orthogonal_if_they_fit_and_unit_vectors_if_not():
    fits = public_prototypes(40, 64, 1)
    torch.testing.assert_close(fits @ fits.T, torch.eye(40), atol=1e-6, rtol=0)
    crowded = public_prototypes(100, 64, 1)
    torch.testing.assert_close(crowded.norm(dim=1), torch.ones(100))
    likeness = (crowded @ crowded.T).fill_diagonal_(0).abs().max()
    assert 0 < likeness < 0.7


def test_prototypes_are_the_seeds_and_nobody_elses():
    assert torch.equal(public_prototypes(20, 8, 3), public_prototypes(20, 8, 3))
    assert not torch.equal(public_prototypes(20, 8, 3), public_prototypes(20, 8, 4))


def test_logits_are_arcfaces_with_each_person_at_its_place():
    head = PublicHead(public_prototypes(12, 8, 0), torch.tensor([7, 0, 11]), 30.0, 0.5)
    arcface = ArcFace(12, 8, 30.0, 0.5)
    with torch.no_grad():
        arcface.prototypes.copy_(head.prototypes)
    embeddings = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    torch.testing.assert_close(head(embeddings, labels), arcface(embeddings, head.columns(labels)))
    assert head.columns(labels).tolist() == [7, 0, 11, 11, 0, 7]
    assert arcface.columns(labels).tolist() == labels.tolist()


def test_there_is_nothing_to_train_or_to_keep_but_the_places():
    head = PublicHead(public_prototypes(12, 8, 0), torch.tensor([7, 0]), 30.0, 0.5)
    assert list(head.parameters()) == []
    assert {name: one.tolist() for name, one in head.named_buffers()} == {"places": [7, 0]}


@pytest.mark.parametrize("length", [8, 64])
def test_the_code_prefers_no_direction(length):
    mean = public_prototypes(32, length, 5).mean(dim=0).norm().item()
    assert mean == pytest.approx(np.sqrt(1 / 32), rel=0.35)
