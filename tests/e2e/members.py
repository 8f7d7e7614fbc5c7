"""Several sites let in at once, and a run looked at without a process for each look."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .harness import AGREEABLE, PATIENCE_S, RealFederation, run_cli, run_json

PLAN = """
name = "{name}"
method = "rehearsal"
rounds = {rounds}
seed = 5
reproducible = true
quorum = {quorum}
"""


def enrol_together(
    federation: RealFederation,
    *sites: str,
    policy: str = AGREEABLE,
    options: Mapping[str, Sequence[str | Path]] | None = None,
) -> None:
    """Invitations, joins and approvals as ``RealFederation.enrol`` does them, all sites at a time.

    Args:
        options: more of them for ``join``, by site.
    """
    root, limits = federation.root, federation.root / "policy.toml"
    limits.write_text(policy)
    federation.operator("invite", *sites, "--out", root)
    for site in sites:
        federation._start(
            f"join-{site}", "participant", "join", root / f"{site}.invitation",
            "--home", federation.site_home(site), "--policy", limits, *(options or {}).get(site, ()),
        )  # fmt: skip
    federation.wait_for(lambda: set(sites) <= set(federation.waiting()), "the sites to ask")
    shown = [
        option
        for site in sites
        for option in (
            "--fingerprint",
            run_json("participant", "status", "--home", federation.site_home(site))["asked_with"],
        )
    ]
    federation.operator("sites", "approve", *sites, *shown)
    for site in sites:
        joined = federation.processes.pop(f"join-{site}")
        assert joined.wait(timeout=PATIENCE_S) == 0, federation.logs()


def submit_rehearsal(
    federation: RealFederation,
    name: str,
    *roster: str,
    rounds: int,
    quorum: int,
    parameters: int = 5001,
) -> str:
    """Submit a plan for these sites, or for all; gives back the run's name."""
    plan, model = federation.root / f"{name}.toml", federation.root / f"{name}.safetensors"
    plan.write_text(PLAN.format(name=name, rounds=rounds, quorum=quorum))
    run_cli("fedpalm", "model", "init", plan, "--out", model, "--parameters", str(parameters))
    sites = [option for site in roster for option in ("--site", site)]
    return str(federation.operator("plan", "submit", plan, "--model", model, *sites)["run_id"])


def store_of(federation: RealFederation) -> Path:
    return federation.coordinator_home / "store.sqlite3"


def rows(federation: RealFederation, query: str, *values: Any) -> list[Any]:
    """Rows of the coordinator's store."""
    with closing(sqlite3.connect(f"file:{store_of(federation)}?mode=ro", uri=True)) as db:
        return db.execute(query, values).fetchall()


def stored_run(federation: RealFederation, run_id: str) -> dict[str, Any]:
    """What the store says of a run: ``state``, and ``round``, ``attempt``, ``delivered`` of its attempt."""
    ((text,),) = rows(federation, "SELECT state FROM runs WHERE run_id = ?", run_id)
    run = json.loads(text)
    current = run["current"] or {"round": 0, "attempt": 0, "delivered": {}}
    return {
        "state": run["state"],
        "round": current["round"],
        "attempt": current["attempt"],
        "delivered": sorted(current["delivered"]),
    }


def wait_for_run(federation: RealFederation, run_id: str, **wanted: Any) -> None:
    """Wait until the stored run has these values."""

    def reached() -> bool:
        found = stored_run(federation, run_id)
        return all(found[name] == value for name, value in wanted.items())

    federation.wait_for(reached, f"{run_id}: {wanted}")
