"""``fedpalm bench palm``: FedPalm against its baselines, with tables and plots at the end."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
from rich.text import Text

from ..data.readers import SourceKind
from ..errors import ConfigError
from ..settings import parse_settings
from .bench_jobs import Progress, names, numbers, tell
from .bench_plot import draw_plots
from .bench_table import write_tables
from .console import command_errors, err, json_option
from .narrator import Narrator

if TYPE_CHECKING:
    from ..benchmark.jobs.engine import Runner
    from ..benchmark.jobs.results import Store
    from ..benchmark.palm.config import BenchConfig, Job

Preset = Literal["smoke", "quick", "paper"]
Engine = Literal["local", "ray"]


@click.command("palm")
@click.option("--preset", "preset_name", type=click.Choice(get_args(Preset)), default="quick",
              show_default=True, help="What is not said otherwise.")  # fmt: skip
@click.option("--data", help="A folder or list of images, or the word synthetic-palm.")
@click.option("--kind", type=click.Choice(get_args(SourceKind)), help="Layout of --data.")
@click.option(
    "--identities", type=click.IntRange(4), help="At each site, half of them for training."
)
@click.option("--images", type=click.IntRange(4), help="Of an identity, at most.")
@click.option(
    "--methods", help="Variants, with commas between; left out, all but the parts of fedpalm+."
)
@click.option("--sites", type=click.IntRange(2))
@click.option("--rounds", type=click.IntRange(1))
@click.option("--seeds", help="Seeds, with commas between.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="A key of a plan's [training] table, for every variant.")  # fmt: skip
@click.option("--engine", type=click.Choice(get_args(Engine)), default="local", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="At a time. [default: one a core]")
@click.option("--shard", default="1/1", show_default=True, help="Part K/N of the jobs.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              default=Path("runs/bench-palm"), show_default=True,
              help="Folder of results; what is in it already is not done again.")  # fmt: skip
@json_option
@command_errors
def palm_command(
    preset_name: Preset,
    data: str | None,
    kind: SourceKind | None,
    identities: int | None,
    images: int | None,
    methods: str | None,
    sites: int | None,
    rounds: int | None,
    seeds: str | None,
    assignments: tuple[str, ...],
    engine: Engine,
    device: str,
    jobs: int | None,
    shard: str,
    out: Path,
    as_json: bool,
) -> None:
    """Train every variant with every seed, score both sets, write tables and plots.

    Interrupted, it goes on where it was when it is run again. One that fails does not stop the
    others; the command then ends with 15.
    """
    from ..benchmark.jobs.engine import parse_shard, run_jobs, undone
    from ..benchmark.jobs.results import Store
    from ..benchmark.palm.config import jobs_of
    from ..benchmark.palm.data import fingerprint, prepare_images

    check_device(device)
    config = configured(
        preset_name,
        {"source": data, "kind": kind, "identities": identities, "images": images},
        {
            "variants": names(methods),
            "sites": sites,
            "rounds": rounds,
            "seeds": numbers(seeds),
        },
        assignments,
    )
    every = jobs_of(config, fingerprint(config.data), parse_shard(shard))
    store = Store(out)
    left = undone(every, store)
    runner, at_once = choose_runner(engine, store, jobs)
    prepare_images(left)
    begun = time.monotonic()
    with Narrator(err()) as narrator:
        if len(left) < len(every):
            narrator.note(f"{len(every) - len(left)} of {len(every)} jobs are done already")
        failures = run_jobs(left, at_once, Progress(left, narrator), runner)
    found = finished(every, store, out)
    found["seconds"] = round(time.monotonic() - begun, 1)
    tell(found, failures, len(every), out, as_json, story)


def configured(
    preset_name: Preset,
    data: dict[str, Any],
    top: dict[str, Any],
    assignments: Sequence[str] = (),
) -> BenchConfig:
    """A preset with what was said otherwise (None: not said). Raises ConfigError."""
    from ..benchmark.palm.config import BenchConfig, preset

    values = preset(preset_name).model_dump()
    values |= {key: value for key, value in top.items() if value is not None}
    values["data"] |= {key: value for key, value in data.items() if value is not None}
    for one in assignments:
        try:
            values["training"] |= tomllib.loads(one)
        except tomllib.TOMLDecodeError:
            raise ConfigError(f"--set {one!r} is not KEY=VALUE with a TOML value") from None
    return parse_settings(BenchConfig, values, "benchmark")


def check_device(device: str) -> None:
    """Raises ConfigError for what cannot be trained on."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: this machine has no CUDA device that torch can use",
            next_step="leave --device out: it runs on the CPU",
        )
    raise ConfigError(
        "--device cuda: sites train on the CPU only so far",
        next_step="leave --device out: it runs on the CPU",
    )


def choose_runner(engine: Engine, store: Store, jobs: int | None) -> tuple[Runner, int]:
    """Who does a job, and how many at a time. Raises ConfigError: Ray is not installed."""
    if engine == "ray":
        from ..benchmark.palm.ray_engine import RayRunner

        cluster = RayRunner(store)
        return cluster, jobs or cluster.cores
    from ..benchmark.jobs.engine import LocalRunner
    from ..benchmark.palm.job import MODULE

    return LocalRunner(store, MODULE), jobs or len(os.sched_getaffinity(0))


def finished(jobs: Sequence[Job], store: Store, out: Path) -> dict[str, Any]:
    """Tables and plots of what these jobs' experiment has, other shards included."""
    experiment = jobs[0].experiment if jobs else ""
    found = [one for one in store.everything() if one["experiment"] == experiment]
    result: dict[str, Any] = {"experiment": experiment, "results": len(found), "out": str(out)}
    if not found:
        return result | {"table": "", "files": [], "plots": [], "left_out": []}
    table, files = write_tables(found, out)
    plots, left_out = draw_plots(found, store, out / "plots")
    return result | {"table": table, "files": files, "plots": plots, "left_out": left_out}


def story(found: dict[str, Any]) -> Text:
    """For people: the tables, where the files are, and what could not be drawn."""
    lines = [*found["files"], *found["plots"], *(f"not drawn: {one}" for one in found["left_out"])]
    return Text("\n".join([found["table"], *lines]))
