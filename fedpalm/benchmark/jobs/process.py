"""A job's own process: the job as JSON on stdin, one JSON line a round on stdout, ``{"error": ...}`` if it
fails. The engine's side is :class:`.engine.LocalRunner`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import FedPalmError
from .results import Store

_PACKAGES = ("numpy", "torch", "scikit-learn")

OnProgress = Callable[[int], None]
"""Called with the number of rounds that are done."""


def serve(run: Callable[[dict[str, Any], Store, OnProgress], None]) -> None:
    """Do the job of stdin in the folder that the first argument names."""
    try:
        run(json.load(sys.stdin), Store(Path(sys.argv[1])), lambda done: _say({"rounds": done}))
    except FedPalmError as error:
        _say({"error": error.what, "next_step": error.next_step})
        raise SystemExit(error.exit_code) from None


def versions() -> dict[str, str]:
    found = {"fedpalm": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "platform": f"{platform.system()} {platform.machine()}"}


def _say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
