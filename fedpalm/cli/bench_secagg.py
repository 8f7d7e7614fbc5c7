"""``fedpalm bench secagg``: seconds, bytes and memory of masking, with its targets beside."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..benchmark.masking import STEPS, Load, measure_round
from ..benchmark.masking_client import measure_client
from ..errors import ConfigError
from .console import command_errors, emit, err, json_option
from .narrator import Narrator, ticker

GROWTH = (5, 10, 20, 50, 100, 200)
CLIENT_TARGETS: Mapping[tuple[int, int], Mapping[str, float]] = {
    (62_000_000, 10): {"encode_and_mask_s": 3.0, "peak_over_vectors_bytes": 64e6},
    (10_000_000, 50): {"mask_s": 0.8},
}
"""By parameters and peers."""


@click.command("secagg")
@click.option("--sites", type=click.IntRange(3, 200), default=50, show_default=True)
@click.option(
    "--params", type=click.IntRange(1), help="[default: 1000000; --grow 100000; --client 62000000]"
)
@click.option(
    "--drop",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.3,
    show_default=True,
    help="Part of the sites that drop after sharing keys.",
)
@click.option("--grow", is_flag=True, help="Rounds of 5 to 200 sites, as a plot and JSON.")
@click.option("--client", is_flag=True, help="One site alone: encode and mask a large vector.")
@click.option("--peers", type=click.IntRange(2, 199), default=10, show_default=True,
              help="With --client: sites that it masks with.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True,
              help="With --client: counted repetitions.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
              help="Of the updates and of who drops; secrets are always fresh.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="At most so many cores. [default: all]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              default=Path("runs/bench"), show_default=True,
              help="With --grow: folder of the plot and the JSON.")  # fmt: skip
@json_option
@command_errors
def secagg_command(
    sites: int,
    params: int | None,
    drop: float,
    grow: bool,
    client: bool,
    peers: int,
    repeats: int,
    seed: int,
    threads: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """A whole masked round in one process; ends with 10 if its sum is not exact."""
    if grow and client:
        raise click.UsageError("--grow and --client are two measurements; choose one")
    table: RenderableType
    with cores(threads) as used, Narrator(err()) as narrator:
        if grow:
            figures, table = _grow(params or 100_000, drop, seed, out, narrator)
        elif client:
            figures = measure_client(params or 62_000_000, peers, seed, repeats, ticker(narrator))
            table = client_table(figures)
        else:
            figures = measure_round(Load(sites, params or 1_000_000, drop, seed), ticker(narrator))
            table = round_table(figures)
    emit({"cores": used, **figures}, as_json, table)


@contextmanager
def cores(threads: int | None) -> Iterator[int]:
    """Keep this thread, and those it starts, to the first ``threads`` cores; gives how many."""
    before = os.sched_getaffinity(0)
    chosen = sorted(before)[: threads or len(before)]
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)


def _grow(
    params: int, drop: float, seed: int, out: Path, narrator: Narrator
) -> tuple[dict[str, Any], Table]:
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "the plot needs matplotlib", next_step="install it: pip install 'fedpalm[site]'"
        )
    from ..benchmark.masking_plot import plot_growth

    rounds = [
        measure_round(Load(sites, params, drop, seed), ticker(narrator, f"{sites} sites, "))
        for sites in GROWTH
    ]
    for one in rounds:
        # What a round before it left in the heap hides its own peak.
        del one["peak_over_idle_bytes"]
    plot, data = out / "secagg-growth.png", out / "secagg-growth.json"
    plot_growth(rounds, plot)
    data.write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")
    table = Table("sites", "in one process", "one site", "coordinator", "all steps / 4d (mean)",
                  title=f"{params:,} parameters; plot and JSON in {out}")  # fmt: skip
    for one in rounds:
        table.add_row(
            str(one["sites"]),
            f"{one['round_s']:.2f} s",
            f"{one['client_all_steps_s'] * 1e3:.0f} ms",
            f"{one['coordinator_s']:.2f} s",
            f"{one['all_steps_over_4d']['mean']:.3f}",
        )
    return {"rounds": rounds, "plot": str(plot), "json": str(data)}, table


def round_table(figures: dict[str, Any]) -> Group:
    """For people: the steps, then the figures with their targets."""
    steps = Table("step", "all sites", "one site", "coordinator", "a site sends (mean, max)")
    for name in STEPS:
        step = figures["steps"][name]
        median, sends = step["site_median_s"], step["site_sends_bytes"]
        steps.add_row(
            name,
            f"{step['all_s'] - step['coordinator_s']:.2f} s",
            "" if median is None else f"{median * 1e3:.1f} ms",
            f"{step['coordinator_s']:.2f} s",
            "" if sends is None else f"{sends['mean']:,.0f} B, {sends['max']:,.0f} B",
        )
    bytes_ = figures["all_steps_over_4d"]
    table = Table("what", "figure", "target")
    for row in (
        ("the sum", "exact", "exact"),
        ("round, work of all in one process", f"{figures['round_s']:.2f} s", "10 s"),
        ("  with making and checking the vectors", f"{figures['elapsed_s']:.2f} s", ""),
        ("  the same, CPU of all threads", f"{figures['elapsed_cpu_s']:.2f} s", ""),
        ("one site: mask (median)", f"{figures['client_mask_s'] * 1e3:.0f} ms", ""),
        (
            "one site: encode and mask (median)",
            f"{figures['client_encode_and_mask_s'] * 1e3:.0f} ms",
            "",
        ),
        ("upload of the inputs over 4d", f"{figures['input_over_4d']:.4f}", "1.01"),
        ("all steps over 4d, mean of the sites", f"{bytes_['mean']:.4f}", "1.03"),
        ("all steps over 4d, first of the roster", f"{bytes_['max']:.4f}", "1.03"),
        ("peak memory over idle", f"{figures['peak_over_idle_bytes'] / 1e6:.0f} MB", ""),
    ):
        table.add_row(*row)
    head = (
        f"{figures['sites']} sites, {figures['parameters']:,} parameters, {figures['dropped']} "
        f"drop after sharing keys, threshold {figures['threshold']}. "
        "The targets are those of 50 sites with 1,000,000 parameters, 30 % dropping."
    )
    note = "A message counts as it travels: protobuf and frame."
    return Group(Text(head), steps, table, Text(note))


def client_table(figures: dict[str, Any]) -> Table:
    """For people: one site's seconds and memory."""
    targets = CLIENT_TARGETS.get((figures["parameters"], figures["peers"]), {})
    table = Table(
        "what", "median (min-max)", "target",
        title=f"one site: {figures['parameters']:,} parameters, {figures['peers']} peers",
    )  # fmt: skip
    for key, label in (
        ("encode_s", "encode"),
        ("mask_s", "mask"),
        ("encode_and_mask_s", "encode and mask"),
        ("cpu_s", "  the same, CPU of all threads"),
    ):
        one = figures[key]
        table.add_row(
            label,
            f"{one['median']:.3f} s ({one['min']:.3f}-{one['max']:.3f})",
            f"{targets[key]:g} s" if key in targets else "",
        )
    limit = targets.get("peak_over_vectors_bytes")
    table.add_row(
        "peak memory over the two vectors",
        f"{figures['peak_over_vectors_bytes'] / 1e6:.1f} MB",
        f"{limit / 1e6:.0f} MB" if limit else "",
    )
    return table
