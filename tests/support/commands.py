"""The commands that a person types, each in a process of its own that need not import everything again.

A fork server imports the three programs once; a command is a fork of it, with its own arguments,
environment, output and exit code. What goes on beside a test (a coordinator, an agent) starts as users
start it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PATIENCE_S = 240.0
PROGRAMS = ("coordinator", "fedpalm", "participant")

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # The fork server's, too: it starts with the first command.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["coordinator.cli", "fedpalm.cli.model", "participant.cli"])


def environment() -> dict[str, str]:
    """What a process of a test runs with."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run_program(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``python -m program arguments``, to its end.

    Raises:
        subprocess.TimeoutExpired: it did not end; it is killed.
    """
    assert program in PROGRAMS
    command = [program, *map(str, arguments)]
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _forks.Process(target=_become, args=(command, environment(), out, err))
        process.start()
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, PATIENCE_S)
        return subprocess.CompletedProcess(
            command, process.exitcode, out.read_text("utf-8"), err.read_text("utf-8")
        )


def _become(command: list[str], variables: dict[str, str], out: Path, err: Path) -> None:
    """In the fork: the program, as its ``__main__``."""
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
