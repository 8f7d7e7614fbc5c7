"""Noise for a target: the least that the charge allows."""

from __future__ import annotations

import pytest

from fedpalm.errors import AccountingError, ConfigError
from fedpalm.privacy.accounting import Charge, charged_epsilon, noise_for


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"), [(1.0, 1e-3, 0.2, 24), (8.0, 1e-5, 1.0, 3)]
)
def test_it_is_enough_and_a_thousandth_less_is_not(
    epsilon: float, delta: float, rate: float, steps: int
):
    noise = noise_for(epsilon, delta, rate, steps)
    assert charged_epsilon([Charge(noise, rate, steps)], delta) <= epsilon
    assert charged_epsilon([Charge(round(noise - 0.001, 3), rate, steps)], delta) > epsilon


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_a_target_is_a_number_above_0(epsilon: float):
    with pytest.raises(ConfigError, match="above 0"):
        noise_for(epsilon, 1e-3, 0.1, 1)


def test_delta_is_a_probability():
    with pytest.raises(ConfigError, match="delta"):
        noise_for(1.0, 0.0, 0.1, 1)


def test_what_no_noise_can_pay_for_is_refused():
    # The PRV figure is never below its error bound of 0.01.
    with pytest.raises(AccountingError, match=r"cannot be had for epsilon 0\.005"):
        noise_for(0.005, 1e-3, 1.0, 10)
