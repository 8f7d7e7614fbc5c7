"""The coordinator's signed receipts, held against the site's log, and the log against them.

A receipt that this site took in is beside the log, its hash in a log entry. :func:`verify_receipts` needs
nothing from outside; :func:`compare_with_coordinator` takes the coordinator's own list.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509

from fedpalm.errors import FedPalmError, IntegrityError, ProtocolError
from fedpalm.ledger.bodies import Body, EntryKind
from fedpalm.ledger.entries import Entry
from fedpalm.pki.identity import Identity, identity_of
from fedpalm.pki.request import signing_key_of
from fedpalm.pki.signing import verify, verify_chain
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.receipt import PayloadReceipt

from .log import SiteLog
from .outgoing import DATA_KINDS, PayloadKind
from .store import SiteStore


@dataclass(frozen=True)
class ReceiptReport:
    """What was found in a log that holds.

    Args:
        entries: size of the log.
        verified: receipts that hold under the pinned trust.
        untrusted: seq of payloads whose receipt holds in itself and is the one that was logged, but
            whose certificate leads to no pinned anchor any more (a retired CA).
        without: seq of updates and sealed experts that nobody has confirmed.
        listed: seq of those that only the coordinator's own list confirms; its answer was lost.
    """

    entries: int
    verified: int
    untrusted: tuple[int, ...]
    without: tuple[int, ...]
    listed: tuple[int, ...] = ()


def difference(receipt: PayloadReceipt, egress: Body, site: Identity) -> str:
    """Where a receipt and the entry of what was sent differ, as words; empty if nowhere.

    Args:
        egress: body of the EGRESS entry.
        site: who sent it.
    """
    place = [egress[field] for field in ("run", "round", "attempt", "exchange") if field in egress]
    sent = {
        "federation": site.federation,
        "site": site.name,
        "payload": egress["payload"],
        "place": "/".join(map(str, place)),
        "payload_hash": egress["payload_hash"],
        "payload_bytes": egress["bytes"],
    }
    says = {field: getattr(receipt, field) for field in sent}
    return ", ".join(
        f"{field} is {says[field]!r}, sent was {sent[field]!r}"
        for field in sent
        if says[field] != sent[field]
    )


def verify_receipts(
    store: SiteStore, log: SiteLog, site: Identity, anchors: Sequence[x509.Certificate]
) -> ReceiptReport:
    """Check the whole log, and that every receipt is what it says.

    Args:
        anchors: the pinned trust at present.
    Raises:
        ChainBrokenError, ProtocolError: the log itself does not hold.
        IntegrityError: names the first release or receipt that does not fit the log.
    """
    entries = log.verify().size
    releases = {row["seq"]: row for row in store.rows("SELECT * FROM releases ORDER BY seq")}
    sent: dict[int, Entry] = {}
    receipts: dict[int, Entry] = {}
    for entry in log.entries():
        if entry.kind is EntryKind.EGRESS:
            sent[entry.seq] = entry
        elif entry.kind is EntryKind.RECEIPT:
            egress = int(entry.body["egress"])
            if egress in receipts:
                raise _broken(entry.seq, "a second receipt for one payload")
            receipts[egress] = entry
    made_by_gate = {seq for seq, e in sent.items() if e.body["payload"] != PayloadKind.ENROL}
    if releases.keys() != made_by_gate:
        seq = min(releases.keys() ^ made_by_gate)
        raise _broken(seq, "the log and the releases beside it do not name the same payloads")
    if unknown := receipts.keys() - made_by_gate:
        raise _broken(receipts[min(unknown)].seq, "a receipt for something that was not sent")
    untrusted = []
    for seq in sorted(made_by_gate):
        entry = sent[seq]
        _check_release(releases[seq], entry, receipts.get(seq))
        if seq in receipts and not _check_receipt(
            releases[seq], entry, receipts[seq], site, anchors
        ):
            untrusted.append(seq)
    return ReceiptReport(
        entries=entries,
        verified=len(receipts) - len(untrusted),
        untrusted=tuple(untrusted),
        without=tuple(
            seq
            for seq, entry in sent.items()
            if seq not in receipts and entry.body["payload"] in DATA_KINDS
        ),
    )


def runs_of(store: SiteStore) -> list[str]:
    """Every run of which the coordinator may hold a receipt of this site."""
    rows = store.rows("SELECT run_id FROM plans UNION SELECT run_id FROM runs ORDER BY run_id")
    return [row["run_id"] for row in rows]


def compare_with_coordinator(
    report: ReceiptReport,
    store: SiteStore,
    log: SiteLog,
    site: Identity,
    anchors: Sequence[x509.Certificate],
    lists: Mapping[str, Iterable[SignedStatement]],
) -> ReceiptReport:
    """Hold the coordinator's own list against what is here, both ways.

    Args:
        report: of :func:`verify_receipts`, just before.
        lists: for each run what the coordinator says that it has given.
    Raises:
        IntegrityError: a receipt of theirs that the log has no payload for, one of ours that they do
            not have, another one for the same payload, or one that is not theirs at all.
    """
    held = {
        row["seq"]: SignedStatement.from_bytes(row["receipt"])
        for row in store.rows("SELECT seq, receipt FROM releases WHERE receipt IS NOT NULL")
    }
    bodies = {e.seq: e.body for e in log.entries() if e.kind is EntryKind.EGRESS}
    seq_of = {signed.hash: seq for seq, signed in held.items()}
    unconfirmed = {seq: bodies[seq] for seq in report.without}
    found: set[int] = set()
    listed: set[int] = set()
    for run_id, statements in lists.items():
        for signed in statements:
            if signed.hash in seq_of:
                found.add(seq_of[signed.hash])
                continue
            receipt = _theirs(run_id, signed, anchors, store.clock.now())
            what = (
                f"{receipt.payload} of {receipt.place}, {receipt.payload_bytes} bytes, "
                f"sha-256 {receipt.payload_hash[:16]}"
            )
            matching = [
                seq for seq, body in unconfirmed.items() if not difference(receipt, body, site)
            ]
            if matching:
                listed.update(matching)
                continue
            known = [seq for seq, body in bodies.items() if not difference(receipt, body, site)]
            raise IntegrityError(
                f"the coordinator has given another receipt for entry {known[0]}: {what}"
                if known
                else f"the coordinator has a receipt for something that is not in the log: {what}",
                safe="nothing was changed here",
                next_step="was this home restored from a backup? If not, keep both sides as they are, "
                "and ask the operator",
            )
    if missing := sorted(set(held) - found):
        body = bodies[missing[0]]
        raise IntegrityError(
            f"the coordinator does not list {len(missing)} receipts that it gave; the first is for "
            f"entry {missing[0]}, {body['payload']}, sha-256 {str(body['payload_hash'])[:16]}",
            safe="this site's copies are signed and kept",
            next_step="ask the operator whether the coordinator's store was restored from a backup",
        )
    return ReceiptReport(
        report.entries,
        report.verified,
        report.untrusted,
        tuple(seq for seq in report.without if seq not in listed),
        tuple(sorted(listed)),
    )


def _check_release(row: sqlite3.Row, egress: Entry, receipt: Entry | None) -> None:
    body = egress.body
    if (row["payload"], row["payload_hash"].hex(), row["payload_bytes"], row["recipient"]) != (
        *(body["payload"], body["payload_hash"], body["bytes"]),
        body["recipient"],
    ):
        raise _broken(egress.seq, "the release beside it is of other bytes")
    logged = receipt.seq if receipt else None
    if row["receipt_seq"] != logged or (row["receipt"] is None) != (receipt is None):
        raise _broken(egress.seq, "its receipt and the log's entry for it do not go together")


def _check_receipt(
    row: sqlite3.Row,
    egress: Entry,
    entry: Entry,
    site: Identity,
    anchors: Sequence[x509.Certificate],
) -> bool:
    """Whether the certificate leads to a pinned anchor; everything else is an error."""
    signed = SignedStatement.from_bytes(row["receipt"])
    if signed.hash.hex() != entry.body["receipt_hash"]:
        raise _broken(egress.seq, "its receipt is not the one that was logged")
    at = entry.time_ms / 1000
    try:
        receipt = PayloadReceipt.read(signed)
    except ProtocolError as error:
        raise _broken(egress.seq, f"its receipt cannot be read: {error.what}") from error
    if found := difference(receipt, egress.body, site):
        raise _broken(egress.seq, f"its receipt is for something else: {found}")
    names = (entry.body["payload_hash"], entry.body["sender"])
    if names != (receipt.payload_hash, receipt.signer.uri):
        raise _broken(entry.seq, "it names another payload or sender than the receipt")
    try:
        PayloadReceipt.open(signed, anchors, now=at)
    except FedPalmError as error:
        if not _holds_in_itself(signed, receipt, at):
            raise _broken(egress.seq, f"its receipt does not hold: {error.what}") from error
        return False
    return True


def _holds_in_itself(signed: SignedStatement, receipt: PayloadReceipt, at: float) -> bool:
    """Whether only the anchor is missing: signature, name, role and time are right."""
    leaf, above = signed.chain[0], signed.chain[1:]
    try:
        verify(signing_key_of(leaf), receipt.DOMAIN, signed.statement, signed.signature)
        signer = identity_of(leaf)
        if above:
            # The CA that issued it stands in for the anchor, which did not travel.
            signer = verify_chain(
                leaf,
                above[:-1],
                above[-1:],
                now=at,
                role=receipt.signer.role,
                federation=receipt.federation,
            )
    except FedPalmError:
        return False
    begin, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return signer == receipt.signer and begin <= at <= end


def _theirs(
    run_id: str, signed: SignedStatement, anchors: Sequence[x509.Certificate], now: float
) -> PayloadReceipt:
    try:
        receipt = PayloadReceipt.open(signed, anchors, now=signed.last_valid(now))
        if receipt.place.split("/")[0] != run_id:
            raise ProtocolError(f"it is of {receipt.place}")
    except FedPalmError as error:
        raise IntegrityError(
            f"run {run_id}: the coordinator lists a receipt that does not hold: {error.what}",
            safe="nothing was changed here",
            next_step="ask the operator of the coordinator",
        ) from error
    return receipt


def _broken(seq: int, cause: str) -> IntegrityError:
    return IntegrityError(
        f"site log, entry {seq}: {cause}",
        safe="the log was not extended",
        next_step="keep the home as it is and compare it with a backup",
    )
