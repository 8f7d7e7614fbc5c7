"""Rounds with differential privacy: what they draw, what they give, what they keep."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch.nn import functional as F

from fedpalm.errors import ConfigError, StateError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.private import units
from fedpalm.methods.site import build_site, build_site_method
from fedpalm.methods.template import ANATOMIES
from fedpalm.methods.training import RoundViews
from fedpalm.models import backbones, ccnet, ccnet_spec
from fedpalm.plan import PrivacySettings, TrainingSettings
from fedpalm.privacy.randomness import SecretRandom, SeededRandom
from tests.oracles import ccnet as ccnet_oracle
from tests.oracles import compnet as compnet_oracle
from tests.support.private_training import Noiseless, built, private, sums, unaugmented

from .conftest import make_plan, tiny_images

METHODS = sorted(set(ANATOMIES) - {"rehearsal", "local", "fedbn"})
PEOPLE = tiny_images(0, people=3)


# --- per-person gradients ---------------------------------------------------------------------------


def plain_gradients(site, prefixes, images, labels, feature):
    """Autograd on the loss of one person's images, written down from the paper; by prefixed name."""
    leaves = {
        prefix + name: p.detach().clone().requires_grad_()
        for prefix, learner in prefixes.items()
        for name, p in learner.model.named_parameters()
    }
    experts = {prefix: feature(leaves, prefix + "expert.", images) for prefix in prefixes}
    head, training = site.learner.head, site.training
    places, total = head.places[labels], torch.zeros(())
    for prefix, own in experts.items():
        if prefix + "teim.alpha" in leaves:
            others = [one.detach() for name, one in experts.items() if name != prefix]
            own = leaves[prefix + "teim.alpha"] * own
            own = own + leaves[prefix + "teim.beta"] * torch.stack(others).mean(dim=0)
        for layer in ("", "hidden.", "out."):
            if (name := f"{prefix}embedding.{layer}weight") in leaves:
                own = own @ leaves[name].T + leaves[name.replace("weight", "bias")]
        cosines = F.normalize(own) @ head.prototypes.T
        angle = torch.acos(cosines[torch.arange(len(places)), places])
        logits = torch.where(
            F.one_hot(places, head.prototypes.shape[0]).bool(),
            torch.cos(angle + training.arcface_margin)[:, None],
            cosines,
        )
        total = total + F.cross_entropy(training.arcface_scale * logits, places)
    total.backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def one_by_one(site, number, prefixes, feature, tolerance):
    """Hold every layer's gradient of every person against two loops; returns how many layers.

    One is autograd on the site's own loss, as it comes; the other is :func:`plain_gradients`, whose
    convolutions round otherwise: that may move the maximum of a pooling window, and its gradient with it.
    """
    for person in range(site.images.classes):
        where = np.flatnonzero(site.images.labels == person)
        both_views = torch.tensor(np.concatenate([site.images.images[where]] * 2))
        labels = torch.tensor(np.concatenate([site.images.labels[where]] * 2))
        site.randomness = Noiseless(only=[person])
        (found,) = sums(site, number)
        site.load_shared(site.initial_vector())
        plain = plain_gradients(site, prefixes, both_views, labels, feature)
        views = RoundViews(site.images, site.training, 0)
        site.begin_round(RoundContext(number, 3), site.initial_vector(), views)
        site.loss(views.batch(torch.from_numpy(where), 0), torch.Generator()).backward()
        layers = {
            prefix + name: parameter
            for prefix, learner in prefixes.items()
            for name, parameter in learner.model.named_parameters()
            if parameter.requires_grad
        }
        parts = found.split([parameter.numel() for parameter in moved_by(site)])
        by_parameter = {id(p): part for p, part in zip(moved_by(site), parts, strict=True)}
        assert by_parameter.keys() == {id(parameter) for parameter in layers.values()}
        for name, parameter in layers.items():
            part = by_parameter[id(parameter)].view(parameter.shape)
            for wanted, within in ((parameter.grad, 1e-5), (plain[name], tolerance)):
                assert (part - wanted).norm() <= within * wanted.norm(), name
            parameter.grad = None
    return len(layers)


def moved_by(site):
    """The parameters that a step moves, in order."""
    return [parameter for group in site.parameter_groups() for parameter in group["params"]]


def still(settings, **privacy):
    """No dropout, no clipping, and a learning rate that moves nothing."""
    free = {"dropout": 0.0, "learning_rate": 1e-30, "fusion_learning_rate": 1e-30}
    return private(free | settings, clip_norm=1e6, **privacy)


def test_gradients_of_compnet_are_those_of_a_loop_over_people(monkeypatch):
    unaugmented(monkeypatch)
    site = built("fedavg", still({}), tiny_images(0, people=2, each=2), Noiseless())
    prefixes = {"open.": site.learner}
    assert one_by_one(site, 1, prefixes, compnet_oracle.textural_feature, 0.1) == 26


def test_gradients_of_both_models_and_teims_of_fedpalm_are_too(monkeypatch):
    unaugmented(monkeypatch)
    training = still({"teim_from_start": True})
    site = built("fedpalm", training, tiny_images(0, people=2, each=1), Noiseless())
    prefixes = {"open.": site.learner, "closed.": site.own}
    assert one_by_one(site, 1, prefixes, compnet_oracle.textural_feature, 0.1) == 56


def test_gradients_of_ccnet_are_too(monkeypatch):
    unaugmented(monkeypatch)
    for module in (ccnet_spec, ccnet):
        monkeypatch.setattr(module, "HIDDEN_LENGTH", 24)
        monkeypatch.setattr(module, "TEMPLATE_LENGTH", 16)
    small = backbones.BACKBONES["ccnet"]._replace(template_length=16)
    monkeypatch.setitem(backbones.BACKBONES, "ccnet", small)
    training = still({"backbone": "ccnet"})
    site = built("fedavg", training, tiny_images(0, people=1, each=1), Noiseless())
    prefixes = {"open.": site.learner}
    assert one_by_one(site, 1, prefixes, ccnet_oracle.textural_feature, 0.1) == 46


# --- what a round draws -----------------------------------------------------------------------------


def watched(site):
    """Batches that the site's loss gets."""
    seen, loss = [], site.loss

    def look(batch, dropout):
        seen.append(batch)
        return loss(batch, dropout)

    site.loss = look
    return seen


def test_a_batch_is_one_person_in_both_views_with_at_most_k_images():
    training = private({"views": 2}, records=2, steps=3)
    site = built("fedavg", training, tiny_images(0, people=3, each=4), Noiseless())
    seen = watched(site)
    site.train_round(RoundContext(1, 3), site.initial_vector())
    assert len(seen) == 9
    for at, batch in enumerate(seen):
        assert len(set(batch.labels.tolist())) == 1
        first, second = batch.views.chunk(2)
        assert len(set(first.tolist())) == 2
        assert torch.equal(second - first, torch.full((2,), 12))
        assert (first // 24 == (at // 3) % 2).all(), "the pairs of views take turns"
    chosen = {tuple(sorted(batch.views[:2].tolist())) for batch in seen if batch.labels[0] == 0}
    assert len(chosen) > 1, "the same images in every step"


def test_a_record_is_a_person_of_its_own():
    images = tiny_images(0, people=2, each=3)
    privacy = PrivacySettings(unit="record")
    assert [one.tolist() for one in units(images, privacy)] == [[at] for at in range(6)]
    site = built("fedavg", private(unit="record"), images, Noiseless())
    seen = watched(site)
    site.train_round(RoundContext(1, 3), site.initial_vector())
    assert [len(batch.labels) for batch in seen] == [2] * 6


def test_a_step_that_draws_nobody_is_made_all_the_same():
    training = private(sampling_rate=0.5)
    for method in ("fedavg", "fedpalm"):
        site = built(method, training, PEOPLE, SeededRandom(1))
        site.randomness.chosen = lambda count, rate: np.zeros(count, bool)
        update = site.train_round(RoundContext(2, 3), site.initial_vector())
        assert np.isfinite(update.delta).all()
        assert np.count_nonzero(update.delta) > 0.99 * update.delta.size
        assert "open.loss" not in update.metrics


def test_views_and_dropout_are_not_drawn_from_the_plans_seed(monkeypatch):
    one, other = (
        sums(built("fedpalm", private(), PEOPLE, Noiseless(seed)), 1)[0] for seed in (1, 2)
    )
    assert torch.linalg.norm(one - other) > 0.1 * torch.linalg.norm(one)
    drawn = []
    monkeypatch.setattr(
        "fedpalm.methods.training.derive_seed", lambda *parts: drawn.append(parts) or 1
    )
    site = built("fedpalm", private(), PEOPLE, Noiseless())
    site.train_round(RoundContext(1, 3), site.initial_vector())
    assert not drawn


# --- what a round gives -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_weight_and_statistics_of_an_update_say_nothing_of_who_is_there(method):
    given = []
    for images in (PEOPLE, tiny_images(1, people=2, each=2)):
        site = built(method, private(), images, SeededRandom(1))
        update = site.train_round(RoundContext(1, 3), site.initial_vector())
        assert np.isfinite(update.delta).all()
        assert update.delta.any()
        given.append((update.weight, dict(update.stats)))
    assert given[0] == given[1]
    assert given[0][0] == 1.0


def test_what_does_not_learn_in_a_round_is_not_noised_either():
    site = built("fedpalm", private(), PEOPLE, SeededRandom(1))
    shared = site.initial_vector()
    delta = site.layout.unflatten(site.train_round(RoundContext(1, 3), shared).delta)
    assert delta["open_set.teim.alpha"] == delta["open_set.teim.beta"] == 0
    assert delta["open_set.expert.large.competition.shift"] == 0
    expert = site.expert()
    delta = site.layout.unflatten(site.train_round(RoundContext(2, 3), shared).delta)
    assert delta["open_set.teim.alpha"] != 0
    assert all(np.array_equal(one, expert[name]) for name, one in site.expert().items())


# --- what a site keeps ------------------------------------------------------------------------------


def trained_again(method, randomness):
    """The second round of one stored state, twice."""
    site = built(method, private(), PEOPLE, SeededRandom(1))
    shared = site.initial_vector()
    site.train_round(RoundContext(1, 3), shared)
    stored = safetensors.numpy.save(site.state())
    for _ in range(2):
        again = built(method, private(), PEOPLE, randomness())
        again.load_state(safetensors.numpy.load(stored))
        yield again.train_round(RoundContext(2, 3), shared).delta, again.state()


@pytest.mark.parametrize("method", ["fedavg", "fedpalm", "moon"])
def test_a_round_trained_again_is_another_one_unless_it_is_seeded(method):
    (one, kept), (other, also) = trained_again(method, lambda: SeededRandom(2))
    assert one.tobytes() == other.tobytes()
    assert all(kept[name].tobytes() == also[name].tobytes() for name in kept)
    (one, kept), (other, also) = trained_again(method, SecretRandom)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert np.array_equal(kept["head.open.places"], also["head.open.places"])


def test_a_plan_without_another_source_draws_from_the_secret_one():
    assert isinstance(build_site("fedavg", private(), 11, "a", PEOPLE).randomness, SecretRandom)
    assert build_site_method(make_plan("fedavg"), "a", PEOPLE).randomness.name == "chacha20"


def test_people_keep_their_random_places():
    site = built("fedpalm", private(head_slots=50), PEOPLE, SeededRandom(1))
    state = site.state()
    places = state["head.open.places"]
    assert places.dtype == np.int64
    assert len(set(places.tolist())) == 3
    assert np.array_equal(places, state["head.closed.places"])
    site.train_round(RoundContext(1, 3), site.initial_vector())
    assert np.array_equal(places, site.state()["head.open.places"])
    other = built("fedpalm", private(head_slots=50), PEOPLE, SeededRandom(2))
    assert not np.array_equal(places, other.state()["head.open.places"])
    other.load_state(state)
    assert np.array_equal(places, other.learner.head.places.numpy())
    assert np.array_equal(places, other.own.head.places.numpy())


def test_more_people_than_places_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match="2 places") as refused:
        built("fedavg", private(head_slots=2), PEOPLE, SeededRandom(1))
    assert "head_slots higher" in str(refused.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_that_no_noise_covers_is_not_gone_on_from(method):
    plain = build_site(method, TrainingSettings(), 11, "a", PEOPLE)
    site = built(method, private(), PEOPLE, SeededRandom(1))
    with pytest.raises(StateError, match="without differential privacy") as refused:
        site.load_state(plain.state())
    assert "start a new run" in str(refused.value)
    smaller = built(method, private(head_slots=3), PEOPLE, SeededRandom(1))
    with pytest.raises(StateError, match="head is smaller"):
        smaller.load_state(site.state())
