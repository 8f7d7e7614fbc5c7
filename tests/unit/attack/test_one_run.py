"""The bound that guesses give, against the binomial law and against randomised response."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedpalm.attack.one_run import Guesses, epsilon_at_least, guess, p_value


def test_guesses_are_made_at_both_ends_and_counted_when_true():
    scores = np.array([5.0, -3.0, 0.1, 4.0, -9.0, 0.0])
    included = np.array([True, True, False, False, False, True])
    assert guess(scores, included, 2) == Guesses(6, 4, 2)


def test_without_delta_the_p_value_is_the_binomial_tail():
    rate = math.e / (1 + math.e)
    expected = stats.binom.sf(79, 100, rate)
    assert p_value(Guesses(1000, 100, 80), 1.0, 0.0) == pytest.approx(expected)


def test_delta_adds_the_worst_share_of_the_lower_tail():
    """By the definition, one sum at a time."""
    m, r, v, epsilon, delta = 500, 40, 33, 0.5, 1e-5
    rate = 1 / (1 + math.exp(-epsilon))
    law = [stats.binom.pmf(k, r, rate) for k in range(r + 1)]
    worst = max(sum(law[v - i : v]) / i for i in range(1, v + 1))
    expected = sum(law[v:]) + 2 * m * delta * worst
    assert p_value(Guesses(m, r, v), epsilon, delta) == pytest.approx(expected)


@given(
    made=st.integers(1, 300),
    share=st.floats(0, 1),
    epsilons=st.tuples(st.floats(0, 6), st.floats(0, 6)),
    deltas=st.tuples(st.floats(0, 1e-3), st.floats(0, 1e-3)),
)
@settings(max_examples=60)
def test_a_weaker_claim_is_never_easier_to_refute(made, share, epsilons, deltas):
    found = Guesses(2 * made, made, int(share * made))
    strict = p_value(found, min(epsilons), min(deltas))
    assert p_value(found, max(epsilons), min(deltas)) <= 1
    if found.right >= made * 1 / (1 + math.exp(-max(epsilons))):
        assert p_value(found, max(epsilons), 0.0) >= p_value(found, min(epsilons), 0.0) - 1e-12
    assert p_value(found, min(epsilons), max(deltas)) >= strict - 1e-12


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_bounded_from_below_and_never_accused(epsilon):
    """Each coin told truly with probability e^eps / (1 + e^eps): exactly epsilon, delta 0."""
    rng = np.random.default_rng(5)
    accused, bounds = 0, []
    for _ in range(200):
        right = int(rng.binomial(4000, 1 / (1 + math.exp(-epsilon))))
        found = Guesses(4000, 4000, right)
        accused += p_value(found, epsilon, 0.0) <= 0.01
        bounds.append(epsilon_at_least(found, 0.0, 0.95))
    assert accused <= 8  # of 200 at 1 %: more has probability 1e-4
    assert 0.8 * epsilon < np.median(bounds) < epsilon


def test_guesses_at_random_prove_nothing():
    assert epsilon_at_least(Guesses(5000, 200, 100), 1e-5, 0.95) == 0.0


def test_all_right_proves_what_their_number_can_and_no_more():
    """(e^eps / (1 + e^eps))^r = 0.05 at the bound."""
    bound = epsilon_at_least(Guesses(1000, 1000, 1000), 0.0, 0.95)
    rate = 0.05 ** (1 / 1000)
    assert bound == pytest.approx(math.log(rate / (1 - rate)), rel=1e-6)
    assert bound == pytest.approx(5.8, abs=0.05)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="out of range"):
        p_value(Guesses(10, 5, 6), 1.0, 0.0)
