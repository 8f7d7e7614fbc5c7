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
from ..errors import ChildFailedError, ConfigError
from ..settings import parse_settings
from .bench_plot import draw_plots
from .bench_table import write_tables
from .console import command_errors, emit, err, error_json, json_option
from .narrator import Narrator, duration

if TYPE_CHECKING:
    from ..benchmark.palm.config import BenchConfig, Job
    from ..benchmark.palm.engine import Failure, Runner
    from ..benchmark.palm.results import Store

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
    from ..benchmark.palm.config import jobs_of, parse_shard
    from ..benchmark.palm.data import fingerprint
    from ..benchmark.palm.engine import run_jobs, undone
    from ..benchmark.palm.results import Store

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
    begun = time.monotonic()
    with Narrator(err()) as narrator:
        if len(left) < len(every):
            narrator.note(f"{len(every) - len(left)} of {len(every)} jobs are done already")
        failures = run_jobs(left, at_once, Progress(left, narrator), runner)
    found = finished(every, store, out)
    found["seconds"] = round(time.monotonic() - begun, 1)
    found["failed"] = [
        {"variant": one.job.variant_name, "seed": one.job.seed, "what": one.what}
        for one in failures
    ]
    if not failures:
        emit(found, as_json, story(found))
        return
    error = ChildFailedError(
        "\n".join([f"{len(failures)} of {len(every)} jobs failed", *map(failure_line, failures)]),
        safe="the other jobs have their results",
        next_step=f"run the same command again; what is done in {out} is not done again",
    )
    if as_json:
        emit(found | error_json(error), as_json)
        raise SystemExit(error.exit_code)
    emit(found, as_json, story(found))
    raise error


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
    from ..benchmark.palm.engine import LocalRunner

    return LocalRunner(store), jobs or len(os.sched_getaffinity(0))


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


def failure_line(failure: Failure) -> str:
    return f"{failure.job.variant_name}, seed {failure.job.seed}: {failure.what}"


class Progress:
    """A bar a job on a terminal, a line a finished job elsewhere; with an estimate of what is left."""

    def __init__(self, jobs: Sequence[Job], narrator: Narrator) -> None:
        self._narrator = narrator
        self._total = sum(job.config.rounds for job in jobs)
        self._count, self._ready = len(jobs), 0
        self._done: dict[str, int] = {}
        self._at_start: dict[str, int] = {}
        self._begun = time.monotonic()

    def advanced(self, job: Job, rounds: int) -> None:
        self._at_start.setdefault(job.hash, rounds)
        self._done[job.hash] = rounds
        if err().is_terminal:
            self._narrator.track(_name(job), job.config.rounds, rounds, self.estimate())

    def ended(self, job: Job, seconds: float) -> None:
        self._done[job.hash] = job.config.rounds
        self._ready += 1
        self._say(f"{_name(job)}: done in {duration(seconds)}")

    def failed(self, failure: Failure) -> None:
        self._done[failure.job.hash] = failure.job.config.rounds
        self._at_start[failure.job.hash] = failure.job.config.rounds
        self._ready += 1
        self._say(f"{_name(failure.job)}: failed. {failure.what}")

    def estimate(self) -> str:
        """How long the rest will take, from the rounds that were trained so far."""
        trained = sum(self._done.values()) - sum(self._at_start.values())
        left = self._total - sum(self._done.values())
        if trained <= 0 or left <= 0:
            return ""
        return f"about {duration((time.monotonic() - self._begun) / trained * left)} left"

    def _say(self, text: str) -> None:
        line = f"{self._ready}/{self._count}  {text}  {self.estimate()}"
        self._narrator.note(line.rstrip())


def _name(job: Job) -> str:
    return f"{job.variant_name}, seed {job.seed}"


def names(text: str | None) -> tuple[str, ...] | None:
    """Words between commas."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str | None) -> tuple[int, ...] | None:
    """Numbers between commas. Raises ConfigError."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text!r} are not numbers with commas between") from None
