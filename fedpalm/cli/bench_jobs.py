"""What the commands share that run many jobs: progress, failures at the end, lists on the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..errors import ChildFailedError, ConfigError
from .console import emit, err, error_json
from .narrator import Narrator, duration

if TYPE_CHECKING:
    from ..benchmark.jobs.engine import Failure, Job


def tell(
    found: dict[str, Any],
    failures: Sequence[Failure],
    jobs: int,
    out: Path,
    as_json: bool,
    story: Callable[[dict[str, Any]], Text],
) -> None:
    """Print what was found and what failed. Raises ChildFailedError: a job has no result."""
    found["failed"] = [
        {"variant": one.job.variant_name, "seed": one.job.seed, "what": one.what}
        for one in failures
    ]
    if not failures:
        emit(found, as_json, story(found))
        return
    error = ChildFailedError(
        "\n".join([f"{len(failures)} of {jobs} jobs failed", *map(failure_line, failures)]),
        safe="the other jobs have their results",
        next_step=f"run the same command again; what is done in {out} is not done again",
    )
    if as_json:
        emit(found | error_json(error), as_json)
        raise SystemExit(error.exit_code)
    emit(found, as_json, story(found))
    raise error


def failure_line(failure: Failure) -> str:
    return f"{failure.job.label}: {failure.what}"


class Progress:
    """A bar a job on a terminal, a line a finished job elsewhere; with an estimate of what is left."""

    def __init__(self, jobs: Sequence[Job], narrator: Narrator) -> None:
        self._narrator = narrator
        self._total = sum(job.rounds for job in jobs)
        self._count, self._ready = len(jobs), 0
        self._done: dict[str, int] = {}
        self._at_start: dict[str, int] = {}
        self._begun = time.monotonic()

    def advanced(self, job: Job, rounds: int) -> None:
        self._at_start.setdefault(job.hash, rounds)
        self._done[job.hash] = rounds
        if err().is_terminal:
            self._narrator.track(job.label, job.rounds, rounds, self.estimate())

    def ended(self, job: Job, seconds: float) -> None:
        self._done[job.hash] = job.rounds
        self._ready += 1
        self._say(f"{job.label}: done in {duration(seconds)}")

    def failed(self, failure: Failure) -> None:
        self._done[failure.job.hash] = failure.job.rounds
        self._at_start[failure.job.hash] = failure.job.rounds
        self._ready += 1
        self._say(f"{failure.job.label}: failed. {failure.what}")

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


def names(text: str | None) -> tuple[str, ...] | None:
    """Words between commas."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str | None) -> tuple[int, ...] | None:
    """Numbers between commas. Raises ConfigError."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text!r} are not numbers with commas between") from None
