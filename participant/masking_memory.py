"""``masking/memory.json``: what this site has contributed to, kept where no backup reaches.

It is made together with the database, and each names the other by one mark. So a home that comes back from
a backup without it, a database beside the memory of another one, and a memory beside no database of its own
all show, however old the backup is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpalm.canonical import canonical_json
from fedpalm.errors import ContributionReuseError, FedPalmError, KeyFileError
from fedpalm.secagg.memory import ContributionMemory

from .files import write_durably

MEMORY = "memory.json"


def begin_memory(folder: Path, mark: str) -> None:
    """An empty memory for a database that is being made; one that says something stays as it is."""
    try:
        said = _parsed(folder)
    except FileNotFoundError:
        said = None
    except KeyFileError:
        return
    if said is None or said[1] == ContributionMemory():
        write_memory(folder, mark, ContributionMemory())


def write_memory(folder: Path, mark: str, memory: ContributionMemory) -> None:
    """Durably."""
    write_durably(folder / MEMORY, canonical_json({"home": mark, **memory.to_json()}))


def read_memory(folder: Path, mark: str) -> ContributionMemory:
    """What was written last.

    Raises:
        KeyFileError: the file is damaged.
        ContributionReuseError: it is gone or another database's, so this home came from a backup.
    """
    try:
        found, memory = _parsed(folder)
    except FileNotFoundError:
        raise _restored(f"{folder / MEMORY} is gone") from None
    if found != mark:
        raise _restored(f"{folder / MEMORY} is not of this database")
    return memory


def _parsed(folder: Path) -> tuple[str, ContributionMemory]:
    path = folder / MEMORY
    raw = path.read_bytes()
    try:
        values: dict[str, Any] = json.loads(raw)
        return str(values["home"]), ContributionMemory.from_json(values)
    except (ValueError, KeyError, TypeError, FedPalmError) as error:
        raise KeyFileError(
            f"{path}: the memory of masked contributions is damaged",
            safe="nothing is masked or revealed",
            next_step="ask whoever runs this machine what happened to the file; without it, for masked "
            "rounds make a new home: ask the operator for an invitation",
        ) from error


def _restored(what: str) -> ContributionReuseError:
    return ContributionReuseError(
        f"{what}: this home came from a backup, and what it has contributed since is not known",
        safe="nothing is masked or revealed here any more",
        next_step="for masked rounds make a new home: ask the operator for an invitation",
    )
