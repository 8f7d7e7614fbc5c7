from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch.nn.functional import normalize

from fedpalm.errors import LayoutMismatchError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.site import build_site_method
from fedpalm.models.build import prepare
from fedpalm.plan import TrainingSettings, warm_up_rounds

from .conftest import TRAINING, make_plan, tiny_images


def same(one, other):
    return set(one) == set(other) and all(one[n].tobytes() == other[n].tobytes() for n in one)


def train(method, shared, *rounds, of=3):
    updates = [method.train_round(RoundContext(number, of), shared) for number in rounds]
    return updates[-1]


@pytest.mark.parametrize(("rounds", "expected"), [(1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (12, 4)])
def test_warm_up_is_the_first_third_of_the_rounds_and_one_at_least(rounds, expected):
    assert warm_up_rounds(rounds) == expected


def test_the_closed_set_expert_learns_in_the_first_third_and_is_frozen_afterwards(images):
    method = build_site_method(make_plan(), "a", images)
    shared = method.initial_vector()
    initial = method.expert()
    warm = train(method, shared, 1)
    learnt = method.expert()
    assert not same(initial, learnt)
    assert warm.metrics["teim.on"] == 0
    state = method.state()
    late = train(method, shared, 2, 3)
    assert same(learnt, method.expert())
    assert late.metrics["teim.on"] == 1
    after = method.state()
    assert not np.array_equal(
        state["closed_set.embedding.weight"], after["closed_set.embedding.weight"]
    )
    assert state["closed_set.teim.beta"] != after["closed_set.teim.beta"]


def test_teim_moves_only_when_it_is_on_and_reports_what_it_routes(images):
    method = build_site_method(make_plan(), "a", images)
    shared = method.initial_vector()
    delta = method.layout.unflatten(train(method, shared, 1).delta)
    assert delta["open_set.teim.alpha"] == delta["open_set.teim.beta"] == 0
    late = train(method, shared, 2)
    delta = method.layout.unflatten(late.delta)
    assert delta["open_set.teim.beta"] != 0
    assert late.metrics["routing.open.a"] == 1
    assert late.metrics["routing.closed._global"] == 1
    assert late.metrics["teim.open.beta"] == pytest.approx(0.3 + delta["open_set.teim.beta"])


def test_with_beta_zero_open_templates_are_those_without_teim(images):
    training = TRAINING.model_copy(update={"teim_alpha": 1.0, "teim_beta": 0.0})
    method = build_site_method(make_plan(training=training), "a", images)
    shared = method.initial_vector()
    method.receive_expert("b", build_site_method(make_plan(), "b", tiny_images(1)).expert())
    without = method.open_templates(images.images, shared)
    state = method.state() | {"progress.interacting": np.array(1, np.uint8)}
    method.load_state(state)
    np.testing.assert_allclose(
        method.open_templates(images.images, shared), without, rtol=0, atol=1e-6
    )


def test_a_round_trained_again_from_the_stored_state_gives_the_same_bytes(images):
    plan = make_plan()
    first = build_site_method(plan, "a", images)
    shared = first.initial_vector()
    one = train(first, shared, 1)
    stored = safetensors.numpy.save(first.state())
    moved = shared + one.delta
    two = train(first, moved, 2)
    second = build_site_method(plan, "a", images)
    second.load_state(safetensors.numpy.load(stored))
    again = train(second, moved, 2)
    assert two.delta.tobytes() == again.delta.tobytes()
    assert two.metrics == again.metrics
    assert same(first.state(), second.state())
    three, three_again = (train(method, moved, 3) for method in (first, second))
    assert three.delta.tobytes() == three_again.delta.tobytes()


def test_sites_and_rounds_draw_different_views(images):
    plan = make_plan()
    shared = build_site_method(plan, "a", images).initial_vector()
    deltas = [
        train(build_site_method(plan, site, images), shared, number).delta
        for site, number in (("a", 2), ("b", 2), ("a", 3))
    ]
    assert not np.array_equal(deltas[0], deltas[1])
    assert not np.array_equal(deltas[0], deltas[2])


def test_received_experts_join_the_pool_and_the_state(images):
    plan = make_plan(sites=("a", "b", "c"))
    methods = {
        site: build_site_method(plan, site, tiny_images(number))
        for number, site in enumerate(plan.roster)
    }
    shared = methods["a"].initial_vector()
    for method in methods.values():
        train(method, shared, 1, 2)
    alone = methods["a"].open_templates(images.images, shared)
    experts = {site: method.expert() for site, method in methods.items()}
    for site, method in methods.items():
        for sender in experts.keys() - {site}:
            method.receive_expert(sender, experts[sender])
    together = [method.open_templates(images.images, shared) for method in methods.values()]
    assert not np.allclose(alone, together[0])
    assert all(templates.tobytes() == together[0].tobytes() for templates in together)
    restored = build_site_method(plan, "a", tiny_images(0))
    restored.load_state(methods["a"].state())
    assert restored.open_templates(images.images, shared).tobytes() == together[0].tobytes()


def test_templates_follow_every_change_of_the_experts(images):
    """After each change the site that was asked before answers as one that was never asked."""
    plan = make_plan(sites=("a", "b", "c"))
    asked = build_site_method(plan, "a", images)
    shared = asked.initial_vector()
    initial = asked.state()
    seen = []

    def answers(method):
        found = [
            ask(images.images, shared).copy()
            for ask in (method.closed_templates, method.open_templates)
        ]
        return np.concatenate(found, axis=1)

    def check():
        fresh = build_site_method(plan, "a", images)
        fresh.load_state(asked.state())
        now = answers(asked)
        assert now.tobytes() == answers(fresh).tobytes()
        assert not any(np.allclose(now, before, atol=1e-6) for before in seen)
        assert answers(asked).tobytes() == now.tobytes()
        seen.append(now)

    check()
    shared = shared + asked.train_round(RoundContext(1, 3), shared).delta  # own and shared expert
    check()
    shared = shared * np.float32(1.01)
    check()
    asked.train_round(RoundContext(2, 3), shared)
    check()
    for name, value in (
        ("b", 1.02),
        ("c", 1.05),
        ("b", 0.97),
    ):  # received, another, the first again
        asked.receive_expert(
            name, {n: one * np.float32(value) for n, one in asked.expert().items()}
        )
        check()
    asked.load_state(initial)
    check()


def test_templates_are_those_of_each_expert_by_itself(images):
    method = build_site_method(make_plan(), "a", images)
    shared = method.initial_vector()
    shared = shared + train(method, shared, 1, 2).delta
    method.receive_expert("b", {n: one * np.float32(1.1) for n, one in method.expert().items()})
    with torch.no_grad():
        for batch in (1, 6):
            found = method.closed_templates(images.images[:batch], shared)
            inputs = prepare("compnet", torch.tensor(images.images[:batch]))
            halves = [normalize(one) for one in (method.own_embed(inputs), method.embed(inputs))]
            plain = normalize(torch.cat(halves, dim=1)).numpy()
            np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)
            open_set = method.open_templates(images.images[:batch], shared)
            np.testing.assert_allclose(open_set, halves[1].numpy(), rtol=0, atol=1e-5)


def test_no_images_have_no_templates(images):
    method = build_site_method(make_plan(), "a", images)
    shared, none = method.initial_vector(), images.images[:0]
    assert method.closed_templates(none, shared).shape == (0, 1024)
    assert method.open_templates(none, shared).shape == (0, 512)


def test_templates_have_unit_length_and_fused_cosines_are_means(images):
    shared = build_site_method(make_plan(), "a", images).initial_vector()
    fused, own = (
        build_site_method(
            make_plan(training=TRAINING.model_copy(update={"closed_set_fusion": on})), "a", images
        )
        for on in (True, False)
    )
    for method in (fused, own):
        train(method, shared, 1, 2)
    both = fused.closed_templates(images.images, shared)
    single = own.closed_templates(images.images, shared)
    open_set = own.open_templates(images.images, shared)
    assert both.shape == (6, 1024)
    assert both.dtype == single.dtype == open_set.dtype == np.float32
    for templates in (both, single, open_set):
        np.testing.assert_allclose(np.linalg.norm(templates, axis=1), 1, atol=1e-5)
    mean = (single @ single.T + open_set @ open_set.T) / 2
    np.testing.assert_allclose(both @ both.T, mean, atol=1e-5)


def test_foreign_and_missing_tensors_are_refused(images):
    method = build_site_method(make_plan(), "a", images)
    state = method.state()
    method.load_state(state)
    wrong = [
        state | {"other.tensor": np.zeros(1, np.float32)},
        state | {"head.open.other": np.zeros(1, np.float32)},
        {name: array for name, array in state.items() if name != "closed_set.teim.alpha"},
        {name: array for name, array in state.items() if name != "progress.interacting"},
        state | {"head.open.prototypes": np.zeros((3, 512), np.float32)},
        state | {"closed_set.embedding.bias": np.zeros(512, np.float64)},
        state | {"received.b.expert.large.mix.bias": np.zeros(32, np.float32)},
    ]
    for tensors in wrong:
        with pytest.raises(LayoutMismatchError):
            method.load_state(tensors)
    with pytest.raises(LayoutMismatchError):
        method.receive_expert("b", {"closed_set.expert.x": np.zeros(1, np.float32)})
    with pytest.raises(LayoutMismatchError):
        method.receive_expert("a", method.expert())
    with pytest.raises(LayoutMismatchError):
        method.train_round(RoundContext(1, 3), np.zeros(5, np.float32))


def test_the_expert_is_what_its_layout_says(images):
    method = build_site_method(make_plan(), "a", images)
    assert method.expert_layout.flatten(method.expert()).shape == (22_899,)
    assert method.initial_vector().shape == (method.layout.size,)


def test_alpha_and_beta_have_their_own_learning_rate(images):
    training = TrainingSettings(
        local_epochs=1, batch_size=16, learning_rate=1e-4, fusion_learning_rate=0.02
    )
    method = build_site_method(make_plan(training=training), "a", images)
    delta = method.layout.unflatten(train(method, method.initial_vector(), 2).delta)
    # One Adam step moves a parameter by its learning rate.
    assert abs(delta["open_set.teim.beta"]) == pytest.approx(0.02, rel=1e-3)
    assert np.abs(delta["open_set.embedding.weight"]).max() == pytest.approx(1e-4, rel=1e-2)
