from __future__ import annotations

import numpy as np
import pytest

from fedpalm.errors import LayoutMismatchError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.rules import server_rule
from fedpalm.methods.site import build_site, build_site_method

from .conftest import TRAINING, make_plan, tiny_images


def test_fedavg_shares_the_model_and_keeps_the_head(images):
    method = build_site_method(make_plan("fedavg"), "a", images)
    head = method.state()
    assert set(head) == {"head.open.prototypes"}
    update = method.train_round(RoundContext(1, 3), method.initial_vector())
    assert update.weight == 6
    assert update.delta.shape == (method.layout.size,)
    assert not np.array_equal(head["head.open.prototypes"], method.state()["head.open.prototypes"])


def test_fedavg_retrains_a_round_to_the_same_bytes(images):
    plan = make_plan("fedavg")
    first, second = (build_site_method(plan, "a", images) for _ in range(2))
    shared = first.initial_vector()
    first.train_round(RoundContext(1, 3), shared)
    second.load_state(first.state())
    deltas = [m.train_round(RoundContext(2, 3), shared).delta for m in (first, second)]
    assert deltas[0].tobytes() == deltas[1].tobytes()


def test_fedavg_with_one_site_is_local_training(images):
    fedavg = build_site_method(make_plan("fedavg"), "a", images)
    local = build_site("local", TRAINING, 11, "a", images)
    shared, nothing = fedavg.initial_vector(), local.initial_vector()
    rule = server_rule("fedavg")
    for number in (1, 2):
        update = fedavg.train_round(RoundContext(number, 3), shared)
        shared = rule.step(shared, update.weight * update.delta.astype(np.float64), {"weight": 6.0})
        alone = local.train_round(RoundContext(number, 3), nothing)
        assert alone.delta.shape == (0,)
    assert not np.array_equal(shared, fedavg.initial_vector())
    np.testing.assert_allclose(
        local.open_templates(images.images, nothing),
        fedavg.open_templates(images.images, shared),
        atol=1e-4,
    )


def test_local_state_restores_model_and_head(images):
    first = build_site("local", TRAINING, 11, "a", images)
    nothing = first.initial_vector()
    first.train_round(RoundContext(1, 3), nothing)
    second = build_site("local", TRAINING, 11, "a", images)
    second.load_state(first.state())
    for method in (first, second):
        method.train_round(RoundContext(2, 3), nothing)
    states = [method.state() for method in (first, second)]
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])


def test_methods_without_experts_take_none(images):
    expert = build_site_method(make_plan(), "b", tiny_images(1)).expert()
    for method in (
        build_site_method(make_plan("fedavg"), "a", images),
        build_site("local", TRAINING, 11, "a", images),
    ):
        assert method.expert() == {}
        with pytest.raises(LayoutMismatchError):
            method.receive_expert("b", expert)
        with pytest.raises(LayoutMismatchError):
            method.load_state(method.state() | {"closed_set.expert.x": np.zeros(1, np.float32)})
