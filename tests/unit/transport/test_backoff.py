from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.transport.backoff import Backoff


@given(seed=st.integers(), failures=st.integers(1, 40))
def test_no_delay_exceeds_the_doubling_ceiling_or_the_cap(seed: int, failures: int) -> None:
    backoff = Backoff(0.5, 30.0, random.Random(seed))
    for n in range(failures):
        assert 0 <= backoff.next_delay_s() <= min(30.0, 0.5 * 2**n)


def test_delays_differ_between_sites_and_grow_towards_the_cap() -> None:
    first, second = (Backoff(1.0, 60.0, random.Random(seed)) for seed in (1, 2))
    delays = [(first.next_delay_s(), second.next_delay_s()) for _ in range(200)]
    assert all(a != b for a, b in delays)
    assert max(a for a, _ in delays) > 50


def test_after_a_success_it_begins_at_the_base_again() -> None:
    backoff = Backoff(1.0, 60.0, random.Random(3))
    for _ in range(20):
        backoff.next_delay_s()
    backoff.reset()
    assert backoff.next_delay_s() <= 1.0


@pytest.mark.parametrize(("base_s", "cap_s"), [(0, 1), (-1, 1), (2, 1)])
def test_impossible_bounds_are_refused(base_s: float, cap_s: float) -> None:
    with pytest.raises(ValueError, match="base_s"):
        Backoff(base_s, cap_s, random.Random(0))
