"""Where mathematics says that a method is FedAvg, it is: bit for bit if no rounding differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpalm.methods import template
from fedpalm.methods.base import RoundContext
from fedpalm.methods.rules import STEPS_UNIT, server_rule
from fedpalm.methods.site import build_site
from fedpalm.secagg.codec import FixedPointCodec, add_into

from .conftest import TRAINING, tiny_images

EPOCHS = TRAINING.model_copy(update={"local_epochs": 2})
SITES = {"a": tiny_images(0), "b": tiny_images(1, people=5, each=1)}
"""Six and five images: two batches of an epoch at both."""


def federate(method, training=EPOCHS, rounds=2, sites=SITES):
    """The shared vector after some rounds with exact sums, and the sites."""
    found = {name: build_site(method, training, 11, name, one) for name, one in sites.items()}
    shared, rule = found["a"].initial_vector(), server_rule(method)
    for number in range(1, rounds + 1):
        updates = [one.train_round(RoundContext(number, rounds), shared) for one in found.values()]
        total = sum(update.weight * update.delta.astype(np.float64) for update in updates)
        stats = {name: sum(u.stats[name] for u in updates) for name in rule.stats[1:]}
        stats["weight"] = sum(update.weight for update in updates)
        shared = rule.step(shared, total, stats)
    return shared, found


@pytest.fixture(scope="module")
def fedavg():
    return federate("fedavg")


def same(one, other):
    (first, sites), (second, others) = one, other
    heads = [
        [each.state()["head.open.prototypes"].tobytes() for each in found.values()]
        for found in (sites, others)
    ]
    return first.tobytes() == second.tobytes() and heads[0] == heads[1]


@pytest.mark.parametrize(("method", "mu"), [("fedprox", "fedprox_mu"), ("moon", "moon_mu")])
def test_with_mu_zero_it_is_fedavg_bit_for_bit_and_with_another_mu_it_is_not(fedavg, method, mu):
    assert same(federate(method, EPOCHS.model_copy(update={mu: 0.0})), fedavg)
    assert not same(federate(method, EPOCHS.model_copy(update={mu: 1.0})), fedavg)


def test_fedbn_without_normalisation_is_fedavg_bit_for_bit(fedavg, monkeypatch):
    plain = template.ANATOMIES["fedbn"]._replace(norm=False)
    with monkeypatch.context() as patch:
        patch.setitem(template.ANATOMIES, "fedbn", plain)
        assert same(federate("fedbn"), fedavg)
    assert federate("fedbn", rounds=1)[0].shape == fedavg[0].shape
    assert not same(federate("fedbn"), fedavg)


def test_fedavg_with_a_normalisation_that_stays_is_fedbn_bit_for_bit():
    training = EPOCHS.model_copy(update={"expert_norm": "site"})
    assert same(federate("fedavg", training), federate("fedbn"))


def test_fednova_is_fedavg_at_equal_steps(fedavg):
    shared, _ = federate("fednova")
    moved = np.abs(fedavg[0] - build_site("fedavg", EPOCHS, 11, "a", SITES["a"]).initial_vector())
    # The second round begins a rounding apart, and Adam's first steps magnify what is near zero.
    assert np.abs(shared - fedavg[0]).mean() < 1e-4 * moved.mean()


def test_fednova_is_fedavg_at_equal_steps_through_the_codec():
    both = [encoded_round(method, SITES) for method in ("fedavg", "fednova")]
    # d_i is half of delta_i here, so its integers are half as fine: two units of 2^-14 / n.
    np.testing.assert_allclose(both[0], both[1], rtol=0, atol=3 * 2.0**-14 / 11)


def encoded_round(method, sites):
    found = {name: build_site(method, EPOCHS, 11, name, one) for name, one in sites.items()}
    shared, rule = found["a"].initial_vector(), server_rule(method)
    codec = FixedPointCodec(2, shared.size, clip_abs=0.5, max_weight=10_000, stats=rule.stats)
    total = np.zeros(codec.length, np.uint32)
    for key, one in enumerate(found.values()):
        update = one.train_round(RoundContext(1, 1), shared)
        add_into(total, codec.encode(update.delta, update.weight, update.stats, bytes([key] * 32)))
    stats = codec.decode_stats(total[codec.parameters :])
    return rule.step(shared, codec.decode_deltas(total[: codec.parameters]), stats)


def test_fednova_weighs_a_step_of_every_site_alike():
    """Against the equations, with one site that makes three steps an epoch and one that makes one."""
    sites = {"a": tiny_images(0, people=3), "b": tiny_images(1, people=3, each=1)}
    plain = {name: build_site("fedavg", EPOCHS, 11, name, one) for name, one in sites.items()}
    shared = plain["a"].initial_vector()
    deltas = [p.train_round(RoundContext(1, 1), shared).delta.astype(float) for p in plain.values()]
    n, tau = np.array([9.0, 3.0]), np.array([6, 2])
    p = n / n.sum()
    expected = shared + (p @ tau) * sum(p[i] * deltas[i] / tau[i] for i in range(2))
    np.testing.assert_allclose(federate("fednova", rounds=1, sites=sites)[0], expected, atol=1e-7)
    far = shared + sum(p[i] * deltas[i] for i in range(2))
    assert np.abs(far - expected).max() > 1e-4


@pytest.mark.parametrize("count", [200, 6400])
def test_fednovas_sums_keep_within_the_codecs_bounds_and_lose_nothing(count):
    batches = -(-count // 16)
    steps = count * batches / STEPS_UNIT
    for sites in (2, 200):
        codec = FixedPointCodec(sites, 1, 0.5, 10_000, stats=("weight", "steps"))
        delta = np.zeros(1, np.float32)
        encoded = codec.encode(delta, float(count), {"steps": steps}, bytes(range(32)))
        assert codec.decode_stats(encoded[1:]) == {"weight": count, "steps": steps}


def test_a_federation_of_one_site_is_that_site_alone_bit_for_bit():
    fedavg, local = (build_site(m, EPOCHS, 11, "a", SITES["a"]) for m in ("fedavg", "local"))
    shared, nothing = fedavg.initial_vector(), local.initial_vector()
    for number in (1, 2):
        fedavg.train_round(RoundContext(number, 2), shared)
        local.train_round(RoundContext(number, 2), nothing)
        # The mean over one site is its model; n (w_i - w) / n would round it.
        shared = fedavg.shared_vector()
    for name, tensor in fedavg.shared.items():
        assert torch.equal(tensor, local.private[name])
    probes = tiny_images(3).images
    assert (
        fedavg.open_templates(probes, shared).tobytes()
        == local.open_templates(probes, nothing).tobytes()
    )


def test_fednovas_rule_leaves_the_model_alone_without_any_weight():
    params = np.ones(3, np.float32)
    stats = {"weight": 0.0, "steps": 0.0}
    assert server_rule("fednova").step(params, np.zeros(3), stats) is params
