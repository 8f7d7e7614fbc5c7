"""``fedpalm bench plot``: ROC, DET, convergence and the TEIM of what was run."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .bench_table import results_in
from .console import command_errors, emit, json_option

if TYPE_CHECKING:
    from ..benchmark.jobs.results import Store


@click.command("plot")
@click.argument(
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/bench-palm"),
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Folder of the plots. [default: FOLDER/plots]")  # fmt: skip
@json_option
@command_errors
def plot_command(folder: Path, out: Path | None, as_json: bool) -> None:
    """Draw the results in FOLDER as PNG files; several experiments into a folder each."""
    from ..benchmark.jobs.results import Store
    from ..benchmark.palm.tables import experiments

    store = Store(folder)
    found = experiments(results_in(store))
    target = out or folder / "plots"
    plots: list[str] = []
    left_out: list[str] = []
    for name, results in found.items():
        drawn, missing = draw_plots(results, store, target if len(found) == 1 else target / name)
        plots += drawn
        left_out += [one for one in missing if one not in left_out]
    human = "\n".join([*plots, *(f"not drawn: {one}" for one in left_out)])
    emit({"plots": plots, "left_out": left_out}, as_json, human)


def draw_plots(
    results: Sequence[dict[str, Any]], store: Store, folder: Path
) -> tuple[list[str], list[str]]:
    """Files that were drawn, and sentences on what was not.

    Raises:
        ConfigError: matplotlib is not installed.
        IntegrityError: a file of scores is damaged.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "plots need matplotlib", next_step="install it: pip install 'fedpalm[site]'"
        )
    from ..benchmark.palm.plots import write_plots

    written, left_out = write_plots(results, store, folder)
    return [str(path) for path in written], left_out
