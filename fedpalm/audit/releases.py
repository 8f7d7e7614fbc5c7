"""What left the site, each payload held against what allows it: one for one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..ledger.bodies import EntryKind
from ..ledger.entries import Entry
from ..methods.contribution import codec_for
from ..pki.identity import COORDINATOR_NAME, Identity, Role
from ..pki.statement import SignedStatement
from ..rounds.receipt import PayloadReceipt
from .attempts import Attempts, Checkpoints, Place, Witnessed, witnesses_of
from .charges import Account
from .findings import AuditStopped, Exit, Finding
from .log import EXPERT_KEYS, UPDATE, Log
from .plans import KnownPlan, Plans
from .trust import Signer, Signers

MESSAGE_BYTES = 256 * 1024
CONTROL_BYTES = {
    **dict.fromkeys(
        (
            *("answer_plan", "confirm_experts", "consent", "countersign", "download_expert"),
            *("download_model", "enrol", "fetch_consents", "fetch_countersignatures"),
            *("fetch_checkpoints", "fetch_expert_keys", "fetch_manifests", "fetch_masking"),
            *("fetch_plan", "fetch_trust", "hello"),
            *("instructions", "join_run", "list_receipts", "refusal", "renew", "update_offset"),
        ),
        MESSAGE_BYTES,
    ),
    # Several messages at once, for each of up to 200 sites.
    **dict.fromkeys(
        (
            *("masking_agreement", "masking_boxes", "masking_complaint", "masking_keys"),
            *("masking_reveal", "give_checkpoint", EXPERT_KEYS),
        ),
        4 * 1024 * 1024,
    ),
}
"""What else a site says, and how large that can be: names, hashes, offsets, keys and statements."""


@dataclass
class Released:
    """A payload of weights, and whether its receipt is there."""

    entry: Entry
    receipt: bool = False


@dataclass
class Releases:
    """Everything that left with weights in it, who witnessed which attempt, and what is wrong."""

    released: list[Released] = field(default_factory=list)
    witnessed: dict[Place, Witnessed] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check_updates(
    log: Log,
    plans: Plans,
    attempts: Attempts,
    account: Account,
    checkpoints: Checkpoints,
    owner: Signer,
    *,
    faulty: int,
) -> Releases:
    """Hold every update against its plan, its manifest and, under differential privacy, its charge.

    Args:
        faulty: how many of the witnesses may lie.
    """
    site, federation = owner.identity.name, owner.identity.federation
    own_key = owner.key.public_bytes_raw().hex()
    found = Releases(
        witnessed={
            place: witnesses_of(one, plans, checkpoints, site, faulty)
            for place, one in attempts.items()
            if plans[one.manifest.run].plan.witnessed
        }
    )
    seen: set[Place] = set()
    coordinator = Identity(federation, Role.COORDINATOR, COORDINATOR_NAME).uri
    for entry in log.sent.values():
        if entry.body["payload"] != UPDATE:
            continue
        where = f"log, entry {entry.seq}"
        known = plans.get(str(entry.body.get("run", "")))
        if known is None or "attempt" not in entry.body:
            found.findings.append(uncharged(where, "an update left outside any plan"))
            continue
        body = entry.body
        place = (known.run, int(body["round"]), int(body["attempt"]))
        found.released.append(Released(entry))
        wrong = list(_shape(entry, known, coordinator))
        attempt = attempts.get(place)
        if attempt is None or not 0 <= attempt.accepted < entry.seq:
            wrong.append("an update left for an attempt that no manifest asked for")
        elif attempt.manifest.signing_keys.get(site) != own_key:
            wrong.append(
                "an update left for an attempt in whose cohort the site, with this key, was not"
            )
        if place in seen:
            wrong.append("a second update left for one manifest")
        seen.add(place)
        if known.plan.witnessed:
            wrong += _charge(entry, known, account)
        found.findings += [uncharged(where, one) for one in wrong]
        if attempt is None:
            continue
        quorum = known.plan.quorum
        if len(attempt.signers) < quorum or site not in attempt.signers:
            found.findings.append(
                _unwitnessed(
                    where, f"{len(attempt.signers)} sites signed its manifest, quorum {quorum}"
                )
            )
        if known.plan.witnessed:
            found.findings += _unseen(entry, known, account, found.witnessed[place])
    return found


def _shape(entry: Entry, known: KnownPlan, coordinator: str) -> Iterator[str]:
    body = entry.body
    if not known.approved_at(entry.seq):
        yield "an update left under a plan that the site did not approve then"
    if body["recipient"] != coordinator:
        yield f"an update left to {body['recipient']}"
    if body.get("layout_hash") != known.plan.model_layout.hash.hex():
        yield "an update left with another layout than the plan's"
    expected = 4 * codec_for(known.plan).length
    if body["bytes"] != expected:
        yield f"an update of {body['bytes']} bytes left, the plan's has {expected}"


def _charge(entry: Entry, known: KnownPlan, account: Account) -> Iterator[str]:
    """The one commit that pays for a round, before its update left; unmasked, the update of this hash."""
    commits = account.paid.get((known.run, _charged_round(entry, known)), [])
    before = [one for one in commits if one[0] < entry.seq]
    if not before:
        yield "an update left that no committed reservation pays for"
    elif len(commits) > 1:
        yield "two trainings of the round were committed"
    elif known.plan.draft.masking == "none" and before[0][2] != entry.body["payload_hash"]:
        yield "another update left than the one that was paid for"


def _unseen(entry: Entry, known: KnownPlan, account: Account, by: Witnessed) -> Iterator[Finding]:
    """A charge for the round must have been in the log that the others signed before it was trained.

    A training that was cut off after that is charged once more; the next checkpoint has that charge.
    """
    where = f"log, entry {entry.seq}"
    if by.size == 0:
        yield _unwitnessed(
            where, f"{len(by.by)} of {by.needed} witnesses signed a checkpoint for it"
        )
        return
    reserved = account.reserved.get((known.run, _charged_round(entry, known)), [])
    if reserved and reserved[0] >= by.size:
        yield _unwitnessed(
            where, f"its charge, entry {reserved[0]}, is in no checkpoint of its attempt"
        )


def _charged_round(entry: Entry, known: KnownPlan) -> int:
    return known.plan.rounds_before + int(entry.body["round"])


# --- everything else ----------------------------------------------------------------------------------


def check_control(found: Releases, log: Log) -> None:
    """Messages without weights: of a kind that is known, and no larger than it can be."""
    for payload, (size, seq) in sorted(log.large.items()):
        limit = CONTROL_BYTES.get(payload)
        where = f"log, entry {seq}"
        if limit is None:
            found.findings.append(uncharged(where, f"a payload of unknown kind {payload!r} left"))
        elif size > limit:
            found.findings.append(
                uncharged(where, f"a {payload} of {size} bytes left, it has at most {limit}")
            )


def check_receipts(
    found: Releases,
    log: Log,
    receipts: Sequence[SignedStatement],
    owner: Identity,
    signers: Signers,
) -> None:
    """The coordinator's receipts, each for the payload of the entry that the log names with it.

    Raises:
        AuditStopped: a receipt that is missing, is not the logged one, or is for something else.
    """
    said = {}
    for at, signed in enumerate(receipts):
        said[signed.hash.hex()] = signers.open(PayloadReceipt, signed, f"receipt {at}")
    if len(said) != len(receipts):
        raise AuditStopped(Exit.MALFORMED, "receipts", "one is there twice")
    by_seq = {one.entry.seq: one for one in found.released}
    for entry in log.of(EntryKind.RECEIPT):
        where = f"log, entry {entry.seq}"
        receipt = said.pop(str(entry.body["receipt_hash"]), None)
        if receipt is None:
            raise AuditStopped(Exit.MALFORMED, where, "the receipt that it names is missing")
        sent = log.sent.get(int(entry.body["egress"]))
        if (
            sent is None
            or receipt.payload_hash != entry.body["payload_hash"]
            or _differs(receipt, sent, owner)
        ):
            raise AuditStopped(Exit.TAMPERED, where, "its receipt is for something else")
        if sent.seq in by_seq:
            by_seq[sent.seq].receipt = True
    for receipt in said.values():
        found.findings.append(
            Finding(
                Exit.FORKED,
                f"receipt for {receipt.place}",
                "the coordinator confirms a payload that the log does not have: it was cut",
            )
        )


def _differs(receipt: PayloadReceipt, sent: Entry, owner: Identity) -> bool:
    body = sent.body
    place = "/".join(str(body[f]) for f in ("run", "round", "attempt", "exchange") if f in body)
    return (
        receipt.federation,
        receipt.site,
        receipt.payload,
        receipt.place,
        receipt.payload_hash,
        receipt.payload_bytes,
    ) != (
        owner.federation,
        owner.name,
        body["payload"],
        place,
        body["payload_hash"],
        body["bytes"],
    )


def uncharged(where: str, what: str) -> Finding:
    """Something left without what it needs."""
    return Finding(Exit.UNCHARGED, where, what)


def _unwitnessed(where: str, what: str) -> Finding:
    return Finding(Exit.UNWITNESSED, where, what)
