"""``egress``: what left this site, when, to whom, how many bytes; read from the signed log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import NotFoundError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Identity
from fedpalm.pki.statement import SignedStatement
from fedpalm.text import local_time

from ..config import ParticipantConfig
from ..desk import Desk
from ..outgoing import DATA_KINDS
from ..receipts import ReceiptReport, compare_with_coordinator, runs_of, verify_receipts
from .site import open_site


@click.command()
@click.option("--verify", is_flag=True, help="Check the log and every signed receipt first.")
@click.option(
    "--with-coordinator",
    is_flag=True,
    help="Also hold the coordinator's own list of receipts against the log; implies --verify.",
)
@click.option("--all", "show_all", is_flag=True, help="List control messages one by one, too.")
@home_option("the site")
@json_option
@command_errors
def egress(verify: bool, with_coordinator: bool, show_all: bool, home: Path, as_json: bool) -> None:
    """List everything that left this site. Nothing can be sent that is not in this list."""
    with open_site(home) as (config, desk):
        report = _verified(config, desk, with_coordinator) if verify or with_coordinator else None
        entries = egress_entries(desk)
        totals = egress_totals(entries)
        emit(
            {
                "site": config.site,
                "entries": entries,
                "totals": totals,
                "verified_entries": report.entries if report else None,
                "receipts": _receipts(report, with_coordinator) if report else None,
            },
            as_json,
            _tables(entries, totals, _findings(report, with_coordinator), show_all),
        )


def _verified(config: ParticipantConfig, desk: Desk, with_coordinator: bool) -> ReceiptReport:
    own = desk.live.current
    # Receipts are as old as the log: some were signed under an anchor that was retired since.
    anchors = own.record_anchors
    report = verify_receipts(desk.store, desk.log, own.identity, anchors)
    if not with_coordinator:
        return report
    lists = asyncio.run(_fetch_lists(config, desk))
    return compare_with_coordinator(report, desk.store, desk.log, own.identity, anchors, lists)


async def _fetch_lists(config: ParticipantConfig, desk: Desk) -> dict[str, list[SignedStatement]]:
    """What the coordinator says that it has confirmed, for each run of this site."""
    # They bring grpc, which the other commands do without.
    from fedpalm.transport.channel import Connection

    from ..egress import EgressGate
    from ..link import Link

    gate = EgressGate(desk.store, desk.log, desk.live, desk.policy)
    async with Connection(config.coordinator, desk.live.current) as connection:
        link = Link(connection, gate)
        await link.hello()
        lists: dict[str, list[SignedStatement]] = {}
        for run_id in runs_of(desk.store):
            try:
                lists[run_id] = await link.list_receipts(run_id)
            except NotFoundError:
                lists[run_id] = []  # a coordinator that forgot the run has none of its receipts
        return lists


def _receipts(report: ReceiptReport, with_coordinator: bool) -> dict[str, Any]:
    return {
        "verified": report.verified,
        "untrusted": list(report.untrusted),
        "without": list(report.without),
        "listed_by_coordinator_only": list(report.listed) if with_coordinator else None,
    }


def _findings(report: ReceiptReport | None, with_coordinator: bool) -> list[str]:
    """What was checked, a line each; the numbers are those of log entries."""
    if report is None:
        return []
    lines = [
        f"log verified: {report.entries} entries, chain intact",
        f"receipts verified: {report.verified}, signed by the coordinator, each for what was sent",
    ]
    if report.untrusted:
        lines.append(
            f"receipts under a CA that is no longer pinned: entries {_numbers(report.untrusted)}; each "
            "is the one that was verified when it came, and holds in itself"
        )
    if report.without:
        lines.append(f"released without a receipt: entries {_numbers(report.without)}")
    if report.listed:
        lines.append(
            f"confirmed in the coordinator's list alone (its answer was lost): entries "
            f"{_numbers(report.listed)}"
        )
    if with_coordinator:
        lines.append("the coordinator's list and this log agree")
    return lines


def _numbers(seqs: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, seqs[:20]))
    return shown if len(seqs) <= 20 else f"{shown} and {len(seqs) - 20} more"


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
    findings: list[str],
    show_all: bool,
) -> Group:
    listed = Table("when", "what", "where", "to", "bytes", "sha-256", "receipt", title="left")
    for entry in entries:
        if entry["kind"] in DATA_KINDS or show_all:
            listed.add_row(
                local_time(entry["time_ms"]),
                entry["kind"],
                _place(entry),
                Identity.from_uri(entry["recipient"]).name,
                f"{entry['bytes']:,}",
                entry["payload_hash"][:12],
                local_time(entry["receipt_ms"]) if entry["receipt_ms"] else "-",
            )
    listed.columns[4].justify = "right"
    summary = Table("kind", "count", "bytes", title="totals")
    for kind, total in sorted(totals.items(), key=lambda item: -item[1]["bytes"]):
        summary.add_row(kind, str(total["count"]), f"{total['bytes']:,}")
    for column in summary.columns[1:]:
        column.justify = "right"
    return Group(listed, summary, *findings)


def _place(entry: dict[str, Any]) -> str:
    if "exchange" in entry:
        return f"exchange {entry['exchange']}"
    if "round" in entry:
        return f"{entry['run']} round {entry['round']}.{entry['attempt']}"
    return str(entry.get("run", "-"))
