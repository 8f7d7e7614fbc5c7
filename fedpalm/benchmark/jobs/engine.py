"""Running jobs: those that are done are skipped, the others run in processes of their own.

A process gets its job as JSON and says a line a round; nothing else is shared, so it can be killed
at any moment and its job goes on from the last round. One whose benchmark is gone ends with the round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ...errors import ChildFailedError, ConfigError, FedPalmError
from .results import Store


class Job(Protocol):
    """One result to be made: everything that it depends on."""

    @property
    def hash(self) -> str:
        """Hex name of the result: changes with everything that can change it."""

    @property
    def variant_name(self) -> str:
        """What is compared with others."""

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""

    @property
    def label(self) -> str:
        """What people call it."""

    @property
    def rounds(self) -> int:
        """How many it trains."""

    @property
    def threads(self) -> int:
        """Of its process."""

    def to_json(self) -> dict[str, Any]:
        """What its process is told."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Failure:
    """A job that ended without a result, and why, in one line."""

    job: Job
    what: str


class Watch(Protocol):
    """Told what happens; calls come one at a time."""

    def advanced(self, job: Job, rounds: int) -> None:
        """So many rounds of the job are done."""

    def ended(self, job: Job, seconds: float) -> None:
        """The job has its result."""

    def failed(self, failure: Failure) -> None:
        """The job will have none."""


class Runner(Protocol):
    """Does jobs, several threads at a time."""

    def __call__(self, job: Job, watch: Watch) -> None:
        """Do it; the result is in the store afterwards. Raises FedPalmError."""

    def stop(self) -> None:
        """End what runs, for good; checkpoints stay."""


def undone(jobs: Sequence[J], store: Store) -> list[J]:
    """Jobs without an undamaged result."""
    return [job for job in jobs if not store.is_done(job.hash)]


def run_jobs(jobs: Sequence[Job], workers: int, watch: Watch, runner: Runner) -> list[Failure]:
    """Do all jobs, ``workers`` at a time; one that fails does not keep the others from running.

    Ctrl-C ends what runs and raises. The runner is stopped in any case.
    """
    failures: list[Failure] = []
    stopping = threading.Event()
    careful = _OneAtATime(watch)

    def do(job: Job) -> None:
        begun = time.monotonic()
        try:
            runner(job, careful)
        except FedPalmError as error:
            if stopping.is_set():
                return
            failures.append(Failure(job, error.what.replace("\n", " ")))
            careful.failed(failures[-1])
        else:
            careful.ended(job, time.monotonic() - begun)

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(do, job) for job in jobs]
        try:
            for one in as_completed(running):
                one.result()
        finally:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
    return failures


class LocalRunner:
    """A process a job: ``python -m <module> FOLDER`` (:mod:`.process` is its side)."""

    def __init__(self, store: Store, module: str) -> None:
        self._store, self._module = store, module
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def stop(self) -> None:
        """End all processes."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()

    def __call__(self, job: Job, watch: Watch) -> None:
        """Raises ChildFailedError."""
        log = self._store.log_file(job.hash)
        self._store.folder.mkdir(parents=True, exist_ok=True)
        said: dict[str, str] = {}
        with log.open("w", encoding="utf-8") as stream:
            process = self._start(job, stream.fileno())
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    values = json.loads(line)
                    if "rounds" in values:
                        watch.advanced(job, values["rounds"])
                    else:
                        said = values
                code = process.wait()
            finally:
                with self._lock:
                    self._processes.discard(process)
        if code:
            raise ChildFailedError(said.get("error") or _last_line(log.read_text("utf-8"), code))
        log.unlink()

    def _start(self, job: Job, log: int) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopped:
                raise ChildFailedError("stopped before it began")
            process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", self._module, str(self._store.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
                # Ctrl-C is for the benchmark; it ends its processes itself.
                start_new_session=True,
            )
            self._processes.add(process)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(job.to_json()))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended at once; its exit code and log say why
        return process


class _OneAtATime:
    """A watch that is told by several threads."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._lock = watch, threading.Lock()

    def advanced(self, job: Job, rounds: int) -> None:
        with self._lock:
            self._watch.advanced(job, rounds)

    def ended(self, job: Job, seconds: float) -> None:
        with self._lock:
            self._watch.ended(job, seconds)

    def failed(self, failure: Failure) -> None:
        with self._lock:
            self._watch.failed(failure)


def _last_line(text: str, code: int) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"its process ended with code {code}"


def parse_shard(text: str) -> tuple[int, int]:
    """``2/4`` as (2, 4). Raises ConfigError."""
    part, _, parts = text.partition("/")
    if part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise ConfigError(f"--shard {text!r} is not K/N with 1 <= K <= N", next_step="e.g. --shard 1/4")
