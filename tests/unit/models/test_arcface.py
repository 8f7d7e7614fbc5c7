from __future__ import annotations

import numpy as np
import torch

from fedpalm.models.arcface import ArcFace
from tests.oracles import losses as oracle


def head(prototypes, margin=0.5):
    module = ArcFace(*prototypes.shape, scale=30.0, margin=margin)
    with torch.no_grad():
        module.prototypes.copy_(prototypes)
    return module


def test_logits_equal_the_margin_in_the_angle():
    generator = torch.Generator().manual_seed(4)
    prototypes = torch.randn(5, 3, generator=generator)
    embeddings = torch.cat([torch.randn(40, 3, generator=generator), -prototypes * 1.001])
    labels = torch.cat([torch.arange(40) % 5, torch.arange(5)])
    embeddings[-5:, 0] += 0.05
    expected = oracle.arcface_logits(
        embeddings.double().numpy(), prototypes.double().numpy(), labels.numpy(), 30.0, 0.5
    )
    logits = head(prototypes)(embeddings, labels).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_the_own_logit_falls_with_the_angle_over_the_whole_half_circle():
    angles = torch.linspace(0.001, 3.14, 500)
    embeddings = torch.stack([torch.cos(angles), torch.sin(angles)], dim=1)
    logits = head(torch.tensor([[1.0, 0.0]]))(embeddings, torch.zeros(500, dtype=torch.int64))
    assert (torch.diff(logits[:, 0]) < 0).all()


def test_gradients_stay_finite_where_the_cosine_is_one():
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    module = head(prototypes)
    embeddings = torch.cat([prototypes, -prototypes]).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    torch.nn.functional.cross_entropy(module(embeddings, labels), labels).backward()
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(module.prototypes.grad).all()
