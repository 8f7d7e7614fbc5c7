"""What a k-regular masking graph would need: the numbers of docs/adr/0012-complete-graph.md.

    python scripts/k_regular.py [--sites 1000] [--corrupt 1/3] [--degree 120] [--threshold 81]
                                [--drop 0.10] [--bits 40] [--attempts 30000]

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead", CCS 2020, ePrint 2020/704. Each site's secrets are shared among its k neighbours in a random
circle, k/2 on either side: seen from one site, k of the n - 1 others without replacement. So corrupt and
dropped neighbours are hypergeometric; all sums here are exact rationals.
"""

from __future__ import annotations

import argparse
import math
from fractions import Fraction


def tail(population: int, marked: int, draws: int, at_least: int) -> Fraction:
    """P(X >= at_least) for X marked ones among ``draws`` of ``population``, without replacement."""
    total = math.comb(population, draws)
    ways = sum(
        math.comb(marked, hit) * math.comb(population - marked, draws - hit)
        for hit in range(max(at_least, 0), min(marked, draws) + 1)
    )
    return Fraction(ways, total)


def disconnected(sites: int, gone: int, degree: int) -> Fraction:
    """Bound on P(the honest survivors fall apart): k/2 neighbours in the circle all corrupt or dropped.

    To cut the circle takes two such runs; the union bound is over the places where one begins.
    """
    run = degree // 2
    return min(Fraction(1), sites * Fraction(math.comb(gone, run), math.comb(sites, run)))


def power(value: Fraction) -> str:
    """As 2^x and as a decimal."""
    if value <= 0:
        return "0"
    log = math.log2(value.numerator) - math.log2(value.denominator)
    return f"2^{log:.1f} ({10 ** (log * math.log10(2)):.1e})"


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--sites", type=int, default=1000)
    parse.add_argument("--corrupt", type=Fraction, default=Fraction(1, 3))
    parse.add_argument("--degree", type=int, default=120)
    parse.add_argument("--threshold", type=int, default=81)
    parse.add_argument("--drop", type=Fraction, default=Fraction(1, 10))
    parse.add_argument("--bits", type=int, default=40, help="security wanted, per attempt")
    parse.add_argument(
        "--attempts", type=int, default=30_000, help="rounds times attempts of a run"
    )
    ask = parse.parse_args()

    n, k, t_k = ask.sites, ask.degree, ask.threshold
    corrupt, dropped = math.floor(n * ask.corrupt), math.floor(n * ask.drop)
    one = tail(n - 1, corrupt, k, t_k)
    any_site = (n - corrupt) * one
    print(f"n = {n}, k = {k}, t_k = {t_k}, {corrupt} corrupt, {dropped} dropped")  # noqa: T201
    print(f"one honest site has t_k or more corrupt neighbours: {power(one)}")  # noqa: T201
    print(f"any of the {n - corrupt} honest ones: {power(any_site)}")  # noqa: T201
    print(f"in any of {ask.attempts} attempts: {power(ask.attempts * any_site)}")  # noqa: T201
    # Fewer than t_k of k neighbours left: more than k - t_k of them dropped.
    short = tail(n - 1, dropped, k, k - t_k + 1)
    print(f"one site's secrets cannot be opened (shortfall): {power(short)}")  # noqa: T201
    print(f"any of the {n} sites': {power(n * short)}")  # noqa: T201
    print(f"honest survivors not connected, at most: "  # noqa: T201
          f"{power(disconnected(n, corrupt + dropped, k))}")  # fmt: skip
    want = Fraction(1, 2**ask.bits)
    least = next(t for t in range(1, k + 1) if (n - corrupt) * tail(n - 1, corrupt, k, t) < want)
    print(f"least t_k below 2^-{ask.bits} for any honest site at k = {k}: {least}")  # noqa: T201
    least = next(
        t for t in range(1, k + 1)
        if ask.attempts * (n - corrupt) * tail(n - 1, corrupt, k, t) < want
    )  # fmt: skip
    print(f"the same over {ask.attempts} attempts: {least}")  # noqa: T201
    print(f"pair streams of a site: {k} instead of {n - 1}")  # noqa: T201


if __name__ == "__main__":
    main()
