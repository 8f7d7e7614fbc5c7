"""What the baselines share and what stays, against plain loops and against separate federations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedpalm.benchmark.signature import fedproto
from fedpalm.benchmark.signature.config import BenchConfig, Job
from fedpalm.benchmark.signature.contenders import CONTENDERS, REFERENCE
from fedpalm.benchmark.signature.federation import federation
from fedpalm.benchmark.signature.fml import mutual_losses
from fedpalm.benchmark.simulate import run_rounds, simulate
from fedpalm.fedmh_settings import FedMHSettings
from fedpalm.methods.two_tasks import Outputs, TaskLosses
from fedpalm.models.signature_spec import TEMPLATE_LENGTH
from tests.unit.methods.signature_sites import tiny_signatures


def made(variant, sites=3, rounds=2):
    # Two batches a round: in the first of round 2 writers still lie where their prototypes are.
    training = {"local_epochs": 1, "batch_size": 3}
    config = BenchConfig(sites=sites, rounds=rounds, training=training)
    job = Job(config, variant, "synthetic", 5, {"synthetic": "f"})
    images = {
        name: tiny_signatures(at, writers=2, genuine=3, forged=2)
        for at, name in enumerate(config.backbones)
    }
    return job, images, federation(job, images)


def run(one):
    return run_rounds(one.plan, one.sites, one.shared, one.combine)


def same(one, other):
    assert one.keys() == other.keys()
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_fedproto_without_its_pull_is_training_alone(monkeypatch):
    alone, pulled = run(made("local")[2]), run(made("fedproto")[2])
    monkeypatch.setattr(fedproto, "PULL", 0.0)
    free = run(made("fedproto")[2])
    for site, method in alone.sites.items():
        assert same(method.state(), free.sites[site].state())
        assert not same(method.state(), pulled.sites[site].state())


def test_a_prototype_is_the_mean_unit_embedding_of_a_writer_and_comes_from_one_site():
    job, images, one = made("fedproto", rounds=1)
    ended = run(one)
    prototypes = ended.shared.reshape(-1, TEMPLATE_LENGTH)
    assert len(prototypes) == sum(own.classes for own in images.values())
    assert list(ended.sites) == list(job.config.backbones)
    for at, site in enumerate(ended.sites.values()):
        kept = site._fit
        for writer in range(2):
            own = kept.of((kept.writers == writer) & kept.genuine)
            expected = site.open_templates(own.images, ended.shared).mean(axis=0)
            np.testing.assert_allclose(prototypes[2 * at + writer], expected, atol=1e-5)


def test_each_family_is_a_federation_of_its_own():
    job, images, one = made("fedavg-family", sites=6, rounds=1)
    together = run(one)
    begin = 0
    for family in ("compnet", "resnet", "signet"):
        members = {n: own for n, own in job.config.backbones.items() if own == family}
        plan = job.plan(members, [family])
        apart = simulate(plan, "fedmh", {name: images[name] for name in members})
        part = together.shared[begin : begin + plan.model_layout.size]
        assert part.tobytes() == apart.shared.tobytes(), family
        for name in members:
            probes = images[name].images[:2]
            mine = together.sites[name].closed_templates(probes, together.shared)
            assert (
                mine.tobytes() == apart.sites[name].closed_templates(probes, apart.shared).tobytes()
            )
        begin += plan.model_layout.size
    assert begin == together.shared.size


def test_lg_fedavg_shares_the_common_layers_alone():
    _, _, one = made("lg-fedavg")
    assert {group.name for group in one.plan.parameter_groups} == {"projection", "task"}
    assert one.values == one.shared.size


def test_fml_averages_the_meme_and_each_site_keeps_its_own_model():
    job, images, one = made("fml", rounds=1)
    ended = run(one)
    states = {name: site.state() for name, site in ended.sites.items()}
    weights = [len(images[name].writers) for name in states]
    mean = np.average([one["own.model"] for one in states.values()], axis=0, weights=weights)
    np.testing.assert_allclose(ended.shared, mean, atol=2e-6)
    for name, backbone in job.config.backbones.items():
        own = [key for key in states[name] if key.startswith("partner.model.trunk.")]
        assert own and all(key.startswith(f"partner.model.trunk.{backbone}") for key in own)
        site, probes = ended.sites[name], images[name].images[:2]
        again = federation(job, images).sites[name]
        assert not np.array_equal(
            again.closed_templates(probes, one.shared), site.closed_templates(probes, one.shared)
        )
        again.load_state(states[name])
        np.testing.assert_array_equal(
            again.open_templates(probes, one.shared), site.open_templates(probes, ended.shared)
        )


def test_mutual_losses_are_half_the_task_and_half_the_divergence():
    generator = torch.Generator().manual_seed(0)

    def drawn():
        writers = torch.randn(4, 3, generator=generator)
        detection = torch.randn(6, generator=generator)
        losses = TaskLosses(torch.tensor(2.0), torch.tensor(3.0))
        return Outputs(torch.empty(0), writers, detection, losses)

    mine, other = drawn(), drawn()
    user, forged = mutual_losses(mine, other)
    p, q = F.softmax(other.writers, dim=1), F.softmax(mine.writers, dim=1)
    assert user.item() == pytest.approx(1.0 + 0.5 * (p * (p / q).log()).sum(1).mean().item())
    p, q = torch.sigmoid(other.detection), torch.sigmoid(mine.detection)
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert forged.item() == pytest.approx(1.5 + 0.5 * divergence.mean().item(), rel=1e-5)


def test_an_ablation_differs_from_fedmh_in_one_setting_and_no_two_are_alike():
    defaults = FedMHSettings().model_dump()
    seen = []
    for name, one in CONTENDERS.items():
        if name == REFERENCE:
            assert one.settings == FedMHSettings()
        elif one.part and one.sharing == "groups":
            differ = {k for k, v in one.settings.model_dump().items() if v != defaults[k]}
            assert differ == set(one.fedmh) and len(differ) == 1
            seen.append(one.settings)
    assert len(seen) >= 4 and len({repr(one) for one in seen}) == len(seen)


def test_the_untrained_stay_as_the_seed_drew_them():
    job, images, one = made("untrained")
    before = {
        name: site.open_templates(images[name].images, one.shared)
        for name, site in one.sites.items()
    }
    ended = run(one)
    assert ended.shared.tobytes() == one.shared.tobytes() and one.values == 0
    for name, site in ended.sites.items():
        after = site.open_templates(images[name].images, ended.shared)
        assert after.tobytes() == before[name].tobytes()
        assert job.contender.settings.receipt == "keep"
