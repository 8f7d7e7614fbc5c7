"""What the federation is compared with: the same split, seed and method objects, in one process.

Run as ``python -m fedpalm.cli.demo.comparison WORK CONTENDER`` by the demo, at low priority beside the
real processes; says one JSON line a round on stdout and leaves ``results/<contender>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .subject import subject_of
from .workspace import Workspace


def compare(workspace: Workspace, contender: str) -> None:
    """Train ``contender`` in this process and write its result."""
    settings = workspace.load()

    def told(number: int) -> None:
        sys.stdout.write(json.dumps({"round": number, "rounds": settings.rounds}) + "\n")
        sys.stdout.flush()

    found = subject_of(settings).compare(workspace, settings, contender, told)
    workspace.write_json(workspace.result(contender), found)


def main() -> None:
    root, contender = sys.argv[1:]
    compare(Workspace(Path(root)), contender)


if __name__ == "__main__":
    main()
