"""``manifests``: what this site was asked to do, round by round, and who was asked the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import NotFoundError
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.agreement import PlanOffer
from fedpalm.rounds.manifest import Countersignature, RoundManifest
from fedpalm.text import local_time

from ..desk import Desk
from ..manifests import Fork, ManifestBook
from .site import open_site


@click.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@home_option("the site")
@json_option
@command_errors
def manifests(run_id: str | None, home: Path, as_json: bool) -> None:
    """Show the chain of a run's manifests: the newest hash stands for all before it.

    Sites that read each other the newest hash by telephone know that all were told the same.
    """
    with open_site(home) as (config, desk):
        found = manifest_chain(desk, run_id)
        emit({"site": config.site, **found}, as_json, _shown(found))


def manifest_chain(desk: Desk, run_id: str | None) -> dict[str, Any]:
    """The manifests of a run (left out: the one that began last) and what contradicts them.

    Raises:
        NotFoundError: no manifest of such a run was accepted.
    """
    book = ManifestBook(desk.store, desk.log, desk.live, desk.policy)
    forks = book.forks()
    runs = book.runs()
    if run_id is None and (runs or forks):
        run_id = runs[-1] if runs else forks[-1].run_id
    if run_id is None or run_id not in {*runs, *(seen.run_id for seen in forks)}:
        raise NotFoundError(
            "this site has accepted no manifest" + (f" of run {run_id[:63]!r}" if run_id else ""),
            next_step="fedpalm-participant status shows the runs of this site",
        )
    said = [RoundManifest.read(signed) for signed in book.chain(run_id)]
    return {
        "run_id": run_id,
        "plan_hash": desk.plans.plan(run_id).plan.hash.hex(),
        "newest_hash": said[-1].hash.hex() if said else "",
        "manifests": [
            {
                "seq": one.seq,
                "round": one.round,
                "attempt": one.attempt,
                "sealed_ms": one.sealed_ms,
                "cohort": list(one.cohort),
                "model_hash": one.model_hash,
                "hash": one.hash.hex(),
                "countersigned_by": book.countersigned_by(one),
                "checkpoints": dict(one.checkpoints),
            }
            for one in said
        ],
        "contradicted_logs": [
            {
                "site": Checkpoint.read(seen.held).site,
                "held": str(Checkpoint.read(seen.held)),
                "other": str(Checkpoint.read(seen.other)),
            }
            for seen in book.checkpoints.conflicts()
        ],
        "forks": [_described(seen) for seen in forks if seen.run_id == run_id],
    }


def _described(seen: Fork) -> dict[str, Any]:
    return {
        "open": seen.open,
        "held": _words(seen.held) if seen.held else "nothing before it",
        "other": _words(seen.other),
    }


def _words(signed: SignedStatement) -> str:
    if b'"manifest_hash":' in signed.statement:
        said = Countersignature.read(signed)
        return f"{said.site} has signed manifest {said.manifest_hash} for round {said.round}.{said.attempt}"
    if b'"offered_ms":' in signed.statement:
        return f"offer {signed.hash.hex()} of plan {PlanOffer.read(signed).plan_hash}"
    made = RoundManifest.read(signed)
    return (
        f"manifest {signed.hash.hex()}, position {made.seq}, round {made.round}.{made.attempt}, "
        f"model {made.model_hash[:12]}"
    )


def _shown(found: dict[str, Any]) -> Group:
    table = Table(
        *("#", "round", "sealed", "model", "cohort", "signed by", "manifest"),
        title=f"run {found['run_id']}, plan {found['plan_hash'][:12]}",
    )
    for one in found["manifests"]:
        signed = set(one["countersigned_by"])
        table.add_row(
            str(one["seq"]),
            f"{one['round']}.{one['attempt']}",
            local_time(one["sealed_ms"]),
            one["model_hash"][:12],
            ", ".join(one["cohort"]),
            "all" if signed == set(one["cohort"]) else ", ".join(sorted(signed)) or "-",
            one["hash"][:12],
        )
    newest = [f"newest manifest {found['newest_hash'] or '(none was accepted)'}"]
    forks = [
        f"FORK ({'the run is held up' if seen['open'] else 'decided'}): {seen['held']} AGAINST "
        f"{seen['other']}"
        for seen in found["forks"]
    ]
    logs = [
        f"LOG OF {one['site']}: {one['held']} AGAINST {one['other']}"
        for one in found["contradicted_logs"]
    ]
    return Group(table, *newest, *forks, *logs)
