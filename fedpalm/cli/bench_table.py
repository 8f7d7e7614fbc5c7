"""``fedpalm bench table``: the paper's tables for what was run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..errors import DataError
from .console import command_errors, emit, json_option

if TYPE_CHECKING:
    from ..benchmark.jobs.results import Store


@click.command("table")
@click.argument(
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/bench-palm"),
)
@json_option
@command_errors
def table_command(folder: Path, as_json: bool) -> None:
    """Print the tables of the results in FOLDER, as markdown; every experiment in it for itself."""
    from ..benchmark.jobs.results import Store
    from ..benchmark.palm.tables import experiments, markdown, summarise

    found = experiments(results_in(Store(folder)))
    summaries = [summarise(results) for results in found.values()]
    text = "\n".join(markdown(one) for one in summaries)
    emit({"experiments": summaries}, as_json, Text(text.rstrip()))


def results_in(store: Store) -> list[dict[str, Any]]:
    """All results of a folder.

    Raises:
        DataError: none, or not of palms.
        IntegrityError: one is damaged.
    """
    found = store.everything()
    if not found:
        raise DataError(
            f"{store.folder}: no results", next_step="make some: fedpalm bench palm --out FOLDER"
        )
    if any("method" not in one for one in found):
        raise DataError(
            f"{store.folder}: results of another benchmark",
            next_step="their tables are in table.md beside them",
        )
    return found


def write_tables(results: Sequence[dict[str, Any]], folder: Path) -> tuple[str, list[str]]:
    """``table.md`` and ``table.json`` of one experiment; gives the markdown and the files."""
    from ..benchmark.jobs.results import whole
    from ..benchmark.palm.tables import markdown, summarise

    summary = summarise(results)
    text = markdown(summary)
    contents = {"table.md": text, "table.json": json.dumps(summary, indent=1) + "\n"}
    for name, content in contents.items():
        with whole(folder / name) as partial:
            partial.write_text(content, encoding="utf-8")
    return text, [str(folder / name) for name in contents]
