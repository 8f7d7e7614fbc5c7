from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import ConfigError, LayoutMismatchError
from fedpalm.layout import Layout, TensorSpec
from fedpalm.methods.base import RoundContext
from fedpalm.methods.contribution import codec_for
from fedpalm.methods.rehearsal import RehearsalMethod, rehearsal_vector
from fedpalm.plan import CodecSettings, Plan, PlanDraft


def _plan(size=70_000, seed=1, **codec):
    return Plan(
        federation="unit",
        draft=PlanDraft(
            name="drill",
            method="rehearsal",
            rounds=3,
            seed=seed,
            codec=CodecSettings(**codec),
        ),
        roster=("a", "b"),
        layout=tuple(Layout((TensorSpec("open_set.drill", (size,)),)).to_json()),
        initial_model="0" * 64,
    )


def _update(plan, site="a", round_number=1):
    method = RehearsalMethod(plan, site)
    return method.train_round(RoundContext(round_number, 3), method.initial_vector())


@given(
    seed=st.integers(0, 2**53 - 1),
    site=st.sampled_from(["a", "b"]),
    round_number=st.integers(1, 10_000),
    size=st.integers(1, 300),
)
@settings(max_examples=50)
def test_a_round_is_the_same_whenever_it_is_made_again(seed, site, round_number, size):
    plan = _plan(size, seed)
    one, two = (_update(plan, site, round_number) for _ in range(2))
    assert np.array_equal(one.delta, two.delta)
    assert one.weight == two.weight
    assert one.delta.shape == (size,)
    assert one.delta.dtype == np.float32


def test_sites_rounds_and_seeds_differ():
    made = [
        _update(_plan(), "a", 1),
        _update(_plan(), "b", 1),
        _update(_plan(), "a", 2),
        _update(_plan(seed=2), "a", 1),
    ]
    for number, one in enumerate(made):
        for other in made[number + 1 :]:
            assert np.mean(one.delta == other.delta) < 0.001


@pytest.mark.parametrize(("clip_abs", "max_weight"), [(0.5, 1000), (0.001, 2)])
def test_an_update_stays_within_the_plans_bounds_and_fills_them(clip_abs, max_weight):
    plan = _plan(clip_abs=clip_abs, max_weight=max_weight)
    bound = min(0.01, clip_abs)
    updates = [_update(plan, round_number=number) for number in range(1, 30)]
    for update in updates:
        assert np.abs(update.delta).max() <= np.float32(bound)
        assert update.weight in range(1, max_weight + 1)
        codec_for(plan).encode(update.delta, update.weight, update.stats, bytes(32))
    assert np.abs(updates[0].delta).max() > 0.99 * bound
    assert abs(updates[0].delta.mean()) < 0.02 * bound
    assert min(10, max_weight) <= len({update.weight for update in updates}) <= 16


def test_the_first_vector_depends_on_seed_and_layout_alone():
    plan = _plan()
    one, two = (RehearsalMethod(plan, site).initial_vector() for site in "ab")
    assert np.array_equal(one, two)
    assert np.array_equal(one, rehearsal_vector(plan.model_layout, 1))
    assert not np.array_equal(one, rehearsal_vector(plan.model_layout, 2))
    other = Layout((TensorSpec("open_set.other", (70_000,)),))
    assert not np.array_equal(one, rehearsal_vector(other, 1))


def test_a_vector_of_another_shape_is_refused():
    method = RehearsalMethod(_plan(10), "a")
    for wrong in (np.zeros(9, np.float32), np.zeros(10, np.float64)):
        with pytest.raises(LayoutMismatchError):
            method.train_round(RoundContext(1, 3), wrong)


def test_there_is_no_state_no_expert_and_no_template():
    method = RehearsalMethod(_plan(10), "a")
    assert method.state() == {}
    method.load_state({})
    with pytest.raises(LayoutMismatchError):
        method.load_state({"head": np.zeros(1, np.float32)})
    shared, images = method.initial_vector(), np.zeros((1, 1, 128, 128), np.float32)
    for refused in (
        method.expert,
        lambda: method.receive_expert("b", {}),
        lambda: method.closed_templates(images, shared),
        lambda: method.open_templates(images, shared),
    ):
        with pytest.raises(ConfigError, match="trains nothing"):
            refused()


def test_it_loads_no_torch():
    script = "import fedpalm.methods.rehearsal, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
