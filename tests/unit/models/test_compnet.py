from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedpalm.methods.training import import_tensors
from fedpalm.models.backbones import initial_tensors, model_shapes
from fedpalm.models.build import PalmModel
from fedpalm.models.compnet import LearnableGabor, TexturalExpert
from fedpalm.models.compnet_spec import FEATURE_LENGTH
from fedpalm.models.phase_conv import phase_conv, phase_spectrum
from fedpalm.models.teim import Teim
from tests.oracles import compnet as oracle


@pytest.fixture
def images():
    return torch.randn(3, 1, 128, 128, generator=torch.Generator().manual_seed(1))


def initial_expert(seed=0):
    expert = TexturalExpert()
    tensors = initial_tensors("compnet", seed, teim=None)
    import_tensors(expert, "expert.", {n: t for n, t in tensors.items() if n.startswith("expert.")})
    return expert, tensors


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_published_ones():
    model = PalmModel("compnet")
    assert [count(block) for block in model.expert.children()] == [7633, 7633, 7633]
    assert count(model.expert) == 22_899
    assert count(model.embedding) == 4_971_008


def test_the_feature_has_9708_values(images):
    expert, _ = initial_expert()
    assert FEATURE_LENGTH == 9708
    assert expert(phase_spectrum(images)).shape == (3, 9708)


@pytest.mark.parametrize("teim", [False, True])
def test_the_torch_free_shapes_are_those_of_the_network(teim):
    model = PalmModel("compnet", teim=Teim(3) if teim else None)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == model_shapes("compnet", teim=teim)


@pytest.mark.parametrize(("side", "ratio"), [(35, 1.0), (17, 0.5), (7, 0.25)])
def test_gabor_kernels_follow_the_formula(side, ratio):
    gabor = LearnableGabor(side)
    values = {"gamma": 1.7, "sigma": 9.2 * ratio, "frequency": 0.057 / ratio}
    with torch.no_grad():
        for name, value in values.items():
            getattr(gabor, name).fill_(value)
    expected = oracle.gabor_kernels(side, **values)
    np.testing.assert_allclose(gabor.kernels()[:, 0].detach().numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("side", [35, 17, 7])
def test_phase_convolution_and_its_gradient_equal_the_direct_ones(side, images):
    kernel = torch.randn(9, 1, side, side, generator=torch.Generator().manual_seed(2))
    kernel.requires_grad_()
    direct = F.conv2d(images, kernel, stride=3)
    phases = phase_conv(phase_spectrum(images), kernel)
    upstream = torch.randn(direct.shape, generator=torch.Generator().manual_seed(3))
    (direct_grad,) = torch.autograd.grad(direct, kernel, upstream)
    (phases_grad,) = torch.autograd.grad(phases, kernel, upstream)
    torch.testing.assert_close(phases, direct, rtol=0, atol=2e-5 * direct.abs().max().item())
    torch.testing.assert_close(
        phases_grad, direct_grad, rtol=0, atol=2e-5 * direct_grad.abs().max().item()
    )


def test_feature_and_gradients_equal_the_plain_network(images):
    expert, tensors = initial_expert(seed=3)
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in tensors.items()}
    ours = expert(phase_spectrum(images))
    plain = oracle.textural_feature(leaves, "expert.", images)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2))
    ours.backward(upstream)
    plain.backward(upstream)
    for name, parameter in expert.named_parameters():
        if name.endswith("competition.shift"):
            continue
        reference = leaves["expert." + name].grad
        scale = reference.abs().max().item()
        # Rounding may move the maximum of a pooling window, and its gradient with it.
        torch.testing.assert_close(parameter.grad, reference, rtol=0, atol=5e-2 * scale)


def test_the_shift_of_the_competition_changes_nothing_and_is_not_trained(images):
    _, tensors = initial_expert()
    leaves = {name: torch.tensor(array) for name, array in tensors.items()}
    shifted = leaves | {"expert.large.competition.shift": torch.tensor(0.7)}
    torch.testing.assert_close(
        oracle.textural_feature(shifted, "expert.", images),
        oracle.textural_feature(leaves, "expert.", images),
        rtol=1e-4,
        atol=1e-4,
    )
    expert = TexturalExpert()
    expert.learn(True)
    frozen = [name for name, p in expert.named_parameters() if not p.requires_grad]
    assert frozen == [f"{block}.competition.shift" for block in ("large", "medium", "small")]


def test_initial_tensors_depend_on_the_seed_alone():
    first, again, other = (initial_tensors("compnet", seed, teim=(0.7, 0.3)) for seed in (5, 5, 6))
    assert list(first) == list(model_shapes("compnet", teim=True))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert not np.array_equal(first["embedding.weight"], other["embedding.weight"])
    assert first["expert.medium.gabor.sigma"] == np.float32(4.6)
    assert first["teim.beta"] == np.float32(0.3)
    bound = 1 / np.sqrt(FEATURE_LENGTH)
    assert 0.99 * bound < np.abs(first["embedding.weight"]).max() <= bound * (1 + 1e-6)
