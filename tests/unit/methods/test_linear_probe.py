"""The head that a judged model is given: of the features alone, whatever the head was before."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fedpalm.methods.linear_probe import fit_head
from fedpalm.methods.training import drawn_head
from fedpalm.plan import TrainingSettings


def crowded():
    """40 embeddings of four writers; four times as much in common as apart."""
    draw = torch.Generator().manual_seed(3)
    writers = torch.arange(40) % 4
    directions, common = torch.randn(4, 256, generator=draw), torch.randn(256, generator=draw)
    noise = torch.randn(40, 256, generator=draw)
    return directions[writers] + 4 * common + 0.3 * noise, writers


def head_of(seed, classes=4):
    return drawn_head(classes, 256, TrainingSettings(), seed)


def test_the_fitted_head_tells_writers_apart_that_a_drawn_one_cannot():
    embeddings, writers = crowded()
    head = head_of(1)

    def told():
        cosines = F.linear(F.normalize(embeddings), F.normalize(head.prototypes))
        return (cosines.argmax(dim=1) == writers).float().mean().item()

    before = F.cross_entropy(head(embeddings, writers), writers).item()
    assert told() < 0.6
    fit_head(head, embeddings, writers)
    assert told() == 1
    assert F.cross_entropy(head(embeddings, writers), writers).item() < before / 2


def test_the_fitted_head_is_the_same_whatever_it_was_before():
    embeddings, writers = crowded()
    one, other = head_of(1), head_of(2)
    for head in (one, other, other):
        fit_head(head, embeddings, writers)
    assert torch.equal(one.prototypes, other.prototypes)
    assert one.prototypes.grad is None


def test_a_writer_without_a_signature_keeps_a_prototype_that_is_finite():
    embeddings, writers = crowded()
    head = head_of(1, classes=5)
    fit_head(head, embeddings, writers)
    assert torch.isfinite(head.prototypes).all()
    assert F.cosine_similarity(head.prototypes[4], head_of(1, 5).prototypes[4], dim=0) > 0.2
