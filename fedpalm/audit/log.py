"""One pass over a site's entries: every link and signature, and what the rest of the audit needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import ChainBrokenError, FedPalmError
from ..ledger.bodies import EntryKind
from ..ledger.chain import verify_chain
from ..ledger.entries import Entry
from ..ledger.merkle import MerkleTree
from ..pki.keys import VerifyingKey
from .findings import AuditStopped, Exit

UPDATE, SEALED_EXPERT, EXPERT_KEYS = "update", "sealed_expert", "expert_keys"
DATA_PAYLOADS = frozenset({UPDATE, SEALED_EXPERT})
"""Payloads that carry weights."""


@dataclass
class Log:
    """A log that holds: its tree, its entries by kind, and what its control messages add up to.

    ``entries`` has every kind but egress; ``sent`` the egress that carries weights, by seq. Of the other
    egress ``control`` has count and bytes by payload, and ``large`` the biggest of each with its seq;
    ``keys`` are those of sealed experts.
    ``traffic`` is bytes by (run, round) and payload.
    """

    tree: MerkleTree = field(default_factory=MerkleTree)
    entries: dict[EntryKind, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    control: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    large: dict[str, tuple[int, int]] = field(default_factory=dict)
    traffic: dict[tuple[str, int], dict[str, int]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(int))
    )
    sent: dict[int, Entry] = field(default_factory=dict)
    keys: list[Entry] = field(default_factory=list)
    first_ms: int = 0
    last_ms: int = 0

    @property
    def size(self) -> int:
        return len(self.tree)

    def of(self, *kinds: EntryKind) -> list[Entry]:
        """All entries of these kinds, in order."""
        found = (entry for kind in kinds for entry in self.entries.get(kind, ()))
        return sorted(found, key=lambda entry: entry.seq)

    def root(self, size: int) -> str:
        """Hex root of the first ``size`` entries."""
        return self.tree.root(size).hex()


def read_log(lines: Iterable[bytes], key: VerifyingKey) -> Log:
    """Read the whole log, believing nothing that the key has not signed in its place.

    Raises:
        AuditStopped: names the first entry that is wrong, and how.
    """
    log = Log()
    try:
        verify_chain(_noted(log, lines), key)
    except ChainBrokenError as error:
        raise AuditStopped(Exit.TAMPERED, "log", error.what) from None
    return log


def _noted(log: Log, lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            entry = Entry.from_bytes(line)
        except FedPalmError as error:
            raise AuditStopped(Exit.MALFORMED, f"log, entry {log.size}", error.what) from None
        log.tree.append(line)
        log.first_ms = log.first_ms or entry.time_ms
        log.last_ms = entry.time_ms
        if entry.kind is EntryKind.EGRESS:
            _note_egress(log, entry)
        else:
            log.entries[entry.kind].append(entry)
        yield entry


def _note_egress(log: Log, entry: Entry) -> None:
    body = entry.body
    payload, size = str(body["payload"]), int(body["bytes"])
    place = (str(body.get("run", "")), int(body.get("round", 0)))
    log.traffic[place][payload] += size
    if payload in DATA_PAYLOADS:
        log.sent[entry.seq] = entry
        return
    if payload == EXPERT_KEYS:
        log.keys.append(entry)
    total = log.control[payload]
    total[0] += 1
    total[1] += size
    if size > log.large.get(payload, (-1, 0))[0]:
        log.large[payload] = (size, entry.seq)
