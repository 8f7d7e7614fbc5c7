"""What a site spent under another signing key: the old log as a file, and its charges in the new one.

The file has a line of JSON with the old public key, then each entry as it was signed. It is taken over only
as a whole chain from that key's start; what it lacks at its end, the other sites' checkpoints of the old
log show to any auditor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpalm.canonical import canonical_json
from fedpalm.errors import ConfigError, ForkError, ProtocolError, StateError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.chain import verify_chain
from fedpalm.ledger.entries import MAX_ENTRY_BYTES, Entry
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.pki.keys import VerifyingKey
from fedpalm.pki.signing import key_id

from .budget import CHARGES, BudgetBook
from .files import write_durably
from .log import SiteLog


@dataclass(frozen=True)
class LogCopy:
    """A verified log of some signing key."""

    key: VerifyingKey
    entries: tuple[Entry, ...]

    @property
    def key_id(self) -> bytes:
        return key_id(self.key)


def write_copy(log: SiteLog, path: Path) -> int:
    """Write the whole log to a file; how many entries it has."""
    entries = list(log.entries())
    lines = [canonical_json({"key": log.public_key.public_bytes_raw().hex()})]
    lines += [entry.to_bytes() for entry in entries]
    write_durably(path, b"\n".join(lines) + b"\n")
    return len(entries)


def read_copy(path: Path) -> LogCopy:
    """Read a log and verify every link and signature of it.

    Raises:
        ConfigError: the file cannot be read.
        ProtocolError: it is not a copy of a log.
        ChainBrokenError: it was altered.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(MAX_ENTRY_BYTES))
            key = VerifyingKey.from_public_bytes(bytes.fromhex(header["key"]))
            entries = tuple(_entries(file))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(
            f"{path}: not a copy of a site's log: {error}",
            next_step="write one in the old home: fedpalm-participant budget export FILE",
        ) from error
    verify_chain(entries, key)
    return LogCopy(key, entries)


def take_over(budget: BudgetBook, own: VerifyingKey, copy: LogCopy) -> list[Entry]:
    """Charge this home for what a copy of another log charges; a longer copy later adds the rest.

    Raises:
        StateError: it is this home's own log, or was taken over already.
        ForkError: it is not the log of which a part was taken over.
    """
    if copy.key_id == key_id(own):
        raise StateError(
            "this is a copy of this home's own log", safe="nothing was charged: it counts already"
        )
    tree = MerkleTree(entry.to_bytes() for entry in copy.entries)
    start = 0
    for taken in budget.entries(EntryKind.BUDGET_INHERITED):
        if taken.body["key_id"] != copy.key_id.hex():
            continue
        size = int(taken.body["size"])
        if size >= len(tree):
            raise StateError(
                f"{size} entries of this log were taken over already, the copy has {len(tree)}",
                safe="nothing was charged twice",
            )
        if tree.root(size).hex() != taken.body["root"]:
            raise ForkError(
                f"this log differs in its first {size} entries from the one that was taken over",
                safe="nothing was charged",
                next_step="one of the two copies was not made by the old home: find out which",
            )
        start = max(start, size)
    bodies = [entry.body for entry in copy.entries[start:] if entry.kind in CHARGES]
    return budget.inherit(copy.key_id, tree.root(), len(tree), bodies)


def _entries(lines: Iterator[bytes]) -> Iterator[Entry]:
    for line in lines:
        yield Entry.from_bytes(line.removesuffix(b"\n"))
