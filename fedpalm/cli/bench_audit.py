"""``fedpalm bench audit``: how long it takes to verify a bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.table import Table

from .console import command_errors, emit, err, json_option

TARGET_S = 30


@click.command("audit")
@click.option("--entries", type=click.IntRange(100), default=100_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 10_000), default=500, show_default=True)
@click.option("--sites", type=click.IntRange(2, 200), default=4, show_default=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Folder to work in.")
@json_option
@command_errors
def audit_command(entries: int, rounds: int, sites: int, work: Path | None, as_json: bool) -> None:
    """Seconds to verify a bundle on one core: every signature, link, charge and figure of it."""
    from ..benchmark.audit import measure_audit

    with tempfile.TemporaryDirectory(dir=work, prefix="bench-audit-") as folder:
        figures = measure_audit(
            Path(folder), entries, rounds, sites, lambda text: err().print(text)
        )
    table = Table("what", "figure", "target")
    table.add_row("entries", f"{figures['entries']:,}", "")
    table.add_row("signed statements", f"{figures['statements']:,}", "")
    table.add_row("bundle", f"{figures['bundle_bytes'] / 1e6:.1f} MB", "")
    table.add_row("verified in", f"{figures['verify_s']:.1f} s", f"{TARGET_S} s for 100,000")
    table.add_row("of it on the processor", f"{figures['verify_cpu_s']:.1f} s", "")
    emit(figures, as_json, table)
