from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpalm.losses.guidance import guide

VECTORS = hnp.arrays(np.float64, (5,), elements=st.floats(-100, 100, allow_subnormal=False))


def gradients(array):
    """Of two tensors."""
    flat = torch.from_numpy(array)
    return [flat[:2], flat[2:]]


@given(VECTORS, VECTORS, st.floats(0.05, 0.95))
@settings(max_examples=300)
def test_the_combination_never_points_up_for_either_task_where_they_are_opposed(u, f, weight):
    guidance = guide(gradients(u), gradients(f), weight)
    d = torch.cat(guidance.combined(gradients(u), gradients(f))).numpy()
    assert guidance.user_weight + guidance.forged_weight == pytest.approx(1)
    if guidance.opposed:
        slack = 1e-9 * (1 + u @ u + f @ f)
        assert d @ u >= -slack
        assert d @ f >= -slack
        for a in np.linspace(0, 1, 21):
            other = a * u + (1 - a) * f
            assert d @ d <= other @ other + slack, "a shorter one lies between them"
    else:
        assert (guidance.user_weight, guidance.forged_weight) == (1 - weight, weight)


def test_agreeing_gradients_keep_the_plain_weights_and_so_does_a_vanishing_one():
    u, f = np.array([1.0, 0, 0, 0, 0]), np.array([3.0, 1, 0, 0, 0])
    assert guide(gradients(u), gradients(f), 0.3).user_weight == pytest.approx(0.7)
    assert guide(gradients(u), gradients(0 * f), 0.3)[:2] == (0.0, 0.7)


def test_without_guidance_opposed_gradients_keep_the_plain_weights_too():
    u, f = np.array([1.0, 0, 0, 0, 0]), np.array([-3.0, 1, 0, 0, 0])
    assert guide(gradients(u), gradients(f), 0.3, opposed=False).user_weight == pytest.approx(0.7)
    assert guide(gradients(u), gradients(f), 0.3).user_weight == pytest.approx(13 / 17)


def descend(opposed, steps=30):
    """Two quadratics of one representation x; the first is steeper, and their valleys cross."""
    x = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    history = []
    for _ in range(steps):
        user = 20 * (x[0] + x[1] - 1.0).square() + 0.1 * (x[0] - x[1]).square()
        forged = 0.5 * (x[0] - 2.0).square() + 0.5 * (x[1] - 1.0).square()
        history.append((user.item(), forged.item()))
        (u,) = torch.autograd.grad(user, x)
        (f,) = torch.autograd.grad(forged, x)
        guidance = guide([u], [f], 0.5, opposed=opposed)
        if len(history) == 1:
            assert guidance.opposed
        with torch.no_grad():
            x -= 0.01 * guidance.combined([u], [f])[0]
    return history


def test_with_opposed_gradients_both_losses_fall_with_guidance_and_one_rises_without():
    guided, plain = descend(opposed=True), descend(opposed=False)
    for (user, forged), (user_after, forged_after) in pairwise(guided):
        assert user_after <= user
        assert forged_after <= forged
    assert guided[-1][0] < guided[0][0]
    assert guided[-1][1] < guided[0][1]
    assert plain[-1][0] < plain[0][0]
    assert plain[-1][1] > 1.5 * plain[0][1]
