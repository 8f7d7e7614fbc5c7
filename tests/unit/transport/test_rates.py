"""Token buckets per address and in all: how often those may call who have proved nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.clock import FakeClock
from fedpalm.errors import ResourceError
from fedpalm.transport.rates import IN_ALL, MAX_ADDRESSES, PER_ADDRESS, CallRates, network_of


def admitted(rates: CallRates, address: str, calls: int) -> int:
    """How many of so many calls in a row are let through."""
    count = 0
    for _ in range(calls):
        try:
            rates.charge(address)
            count += 1
        except ResourceError:
            pass
    return count


def test_an_address_has_its_burst_and_then_its_rate() -> None:
    clock = FakeClock()
    rates = CallRates(clock)
    assert admitted(rates, "192.0.2.1", 50) == PER_ADDRESS.burst
    clock.advance(1.9)
    assert admitted(rates, "192.0.2.1", 5) == 0
    clock.advance(0.2)
    assert admitted(rates, "192.0.2.1", 5) == 1
    clock.advance(20)
    assert admitted(rates, "192.0.2.1", 50) == PER_ADDRESS.burst


def test_over_the_limit_it_is_said_when_to_try_again() -> None:
    rates = CallRates(FakeClock())
    admitted(rates, "192.0.2.1", PER_ADDRESS.burst)
    with pytest.raises(ResourceError) as caught:
        rates.charge("192.0.2.1")
    assert caught.value.next_step == "try again in 2 s"


def test_one_address_leaves_the_others_their_own() -> None:
    rates = CallRates(FakeClock())
    admitted(rates, "192.0.2.1", 1000)
    assert admitted(rates, "192.0.2.2", 1) == 1


def test_all_addresses_together_have_a_limit_too() -> None:
    clock = FakeClock()
    rates = CallRates(clock)
    assert sum(admitted(rates, f"192.0.2.{n}", 5) for n in range(200)) == IN_ALL.burst
    clock.advance(1)
    assert sum(admitted(rates, f"198.51.100.{n}", 1) for n in range(200)) == IN_ALL.per_s


def test_an_ipv6_network_counts_as_one_caller() -> None:
    rates = CallRates(FakeClock())
    for n in range(PER_ADDRESS.burst):
        rates.charge(f"2001:db8:1:1::{n:x}")
    with pytest.raises(ResourceError):
        rates.charge("2001:db8:1:1:ffff::1")
    rates.charge("2001:db8:1:2::1")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "elsewhere"),
        ("/run/socket", "elsewhere"),
    ],
)
def test_an_address_belongs_to_a_network(address: str, network: str) -> None:
    assert network_of(address) == network


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(-5, 30)), max_size=300))
def test_no_flood_makes_the_table_large_or_lets_more_through(
    calls: list[tuple[int, float]],
) -> None:
    clock = FakeClock()
    rates = CallRates(clock)
    through = 0
    for number, seconds in calls:
        clock._now += seconds  # A wall clock may be set back.
        through += admitted(rates, f"10.0.{number // 250}.{number % 250}", 1)
        assert len(rates) <= MAX_ADDRESSES
    forward = sum(max(0.0, seconds) for _, seconds in calls)
    assert through <= IN_ALL.burst + IN_ALL.per_s * forward + 1e-6


def test_addresses_are_forgotten_when_they_have_all_their_tokens_again() -> None:
    clock = FakeClock()
    rates = CallRates(clock)
    for n in range(60):
        rates.charge(f"192.0.2.{n}")
    assert len(rates) == 60
    clock.advance(30)
    rates.charge("198.51.100.1")
    assert len(rates) == 1


def test_a_clock_that_is_set_back_does_not_lock_anybody_out() -> None:
    clock = FakeClock()
    rates = CallRates(clock)
    admitted(rates, "192.0.2.1", 20)
    clock._now -= 86400
    assert admitted(rates, "192.0.2.1", 1) == 0
    clock.advance(2)
    assert admitted(rates, "192.0.2.1", 1) == 1


def test_a_flood_of_calls_is_not_one_of_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    rates = CallRates(FakeClock())
    admitted(rates, "192.0.2.1", 5000)
    assert len(caplog.records) == 1
