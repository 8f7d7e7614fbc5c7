"""``masking/ledger.json``: how far this site's log had come when it was last charged.

It lies outside the database, in the folder that belongs in no backup, and names the database that it was
made with. So a home that comes back from a backup shows: the mark is gone, or of another database, or
ahead of the log. What the log has lost is budget that was spent, so such a home trains nothing with
differential privacy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpalm.canonical import canonical_json
from fedpalm.errors import BudgetError
from fedpalm.ledger.chain import Head

from .files import write_durably

LEDGER_MARK = "ledger.json"


def begin_mark(folder: Path, home: str) -> None:
    """The mark of an empty log, for a database that is being made; one that says something stays."""
    try:
        said = _parsed(folder)
    except FileNotFoundError:
        said = None
    except BudgetError:
        return
    if said is None or said[1].size == 0:
        write_mark(folder, home, Head(0, b""))


def write_mark(folder: Path, home: str, head: Head) -> None:
    """Durably."""
    values = {"home": home, "size": head.size, "head": head.hash.hex()}
    write_durably(folder / LEDGER_MARK, canonical_json(values))


def read_mark(folder: Path, home: str) -> Head:
    """What was written last.

    Raises:
        BudgetError: it is gone, damaged, or another database's.
    """
    try:
        found, head = _parsed(folder)
    except FileNotFoundError:
        raise restored(f"{folder / LEDGER_MARK} is gone") from None
    if found != home:
        raise restored(f"{folder / LEDGER_MARK} is not of this database")
    return head


def restored(what: str) -> BudgetError:
    """The error of a home whose log may lack charges."""
    return BudgetError(
        f"{what}: this home came from a backup, and what it has spent and released since may be missing "
        "from its log",
        safe="nothing is trained with differential privacy here, and no expert is released",
        next_step="put the newest copy of the whole home in place, masking/ included; without one, make a "
        "new home, ask the operator for an invitation, and take over there what is known to be spent: "
        "fedpalm-participant budget inherit FILE",
    )


def _parsed(folder: Path) -> tuple[str, Head]:
    path = folder / LEDGER_MARK
    raw = path.read_bytes()
    try:
        values: dict[str, Any] = json.loads(raw)
        return str(values["home"]), Head(int(values["size"]), bytes.fromhex(values["head"]))
    except (ValueError, KeyError, TypeError) as error:
        raise restored(f"{path} is damaged") from error
