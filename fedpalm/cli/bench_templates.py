"""``fedpalm bench templates``: what cancelable templates cost in accuracy, and what they hide."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..settings import parse_settings
from .console import command_errors, emit, err, json_option
from .narrator import Narrator

CASES = {
    "unprotected": "unprotected: the cosine",
    "own_keys": "a key each; impostors use their own (in two systems: the same key)",
    "claimed_keys": "impostors under the claimed person's key: stolen, or kept by the site",
    "fresh_keys": "one person under two keys, against two people under two",
}


@click.command("templates")
@click.option("--quick", is_flag=True, help="A few people, to see that it runs; no figure counts.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Of palms, training, keys and intervals.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              default=Path("runs/bench-templates"), show_default=True,
              help="Folder for the figures and the plot.")  # fmt: skip
@json_option
@command_errors
def templates_command(quick: bool, seed: int, out: Path, as_json: bool) -> None:
    """Error rates and linkability of cancelable templates of drawn palms, as a table and a plot.

    A model is trained on other people first. Keys come from the seed and protect nobody.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ..benchmark.jobs.results import whole
    from ..benchmark.templates import QUICK, TemplatesConfig, measure
    from ..benchmark.templates_plot import plot_linkability

    values = (QUICK if quick else TemplatesConfig()).model_dump() | {"seed": seed}
    config = parse_settings(TemplatesConfig, values, "benchmark")
    with Narrator(err()) as narrator:
        found = measure(config, narrator.note)
    found["plot"] = str(out / "templates.png")
    plot_linkability(found, Path(found["plot"]))
    with whole(out / "templates.json") as partial:
        partial.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    emit(found, as_json, tables(found))


def tables(found: Mapping[str, Any]) -> Group:
    """For people: the sizes that were tried, the distributions of keys, and a thief's yield."""
    tried = Table(
        "bytes", "EER, claimed person's key", "deviation by keys", "a thief's estimate: cosine",
        title="tuning",
    )  # fmt: skip
    tried.add_row("unprotected", percent(found["tuning"]["unprotected"]), "", "")
    for one in found["tuning"]["protected"]:
        spread = one["standard_deviation"]
        tried.add_row(
            str(one["size_bytes"]), percent(one["eer"]),
            "" if spread is None else percent(spread), f"{one['cosine_of_estimate']:.3f}",
        )  # fmt: skip
    table = Table(
        "keys", "EER", "points above the cosine", "D_sys",
        title=f"strangers, {found['size_bytes']} bytes",
    )  # fmt: skip
    for name, label in CASES.items():
        table.add_row(label, *row(found["cases"][name]))
    return Group(tried, table, Text(notes(found)), Text(found["plot"]))


def row(case: Mapping[str, Any]) -> tuple[str, str, str]:
    """Figures of a distribution of keys, each with its interval."""
    low, high = case["above_interval"]
    least, most = case["d_sys_interval"]
    return (
        f"{percent(case['eer'])} ({' to '.join(percent(one) for one in case['eer_interval'])})",
        f"{100 * case['above']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
        f"{case['d_sys']:.3f} ({least:.3f} to {most:.3f})",
    )


def notes(found: Mapping[str, Any]) -> str:
    chance, stolen = found["chance_d_sys"], found["stolen"]
    return (
        f"D_sys where nothing links, from as many people's scores: {chance['mean']:.3f}, "
        f"{chance['greatest']:.3f} at most.\n"
        f"Key and template stolen ({stolen['templates']} templates): the estimate has cosine "
        f"{stolen['cosine_to_itself']:.3f} to the template and {stolen['cosine_to_other_images']:.3f} to "
        f"other images of the person ({stolen['genuine_cosine']:.3f} between real images). The unprotected "
        f"cosine would accept {percent(stolen['accepted'])} of the estimates "
        f"({percent(stolen['genuine_accepted'])} of real images), at its EER.\n"
        f"Key and transform: {found['transform_ms']:.2f} ms a template."
    )


def percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"
