"""``egress``: what left this site, when, to whom, how many bytes; read from the signed log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Identity

from ..desk import Desk
from ..outgoing import DATA_KINDS
from .site import open_site


@click.command()
@click.option("--verify", is_flag=True, help="Check every link and signature of the log first.")
@click.option("--all", "show_all", is_flag=True, help="List control messages one by one, too.")
@home_option("the site")
@json_option
@command_errors
def egress(verify: bool, show_all: bool, home: Path, as_json: bool) -> None:
    """List everything that left this site. Nothing can be sent that is not in this list."""
    with open_site(home) as (config, desk):
        verified = desk.log.verify().size if verify else None
        entries = egress_entries(desk)
        totals = egress_totals(entries)
        emit(
            {
                "site": config.site,
                "entries": entries,
                "totals": totals,
                "verified_entries": verified,
            },
            as_json,
            _tables(entries, totals, verified, show_all),
        )


def egress_entries(desk: Desk) -> list[dict[str, Any]]:
    """One object for each payload, oldest first; ``receipt_ms`` once its recipient confirmed it."""
    found: dict[int, dict[str, Any]] = {}
    for entry in desk.log.entries():
        body = dict(entry.body)
        if entry.kind is EntryKind.EGRESS:
            body["kind"] = body.pop("payload")
            found[entry.seq] = {
                "seq": entry.seq,
                "time_ms": entry.time_ms,
                **body,
                "receipt_ms": None,
            }
        elif entry.kind is EntryKind.RECEIPT:
            found[int(body["egress"])]["receipt_ms"] = entry.time_ms
    return list(found.values())


def egress_totals(entries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count and bytes of each kind; a payload that was released for several attempts counts each."""
    totals: dict[str, dict[str, int]] = {}
    for entry in entries:
        total = totals.setdefault(entry["kind"], {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += entry["bytes"]
    return totals


def _tables(
    entries: list[dict[str, Any]],
    totals: dict[str, dict[str, int]],
    verified: int | None,
    show_all: bool,
) -> Group:
    listed = Table("when", "what", "where", "to", "bytes", "sha-256", "receipt", title="left")
    for entry in entries:
        if entry["kind"] in DATA_KINDS or show_all:
            listed.add_row(
                _when(entry["time_ms"]),
                entry["kind"],
                _place(entry),
                Identity.from_uri(entry["recipient"]).name,
                f"{entry['bytes']:,}",
                entry["payload_hash"][:12],
                _when(entry["receipt_ms"]) if entry["receipt_ms"] else "-",
            )
    listed.columns[4].justify = "right"
    summary = Table("kind", "count", "bytes", title="totals")
    for kind, total in sorted(totals.items(), key=lambda item: -item[1]["bytes"]):
        summary.add_row(kind, str(total["count"]), f"{total['bytes']:,}")
    for column in summary.columns[1:]:
        column.justify = "right"
    checked = [] if verified is None else [f"log verified: {verified} entries, chain intact"]
    return Group(listed, summary, *checked)


def _place(entry: dict[str, Any]) -> str:
    if "exchange" in entry:
        return f"exchange {entry['exchange']}"
    if "round" in entry:
        return f"{entry['run']} round {entry['round']}.{entry['attempt']}"
    return str(entry.get("run", "-"))


def _when(time_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ms / 1000))
