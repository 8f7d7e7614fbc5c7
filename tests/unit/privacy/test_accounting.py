"""Two accountants, one figure: they agree, the larger is charged, and what cannot be charged is refused."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import AccountingError, ConfigError
from fedpalm.privacy import accounting
from fedpalm.privacy.accounting import (
    MAX_STEPS,
    Charge,
    charged_epsilon,
    coalesce,
    epsilon_pld,
    epsilon_prv,
)

DELTA = 1e-5


def _charges(draw_steps: int = 1000) -> st.SearchStrategy[Charge]:
    return st.builds(
        Charge,
        st.sampled_from([0.5, 1.0, 2.5]),
        st.sampled_from([0.01, 0.1, 1.0]),
        st.integers(1, draw_steps),
    )


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Of one Gaussian mechanism, exactly (Balle and Wang 2018, arXiv:1805.06530, theorem 8)."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def delta_at(epsilon: float) -> float:
        half, slope = 1 / (2 * sigma), epsilon * sigma
        return phi(half - slope) - math.exp(epsilon) * phi(-half - slope)

    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


# Half of them by sigma, q and steps as plans have them, half at the edges: one step, q = 1, small delta.
SETTINGS = [
    *(
        ([Charge(sigma, rate, steps)], DELTA)
        for sigma, rate, steps in (
            (0.6, 0.1, 20),
            (0.7, 0.05, 400),
            (0.8, 0.2, 50),
            (1.0, 0.1, 1),
            (1.0, 0.1, 240),
            (1.0, 0.01, 2000),
            (1.2, 0.5, 60),
            (2.0, 0.25, 500),
            (4.0, 0.5, 300),
            (8.0, 0.02, 5000),
        )
    ),
    *(
        ([Charge(sigma, 1.0, steps)], DELTA)
        for sigma, steps in ((0.5, 1), (1.0, 1), (1.0, 16), (3.0, 20), (20.0, 100))
    ),
    *(([Charge(1.0, 0.1, 100)], delta) for delta in (1e-3, 1e-7, 1e-9)),
    *(([Charge(50.0, rate, 1)], DELTA) for rate in (1e-3, 0.5)),
    ([Charge(1.0, 0.1, 240), Charge(1.5, 0.05, 400)], DELTA),
    ([Charge(0.9, 0.1, 60), Charge(1.1, 0.2, 40), Charge(3.0, 1.0, 5)], 1e-6),
    ([Charge(0.3, 0.1, 20)], DELTA),  # about 47
    ([Charge(1.0, 1.0, 24)], 1e-6),  # about 40
]


@pytest.mark.parametrize(("charges", "delta"), SETTINGS, ids=str)
def test_the_accountants_agree_and_the_charge_is_below_neither(charges, delta):
    pld, prv = epsilon_pld(charges, delta), epsilon_prv(charges, delta)
    assert 0 <= pld <= accounting.MAX_AGREED_EPSILON
    assert abs(prv - pld) <= 0.02
    assert charged_epsilon(charges, delta) == max(pld, prv)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_one_step_with_everybody_costs_what_the_exact_formula_says(sigma, delta):
    exact = gaussian_epsilon(sigma, delta)
    assert exact <= epsilon_pld([Charge(sigma, 1.0, 1)], delta) <= exact + 0.001
    assert exact <= epsilon_prv([Charge(sigma, 1.0, 1)], delta) <= exact + 0.02


def test_full_batches_compose_as_one_gaussian_of_less_noise():
    many = epsilon_pld([Charge(2.0, 1.0, 16)], DELTA)
    assert many == pytest.approx(gaussian_epsilon(0.5, DELTA), abs=0.001)


def test_nothing_costs_nothing():
    assert charged_epsilon([], DELTA) == 0.0
    assert epsilon_pld([], DELTA) == epsilon_prv([], DELTA) == 0.0


@given(st.lists(_charges(), max_size=6).flatmap(lambda one: st.permutations(one)))
def test_an_account_is_the_same_in_any_order_and_however_it_is_cut(charges):
    whole = coalesce(charges)
    cut = [
        part
        for one in charges
        for part in (
            [Charge(one.noise_multiplier, one.sampling_rate, 1)]
            + (
                [Charge(one.noise_multiplier, one.sampling_rate, one.steps - 1)]
                if one.steps > 1
                else []
            )
        )
    ]
    assert coalesce(cut) == whole == coalesce(whole)
    assert sum(one.steps for one in whole) == sum(one.steps for one in charges)
    assert len({(one.noise_multiplier, one.sampling_rate) for one in whole}) == len(whole)


def test_more_steps_less_noise_more_of_a_draw_or_a_smaller_delta_cost_more():
    def of(sigma=1.0, rate=0.1, steps=50, delta=DELTA):
        return charged_epsilon([Charge(sigma, rate, steps)], delta)

    assert of(steps=51) > of()
    assert of(sigma=0.9) > of()
    assert of(rate=0.11) > of()
    assert of(delta=1e-6) > of()


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_a_delta_out_of_range_is_refused(delta):
    for epsilon in (charged_epsilon, epsilon_pld, epsilon_prv):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            epsilon([Charge(1.0, 0.1, 1)], delta)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"),
    [
        (0.0, 0.1, 1),
        (-1.0, 0.1, 1),
        (math.inf, 0.1, 1),
        (math.nan, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.1, 0),
        (1.0, 0.1, 1.5),
    ],
)
def test_a_charge_of_no_mechanism_is_refused(sigma, rate, steps):
    with pytest.raises(ConfigError):
        Charge(sigma, rate, steps)


@pytest.mark.parametrize("epsilon", [charged_epsilon, epsilon_pld, epsilon_prv])
def test_hardly_any_noise_is_refused_at_once(epsilon):
    with pytest.raises(AccountingError, match="cannot account for 1000 steps") as error:
        epsilon([Charge(0.01, 0.5, 1000)], DELTA)
    assert "nothing was trained" in error.value.safe
    assert "more noise" in error.value.next_step


@pytest.mark.parametrize("epsilon", [charged_epsilon, epsilon_pld, epsilon_prv])
def test_a_delta_below_what_rounding_leaves_is_refused(epsilon):
    with pytest.raises(AccountingError, match="at delta 1e-15"):
        epsilon([Charge(1.01, 0.1, 100)], 1e-15)


def test_what_one_accountant_cannot_tell_is_not_charged_by_the_other_alone(monkeypatch):
    """Opacus would need too much memory."""
    monkeypatch.setattr(accounting, "MAX_PRV_CELLS", 1000)
    charges = [Charge(1.03, 0.1, 100)]
    assert epsilon_pld(charges, DELTA) > 0
    with pytest.raises(AccountingError, match="the limit is 1,000"):
        charged_epsilon(charges, DELTA)


def test_so_much_noise_that_opacus_would_take_hours_is_refused_at_once():
    with pytest.raises(AccountingError, match="takes hours"):
        charged_epsilon([Charge(1000.0, 1e-3, 1)], DELTA)


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_prv])
def test_an_account_of_more_steps_than_can_be_accounted_for_is_refused_at_once(epsilon):
    charges = [Charge(20.0, 0.01, MAX_STEPS), Charge(20.0, 0.02, 1)]
    with pytest.raises(AccountingError, match="an account has at most 1,000,000 steps"):
        epsilon(charges, 1e-5)


def test_the_module_and_pld_need_neither_torch_nor_opacus():
    code = (
        "import sys\n"
        "from fedpalm.privacy.accounting import Charge, epsilon_pld\n"
        "assert 'dp_accounting' not in sys.modules\n"
        "assert epsilon_pld([Charge(1.0, 0.1, 5)], 1e-5) > 0\n"
        "assert not {'torch', 'opacus'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
