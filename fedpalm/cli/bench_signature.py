"""``fedpalm bench signature``: FedMH against its parts and its baselines, on signatures."""

from __future__ import annotations

import importlib.util
import json
import os
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
from rich.text import Text

from ..errors import ConfigError, DataError
from ..settings import parse_settings
from .bench_jobs import Progress, names, numbers, tell
from .console import command_errors, err, json_option
from .narrator import Narrator

if TYPE_CHECKING:
    from ..benchmark.jobs.results import Store
    from ..benchmark.signature.config import BenchConfig, Job

Preset = Literal["smoke", "quick", "full"]
REAL = "cross-media-signatures"


@click.command("signature")
@click.option("--preset", "preset_name", type=click.Choice(get_args(Preset)), default="quick",
              show_default=True, help="What is not said otherwise.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path),
              help="Somebody's signatures. [default: cross-media-signatures in $FEDPALM_DATA]")  # fmt: skip
@click.option("--methods", help="Contenders, with commas between; left out, all.")
@click.option("--sites", type=click.IntRange(3))
@click.option("--rounds", type=click.IntRange(1))
@click.option("--seeds", help="Seeds, with commas between.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="A key of a plan's [training] table, for every contender.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), help="At a time. [default: one a core]")
@click.option("--shard", default="1/1", show_default=True, help="Part K/N of the jobs.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              default=Path("runs/bench-signature"), show_default=True,
              help="Folder of results; what is in it already is not done again.")  # fmt: skip
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path),
              help="A markdown page to put the tables into; figures and plot go beside it.")  # fmt: skip
@json_option
@command_errors
def signature_command(
    preset_name: Preset,
    data: Path | None,
    methods: str | None,
    sites: int | None,
    rounds: int | None,
    seeds: str | None,
    assignments: tuple[str, ...],
    jobs: int | None,
    shard: str,
    out: Path,
    page: Path | None,
    as_json: bool,
) -> None:
    """Train every contender on every set of signatures, score it, write tables and a plot.

    Interrupted, it goes on where it was when it is run again. One that fails does not stop the
    others; the command then ends with 15.
    """
    from ..benchmark.jobs.engine import LocalRunner, parse_shard, run_jobs, undone
    from ..benchmark.jobs.results import Store
    from ..benchmark.signature.config import jobs_of
    from ..benchmark.signature.data import fingerprints, prepare_images
    from ..benchmark.signature.job import MODULE
    from ..benchmark.signature.page import check_page

    for needed in ("torch", "matplotlib"):
        if importlib.util.find_spec(needed) is None:
            raise ConfigError(
                f"the benchmark needs {needed}",
                safe="nothing was trained",
                next_step="install it: pip install 'fedpalm[site]'",
            )
    source, left_out = real_signatures(data)
    top = {"variants": names(methods), "sites": sites, "rounds": rounds, "seeds": numbers(seeds)}
    config = configured(preset_name, source, top, assignments)
    if page is not None:
        check_page(page)
    every = jobs_of(config, fingerprints(config), parse_shard(shard))
    store = Store(out)
    left = undone(every, store)
    begun = time.monotonic()
    with Narrator(err()) as narrator:
        for one in left_out:
            narrator.note(f"left out: {one}")
        if len(left) < len(every):
            narrator.note(f"{len(every) - len(left)} of {len(every)} jobs are done already")
        prepare_images(left)
        runner = LocalRunner(store, MODULE)
        at_once = jobs or len(os.sched_getaffinity(0))
        failures = run_jobs(left, at_once, Progress(left, narrator), runner)
    found = finished(every, store, out, page, left_out)
    found["seconds"] = round(time.monotonic() - begun, 1)
    tell(found, failures, len(every), out, as_json, story)


def real_signatures(data: Path | None) -> tuple[str | None, list[str]]:
    """The folder of somebody's signatures, and what is left out without one.

    Raises:
        DataError: the folder that was named is not there.
    """
    if data is not None:
        if not data.expanduser().exists():
            raise DataError(f"{data}: no such folder", next_step="check --data, or leave it out")
        return str(data), []
    home = os.environ.get("FEDPALM_DATA")
    if home and (folder := Path(home).expanduser() / REAL).is_dir():
        return str(folder), []
    where = f"FEDPALM_DATA ({home}) holds no {REAL}" if home else "FEDPALM_DATA is not set"
    return None, [
        f"handwritten signatures, simple forgeries and a set that nobody trained on: {where}, and --data "
        "names no folder"
    ]


def configured(
    preset_name: Preset, source: str | None, top: dict[str, Any], assignments: Sequence[str]
) -> BenchConfig:
    """A preset with what was said otherwise (None: not said). Raises ConfigError."""
    from ..benchmark.signature.config import BenchConfig, preset

    values = preset(preset_name).model_dump()
    values |= {key: value for key, value in top.items() if value is not None}
    values["real"]["source"] = source
    for one in assignments:
        try:
            values["training"] |= tomllib.loads(one)
        except tomllib.TOMLDecodeError:
            raise ConfigError(f"--set {one!r} is not KEY=VALUE with a TOML value") from None
    return parse_settings(BenchConfig, values, "benchmark")


def finished(
    jobs: Sequence[Job], store: Store, out: Path, page: Path | None, left_out: Sequence[str]
) -> dict[str, Any]:
    """Tables, figures and plot of what these jobs' experiment has, other shards included."""
    from ..benchmark.jobs.results import whole
    from ..benchmark.signature.page import insert
    from ..benchmark.signature.plot import draw
    from ..benchmark.signature.summary import summarise
    from ..benchmark.signature.tables import markdown

    experiment = jobs[0].experiment if jobs else ""
    results = [one for one in store.everything() if one["experiment"] == experiment]
    found: dict[str, Any] = {
        "experiment": experiment, "results": len(results), "out": str(out), "left_out": list(left_out),
    }  # fmt: skip
    if not results:
        return found | {"table": "", "files": []}
    summary = summarise(results, left_out)
    table = markdown(summary)
    figures = json.dumps(summary, separators=(",", ":"), allow_nan=False) + "\n"
    texts = {out / "table.md": table, out / "table.json": figures}
    plots = [out / "table.png"]
    if page is not None:
        insert(page, table)
        texts[page.with_suffix(".json")] = figures
        plots.append(page.with_suffix(".png"))
    for path, text in texts.items():
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    for path in plots:
        draw(summary, path)
    files = [*texts, *plots, *([page] if page is not None else [])]
    return found | {"table": table, "files": [str(one) for one in files]}


def story(found: dict[str, Any]) -> Text:
    """For people: the tables, and where the files are."""
    return Text("\n".join([found["table"], *found["files"]]))
