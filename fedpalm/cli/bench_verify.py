"""``fedpalm bench verify``: one verification with all experts against loops over them."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from .console import command_errors, emit, err, json_option
from .narrator import Narrator, ticker

TARGETS = {1: 1.3, 32: 1.0}
"""Times faster than the naive loop, by batch size."""


@click.command("verify")
@click.option("--experts", type=click.IntRange(2, 200), default=9, show_default=True,
              help="With the site's own and the global one.")  # fmt: skip
@click.option("--batch", "batches", type=click.IntRange(1, 1024), multiple=True,
              default=(1, 32), show_default=True, help="Images at once; may be repeated.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), multiple=True,
              default=(1, 2), show_default=True, help="May be repeated.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=21, show_default=True,
              help="Turns of all ways.")  # fmt: skip
@json_option
@command_errors
def verify_command(
    experts: int, batches: tuple[int, ...], threads: tuple[int, ...], repeats: int, as_json: bool
) -> None:
    """Latency and throughput of a verification; ends with 10 if two ways give other templates."""
    try:
        from ..benchmark.verification import measure_verification
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"templates need {error.name}", next_step="install it: pip install 'fedpalm[site]'"
        ) from error
    with Narrator(err()) as narrator:
        figures = measure_verification(experts, batches, threads, repeats, ticker(narrator))
    for case in figures["cases"]:
        target = TARGETS.get(case["batch"])
        ratio = case["times_faster"]["naive"]["median"]
        case["target"] = target
        case["target_met"] = None if target is None else ratio >= target
    emit(figures, as_json, Group(*(case_table(case, figures) for case in figures["cases"])))


def case_table(case: dict[str, Any], figures: dict[str, Any]) -> Group:
    """For people: the ways of one batch size and thread count."""
    table = Table(
        "way", "latency, ms", "CPU, ms", "images a second", "pool is faster", "pool needs less CPU",
        title=f"{figures['experts']} experts, batch {case['batch']}, {case['threads']} thread(s)",
    )  # fmt: skip
    for way, one in case["ways"].items():
        table.add_row(
            way,
            _spread(one["latency_s"], 1e3, 1),
            _spread(one["cpu_s"], 1e3, 1),
            f"{one['images_per_s']:.1f}",
            _spread(case["times_faster"].get(way)),
            _spread(case["times_less_cpu"].get(way)),
        )
    met = {None: "", True: ": met", False: ": missed"}[case["target_met"]]
    target = "" if case["target"] is None else (
        f"Target: {case['target']:g} times faster than the naive loop at least{met}. "
    )  # fmt: skip
    note = (
        f"{target}Median [95 % interval] of {figures['repeats']}; ratios are taken inside a turn. "
        f"Grouped convolutions: {'yes' if case['grouped'] else 'no'}. "
        f"Templates differ by {case['difference']:.1g} at most. "
        f"Load average {case['load_average']:.1f} on {figures['cores']} cores."
    )
    return Group(table, Text(note))


def _spread(values: dict[str, float] | None, scale: float = 1.0, digits: int = 2) -> str:
    if values is None:
        return ""
    median, low, high = (f"{scale * values[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"
