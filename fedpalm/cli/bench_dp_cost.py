"""``fedpalm bench dp-cost``: a private step by person against Opacus's own by record."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from .bench_train import spread
from .console import command_errors, emit, err, json_option
from .narrator import Narrator, ticker

TARGET = 1.3
"""Times the seconds of Opacus's step."""


@click.command("dp-cost")
@click.option("--people", type=click.IntRange(1), default=8, show_default=True,
              help="Drawn in a step.")  # fmt: skip
@click.option("--records", type=click.IntRange(1), default=4, show_default=True,
              help="Images of each, in two views.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True,
              help="Counted turns.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True)
@json_option
@command_errors
def dp_cost_command(people: int, records: int, repeats: int, threads: int, as_json: bool) -> None:
    """Seconds of a step with differential privacy; ends with 10 if the two ways are not one model."""
    try:
        from ..benchmark.dp_cost import Load, measure_cost
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"private training needs {error.name}",
            next_step="install it: pip install 'fedpalm[site]'",
        ) from error
    with Narrator(err()) as narrator:
        figures = measure_cost(Load(people, records, threads), repeats, ticker(narrator))
    emit(figures, as_json, cost_table(figures))


def cost_table(figures: dict[str, Any]) -> Group:
    """For people: the ways, and ours over Opacus's."""
    table = Table(
        "step", "seconds", "CPU seconds",
        title=f"{figures['people']} people, {figures['records_each']} records each, in two views; "
        f"{figures['parameters']:,} parameters, {figures['threads']} thread(s)",
    )  # fmt: skip
    for way, seconds in figures["step_s"].items():
        table.add_row(way, spread(seconds), spread(figures["step_cpu_s"][way]))
    note = (
        f"By person over by record: {spread(figures['over_opacus'])} in seconds, "
        f"{spread(figures['over_opacus_cpu'])} in CPU seconds; target {TARGET:g} at most. Ratios are "
        f"taken inside a turn. One record's gradients differ by {figures['difference']:.1g} at most. "
        f"Load average {figures['load_average']:.1f}."
    )
    return Group(table, Text(note))
