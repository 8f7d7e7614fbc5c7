"""``fedpalm bench dp``: what differential privacy by person costs in accuracy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from ..settings import parse_settings
from .console import command_errors, emit, err, json_option
from .narrator import Narrator

NAMES = {"0.0": "0: the start itself", "inf": "no noise", "ordinary": "ordinary training"}
BASES = ("inf", "ordinary")
TARGET = 0.02
"""How much higher the EER of a warm start with epsilon 8 may be than without noise, or without privacy."""


@click.command("dp")
@click.option("--sites", type=click.IntRange(2, 50))
@click.option("--people", type=click.IntRange(2, 9000), help="Who train, at each site.")
@click.option("--rounds", type=click.IntRange(1))
@click.option("--method", type=click.Choice(["fedavg", "fedpalm"]))
@click.option("--epsilons", help="With commas between; 0 is the start itself, inf no noise.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="A key of a plan's [training.privacy], or training.KEY of [training].")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), help="At a time. [default: one a core]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              default=Path("runs/bench-dp"), show_default=True,
              help="Folder of results; what is in it already is not done again.")  # fmt: skip
@json_option
@command_errors
def dp_command(
    sites: int | None,
    people: int | None,
    rounds: int | None,
    method: str | None,
    epsilons: str | None,
    assignments: tuple[str, ...],
    jobs: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Open-set error rates by epsilon, cold and warm started, as a table and a plot.

    Every run is a simulation whose noise comes from seeds. Interrupted, it goes on with the runs that
    are left.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ..benchmark.dp_plot import plot_utility
    from ..benchmark.dp_utility import UtilityConfig, against, measure

    told = {"sites": sites, "people": people, "rounds": rounds, "method": method}
    values: dict[str, Any] = UtilityConfig().model_dump()
    values |= {key: value for key, value in told.items() if value is not None}
    if epsilons is not None:
        values["epsilons"] = numbers(epsilons)
    for one in assignments:
        assign(values["training"], one)
    config = parse_settings(UtilityConfig, values, "benchmark")
    with Narrator(err()) as narrator:
        results = measure(config, out, jobs or len(os.sched_getaffinity(0)), narrator.note)
    plot_utility(results, out / "dp.png")
    found: dict[str, Any] = {
        "results": results,
        "above": {
            base: {start: against(results, start, base) for start in ("warm", "cold")}
            for base in BASES
        },
        "plot": str(out / "dp.png"),
    }
    (out / "dp.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    emit(found, as_json, tables(found))


def assign(training: dict[str, Any], text: str) -> None:
    """``KEY=VALUE`` into [training.privacy], or ``training.KEY=VALUE`` into [training].

    Raises:
        ConfigError: not that.
    """
    key, _, value = text.partition("=")
    table, key = (
        (training, key.removeprefix("training."))
        if key.startswith("training.")
        else (training["privacy"], key)
    )
    if key not in table:
        raise ConfigError(f"--set {text!r}: there is no such setting")
    try:
        table[key] = json.loads(value)
    except ValueError:
        table[key] = value


def numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas. Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--epsilons {text!r} are not numbers with commas between") from None


def tables(found: Mapping[str, Any]) -> Group:
    """For people: the table, and whether the target is met."""
    table = Table(
        "start", "epsilon", "noise multiplier", "open-set EER",
        *(f"above {NAMES[base]}" for base in BASES), "seconds",
    )  # fmt: skip
    for one in found["results"]:
        table.add_row(*row(one, found["above"]))
    return Group(table, Text(verdict(found)), Text(found["plot"]))


def row(one: Mapping[str, Any], above: Mapping[str, Any]) -> Sequence[str]:
    """One run as cells."""
    differences = [above[base][one["start"]].get(one["epsilon"]) for base in BASES]
    low, high = one["mean"]["interval"]
    noise = one["noise_multiplier"]
    return (
        one["start"],
        NAMES.get(one["epsilon"], one["epsilon"]),
        "" if noise is None else f"{noise:g}",
        f"{points(one['mean']['eer'])} ({points(low)} to {points(high)})",
        *map(spread, differences),
        f"{one['seconds']:.0f}",
    )


def spread(difference: Mapping[str, Any] | None) -> str:
    """A difference in points, with its interval."""
    if difference is None:
        return ""
    low, high = difference["interval"]
    return f"{100 * difference['eer']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def points(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def verdict(found: Mapping[str, Any]) -> str:
    """Whether a warm start with epsilon 8 is within the target."""
    lines = []
    for base in BASES:
        eight = found["above"][base]["warm"].get("8.0")
        if eight is None:
            lines.append(f"Epsilon 8 and {NAMES[base]} were not both run.")
            continue
        reached = "reached" if eight["eer"] <= TARGET else "missed"
        lines.append(
            f"Target: warm started, epsilon 8 at most {100 * TARGET:g} points above {NAMES[base]}: "
            f"{reached} ({100 * eight['eer']:+.2f} points)."
        )
    return "\n".join(lines)
