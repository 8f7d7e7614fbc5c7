"""Twenty honest audits and every injected fault: does ``fedpalm audit attack`` accuse the right ones?

Keeps every run in ``audit-attack.json`` as it ends, goes on where it was, and prints a table of what
docs/results/audit-attack.md tells. In a clone of the repository only: the faulty ledgers are the
tests'. Exit code 10 if an honest run was accused or a fault was missed. The tests on a site's real
model have no chance in them: every tenth honest run has them, and the faults of sites.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedpalm.attack.bugs import faulty_paths
from fedpalm.attack.canaries import CanaryAudit
from fedpalm.attack.probe import TrainingPath
from fedpalm.attack.runner import FALSE_ALARM, audit, standard
from fedpalm.methods.site import build_site
from tests.support.faulty_ledgers import findings_of, ledgers

HONEST, FAULT, LEDGER, CANARIES = "honest", "fault", "ledger", "20,000 canaries"
WITH_SITES = 10
MANY = CanaryAudit(canaries=20_000, each=400)
Run = Callable[[], dict[str, Any]]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--repeats", type=int, default=3, help="with 20,000 canaries")
    options.add_argument("--only", default="", help="runs whose name begins so")
    options.add_argument("--out", type=Path, default=Path("docs/results/audit-attack.json"))
    asked = options.parse_args()
    level = FALSE_ALARM / asked.seeds
    done = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    for name, run in _runs(asked.seeds, asked.repeats, level).items():
        if name in done or not name.startswith(asked.only):
            continue
        began = (time.process_time(), time.monotonic())
        found = run()
        spent = {"cpu_s": time.process_time() - began[0], "wall_s": time.monotonic() - began[1]}
        done[name] = {**found, **{key: round(value, 2) for key, value in spent.items()}}
        asked.out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        caught = [one["test"] for one in found.get("refuted", [])]
        print(f"{name}: {caught}", file=sys.stderr, flush=True)  # noqa: T201 - progress
    print(_table(done))  # noqa: T201 - what this prints is its result
    wrong = [name for name, run in done.items() if _is_wrong(name, run)]
    return 10 if wrong else 0


def _runs(seeds: int, repeats: int, level: float) -> dict[str, Run]:
    """Every run by name, in order."""
    runs: dict[str, Run] = {}
    for seed in range(seeds):
        runs[f"{HONEST}: {seed}"] = _audit(TrainingPath(), seed, seed % WITH_SITES == 0, level)
    for name, path in faulty_paths().items():
        runs[f"{FAULT}: {name}"] = _audit(path, 0, path.build is not build_site, level)
    for name in ledgers():
        runs[f"{LEDGER}: {name}"] = _account(name)
    for name, path in ((HONEST, TrainingPath()), ("half sigma", faulty_paths()["half sigma"])):
        for seed in range(repeats):
            runs[f"{CANARIES}: {name} {seed}"] = _canaries(path, seed)
    return runs


def _audit(path: TrainingPath, seed: int, sites: bool, level: float) -> Run:
    extent = replace(standard(), membership=())

    def run() -> dict[str, Any]:
        what = extent if sites else replace(extent, sites=())
        report = audit(path, what, seed, false_alarm=level)
        return {
            "refuted": [finding.to_json() for finding in report.refuted],
            "canaries": report.canaries,
            "false_alarm": level,
            "p_values": {finding.test: finding.p_value for finding in report.findings},
        }

    return run


def _account(name: str) -> Run:
    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            found = findings_of(name, Path(folder))
        return {"refuted": [one.to_json() for one in found if one.p_value == 0.0]}

    return run


def _canaries(path: TrainingPath, seed: int) -> Run:
    def run() -> dict[str, Any]:
        finding, figures = MANY.run(path, seed)
        return {"canaries": figures, "p_value": finding.p_value}

    return run


def _is_wrong(name: str, run: dict[str, Any]) -> bool:
    """An honest run that was accused, or a fault that was not."""
    if name.startswith(CANARIES):
        return False
    honest = name.startswith(HONEST) or name == f"{LEDGER}: {HONEST}"
    return bool(run["refuted"]) == honest


def _table(done: dict[str, Any]) -> str:
    lines = ["| injected fault | caught by | figure (expected) | canaries: epsilon at least |"]
    lines.append("|---|---|---|---|")
    for name, run in done.items():
        kind, _, fault = name.partition(": ")
        if kind not in (FAULT, LEDGER) or fault == HONEST:
            continue
        caught = sorted({finding["detector"] for finding in run["refuted"]})
        first = next((one for one in run["refuted"] if one["detector"] != "canaries"), None)
        figure = f"{first['test']}: {first['figure']} ({first['expected']})" if first else ""
        proved = f"{run['canaries']['epsilon_lower_bound']:.2f}" if "canaries" in run else ""
        lines.append(f"| {fault} | {', '.join(caught) or '**nothing**'} | {figure} | {proved} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
