"""The site's side of an audit: everything that an auditor may see, written to one file.

Names, hashes, sizes that the plan makes public, and what others signed. Nothing of the tables that hold
counts of people, metrics, state or reasons is read here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpalm.audit.bundle import Contents, PlanRecord, write_bundle
from fedpalm.errors import ConfigError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.chain import Head
from fedpalm.ledger.entries import Entry
from fedpalm.pki.statement import SignedStatement

from .desk import Desk
from .files import sync_folder
from .plan_book import PlanBook
from .store import SiteStore

MAX_REPORT_BYTES = 4 * 1024 * 1024
_PAGE = 1000


@dataclass(frozen=True)
class Exported:
    """What was written: the log up to ``head``, in a file of ``size`` bytes."""

    path: Path
    head: Head
    size: int


def export_bundle(desk: Desk, out: Path) -> Exported:
    """Write the bundle of a site whose log holds.

    Raises:
        ChainBrokenError, ProtocolError: the log is damaged; nothing is written.
        ConfigError: ``out`` exists, or cannot be written.
    """
    head = desk.log.verify()
    contents = _contents(desk, head)
    try:
        with out.open("xb") as file:
            write_bundle(
                file,
                contents,
                _entries(desk.store, head.size),
                head.size,
                desk.identity,
                time_ms=desk.store.now_ms(),
            )
            file.flush()
            os.fsync(file.fileno())
        sync_folder(out.parent)
    except FileExistsError:
        raise ConfigError(
            f"{out}: the file exists", safe="it stays as it is", next_step="choose another --out"
        ) from None
    except OSError as error:
        out.unlink(missing_ok=True)
        raise ConfigError(f"{out}: {error.strerror}") from error
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return Exported(out, head, out.stat().st_size)


def record_report(desk: Desk, report: Path) -> Entry:
    """Note in the log that an audit was made here, its result, and the SHA-256 of its report.

    Args:
        report: what ``fedpalm audit verify --json`` or ``fedpalm audit attack --json`` printed.
    Raises:
        ConfigError: it is neither.
    """
    try:
        data = report.read_bytes()
        said = json.loads(data) if len(data) <= MAX_REPORT_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{report}: {error}") from error
    if not isinstance(said, dict) or not {"result", "findings"} <= set(said):
        raise ConfigError(
            f"{report}: not the JSON of an audit",
            next_step="make it with: fedpalm audit attack --json, or fedpalm audit verify --json",
        )
    body = {
        "audit": "verify" if "entries" in said else "attack",
        "result": str(said["result"]),
        "report_hash": hashlib.sha256(data).hexdigest(),
    }
    with desk.store.transaction() as db:
        return desk.log.append(db, EntryKind.AUDIT, body)


def _entries(store: SiteStore, size: int) -> Iterator[bytes]:
    """The stored bytes of the first ``size`` entries; the log may have grown since they were verified."""
    for start in range(0, size, _PAGE):
        for row in store.rows(
            "SELECT entry FROM log WHERE seq >= ? AND seq < ? ORDER BY seq",
            start,
            min(start + _PAGE, size),
        ):
            yield row["entry"]


def _contents(desk: Desk, head: Head) -> Contents:
    """Statements that the log of this size names, and the newest checkpoints of the others."""
    store = desk.store
    named = {kind: set[str]() for kind in EntryKind}
    fields = {
        EntryKind.MANIFEST_ACCEPTED: "manifest_hash",
        EntryKind.RECEIPT: "receipt_hash",
        EntryKind.CHECKPOINT: "checkpoint_hash",
        EntryKind.PLAN_APPROVED: "run",
    }
    for entry in desk.log.entries():
        if entry.seq >= head.size:
            break
        if entry.kind in fields:
            named[entry.kind].add(str(entry.body[fields[entry.kind]]))
    manifests = [
        one
        for one in _signed(store, "SELECT signed FROM manifests ORDER BY rowid")
        if one.hash.hex() in named[EntryKind.MANIFEST_ACCEPTED]
    ]
    countersignatures = [
        one
        for one in _signed(
            store,
            "SELECT c.signed FROM countersignatures c JOIN manifests m "
            "USING (run_id, round, attempt) ORDER BY m.rowid, c.site",
        )
        if json.loads(one.statement)["manifest_hash"] in named[EntryKind.MANIFEST_ACCEPTED]
    ]
    receipts = _signed(store, "SELECT receipt FROM releases WHERE receipt IS NOT NULL ORDER BY seq")
    return Contents(
        plans=[
            PlanRecord(one.run_id, one.plan.to_bytes(), one.offer, one.answer)
            for one in PlanBook(store).all()
            if one.run_id in named[EntryKind.PLAN_APPROVED]
        ],
        manifests=manifests,
        countersignatures=countersignatures,
        checkpoints=_checkpoints(desk, named[EntryKind.CHECKPOINT]),
        receipts=[one for one in receipts if one.hash.hex() in named[EntryKind.RECEIPT]],
        consents=[
            consent.to_bytes()
            for exchange in desk.book.all()
            for consent in desk.book.agreed(exchange.terms.exchange_id)
        ],
    )


def _checkpoints(desk: Desk, own: set[str]) -> list[SignedStatement]:
    """Every one of this log, and of each other log the newest."""
    site = desk.identity.identity.name
    given = _signed(desk.store, "SELECT signed FROM checkpoints WHERE site = ? ORDER BY seq", site)
    return [
        *(one for one in given if one.hash.hex() in own),
        *_signed(
            desk.store,
            "SELECT signed FROM checkpoints WHERE site != ? AND seq IN "
            "(SELECT MAX(seq) FROM checkpoints GROUP BY site, key_id) ORDER BY site, seq",
            site,
        ),
    ]


def _signed(store: SiteStore, query: str, *values: object) -> list[SignedStatement]:
    return [SignedStatement.from_bytes(row[0]) for row in store.rows(query, *values)]
