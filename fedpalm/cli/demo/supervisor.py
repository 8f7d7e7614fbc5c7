"""The demo's child processes: each its own process group, none left behind.

Three nets, so that no way of ending the demo leaves a process: ``stop`` ends every group (SIGTERM,
then SIGKILL after a grace); the context manager calls it on any exception, Ctrl-C included; and on
Linux the kernel sends SIGTERM to a child whose parent died without a goodbye (PR_SET_PDEATHSIG, tied
to the thread that starts the child, which is why only the main thread may).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from ...errors import ChildFailedError, FedPalmError, error_codes, error_from_code

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_TAIL_LINES = 12
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Child:
    """A running process and the log that holds what it said."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    lasting: bool = False

    @property
    def running(self) -> bool:
        return self.process.poll() is None


class Supervisor:
    """Starts, watches and ends processes; use as a context manager, from the main thread.

    Args:
        logs: folder of ``<name>.log``, made if missing; logs are appended to.
        grace_s: how long a process may take to end by itself after SIGTERM.
    """

    def __init__(self, logs: Path, *, grace_s: float = 10.0) -> None:
        self.logs, self.grace_s = logs, grace_s
        self._children: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        nice: int = 0,
        read_stdout: bool = False,
        lasting: bool = False,
    ) -> Child:
        """Start a process under a name of its own; stdout goes to its log unless it is to be read.

        A ``lasting`` one is not to end before it is told to, not even with exit code 0.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "children belong to the main thread: they end when their thread does"
            )
        if name in self._children and self._children[name].running:
            raise RuntimeError(f"{name} is running already")
        log = self.log_of(name)
        with log.open("a", encoding="utf-8") as stream, _interrupts_wait():
            process = subprocess.Popen(  # noqa: S603  (our own programs, argv as a list)
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if read_stdout else stream,
                stderr=stream,
                text=True,
                env=_environment(),
                start_new_session=True,
                preexec_fn=_tether(os.getpid(), nice),
            )
            child = Child(name, process, log, lasting)
            self._children[name] = child
        return child

    def run_json(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        timeout_s: float,
        also_fine: Sequence[int] = (),
    ) -> Any:
        """Run a command with ``--json`` to its end and parse what it printed.

        Args:
            also_fine: exit codes beside 0 with which a result is a result; an error stays an error.
        Raises:
            FedPalmError: the command's own error, rebuilt by its code.
            ChildFailedError: it ended otherwise, printed no JSON, or took longer than ``timeout_s``.
        """
        child = self.start(name, [*argv, "--json"], read_stdout=True)
        try:
            text, _ = child.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.end(name)
            raise self.failure(child, f"did not end within {timeout_s:.0f} s") from None
        # Only now: cut off before, it is still a child that stop() ends.
        self._children.pop(name, None)
        with child.log.open("a", encoding="utf-8") as stream:
            stream.write(text)
        try:
            reply = json.loads(text) if text.strip() else None
        except ValueError:
            reply = None
        failed = isinstance(reply, dict) and "error" in reply
        code = child.process.returncode
        if reply is not None and (code == 0 or (code in also_fine and not failed)):
            return reply
        # A command fails when its server is gone: that is the failure to report then.
        self.check()
        if isinstance(reply, dict) and isinstance(reply.get("error"), dict):
            error = reply["error"]
            if error.get("code") in error_codes():
                raise error_from_code(
                    error["code"],
                    f"{name}: {error.get('what', '')}",
                    safe=error.get("safe", ""),
                    next_step=error.get("next_step") or f"its log is {child.log}",
                )
        raise self.failure(child, f"ended with exit code {child.process.returncode}")

    def check(self) -> None:
        """Raise ChildFailedError if a process failed, or a lasting one ended at all."""
        for child in list(self._children.values()):
            code = child.process.poll()
            if code is not None and (code != 0 or child.lasting):
                by = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise self.failure(child, by)

    def failure(self, child: Child, what: str) -> FedPalmError:
        """The error for a child that failed, with the tail of its log and what to do next."""
        tail = child.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        shown = "\n".join(f"  | {line}" for line in tail) or "  | (it said nothing)"
        return ChildFailedError(
            f"{child.name} {what}; the end of its log:\n{shown}",
            safe="every finished step is kept",
            next_step=f"look at {child.log}, then run the same command again: it goes on from there",
        )

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def running(self) -> list[Child]:
        return [child for child in self._children.values() if child.running]

    def end(self, name: str) -> None:
        """End one process and its group."""
        child = self._children.pop(name, None)
        if child is not None:
            _end_groups([child], self.grace_s)

    def stop(self) -> None:
        """End all processes and their groups; a second Ctrl-C meanwhile only shortens the grace."""
        children = list(self._children.values())
        self._children.clear()
        _end_groups(children, self.grace_s)


def _end_groups(children: Sequence[Child], grace_s: float) -> None:
    with _hurry_on_interrupt() as hurried:
        for child in children:
            _signal_group(child, signal.SIGTERM)
        until = time.monotonic() + grace_s
        waiting = [child for child in children if child.running]
        while waiting and time.monotonic() < until and not hurried():
            time.sleep(0.02)
            waiting = [child for child in waiting if child.running]
        for child in children:
            # Also after a polite end: a grandchild may still be in the group.
            _signal_group(child, signal.SIGKILL)
            child.process.wait()
            if child.process.stdout is not None:
                child.process.stdout.close()


def _signal_group(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)


@contextlib.contextmanager
def _hurry_on_interrupt() -> Iterator[Callable[[], bool]]:
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Signals that end the demo count once this is over.

    A fork runs handlers of other libraries, and Python drops what is raised in one of those.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def ends_are_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo the way Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tether(parent: int, nice: int) -> Callable[[], None]:
    def before_exec() -> None:
        if nice:
            os.nice(nice)
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before the line above took hold
                os._exit(1)

    return before_exec


def _environment() -> dict[str, str]:
    """One thread per process: they share the cores, and the same sums come out everywhere."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}
