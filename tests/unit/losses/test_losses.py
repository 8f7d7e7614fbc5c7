from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedpalm.losses.hybrid import hybrid_loss
from fedpalm.losses.supcon import supervised_contrast
from fedpalm.plan import TrainingSettings
from tests.oracles import losses as oracle


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 1, 2, 3] * 2)
    return torch.randn(10, 16, generator=generator), labels


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_supervised_contrast_equals_the_loop_over_pairs(temperature):
    embeddings, labels = batch()
    expected = oracle.supervised_contrast(embeddings.double().numpy(), labels, temperature)
    assert supervised_contrast(embeddings, labels, temperature).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_supervised_contrast_ignores_the_length_of_an_embedding():
    embeddings, labels = batch()
    lengths = torch.arange(1, 11, dtype=torch.float32)[:, None]
    torch.testing.assert_close(
        supervised_contrast(embeddings * lengths, labels, 0.07),
        supervised_contrast(embeddings, labels, 0.07),
    )


def test_views_of_one_person_that_agree_cost_less_than_views_that_do_not():
    embeddings, _ = batch()
    labels = torch.tensor([0, 1, 2, 3, 4] * 2)
    agreeing = F.one_hot(labels, 16).float()
    assert supervised_contrast(agreeing, labels, 0.07) < 1e-4
    assert supervised_contrast(embeddings, labels, 0.07) > 1


def test_gradients_of_supervised_contrast_are_finite():
    embeddings, labels = batch()
    embeddings.requires_grad_()
    supervised_contrast(embeddings, labels, 0.07).backward()
    assert torch.isfinite(embeddings.grad).all()


def test_hybrid_loss_is_the_weighted_sum_of_its_parts():
    embeddings, labels = batch()
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(7))
    settings = TrainingSettings(cross_entropy_weight=0.8, contrast_weight=0.2)
    loss = hybrid_loss(logits, embeddings, labels, settings)
    torch.testing.assert_close(loss.cross_entropy, F.cross_entropy(logits, labels))
    torch.testing.assert_close(loss.total, 0.8 * loss.cross_entropy + 0.2 * loss.contrast)
