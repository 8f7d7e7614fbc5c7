from __future__ import annotations

import pytest
import torch

from fedpalm.methods.training import import_tensors, named_tensors
from fedpalm.models.backbones import initial_tensors
from fedpalm.models.build import build_expert, prepare
from fedpalm.models.pool import GROUPED_UP_TO, ExpertPool
from tests.oracles import compnet as oracle

MANY = GROUPED_UP_TO + 2


def make_images(count):
    return torch.randn(count, 1, 128, 128, generator=torch.Generator().manual_seed(count))


def make_experts(count, backbone="compnet", *, norm=False):
    """Of one origin, each of which learnt something else."""
    values = {
        name: value
        for name, value in initial_tensors(backbone, 3, norm=norm).items()
        if name.startswith("expert.")
    }
    random = torch.Generator().manual_seed(count)
    experts = []
    for _ in range(count):
        expert = build_expert(backbone, norm=norm).eval()
        with torch.no_grad():
            for name, tensor in named_tensors(expert).items():
                if "expert." + name in values:
                    tensor.copy_(torch.from_numpy(values["expert." + name]))
                tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=random))
        experts.append(expert)
    return experts


def one_by_one(experts, images, backbone="compnet"):
    prepared = prepare(backbone, images)
    with torch.no_grad():
        return torch.stack([expert(prepared) for expert in experts])


def assert_alike(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("batch", [1, GROUPED_UP_TO, MANY])
def test_a_pool_gives_what_its_experts_give(count, batch):
    experts, images = make_experts(count), make_images(batch)
    assert_alike(ExpertPool(experts)(images), one_by_one(experts, images))


@pytest.mark.parametrize("batch", [1, MANY])
def test_a_pool_gives_what_the_plain_network_gives(batch):
    experts, images = make_experts(3), make_images(batch)
    plain = [oracle.textural_feature(named_tensors(one), "", images) for one in experts]
    assert_alike(ExpertPool(experts)(images), torch.stack(plain).detach())


@pytest.mark.parametrize("batch", [1, MANY])
def test_normalisation_by_running_statistics_is_part_of_the_pool(batch):
    experts, images = make_experts(2, norm=True), make_images(batch)
    with torch.no_grad():
        for expert in experts:
            for name, tensor in named_tensors(expert).items():
                if "running_mean" in name:
                    tensor.fill_(0.3)
    assert_alike(ExpertPool(experts)(images), one_by_one(experts, images))


def test_a_pool_of_ccnet_experts_gives_their_very_bits():
    experts, images = make_experts(2, "ccnet"), make_images(2)
    assert torch.equal(ExpertPool(experts)(images), one_by_one(experts, images, "ccnet"))


def test_features_carry_no_gradient():
    assert not ExpertPool(make_experts(2))(make_images(1)).requires_grad


@pytest.mark.parametrize("backbone", ["compnet", "ccnet"])
def test_a_pool_tells_when_any_tensor_of_any_expert_changes(backbone):
    experts = make_experts(2, backbone)
    pool = ExpertPool(experts)
    assert pool.holds(experts)
    for expert in experts:
        for tensor in named_tensors(expert).values():
            before = tensor.detach().clone()
            with torch.no_grad():
                tensor.reshape(-1)[-1].add_(0.5)
                assert not pool.holds(experts)
                tensor.copy_(before)
            assert pool.holds(experts)


def test_a_pool_tells_when_running_statistics_move():
    (expert,) = make_experts(1, norm=True)
    pool = ExpertPool([expert])
    expert.train()
    with torch.no_grad():
        expert(prepare("compnet", make_images(2)))
    assert not pool.holds([expert])


def test_a_pool_tells_other_experts_of_the_same_values_and_another_order():
    experts = make_experts(2)
    pool = ExpertPool(experts)
    assert not pool.holds(experts[::-1])
    assert not pool.holds(experts[:1])
    assert not pool.holds([*experts, experts[0]])
    copy = build_expert("compnet")
    import_tensors(copy, "", {n: t.detach().numpy() for n, t in named_tensors(experts[1]).items()})
    assert not pool.holds([experts[0], copy])
