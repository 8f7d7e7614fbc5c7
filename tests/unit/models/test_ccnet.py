from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedpalm.exchange.sealing import MAX_EXPERT_BYTES
from fedpalm.methods.base import RoundContext, SiteImages
from fedpalm.methods.site import build_site
from fedpalm.methods.template import ANATOMIES
from fedpalm.methods.training import import_tensors
from fedpalm.models import ccnet, ccnet_spec
from fedpalm.models.backbones import BACKBONES, initial_tensors, model_shapes
from fedpalm.models.build import PalmModel, build_expert, prepare, take
from fedpalm.models.ccnet import TexturalExpert, compete
from fedpalm.models.same_conv import same_conv, same_spectrum
from fedpalm.models.teim import Teim
from fedpalm.plan import CodecSettings, TrainingSettings
from tests.oracles import ccnet as oracle

BLOCKS = ("large", "medium", "small")
TRAINING = TrainingSettings(backbone="ccnet", local_epochs=1, batch_size=2, dropout=0.5)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def without_values(**parts):
    with torch.device("meta"):
        return PalmModel("ccnet", **parts)


@pytest.fixture(scope="module")
def initial():
    return initial_tensors("ccnet", 3)


def initial_expert(initial):
    expert = TexturalExpert()
    import_tensors(expert, "expert.", {n: t for n, t in initial.items() if n.startswith("expert.")})
    return expert


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    model = without_values()
    assert [count(block) for block in model.expert.children()] == [7562, 34_022, 7562]
    assert count(model.expert) == 49_146
    assert count(model.embedding) == 62_265_344
    assert count(model) == 62_314_490


def test_the_feature_has_13152_values_map_after_map(initial):
    figures = BACKBONES["ccnet"]
    assert figures.feature_length == sum(figures.map_sizes) == 13_152
    assert figures.map_sizes == ((225,) * 16 + (49,) * 16) * 3
    images = normal(2, 1, 128, 128)
    with torch.no_grad():
        assert initial_expert(initial)(prepare("ccnet", images)).shape == (2, 13_152)


@pytest.mark.parametrize("norm", [False, True])
def test_the_torch_free_shapes_are_those_of_the_network(norm):
    model = without_values(teim=Teim(3), norm=norm)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == model_shapes("ccnet", teim=True, norm=norm)
    assert sum(".norm." in name for name in shapes) == (12 if norm else 0)


@pytest.mark.parametrize("image_side", [128, 64])
@pytest.mark.parametrize("side", [35, 17, 7])
def test_same_convolution_and_its_gradients_equal_the_direct_ones(side, image_side):
    images = normal(2, 1, image_side, image_side).requires_grad_()
    kernels = normal(9, 1, side, side, seed=2).requires_grad_()
    direct = F.conv2d(images, kernels, stride=2, padding=side // 2)
    ours = same_conv(same_spectrum(images), kernels, image_side)
    upstream = normal(*direct.shape, seed=3)
    expected = [direct, *torch.autograd.grad(direct, (images, kernels), upstream)]
    found = [ours, *torch.autograd.grad(ours, (images, kernels), upstream)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


def test_competition_is_of_channels_rows_and_columns():
    torch.testing.assert_close(
        compete(torch.zeros(1, 9, 4, 5)), torch.full((1, 9, 4, 5), 0.8 / 9 + 0.1 / 4 + 0.1 / 5)
    )
    winner = torch.zeros(1, 9, 4, 5)
    winner[0, 3, 1, 2] = 1000.0
    assert compete(winner)[0, 3, 1, 2] == pytest.approx(1.0)
    assert compete(winner)[0, 3, 1, 0] == pytest.approx(0.8 / 9 + 0.1 / 4)
    assert compete(winner)[0, 3, 0, 2] == pytest.approx(0.8 / 9 + 0.1 / 5)
    assert compete(winner)[0, 4, 1, 2] == pytest.approx(0.1 / 4 + 0.1 / 5)


def test_feature_and_gradients_equal_the_plain_network(initial):
    expert, images = initial_expert(initial), normal(2, 1, 128, 128)
    leaves = {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for name, array in initial.items()
        if name.startswith("expert.")
    }
    ours = expert(prepare("ccnet", images))
    plain = oracle.textural_feature(leaves, "expert.", images.double())
    torch.testing.assert_close(ours.double(), plain, rtol=1e-3, atol=1e-4)
    upstream = normal(*plain.shape, seed=2)
    ours.backward(upstream)
    plain.backward(upstream.double())
    for name, parameter in expert.named_parameters():
        reference = leaves["expert." + name].grad
        # Rounding may move the maximum of a pooling window, and its gradient with it.
        atol = 5e-2 * reference.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), reference, rtol=0, atol=atol)


def test_prepared_images_are_taken_by_position():
    images = normal(4, 1, 128, 128)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(
        take("ccnet", prepare("ccnet", images), some), prepare("ccnet", images[some])
    )


def test_an_expert_that_does_not_learn_has_no_gradient():
    expert = build_expert("ccnet")
    expert.learn(False)
    assert not any(parameter.requires_grad for parameter in expert.parameters())
    expert.learn(True)
    assert all(parameter.requires_grad for parameter in expert.parameters())


def test_initial_tensors_have_the_gabor_constants_in_both_orders(initial):
    assert list(initial) == list(model_shapes("ccnet"))
    for order in ("first", "second"):
        for block, ratio in zip(BLOCKS, (1.0, 0.5, 0.25), strict=True):
            gabor = f"expert.{block}.{order}.gabor."
            assert initial[gabor + "gamma"] == 2
            assert initial[gabor + "sigma"] == np.float32(9.2 * ratio)
            assert initial[gabor + "frequency"] == np.float32(0.057 / ratio)
    for layer, fan_in in (("hidden", 13_152), ("out", 4096)):
        largest = np.abs(initial[f"embedding.{layer}.bias"]).max()
        assert 0.98 / math.sqrt(fan_in) < largest <= (1 + 1e-6) / math.sqrt(fan_in)


def one_step(method):
    """A site after a step on one image of each of two people: site, shared vector, delta."""
    images = SiteImages(normal(2, 1, 128, 128).numpy(), np.array([0, 1]), 2)
    site = build_site(method, TRAINING, 11, "a", images)
    shared = site.initial_vector()
    delta = site.train_round(RoundContext(1, 3), shared).delta
    assert 0 < np.abs(delta).max() < CodecSettings().clip_abs
    moved = {name for name, part in site.layout.unflatten(delta).items() if part.any()}
    assert moved >= {one.name for one in site.layout.tensors if ".teim." not in one.name}
    templates = site.closed_templates(images.images, shared + delta)
    assert templates.shape == (2, 4096 if method == "fedpalm" else 2048)
    np.testing.assert_allclose(np.linalg.norm(templates, axis=1), 1, atol=1e-5)
    return site


@pytest.mark.parametrize("method", sorted(set(ANATOMIES) - {"local", "rehearsal"}))
def test_a_step_of_each_method_moves_what_it_shares(method, monkeypatch):
    for module in (ccnet, ccnet_spec):  # methods do not see how wide the hidden layer is
        monkeypatch.setattr(module, "HIDDEN_LENGTH", 32)
    site = one_step(method)
    norms = [name for name in site.state() if ".norm." in name]
    assert len(norms) == (24 if method == "fedbn" else 0)
    if method == "fedpalm":
        assert 4 * site.expert_layout.size == 4 * 49_146 < MAX_EXPERT_BYTES
        site.receive_expert("b", site.expert())


def test_a_step_of_the_whole_model():
    assert one_step("fedavg").layout.size == 62_314_490
