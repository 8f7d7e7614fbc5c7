"""Two accountants over a grid of mechanisms: how far apart they are, and what neither can account for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, product
from math import inf
from time import perf_counter
from typing import Any

from ..errors import AccountingError
from ..privacy.accounting import (
    MAX_AGREED_EPSILON,
    Charge,
    Charges,
    accountant_name,
    epsilon_pld,
    epsilon_prv,
)

LIMIT = 0.02
"""Of the difference between the two."""
NOISE = (0.35, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0)
RATES = (0.001, 0.01, 0.05, 0.2, 0.5, 1.0)
STEPS = (1, 10, 100, 1000, 5000)
DELTAS = (1e-5, 1e-3, 1e-6, 1e-8, 1e-5, 1e-10)
MIXED: tuple[Charges, ...] = (
    (Charge(1.0, 0.1, 240), Charge(1.5, 0.05, 400)),
    (Charge(0.7, 0.01, 500), Charge(1.0, 0.02, 500), Charge(2.0, 0.2, 200)),
    (Charge(5.0, 1.0, 20), Charge(1.0, 0.01, 1000)),
    (Charge(0.5, 0.01, 20), Charge(0.6, 0.01, 20), Charge(0.8, 0.05, 40), Charge(1.2, 0.1, 100)),
)
"""Several mechanisms on one account, as over several runs."""
EDGES: tuple[tuple[Charges, float], ...] = (
    ((Charge(0.01, 0.5, 1000),), 1e-5),
    ((Charge(1.0, 0.1, 100),), 1e-14),
    ((Charge(1.0, 0.1, 100),), 1e-15),
    ((Charge(20.0, 0.01, 100_000_000),), 1e-5),
    ((Charge(1000.0, 1e-6, 1),), 1e-5),
)
"""At the borders of what floating point and memory allow."""


@dataclass(frozen=True)
class Compared:
    """One account by both; None where an accountant cannot say, and ``refused`` says why."""

    charges: Charges
    delta: float
    pld: float | None
    prv: float | None
    refused: str
    pld_s: float
    prv_s: float

    @property
    def apart(self) -> float:
        """Infinite where one of them gives no figure."""
        return inf if self.pld is None or self.prv is None else abs(self.pld - self.prv)

    @property
    def charged(self) -> float:
        """What :func:`charged_epsilon` says of it; 0 where it is refused."""
        return 0.0 if self.refused else max(self.pld or 0.0, self.prv or 0.0)


def grid() -> Iterator[tuple[Charges, float]]:
    """Every noise, rate and number of steps, with the deltas taking turns; then mixed accounts."""
    deltas = cycle(DELTAS)
    for sigma, rate, steps in product(NOISE, RATES, STEPS):
        yield (Charge(sigma, rate, steps),), next(deltas)
    yield from product(MIXED, sorted(set(DELTAS)))


def compare(charges: Charges, delta: float) -> Compared:
    """Ask both; above MAX_AGREED_EPSILON only the first."""
    reasons: list[str] = []

    def asked(accountant: Callable[[Charges, float], float]) -> tuple[float | None, float]:
        start = perf_counter()
        try:
            return accountant(charges, delta), perf_counter() - start
        except AccountingError as error:
            reasons.append(error.what.split(": ", 1)[-1])
            return None, perf_counter() - start

    pld, pld_s = asked(epsilon_pld)
    if pld is not None and pld > MAX_AGREED_EPSILON:
        return Compared(charges, delta, pld, None, "", pld_s, 0.0)
    prv, prv_s = asked(epsilon_prv)
    return Compared(charges, delta, pld, prv, (reasons or [""])[0], pld_s, prv_s)


def compare_accountants(tick: Callable[[str, int, int], None]) -> dict[str, Any]:
    """The whole grid, then the edges.

    Returns:
        ``settings``: those in the range that is held to LIMIT; ``beyond`` and ``refused``: how many of the
        grid are above it, or cannot be accounted for; ``edges``; ``largest``.
    """
    inside, beyond, refused = [], 0, 0
    every = list(grid())
    for number, (charges, delta) in enumerate(every, 1):
        tick("settings", number, len(every))
        found = compare(charges, delta)
        if found.refused:
            refused += 1
        elif found.charged > MAX_AGREED_EPSILON:
            beyond += 1
        else:
            inside.append(found)
    edges = [compare(charges, delta) for charges, delta in EDGES]
    return {
        "accountant": accountant_name(),
        "limit": LIMIT,
        "largest": max(inside, key=lambda one: one.apart),
        "settings": inside,
        "beyond": beyond,
        "refused": refused,
        "edges": edges,
    }


def words(charges: Charges) -> str:
    """Such as ``sigma 1, q 0.1, 240 steps``."""
    return " + ".join(
        f"sigma {one.noise_multiplier:g}, q {one.sampling_rate:g}, {one.steps:,} steps"
        for one in charges
    )


def as_json(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures in JSON's own types."""
    return {
        **figures,
        "largest": asdict(figures["largest"]),
        "settings": [asdict(one) for one in figures["settings"]],
        "edges": [asdict(one) for one in figures["edges"]],
    }


def report(figures: dict[str, Any]) -> str:
    """The page ``docs/results/dp-accounting.md``."""
    inside: list[Compared] = figures["settings"]
    largest: Compared = figures["largest"]
    apart = sorted(one.apart for one in inside)
    rows = []
    for low, high in ((0, 1), (1, 4), (4, 8), (8, 20), (20, MAX_AGREED_EPSILON)):
        some = [one for one in inside if low < one.charged <= high]
        gaps = [one.apart for one in some]
        seconds = [one.pld_s + one.prv_s for one in some]
        rows.append(
            f"| {low:g} to {high:g} | {len(some)} | {max(gaps):.4f} | {max(seconds):.1f} |"
            if some
            else f"| {low:g} to {high:g} | 0 | | |"
        )
    edges = [
        f"| {words(one.charges)}, delta {one.delta:g} | {_figure(one.pld)} | {_figure(one.prv)} | "
        f"{one.refused or 'charged'} |"
        for one in figures["edges"]
    ]
    return f"""# Two accountants

    make bench-dp-accounting

What is charged is the larger of two upper bounds ({figures["accountant"]}), add/remove: Opacus's
PRV accountant, and dp-accounting's privacy loss distributions, the worse of adding and removing. Over
{len(inside)} settings with epsilon up to {MAX_AGREED_EPSILON:g} they are at most **{apart[-1]:.4f}** apart
(target: {LIMIT:g}; median {apart[len(apart) // 2]:.4f}).
The largest gap: {words(largest.charges)}, delta {largest.delta:g}:
PLD {_figure(largest.pld)}, PRV {_figure(largest.prv)}. PRV adds its error bound of 0.01.

| epsilon charged | settings | largest gap | slowest, both together (s) |
|---|---|---|---|
{chr(10).join(rows)}

The grid: sigma {_list(NOISE)}; q {_list(RATES)};
steps {_list(STEPS)}; delta {_list(sorted(set(DELTAS)))}, taking turns; and {len(MIXED)}
accounts of several mechanisms at each delta. Of it {figures["beyond"]} settings are above epsilon
{MAX_AGREED_EPSILON:g}, and {figures["refused"]} are refused as below. All figures:
[dp-accounting.json](dp-accounting.json).

## Where an accountant cannot say

Nothing is charged by one accountant alone: the round is refused (`accounting`) before it is trained.

| account | PLD | PRV | what happens |
|---|---|---|---|
{chr(10).join(edges)}
"""


def _figure(value: float | None) -> str:
    return "no figure" if value is None else f"{value:.4f}"


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)
