from __future__ import annotations

import numpy as np
import pytest

from fedpalm.benchmark.simulate import plan_for, simulate
from fedpalm.errors import ConfigError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.contribution import codec_for, rounding_key
from fedpalm.methods.rules import server_rule
from fedpalm.methods.site import build_site_method
from tests.unit.methods.conftest import make_plan, tiny_images


@pytest.fixture
def sites():
    return {"a": tiny_images(0), "b": tiny_images(1, people=3)}


def test_the_shared_model_is_what_the_deployed_pieces_make(sites):
    plan = make_plan("fedavg", rounds=1)
    codec, rule = codec_for(plan), server_rule("fedavg")
    total = np.zeros(codec.length, np.uint32)
    for site in ("b", "a"):
        method = build_site_method(plan, site, sites[site])
        shared = method.initial_vector()
        update = method.train_round(RoundContext(1, 1), shared)
        total += codec.encode(
            update.delta, update.weight, update.stats, rounding_key(plan, site, 1)
        )
    stats = codec.decode_stats(total[codec.parameters :])
    assert stats == {"weight": 15.0}
    half = codec.parameters // 2
    expected = np.concatenate(
        [
            rule.step(shared[part], codec.decode_deltas(total[: codec.parameters][part]), stats)
            for part in (slice(0, half), slice(half, None))
        ]
    )
    assert simulate(plan, "fedavg", sites).shared.tobytes() == expected.tobytes()


def test_fedpalm_ends_with_the_exchange_and_reports_every_round(sites):
    seen = []

    def on_round(number, shared, methods, metrics):
        seen.append((number, sorted(methods), sorted(metrics)))
        assert not any(name.startswith("received.") for name in methods["a"].state())

    result = simulate(make_plan(rounds=2), "fedpalm", sites, on_round)
    assert seen == [(number, ["a", "b"], ["a", "b"]) for number in (1, 2)]
    assert [metrics["a"]["teim.on"] for metrics in result.metrics] == [0, 1]
    received = result.sites["a"].state()
    expert = result.sites["b"].expert()
    for name, array in expert.items():
        stored = received["received.b." + name.removeprefix("closed_set.")]
        assert stored.tobytes() == array.tobytes()
    probes = sites["a"].images
    templates = [m.open_templates(probes, result.shared) for m in result.sites.values()]
    assert templates[0].tobytes() == templates[1].tobytes()


def test_local_shares_nothing(sites):
    result = simulate(make_plan(rounds=1), "local", sites)
    assert result.shared.shape == (0,)
    probes = sites["a"].images
    one, two = (method.open_templates(probes, result.shared) for method in result.sites.values())
    assert not np.allclose(one, two)


def test_a_plan_for_another_method_keeps_all_but_the_model():
    plan = make_plan()
    assert plan_for(plan, "fedpalm") is plan
    other = plan_for(plan, "fedavg")
    assert other.draft.training == plan.draft.training
    assert other.roster == plan.roster
    assert other.expert_layout == ()
    assert plan_for(other, "fedpalm") == plan


def test_sites_other_than_the_roster_are_refused(sites):
    with pytest.raises(ConfigError, match="roster"):
        simulate(make_plan(), "fedavg", {"a": sites["a"]})
