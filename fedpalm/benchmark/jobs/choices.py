"""Which seeds and which variants a benchmark's settings may name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated

from pydantic import AfterValidator

_SEED_LIMIT = 2**53
"""Above it not every whole number survives JSON."""


def _seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or min(seeds) < 0 or max(seeds) >= _SEED_LIMIT:
        raise ValueError("name one seed or more, each 0 or more")
    return tuple(dict.fromkeys(seeds))


Seeds = Annotated[tuple[int, ...], AfterValidator(_seeds)]
"""One seed or more, none of them twice."""


def among(known: Collection[str]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """A validator: one name or more, all of them ``known``; it leaves out what is named twice."""

    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        foreign = [name for name in names if name not in known]
        if foreign or not names:
            raise ValueError(f"{', '.join(foreign) or 'none'}: known are {', '.join(known)}")
        return tuple(dict.fromkeys(names))

    return check
