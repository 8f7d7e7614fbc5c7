"""Seeds and variants that a benchmark's settings may name."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from fedpalm.benchmark.jobs.choices import Seeds, among

SEEDS = TypeAdapter(Seeds)


def test_what_is_named_twice_counts_once_and_the_order_stays():
    assert SEEDS.validate_python((3, 0, 3, 2**53 - 1)) == (3, 0, 2**53 - 1)
    assert among(("a", "b", "c"))(("c", "a", "c")) == ("c", "a")


@pytest.mark.parametrize("seeds", [(), (-1,), (0, 2**53)])
def test_seeds_that_json_cannot_carry_and_none_at_all_are_refused(seeds):
    with pytest.raises(ValidationError, match="one seed or more, each 0 or more"):
        SEEDS.validate_python(seeds)


@pytest.mark.parametrize(("names", "said"), [(("a", "x", "y"), "x, y"), ((), "none")])
def test_foreign_names_are_told_with_those_that_are_known(names, said):
    with pytest.raises(ValueError, match=rf"^{said}: known are a, b$"):
        among(("a", "b"))(names)
