"""What is a method's own: its loss against an oracle, its gradient, its update."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpalm.methods.base import RoundContext
from fedpalm.methods.fedkd import mutual_distillation, truncate
from fedpalm.methods.fedpalm_release import FedPalmReleaseSite
from fedpalm.methods.moon import model_contrast
from fedpalm.methods.site import build_site
from fedpalm.methods.training import Outputs, RoundViews
from fedpalm.models.build import prepare
from tests.oracles import losses as oracle

from .conftest import TRAINING, tiny_images


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(method, site="a", images=None, **training):
    images = images or tiny_images(0)
    return build_site(method, TRAINING.model_copy(update=training), 11, site, images)


def site_inputs(site):
    return prepare(site.training.backbone, torch.tensor(tiny_images(3).images))


def one_batch(site):
    return next(RoundViews(site.images, site.training, 5).batches())


# --- FedProx ------------------------------------------------------------------------------------


def test_fedprox_adds_mu_times_the_distance_from_the_start_to_the_gradient_of_shared_tensors():
    site = build("fedprox", fedprox_mu=0.25)
    site.load_shared(site.initial_vector())
    site.begin_round(RoundContext(1, 1), site.initial_vector(), None)
    weight, head = site.learner.model.embedding.weight, site.learner.head.prototypes
    away = normal(*weight.shape)
    with torch.no_grad():
        weight += away
        head += 1
    for one in (weight, head):
        one.grad = torch.ones_like(one)
    site.adjust_gradients()
    torch.testing.assert_close(weight.grad, 1 + 0.25 * away, atol=1e-5, rtol=0)
    assert torch.equal(head.grad, torch.ones_like(head))


def test_fedprox_stays_nearer_to_where_it_started():
    moved = []
    for mu in (0.0, 10.0):
        site = build("fedprox", fedprox_mu=mu, local_epochs=4)
        update = site.train_round(RoundContext(1, 1), site.initial_vector())
        moved.append(np.linalg.norm(update.delta))
    assert moved[1] < 0.9 * moved[0]


# --- MOON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_moons_contrast_equals_the_loop_over_images(temperature):
    z = [normal(7, 16, seed=seed) for seed in range(3)]
    expected = oracle.model_contrast(*(one.double().numpy() for one in z), temperature)
    assert model_contrast(*z, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_moon_contrasts_with_the_model_of_the_last_round_and_at_first_with_the_global_one():
    site = build("moon")
    shared = site.initial_vector()
    site.train_round(RoundContext(1, 3), shared)
    assert site._z_previous is site._z_global
    last = site.shared_vector()
    np.testing.assert_array_equal(site.state()["previous.model"], last)
    site.train_round(RoundContext(2, 3), shared)
    assert not torch.allclose(site._z_previous, site._z_global)
    site.train_round(RoundContext(3, 3), site.shared_vector())
    torch.testing.assert_close(site._z_previous, site._z_global, atol=0, rtol=0)


# --- FedKD --------------------------------------------------------------------------------------


def outputs(seed):
    return Outputs(
        normal(6, 8, seed=seed).requires_grad_(), normal(6, 4, seed=seed + 10).requires_grad_()
    )


def test_mutual_distillation_equals_the_loop_over_images_and_classes():
    one, other = outputs(0), outputs(1)
    numbers = [[t.detach().double().numpy() for t in pair] for pair in zip(one, other, strict=True)]
    expected = oracle.mutual_distillation(numbers[1], numbers[0])
    assert mutual_distillation(one, other).item() == pytest.approx(expected, rel=1e-5)


def test_each_model_learns_from_the_other_as_from_a_constant():
    one, other = outputs(0), outputs(1)
    mutual_distillation(one, other).backward()
    p, q = (torch.softmax(each.logits.detach(), dim=1) for each in (one, other))
    # The gradient of KL(q | p) by p's logits is p - q.
    torch.testing.assert_close(one.logits.grad, (p - q) / len(p))
    torch.testing.assert_close(other.logits.grad, (q - p) / len(p))
    torch.testing.assert_close(one.embedding.grad, -other.embedding.grad)


def test_the_less_both_have_learned_the_less_they_tell_each_other(monkeypatch):
    """The task losses divide what is distilled, as a constant."""
    site = build("fedkd")
    site.load_shared(site.initial_vector())
    grads, totals = [], []
    for distilled in (0.0, 5.0):
        monkeypatch.setattr(
            "fedpalm.methods.fedkd.mutual_distillation",
            lambda one, other, fixed=distilled: torch.tensor(fixed),
        )
        site.begin_round(RoundContext(1, 1), site.initial_vector(), None)
        total = site.loss(one_batch(site), torch.Generator().manual_seed(1))
        site.learner.head.prototypes.grad = None
        total.backward()
        totals.append(total.item())
        grads.append(site.learner.head.prototypes.grad)
    assert totals[1] == pytest.approx(totals[0] + 5 / totals[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (12, 12)])
@pytest.mark.parametrize("energy", [0.3, 0.95, 0.98])
def test_truncation_is_that_of_the_whole_svd_and_keeps_at_least_the_energy(shape, energy):
    decay = torch.diag(0.7 ** torch.arange(min(shape)).float())
    inner = len(decay)
    matrix = (normal(shape[0], inner) @ decay @ normal(inner, shape[1], seed=1)).numpy()
    found, rank = truncate(matrix, energy)
    expected, expected_rank = oracle.truncated(matrix, energy)
    assert rank == expected_rank == np.linalg.matrix_rank(found, tol=1e-4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.astype(float) ** 2).sum() >= energy * (matrix.astype(float) ** 2).sum() * (
        1 - 1e-6
    )
    assert found.dtype == np.float32


def test_truncation_keeps_nothing_of_nothing_and_everything_at_energy_one():
    zeros = np.zeros((3, 5), np.float32)
    found, rank = truncate(zeros, 0.95)
    assert rank == 0
    assert not found.any()
    matrix = normal(4, 6).numpy()
    found, rank = truncate(matrix, 1.0)
    assert rank == 4
    np.testing.assert_allclose(found, matrix, atol=1e-6)


def test_a_fedkd_update_is_of_low_rank_and_says_what_its_factors_would_have_been():
    site = build("fedkd")
    shared = site.initial_vector()
    update = site.train_round(RoundContext(1, 2), shared)
    full = site.shared_vector() - shared
    cut, whole = (
        site.layout.unflatten(one)["open_set.embedding.weight"].astype(float)
        for one in (update.delta, full)
    )
    kept = (cut**2).sum() / (whole**2).sum()
    rank = update.metrics["svd.rank.open_set.embedding.weight"]
    assert 0.95 <= kept < 1
    assert rank < 512
    others = site.layout.size - cut.size
    assert update.metrics["svd.floats"] == min(cut.size, rank * (512 + 9708 + 1)) + others
    bias = "open_set.embedding.bias"
    assert np.array_equal(
        site.layout.unflatten(update.delta)[bias], site.layout.unflatten(full)[bias]
    )


def test_the_energy_rises_linearly_over_the_rounds():
    site = build("fedkd", fedkd_energy_start=0.9, fedkd_energy_end=0.96)
    energies = []
    for number in (1, 2, 4):
        site.begin_round(RoundContext(number, 4), site.initial_vector(), None)
        energies.append(site._energy)
    assert energies == pytest.approx([0.9, 0.92, 0.96])
    site.begin_round(RoundContext(1, 1), site.initial_vector(), None)
    assert site._energy == 0.9


def test_fedkds_closed_templates_are_the_teachers_and_open_ones_the_students():
    site = build("fedkd")
    shared = site.initial_vector()
    probes = tiny_images(3).images
    before = site.closed_templates(probes, shared)
    assert before.tobytes() == site.open_templates(probes, shared).tobytes()
    site.train_round(RoundContext(1, 2), shared)
    assert not np.allclose(site.closed_templates(probes, shared), before, atol=1e-3)
    assert site.open_templates(probes, shared).tobytes() == before.tobytes()


# --- HyperFed -----------------------------------------------------------------------------------


def test_hyperfed_begins_as_the_shared_model_and_then_scales_and_shifts_each_map():
    site, plain = build("hyperfed"), build("fedavg")
    probes, shared = tiny_images(3).images, site.initial_vector()
    assert (
        site.open_templates(probes, shared).tobytes()
        == plain.open_templates(probes, shared).tobytes()
    )
    with torch.no_grad():
        site._hypernetwork.out.bias.copy_(normal(72))
        inputs = site_inputs(site)
        adapted, feature = site.feature(inputs), plain.learner.model.expert(inputs)
    scale, shift = 1 + normal(72)[:36], normal(72)[36:]
    at = 0
    for number, size in enumerate([14**2] * 12 + [17**2] * 12 + [18**2] * 12):
        part = slice(at, at + size)
        torch.testing.assert_close(
            adapted[:, part], feature[:, part] * scale[number] + shift[number]
        )
        at += size
    assert at == feature.shape[1]


def test_hypernetworks_of_two_sites_begin_with_other_descriptors():
    one, other = (build("hyperfed", site).state() for site in "ab")
    name = "hypernetwork.descriptor"
    assert one[name].shape == (32,)
    assert not np.allclose(one[name], other[name])


# --- FedPalm as released ------------------------------------------------------------------------


def test_released_fedpalm_fuses_embeddings_and_weighs_every_site_alike():
    site = build("fedpalm-release")
    assert isinstance(site, FedPalmReleaseSite)
    shared, probes = site.initial_vector(), tiny_images(3).images
    update = site.train_round(RoundContext(1, 1), shared)
    assert update.weight == 1
    inputs = site_inputs(site)
    closed, opened = site.closed_templates(probes, shared), site.open_templates(probes, shared)
    with torch.no_grad():
        z_g, z_c = site.embed(inputs), site.own_embed(inputs)
    for found, fused in ((closed, 0.8 * z_c + 0.2 * z_g), (opened, 0.2 * z_c + 0.8 * z_g)):
        np.testing.assert_allclose(found, torch.nn.functional.normalize(fused).numpy(), atol=1e-6)


def test_in_released_fedpalm_neither_loss_runs_into_the_other_model():
    site = build("fedpalm-release")
    site.load_shared(site.initial_vector())
    site.begin_round(RoundContext(1, 1), site.initial_vector(), None)
    batch = one_batch(site)
    site.loss(batch, torch.Generator().manual_seed(1)).backward()
    weight = site.learner.model.embedding.weight
    found, weight.grad = weight.grad, None
    fused = 0.8 * site.embed(batch.inputs) + 0.2 * site.own_embed(batch.inputs)
    judged = site.learner.judge(fused, batch.labels, torch.Generator().manual_seed(1))
    site.learner.loss(judged, batch.labels).backward()
    torch.testing.assert_close(found, weight.grad)


# --- FedBN --------------------------------------------------------------------------------------


def test_a_fedbn_sites_templates_depend_on_its_own_statistics_alone():
    one, other = build("fedbn"), build("fedbn", "b", tiny_images(5))
    shared, probes = one.initial_vector(), tiny_images(3).images
    for site in (one, other):
        site.train_round(RoundContext(1, 1), shared)
    templates = [site.open_templates(probes, shared) for site in (one, other)]
    assert not np.allclose(*templates, atol=1e-3)
    # A template does not depend on the images that it is made with.
    np.testing.assert_allclose(one.open_templates(probes[:1], shared), templates[0][:1], atol=1e-5)
