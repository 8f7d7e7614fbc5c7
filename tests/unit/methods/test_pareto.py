from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import LayoutMismatchError
from fedpalm.methods.pareto import ProbeLosses, receive

GROUPS = {"trunk.signet": slice(0, 3), "projection": slice(3, 5), "task": slice(5, 6)}
SIZE = 6


def landscape(seed, odd):
    """Two smooth random losses with many valleys; where ``odd``, some values are not finite."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.standard_normal((2, 4, SIZE)) * 3, rng.uniform(0, 7, (2, 4))
    centres, slopes = rng.standard_normal((2, SIZE)), rng.uniform(0, 2, 2)

    def probe(model):
        x = model.astype(np.float64)
        bowls = slopes * np.square(x - centres).sum(axis=1)
        losses = bowls + np.sin(waves @ x + phases).sum(axis=1)
        if odd and math.sin(1000 * x.sum()) > 0.5:
            losses[seed % 2] = [math.nan, math.inf, -math.inf, math.nan][seed % 4]
        return ProbeLosses(*losses.tolist())

    return probe


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.floats(0.05, 0.95),
    st.floats(0.01, 3),
    st.booleans(),
)
@settings(max_examples=300)
def test_no_receipt_makes_either_probe_loss_worse_than_the_tolerance(seed, eps, weight, far, odd):
    rng = np.random.default_rng(seed + 1)
    own = rng.standard_normal(SIZE).astype(np.float32)
    aggregate = (own + far * rng.standard_normal(SIZE)).astype(np.float32)
    probe = landscape(seed, odd)
    kept = own.copy()
    receipt = receive(own, aggregate, GROUPS, probe, tolerance=eps, detection_weight=weight)
    before, after = probe(own), probe(receipt.model)
    assert np.array_equal(own, kept)
    np.testing.assert_equal((receipt.before, receipt.after), (before, after))
    moved = {name for name, part in GROUPS.items() if (receipt.model[part] != own[part]).any()}
    assert moved <= {name for name, eta in receipt.etas.items() if eta}
    if not moved:
        return
    assert after.user <= before.user + eps
    assert after.forged <= before.forged + eps
    assert after.user < before.user or after.forged < before.forged
    assert after.scalarised(weight) < before.scalarised(weight)
    for name, part in GROUPS.items():
        eta = np.float32(receipt.etas[name])
        assert 0 <= eta <= 1
        expected = own[part] + eta * (aggregate[part] - own[part])
        np.testing.assert_allclose(receipt.model[part], expected, atol=1e-6)


def test_the_tolerance_is_of_the_receipt_and_not_of_each_step():
    """The whole way of a group makes one loss worse by 0.9 of what is allowed, for a gain in the other."""

    def probe(model):
        steps = float(model[[0, 3, 5]].sum()) - 6
        return ProbeLosses(10 - steps, 0.09 * steps)

    own, aggregate = np.full(SIZE, 2, np.float32), np.full(SIZE, 3, np.float32)
    receipt = receive(own, aggregate, GROUPS, probe, tolerance=0.1, detection_weight=0.5)
    assert receipt.after.forged == pytest.approx(0.1, abs=0.01)
    assert receipt.after.forged <= 0.1
    assert min(receipt.etas.values()) > 0


def test_the_largest_scalarised_gain_is_taken():
    def probe(model):
        return ProbeLosses((model[0] - 2.5) ** 2, (model[0] - 2.7) ** 2)

    own, aggregate = np.full(SIZE, 2, np.float32), np.full(SIZE, 3, np.float32)
    for weight, eta in ((0.01, 0.5), (0.99, 0.75)):
        receipt = receive(own, aggregate, GROUPS, probe, tolerance=0.1, detection_weight=weight)
        assert receipt.etas == dict.fromkeys(GROUPS, eta)


def test_groups_that_only_fit_together_move_together():
    def probe(model):
        return ProbeLosses(100 * (model[0] - model[3]) ** 2 + (3 - model[0]) ** 2, 0.0)

    own, aggregate = np.full(SIZE, 2, np.float32), np.full(SIZE, 3, np.float32)
    receipt = receive(own, aggregate, GROUPS, probe, tolerance=0, detection_weight=0.5)
    assert receipt.etas == dict.fromkeys(GROUPS, 1.0)
    for name in GROUPS:
        alone = receive(
            own, aggregate, {name: GROUPS[name]}, probe, tolerance=0, detection_weight=0.5
        )
        assert name == "task" or alone.etas == {name: 0.0}


def test_from_where_all_went_together_a_group_goes_on_alone():
    def probe(model):
        return ProbeLosses((2.5 - model[0]) ** 2 + (3 - model[3]) ** 2 / 4, 0.0)

    own, aggregate = np.full(SIZE, 2, np.float32), np.full(SIZE, 3, np.float32)
    receipt = receive(own, aggregate, GROUPS, probe, tolerance=0, detection_weight=0.5)
    assert receipt.etas == {"trunk.signet": 0.5, "projection": 1.0, "task": 0.5}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_aggregate_that_is_not_finite_moves_nothing(value):
    def probe(model):
        return ProbeLosses(float(np.square(model).sum()), 0.0)

    own, aggregate = np.ones(SIZE, np.float32), np.full(SIZE, value, np.float32)
    receipt = receive(own, aggregate, GROUPS, probe, tolerance=1.0, detection_weight=0.5)
    assert receipt.model.tobytes() == own.tobytes()
    assert set(receipt.etas.values()) == {0.0}
    assert receipt.after == receipt.before


def test_a_model_of_another_length_is_refused():
    own, aggregate = np.zeros(SIZE, np.float32), np.zeros(SIZE + 1, np.float32)
    with pytest.raises(LayoutMismatchError):
        receive(own, aggregate, GROUPS, landscape(0, False), tolerance=0, detection_weight=0.5)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["negated", "scaled", "orthogonal", "nothing"]))
@settings(max_examples=100)
def test_an_aggregate_that_is_farther_than_zero_is_refused_whatever_the_probe_says(seed, kind):
    own, other = np.random.default_rng(seed).standard_normal((2, SIZE)).astype(np.float32)
    aggregate = own.copy()
    for part in GROUPS.values():
        if kind == "orthogonal":
            direction = own[part] / np.linalg.norm(own[part])
            aggregate[part] = other[part] - (other[part] @ direction + 1e-3) * direction
        else:
            aggregate[part] *= {"negated": -1, "scaled": 100, "nothing": 0}[kind]
    way = aggregate - own

    def probe(model):
        return ProbeLosses(-float((model - own) @ way), 0.0)

    receipt = receive(own, aggregate, GROUPS, probe, tolerance=1.0, detection_weight=0.5)
    assert receipt.model.tobytes() == own.tobytes()
    assert set(receipt.etas.values()) == {0.0}
    assert min(receipt.distances.values()) >= 1


def test_an_own_group_of_zeros_stays_as_it_is():
    own, aggregate = np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)
    receipt = receive(
        own, aggregate, GROUPS, landscape(0, False), tolerance=1, detection_weight=0.5
    )
    assert not receipt.model.any()
