"""``fedpalm bench``: figures about this machine and this build, never part of the tests."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from rich.table import Table

from .bench_accounting import accounting_command
from .bench_dp import dp_command
from .bench_dp_cost import dp_cost_command
from .bench_palm import palm_command
from .bench_peers import peers_secagg_command
from .bench_plot import plot_command
from .bench_round import RoundBench
from .bench_secagg import secagg_command
from .bench_signature import signature_command
from .bench_table import table_command
from .bench_templates import templates_command
from .bench_train import train_command
from .bench_verify import verify_command
from .console import command_errors, emit, err, json_option


@click.group()
def commands() -> None:
    """Measure; every figure comes with what it was measured against."""


@commands.command("round")
@click.option("--sites", type=click.IntRange(2, 200), default=8, show_default=True)
@click.option("--parameters", type=click.IntRange(1), default=5_000_000, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Folder to work in.")
@json_option
@command_errors
def round_command(
    sites: int, parameters: int, rounds: int, work: Path | None, as_json: bool
) -> None:
    """Seconds, memory and bytes of a round without training, against raw mTLS streams."""
    with tempfile.TemporaryDirectory(dir=work, prefix="bench-round-") as folder:
        figures = RoundBench(Path(folder), sites, parameters, rounds).measure(
            lambda text: err().print(text)
        )
    table = Table("what", "figure", "target")
    rows = [
        ("round, median", f"{figures['round_s']['median']:.2f} s", ""),
        ("over raw mTLS stream", f"{figures['round_over_plain']:.2f} x", "3"),
        ("over raw + SHA-256 + fsync", f"{figures['round_over_hashed_and_fsynced']:.2f} x", "1.3"),
        (
            "coordinator peak over idle",
            f"{figures['peak_over_idle_in_model_sizes']:.2f} models",
            "4",
        ),
        ("bytes a site sent over 4 d", f"{figures['site_sent_over_4d']:.4f}", "1.01"),
    ]
    for row in rows:
        table.add_row(*row)
    emit(figures, as_json, table)


commands.add_command(secagg_command)
commands.add_command(peers_secagg_command)
commands.add_command(palm_command)
commands.add_command(signature_command)
commands.add_command(table_command)
commands.add_command(plot_command)
commands.add_command(train_command)
commands.add_command(verify_command)
commands.add_command(dp_command)
commands.add_command(dp_cost_command)
commands.add_command(accounting_command)
commands.add_command(templates_command)
