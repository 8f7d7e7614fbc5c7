"""``status``: what this site is in, and where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option

from ..config import Home
from ..desk import Desk
from ..store import StoredRun
from .run import agent_runs
from .site import open_site


@click.command()
@home_option("the site")
@json_option
@command_errors
def status(home: Path, as_json: bool) -> None:
    """Tell who this site is, which run it is in, and what waits for a decision."""
    with open_site(home) as (config, desk):
        run = desk.store.latest_run()
        found: dict[str, Any] = {
            "site": config.site,
            "federation": config.federation,
            "coordinator": config.coordinator,
            "certificate_until": f"{desk.identity.leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            "agent_running": agent_runs(Home(home)),
            "run": _run(desk, run) if run else None,
            "exchanges": [
                {"exchange_id": one.terms.exchange_id, "state": one.state.value}
                for one in desk.book.all()
            ],
            "log_entries": desk.store.rows("SELECT COUNT(*) AS n FROM log")[0]["n"],
        }
        emit(found, as_json)


def _run(desk: Desk, run: StoredRun) -> dict[str, Any]:
    rows = desk.store.rows("SELECT MAX(round) AS round FROM updates WHERE run_id = ?", run.run_id)
    receipts = desk.store.rows(
        "SELECT COUNT(DISTINCT payload_hash) AS n FROM releases WHERE payload = 'update' "
        "AND receipt_seq IS NOT NULL AND place LIKE ?",
        f"{run.run_id}/%",
    )
    return {
        "run_id": run.run_id,
        "state": run.state,
        "method": run.plan.draft.method,
        "rounds": run.plan.draft.rounds,
        "trained_round": rows[0]["round"] or 0,
        "updates_delivered": receipts[0]["n"],
        "model_hash": run.model_hash.hex() if run.model_hash else None,
        "reason": run.reason,
    }
