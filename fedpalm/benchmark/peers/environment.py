"""The pinned environment of a compared framework: made once, below a folder that git ignores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ...errors import UnavailableError

_VERSIONS = (
    "import importlib.metadata as m, sys; print(*(f'{n}=={m.version(n)}' for n in sys.argv[1:]))"
)


def ensure_environment(folder: Path, pinned: tuple[str, ...], say: Callable[[str], None]) -> Path:
    """The interpreter of an environment with exactly these ``name==version``; pip installs them.

    Raises:
        UnavailableError: pip cannot install them here; the last lines of its output are told.
    """
    python = folder / "bin" / "python"
    if _installed(python, pinned):
        return python
    say(f"installing {' '.join(pinned)} into {folder}")
    _run([sys.executable, "-m", "venv", str(folder)], "an environment cannot be made")
    _run(
        [str(python), "-m", "pip", "install", "--quiet", *pinned],
        f"pip cannot install {' '.join(pinned)}",
    )
    if not _installed(python, pinned):
        raise UnavailableError(f"pip installed other versions than {' '.join(pinned)}")
    return python


def _installed(python: Path, pinned: tuple[str, ...]) -> bool:
    if not python.exists():
        return False
    names = [one.partition("==")[0] for one in pinned]
    done = subprocess.run(  # noqa: S603  # an interpreter that this module made
        [python, "-c", _VERSIONS, *names], capture_output=True, text=True, check=False
    )
    return done.stdout.split() == list(pinned)


def _run(command: list[str], failure: str) -> None:
    done = subprocess.run(  # noqa: S603  # fixed programs, no shell
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(
            f"{failure}: {' '.join(done.stdout.strip().splitlines()[-3:])}",
            safe="nothing was measured",
            next_step="see whether a package index is reachable, then run it again",
        )
