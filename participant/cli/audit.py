"""``audit``: what this site hands to an auditor."""

from __future__ import annotations

from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option

from ..audit import export_bundle
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
