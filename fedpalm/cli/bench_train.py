"""``fedpalm bench train``: a FedPalm round at a site against a plain PyTorch loop."""

from __future__ import annotations

import os
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from .console import command_errors, emit, err, json_option
from .narrator import Narrator, ticker

TARGET = 2.0
"""Times faster than the plain loop."""


@click.command("train")
@click.option("--images", type=click.IntRange(2), default=50, show_default=True,
              help="Training images at the site.")  # fmt: skip
@click.option("--experts", type=click.IntRange(1, 200), default=8, show_default=True,
              help="Experts beside the open-set one: the own and received.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True,
              help="Counted turns.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True)
@json_option
@command_errors
def train_command(images: int, experts: int, repeats: int, threads: int, as_json: bool) -> None:
    """Images a second of a round with the TEIM on; ends with 10 if both do not end at one model."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's remarks; read by torch's import
    try:
        from ..benchmark.training import Load, measure_training
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"training needs {error.name}", next_step="install it: pip install 'fedpalm[site]'"
        ) from error
    with Narrator(err()) as narrator:
        figures = measure_training(Load(images, experts, threads), repeats, ticker(narrator))
    emit(figures, as_json, training_tables(figures))


def training_tables(figures: dict[str, Any]) -> Group:
    """For people: the ways with their ratios, and where our time goes."""
    ways = Table(
        "way", "images a second", "a CPU second", "seconds a round (min-max)", "peak over idle",
        "times faster here", "times less CPU",
        title=f"{figures['images']} images, {figures['experts']} experts and the open-set one, "
        f"{figures['threads']} thread(s)",
    )  # fmt: skip
    for way, one in figures["ways"].items():
        ways.add_row(
            way,
            f"{one['images_per_s']:.1f}",
            f"{one['images_per_cpu_s']:.1f}",
            spread(one["round_s"]),
            f"{one['peak_over_idle_bytes'] / 1e6:.0f} MB",
            spread(figures["times_faster"].get(way)),
            spread(figures["times_less_cpu"].get(way)),
        )
    parts = figures["profile_s"]
    whole = sum(parts.values())
    profile = Table("where our time goes, under the profiler", "seconds", "share")
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        profile.add_row(name, f"{seconds:.2f}", f"{seconds / whole:.0%}")
    differ = figures["differences"]
    note = (
        f"Target: {TARGET:g} times faster than the plain loop. Ratios are taken inside a turn. "
        f"Largest relative differences: shared model {differ['shared']:.1g}, "
        f"closed model and heads {differ['private']:.1g}, losses {differ['losses']:.1g}."
    )
    return Group(ways, profile, Text(note))


def spread(values: dict[str, float] | None) -> str:
    """Median (min-max), or nothing."""
    if values is None:
        return ""
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"
