"""Twenty honest audits and every injected fault: does ``fedpalm audit attack`` accuse the right ones?

Writes ``audit-attack.json`` and prints the table of docs/results/audit-attack.md. In a clone of the
repository only: the faulty ledgers are the tests'. Exit code 10 if an honest run was accused or a fault
was missed. The tests on a site's real model have no chance in them: every fifth honest run has them, and
the faults of sites.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedpalm.attack.bugs import faulty_paths
from fedpalm.attack.canaries import CanaryAudit
from fedpalm.attack.findings import Finding
from fedpalm.attack.probe import Path as TrainingPath
from fedpalm.attack.runner import FALSE_ALARM, Report, audit, standard
from fedpalm.methods.site import build_site
from tests.support.faulty_ledgers import findings_of, ledgers

LEDGER, HONEST = "ledger: ", "honest"
WITH_SITES = 5
MANY = CanaryAudit(canaries=20_000, each=400)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--repeats", type=int, default=5, help="of half sigma, canaries alone")
    options.add_argument("--out", type=Path, default=Path("docs/results/audit-attack.json"))
    asked = options.parse_args()
    level = FALSE_ALARM / asked.seeds
    extent = replace(standard(), membership=())

    def one(path: TrainingPath, seed: int, ledger: list[Finding], sites: bool) -> dict[str, Any]:
        began = (time.process_time(), time.monotonic())
        what = extent if sites else replace(extent, sites=())
        report = audit(path, what, seed, ledger=ledger, false_alarm=level)
        spent = {"cpu_s": time.process_time() - began[0], "wall_s": time.monotonic() - began[1]}
        return {"seed": seed, **_figures(report), **spent}

    with tempfile.TemporaryDirectory() as folder:
        accounts = {name: findings_of(how, Path(folder, name)) for name, how in ledgers().items()}
    honest = []
    for seed in range(asked.seeds):
        honest.append(one(TrainingPath(), seed, accounts[HONEST], seed % WITH_SITES == 0))
        _say(f"honest {seed}: {honest[-1]['refuted'] or 'passed'}")
    faults = {}
    for name, path in faulty_paths().items():
        faults[name] = one(path, 0, accounts[HONEST], path.build is not build_site)
        _say(f"{name}: {faults[name]['refuted']}")
    for name, found in accounts.items():
        if name != HONEST:
            wrong = [finding.to_json() for finding in found if finding.p_value == 0.0]
            faults[LEDGER + name] = {"refuted": wrong}
    canaries = {
        name: [
            MANY.run(path, seed)[1]
            for path in [faulty_paths().get(name, TrainingPath())]
            for seed in range(asked.repeats)
        ]
        for name in (HONEST, "half sigma")
    }
    result = {
        "false_alarm_of_the_series": FALSE_ALARM,
        "false_alarm_of_an_audit": level,
        "honest": honest,
        "faults": faults,
        "canaries_20000": canaries,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(_table(result))  # noqa: T201 - what this prints is its result
    accused = [run for run in honest if run["refuted"]]
    missed = [name for name, run in faults.items() if not run["refuted"]]
    return 10 if accused or missed else 0


def _figures(report: Report) -> dict[str, Any]:
    return {
        "refuted": [finding.to_json() for finding in report.refuted],
        "canaries": report.canaries,
        "least_p": {
            finding.test: finding.p_value
            for finding in sorted(report.findings, key=lambda one: one.p_value)[:4]
        },
    }


def _table(result: dict[str, Any]) -> str:
    lines = ["| injected fault | caught by | figure (expected) | canaries: epsilon at least |"]
    lines.append("|---|---|---|---|")
    for name, run in result["faults"].items():
        caught = sorted({finding["detector"] for finding in run["refuted"]})
        first = next((one for one in run["refuted"] if one["detector"] != "canaries"), None)
        figure = f"{first['test']}: {first['figure']} ({first['expected']})" if first else ""
        proved = f"{run['canaries']['epsilon_lower_bound']:.2f}" if "canaries" in run else ""
        lines.append(f"| {name} | {', '.join(caught) or '**nothing**'} | {figure} | {proved} |")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - progress


if __name__ == "__main__":
    raise SystemExit(main())
