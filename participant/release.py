"""From bytes to a logged permission to send them: the workshop of the egress gate."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

from google.protobuf.message import Message

from fedpalm.errors import EgressRefusedError, HashMismatchError, NotFoundError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import Identity, Role
from fedpalm.plan import Plan
from fedpalm.wire.v1 import federation_pb2 as wire

from .log import SiteLog
from .outgoing import PASSPORT, OutgoingPayload, PayloadKind, Place, message_bytes
from .store import SiteStore

COORDINATOR_NAME = "coordinator"


class Releaser:
    """What all parts of the gate share: the log entry that makes a payload, and the one of its receipt.

    Args:
        identity: who this site is; its signing key signs consents, sealed experts and the log.
    """

    def __init__(self, store: SiteStore, log: SiteLog, identity: TlsIdentity) -> None:
        self._store, self._log, self._identity = store, log, identity
        self.site = identity.identity.name
        self.federation = identity.identity.federation
        self.coordinator = Identity(self.federation, Role.COORDINATOR, COORDINATOR_NAME).uri

    def record_receipt(self, payload: OutgoingPayload, receipt: wire.Receipt) -> None:
        """Check a receipt against what was sent and log it, once.

        Raises:
            HashMismatchError: it is a receipt for other bytes.
        """
        if (receipt.payload_hash, receipt.payload_bytes) != (payload.payload_hash, payload.size):
            raise HashMismatchError(
                f"the receipt is not for the {payload.kind.value} that was sent",
                safe="the sent bytes are kept",
                next_step="ask the operator of the coordinator",
            )
        with self._store.transaction() as db:
            row = db.execute(
                "SELECT receipt_seq FROM releases WHERE seq = ?", (payload.seq,)
            ).fetchone()
            if row["receipt_seq"] is None:
                entry = self._log.append(
                    db,
                    EntryKind.RECEIPT,
                    {
                        "egress": payload.seq,
                        "payload_hash": payload.payload_hash.hex(),
                        "sender": self.coordinator,
                    },
                )
                db.execute(
                    "UPDATE releases SET receipt_seq = ? WHERE seq = ?", (entry.seq, payload.seq)
                )

    def _agreed_plan(self, run_id: str) -> Plan:
        run = self._store.run(run_id)
        if run is None:
            raise NotFoundError(f"this site has not joined run {run_id[:63]!r}")
        return run.plan

    def _release(
        self, kind: PayloadKind, message: Message, place: Place | None = None
    ) -> OutgoingPayload:
        data = message_bytes(message)
        with self._store.transaction() as db:
            return self._outgoing(
                db,
                kind,
                place or Place(),
                payload_hash=hashlib.sha256(data).digest(),
                size=len(data),
                message=message,
            )

    def _outgoing(
        self,
        db: sqlite3.Connection,
        kind: PayloadKind,
        place: Place,
        *,
        payload_hash: bytes,
        size: int,
        message: Message | None = None,
        path: Path | None = None,
        layout_hash: bytes | None = None,
        recipient: str | None = None,
        known_seq: int | None = None,
    ) -> OutgoingPayload:
        recipient = recipient or self.coordinator
        if known_seq is None:
            layout = {"layout_hash": layout_hash.hex()} if layout_hash else {}
            entry = self._log.append(
                db,
                EntryKind.EGRESS,
                {
                    "payload": kind.value,
                    "payload_hash": payload_hash.hex(),
                    "bytes": size,
                    "recipient": recipient,
                    **layout,
                    **place.body(),
                },
            )
            db.execute(
                "INSERT INTO releases (seq, payload, place, recipient, payload_hash) "
                "VALUES (?, ?, ?, ?, ?)",
                (entry.seq, kind.value, str(place), recipient, payload_hash),
            )
            known_seq = entry.seq
        return OutgoingPayload(
            PASSPORT,
            kind=kind,
            place=place,
            recipient=recipient,
            payload_hash=payload_hash,
            size=size,
            seq=known_seq,
            message=message,
            path=path,
        )


def refused(why: str) -> EgressRefusedError:
    """The error of everything that has no way out."""
    return EgressRefusedError(f"egress gate: {why}", safe="nothing was encoded, stored or sent")
