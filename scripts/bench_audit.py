"""How long an audit takes: seconds to verify a bundle as long as a site's of some years, on one core.

Every signature, link, charge and figure of it is checked, from a cold cache of accounting figures. In a
clone of the repository only: the bundle is made by the tests'. Exit code 10 if it does not verify.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedpalm.audit.charges import EXACT_FIGURES
from fedpalm.audit.findings import Exit
from fedpalm.audit.verify import verify_bundle
from fedpalm.privacy import accounting
from fedpalm.privacy.accounting import Charge, epsilon_pld
from tests.support.audit import World, make_plan, written


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--entries", type=int, default=100_000)
    options.add_argument("--rounds", type=int, default=500)
    asked = options.parse_args()
    world = _long(asked.rounds, asked.entries)
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), world.bundle())
        accounting._pld.cache_clear()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        began, cpu = time.perf_counter(), time.process_time()
        audit = verify_bundle(path, world.trust)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        figures = {
            "result": audit.exit.name.lower(),
            "findings": [str(one) for one in audit.findings[:5]],
            "entries": audit.log.size,
            "rounds": asked.rounds,
            "statements": sum(map(len, world.contents.values())),
            "bundle_bytes": path.stat().st_size,
            "figures_recomputed": sum(one.recomputed is not None for one in audit.account.spent),
            "verify_s": round(wall_s, 2),
            "verify_cpu_s": round(cpu_s, 2),
            "load_average": round(os.getloadavg()[0], 2),
        }
    print(json.dumps(figures, indent=1))  # noqa: T201 - what this prints is its result
    return 0 if audit.exit is Exit.OK else 10


def _long(rounds: int, entries: int) -> World:
    """By the book, with control messages that fill the log up."""
    world = World(make_plan(rounds=rounds, noise_multiplier=2.0, sampling_rate=0.01), budget=1000.0)
    world.join()
    for number, epsilon in enumerate(_figures(world, rounds), 1):
        world.round(number, mechanism={"epsilon": repr(epsilon)})
        while len(world.entries) < entries * number // rounds:
            world.send(
                "fetch_countersignatures", 60, {"run": world.run, "round": number, "attempt": 1}
            )
        if number % max(1, rounds // 10) == 0:
            print(f"made {len(world.entries):,} entries", file=sys.stderr)  # noqa: T201
    return world


def _figures(world: World, rounds: int) -> list[float]:
    """Epsilon after each round: where an audit computes it, and in between that of the next such."""
    points = sorted(
        {round(at * (rounds - 1) / (EXACT_FIGURES - 1)) + 1 for at in range(EXACT_FIGURES)}
    )
    found: list[float] = []
    for point in points:
        spent = epsilon_pld([Charge.of(world.plan.draft.privacy, point)], world.delta)
        found += [spent] * (point - len(found))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
