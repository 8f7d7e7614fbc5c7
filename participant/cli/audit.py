"""``audit``: what this site hands to an auditor, and results that it keeps in its log."""

from __future__ import annotations

from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option

from ..audit import export_bundle, record_report
from .site import open_site


@click.group()
def audit() -> None:
    """Be audited: one file, from which anybody can check this site offline."""


@audit.command("export")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The bundle; must not exist.",
)
@home_option("the site")
@json_option
@command_errors
def export(out: Path, home: Path, as_json: bool) -> None:
    """Write the log, the plans and what others signed about them; no image, count of people or model."""
    with open_site(home) as (config, desk):
        done = export_bundle(desk, out)
        emit(
            {
                "site": config.site,
                "bundle": str(done.path),
                "bytes": done.size,
                "entries": done.head.size,
                "head": done.head.hash.hex(),
                "next": "hand it to the auditor: fedpalm audit verify",
            },
            as_json,
        )


@audit.command("record")
@click.argument("report", type=click.Path(dir_okay=False, path_type=Path))
@home_option("the site")
@json_option
@command_errors
def record(report: Path, home: Path, as_json: bool) -> None:
    """Note an audit's result and the hash of its JSON report in the log; later reports then refer to it."""
    with open_site(home) as (config, desk):
        entry = record_report(desk, report)
        emit({"site": config.site, "entry": entry.seq, **entry.body}, as_json)
