"""From bytes to a logged permission to send them: the workshop of the egress gate."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

from google.protobuf.message import Message

from fedpalm.errors import EgressRefusedError, HashMismatchError, PolicyError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.entries import Entry
from fedpalm.pki.identity import COORDINATOR_NAME, Identity, Role
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.receipt import PayloadReceipt

from .log import SiteLog
from .masked_store import MaskedBook
from .outgoing import DATA_KINDS, PASSPORT, OutgoingPayload, PayloadKind, Place, message_bytes
from .plan_book import PlanBook
from .policy import PolicyFile, require_allowed
from .receipts import difference
from .store import SiteStore

DAY_MS = 24 * 3600 * 1000


class Releaser:
    """What all parts of the gate share: the log entry that makes a payload, and the one of its receipt.

    Args:
        live: who this site is; its signing key signs consents, sealed experts and the log.
        policy: the limits that are looked at on every release.
    """

    def __init__(
        self, store: SiteStore, log: SiteLog, live: LiveIdentity, policy: PolicyFile
    ) -> None:
        self._store, self._log, self._policy = store, log, policy
        self.live = self._live = live
        self._plans = PlanBook(store)
        self.masked = MaskedBook(store)
        identity = live.current.identity
        self.site, self.federation = identity.name, identity.federation
        self.coordinator = Identity(self.federation, Role.COORDINATOR, COORDINATOR_NAME).uri

    def record_receipt(self, payload: OutgoingPayload, signed: SignedStatement) -> PayloadReceipt:
        """Check a receipt against the log entry of what was sent; store and log it, once.

        Raises:
            ProtocolError, IdentityError, WrongRoleError: not a receipt that the coordinator has signed.
            HashMismatchError: it is for something else, or another one than before.
        """
        receipt = PayloadReceipt.open(
            signed, self._live.current.anchors, now=self._store.clock.now()
        )
        with self._store.transaction() as db:
            row = db.execute(
                "SELECT r.receipt, l.entry FROM releases r JOIN log l USING (seq) WHERE seq = ?",
                (payload.seq,),
            ).fetchone()
            sent = Entry.from_bytes(row["entry"])
            own = self._live.current.identity
            if found := difference(receipt, sent.body, own):
                raise _wrong_receipt(f"it is not for what was sent: {found}")
            if row["receipt"] is not None:
                if SignedStatement.from_bytes(row["receipt"]).hash != signed.hash:
                    raise _wrong_receipt(f"entry {payload.seq} has another one already")
                return receipt
            entry = self._log.append(
                db,
                EntryKind.RECEIPT,
                {
                    "egress": payload.seq,
                    "payload_hash": receipt.payload_hash,
                    "receipt_hash": signed.hash.hex(),
                    "sender": receipt.signer.uri,
                },
            )
            db.execute(
                "UPDATE releases SET receipt_seq = ?, receipt = ? WHERE seq = ?",
                (entry.seq, signed.to_bytes(), payload.seq),
            )
        return receipt

    def _agreed_plan(self, run_id: str) -> Plan:
        """Raises PlanNotApprovedError, PolicyError: nothing may happen under this plan here and now."""
        plan = self._plans.approved(run_id)
        require_allowed(self._policy.current, plan)
        return plan

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
        messages: tuple[Message, ...] = (),
        path: Path | None = None,
        layout_hash: bytes | None = None,
        recipient: str | None = None,
        known_seq: int | None = None,
    ) -> OutgoingPayload:
        recipient = recipient or self.coordinator
        self._check_size(kind, size)
        if known_seq is None:
            self._check_day(db, kind, size)
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
                "INSERT INTO releases (seq, payload, place, recipient, payload_hash, "
                "payload_bytes, released_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(entry.seq, kind.value, str(place), recipient, payload_hash, size),
                    entry.time_ms,
                ),
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
            messages=messages,
            path=path,
        )

    def _check_size(self, kind: PayloadKind, size: int) -> None:
        """Raises PolicyError: a payload of weights is larger than this site allows any to be."""
        if kind not in DATA_KINDS:
            return
        limit = self._policy.current.max_payload_bytes
        if size > limit:
            raise _beyond(f"the {kind.value} has {size:,} bytes; max_payload_mb allows {limit:,}")

    def _check_day(self, db: sqlite3.Connection, kind: PayloadKind, size: int) -> None:
        """Raises PolicyError: with this payload more would have left in 24 hours than is allowed.

        A release counts whether or not it arrived; sending on what was released before is no new one.
        While the policy cannot be used, no weights leave; a refusal, a withdrawal, and what finds out about
        them still does.
        """
        try:
            limit = self._policy.current.max_bytes_per_day
        except PolicyError:
            if kind in DATA_KINDS:
                raise
            return
        (sent,) = db.execute(
            "SELECT COALESCE(SUM(payload_bytes), 0) FROM releases WHERE released_ms > ?",
            (self._store.now_ms() - DAY_MS,),
        ).fetchone()
        if sent + size > limit:
            raise _beyond(
                f"the {kind.value} of {size:,} bytes would follow {sent:,} in the last 24 hours; "
                f"max_mb_per_day allows {limit:,}"
            )


def _beyond(why: str) -> PolicyError:
    return PolicyError(
        f"egress gate: {why}",
        safe="nothing was sent",
        next_step="look at what left: fedpalm-participant egress; the limit is in policy.toml",
    )


def _wrong_receipt(why: str) -> HashMismatchError:
    return HashMismatchError(
        f"the coordinator's receipt is not taken: {why}",
        safe="the sent bytes are kept",
        next_step="ask the operator of the coordinator",
    )


def refused(why: str) -> EgressRefusedError:
    """The error of everything that has no way out."""
    return EgressRefusedError(f"egress gate: {why}", safe="nothing was encoded, stored or sent")
