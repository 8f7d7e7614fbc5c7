from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpalm.models.teim import Teim, route
from tests.oracles import losses as oracle


def features(others, batch=6, length=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, length, generator=generator),
        torch.randn(others, batch, length, generator=generator),
    )


def teim(neighbours, alpha, beta):
    module = Teim(neighbours)
    with torch.no_grad():
        module.alpha.fill_(alpha)
        module.beta.fill_(beta)
    return module


@pytest.mark.parametrize(("neighbours", "others"), [(1, 4), (3, 4), (3, 8), (8, 8), (3, 1)])
def test_routing_and_fusion_equal_the_equations_image_by_image(neighbours, others):
    anchor, rest = features(others)
    routed = teim(neighbours, 0.7, 0.3)(anchor, rest)
    expected, chosen = oracle.teim(anchor.numpy(), rest.numpy(), neighbours, 0.7, 0.3)
    np.testing.assert_allclose(routed.feature.detach().numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(routed.chosen.numpy(), chosen)


def test_beta_zero_and_alpha_one_is_no_interaction():
    anchor, rest = features(5)
    assert torch.equal(teim(3, 1.0, 0.0)(anchor, rest).feature, anchor)


def test_a_pool_smaller_than_k_is_used_whole():
    anchor, rest = features(2)
    assert route(anchor, rest, 3).shape == (2, 6)
    assert teim(3, 0.0, 1.0)(anchor, rest).chosen.tolist() == [6, 6]


def test_the_most_similar_expert_is_routed_per_image_whatever_its_length():
    anchor, rest = features(3)
    rest[1, :3] = 0.01 * anchor[:3]
    rest[2, 3:] = 100 * anchor[3:]
    assert route(anchor, rest, 1)[0].tolist() == [1, 1, 1, 2, 2, 2]


def test_alpha_and_beta_learn():
    anchor, rest = features(3)
    module = teim(3, 0.7, 0.3)
    module(anchor, rest).feature.pow(2).sum().backward()
    assert module.alpha.grad.abs() > 0
    assert module.beta.grad.abs() > 0
