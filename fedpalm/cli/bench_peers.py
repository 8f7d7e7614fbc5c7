"""``fedpalm bench peers-secagg``: masking here against Flower's, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..benchmark.peers.secagg import Comparison
from .console import command_errors, emit, err, json_option
from .narrator import Narrator, ticker

TARGET = 5.0
_NOTE = (
    "Both from the update to the masked integers, given the seeds. Not timed: key agreement, opening "
    "boxes, messages. They: 32-bit seeds, numpy's Mersenne Twister, int64 arrays, one thread, masks in "
    "[0, 2^32 - 2]. We: 256-bit seeds, AES-256-CTR, uint32 in place. The last row also opens the "
    "boxes, agrees on keys, hashes and signs, and is held against their time without any of it."
)


@click.command("peers-secagg")
@click.option("--params", type=click.IntRange(1), default=5_000_000, show_default=True)
@click.option("--peers", type=click.IntRange(2, 199), default=10, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--environment", type=click.Path(file_okay=False, path_type=Path),
              default=Path(".venv-peers/flower"), show_default=True,
              help="Where Flower is installed; made if it is not there.")  # fmt: skip
@json_option
@command_errors
def peers_secagg_command(
    params: int, peers: int, repeats: int, seed: int, environment: Path, as_json: bool
) -> None:
    """One site's encode and mask against Flower's released SecAgg+ functions, in turn.

    Installs the pinned Flower with pip if it is not there; ends with 5 if that fails.
    """
    with Narrator(err()) as narrator:
        figures = Comparison(params, peers, repeats, seed).measure(
            environment, narrator.note, ticker(narrator)
        )
    emit(figures, as_json, comparison_table(figures))


def comparison_table(figures: dict[str, Any]) -> Group:
    """For people: seconds of each side, and the ratio inside each repetition."""
    flower, numpy = figures["against"]
    table = Table(
        "which", "encode", "mask", "both (min-max)", "times faster (min-max)", "target",
        "times less CPU (min-max)",
        title=f"{figures['parameters']:,} parameters, {figures['peers']} peers, "
        f"{figures['repeats']} repetitions in turn",
    )  # fmt: skip
    rows = (
        (f"{flower}, {numpy}", "flower"),
        (f"here, {figures['cores']} cores", "core"),
        ("here, one thread", "core_one_thread"),
        ("here, the whole step", "step"),
    )
    for label, key in rows:
        one = figures[key]
        both = one["encode_and_mask_s"]
        table.add_row(
            label,
            f"{one['encode_s']['median'] * 1e3:.0f} ms",
            f"{one['mask_s']['median'] * 1e3:.0f} ms",
            f"{both['median'] * 1e3:.0f} ms ({both['min'] * 1e3:.0f}-{both['max'] * 1e3:.0f})",
            _ratio(one.get("times_faster")),
            f"{TARGET:g}" if key == "core" else "",
            _ratio(one.get("times_less_cpu")),
        )
    return Group(table, Text(_NOTE))


def _ratio(one: dict[str, float] | None) -> str:
    return f"{one['median']:.1f} ({one['min']:.1f}-{one['max']:.1f})" if one else ""
