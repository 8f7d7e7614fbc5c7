"""What an entry may say: one closed list of fields for each kind.

A body holds names, hashes, sizes that the plan makes public, and positions in the protocol. There is no
free text and no field for a count of images or people, a subject, or a metric: such a fact has nowhere
to go. Hashes are lower-case hex.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from math import isfinite

from ..errors import ProtocolError

Value = str | int
Body = Mapping[str, Value]
MAX_INTEGER = 2**53 - 1
MAX_NAMES_CHARS = 6400
"""Of a list of names in one field; an entry has 8 KiB."""


class EntryKind(StrEnum):
    """What an entry records. The text is signed and stored: a name is never reused or changed."""

    EGRESS = "egress"
    RECEIPT = "receipt"
    PLAN_APPROVED = "plan_approved"
    PLAN_REFUSED = "plan_refused"
    MANIFEST_ACCEPTED = "manifest_accepted"
    FORK_SEEN = "fork_seen"
    CERTIFICATE = "certificate"
    PEER_CONFIRMED = "peer_confirmed"
    EXCHANGE_APPROVED = "exchange_approved"
    EXCHANGE_REFUSED = "exchange_refused"
    EXPERT_RELEASED = "expert_released"
    EXPERT_RECEIVED = "expert_received"
    BUDGET_RESERVED = "budget_reserved"
    BUDGET_COMMITTED = "budget_committed"
    BUDGET_ABORTED = "budget_aborted"
    BUDGET_INHERITED = "budget_inherited"
    CHECKPOINT = "checkpoint"
    AUDIT = "audit"
    SUBJECT_ERASED = "subject_erased"
    VAULT_ACCEPTED = "vault_accepted"


def _hash(value: Value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _hash_or_none(value: Value) -> bool:
    return value == "none" or _hash(value)


def _name(value: Value) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value) is not None


def _identity(value: Value) -> bool:
    pattern = r"spiffe://[a-z0-9-]{1,63}/[a-z]{1,20}/[a-z0-9-]{1,63}"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _count(value: Value) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _decimal(value: Value) -> bool:
    """A float as Python's repr writes it: floats have no other place in what is signed."""
    if not isinstance(value, str) or len(value) > 32:
        return False
    try:
        return isfinite(float(value)) and repr(float(value)) == value
    except ValueError:
        return False


def _text(value: Value) -> bool:
    return (
        isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9 .,+_-]{0,62}", value) is not None
    )


def _names(value: Value) -> bool:
    """Names in order, each once, with a space between two; none at all is the empty string."""
    if not isinstance(value, str) or len(value) > MAX_NAMES_CHARS:
        return False
    names = value.split(" ") if value else []
    return all(map(_name, names)) and names == sorted(set(names))


Rule = Callable[[Value], bool]
_PAYLOAD: dict[str, Rule] = {"payload": _name, "payload_hash": _hash, "bytes": _count}
_IN_ROUND: dict[str, Rule] = {"run": _name, "round": _count, "attempt": _count}
_IN_EXCHANGE: dict[str, Rule] = {"run": _name, "exchange": _name}
_IN_RUN: dict[str, Rule] = {"run": _name}
_ANSWER: dict[str, Rule] = {
    **_IN_RUN,
    "plan_hash": _hash,
    "answer_hash": _hash,
    "number": _count,
    "by": _name,
}

# What one charge is made of. ``round`` counts on over the runs that a plan continues.
_MECHANISM: dict[str, Rule] = {
    "mechanism": _name,  # dp-sgd
    "unit": _name,  # subject | record
    "relation": _name,  # add-remove
    "sampler": _name,  # poisson
    "noise_multiplier": _decimal,
    "clip_norm": _decimal,
    "sampling_rate": _decimal,
    "steps": _count,
}
_ACCOUNT: dict[str, Rule] = {
    "delta": _decimal,
    "epsilon": _decimal,  # of everything charged so far, this included
    "budget": _decimal,  # the site's own limit when it was charged
    "accountant": _text,  # e.g. "prv+pld opacus 1.6.0, dp-accounting 0.6.0"
}

# For each kind, the sets of fields that a body may consist of: exactly one of them.
FORMS: dict[EntryKind, tuple[dict[str, Rule], ...]] = {
    # A payload that left the site: in a round, in an exchange, in a run at large, or before any run.
    EntryKind.EGRESS: tuple(
        {**_PAYLOAD, "recipient": _identity, **layout, **where}
        for layout in ({"layout_hash": _hash}, {})
        for where in (_IN_ROUND, _IN_EXCHANGE, _IN_RUN, {})
    ),
    # The coordinator's signed receipt; ``egress`` is the seq of the entry that it answers,
    # ``receipt_hash`` the hash of the statement, which is stored beside the log.
    EntryKind.RECEIPT: (
        {"egress": _count, "payload_hash": _hash, "receipt_hash": _hash, "sender": _identity},
    ),
    # This site's answer to a plan; ``by`` is person or policy.
    EntryKind.PLAN_APPROVED: (_ANSWER,),
    EntryKind.PLAN_REFUSED: (_ANSWER,),
    # A manifest that follows the one before it: what this site is asked to do in an attempt.
    EntryKind.MANIFEST_ACCEPTED: ({**_IN_ROUND, "seq": _count, "manifest_hash": _hash},),
    # Two signed manifests for one place of a run's chain: the run goes no further here. Or two checkpoints
    # that cannot both be of one site's log: what names the other one is not countersigned.
    EntryKind.FORK_SEEN: (
        {**_IN_RUN, "manifest_hash": _hash, "other_hash": _hash},
        {"site": _name, "checkpoint_hash": _hash, "other_hash": _hash},
    ),
    # The certificate that this site goes by from here on: at enrolment and after every renewal.
    EntryKind.CERTIFICATE: ({"serial": _name, "certificate_hash": _hash, "expires_ms": _count},),
    # A person at this site says that this is the signing key of that other site.
    EntryKind.PEER_CONFIRMED: ({"site": _name, "key_id": _hash},),
    EntryKind.EXCHANGE_APPROVED: (
        {
            **_IN_EXCHANGE,
            "number": _count,
            "plan_hash": _hash,
            "consent_hash": _hash,
            "commitment": _hash,
            "layout_hash": _hash,
        },
    ),
    EntryKind.EXCHANGE_REFUSED: ({**_IN_EXCHANGE, "plan_hash": _hash},),
    EntryKind.EXPERT_RELEASED: (
        {
            **_IN_EXCHANGE,
            "plan_hash": _hash,
            "sanction": _hash,
            "expert_hash": _hash,
            "sealed_hash": _hash,
            "recipient": _identity,
        },
    ),
    EntryKind.EXPERT_RECEIVED: (
        {
            **_IN_EXCHANGE,
            "plan_hash": _hash,
            "sanction": _hash,
            "expert_hash": _hash,
            "sealed_hash": _hash,
            "sender": _identity,
        },
    ),
    # Charged before the first batch is drawn, and never given back.
    EntryKind.BUDGET_RESERVED: (
        {**_IN_RUN, "round": _count, "plan_hash": _hash, "rng": _name, **_MECHANISM, **_ACCOUNT},
    ),
    # The round that ``reservation`` (a seq of this log) paid for is trained: this is what may leave.
    EntryKind.BUDGET_COMMITTED: (
        {**_IN_RUN, "round": _count, "reservation": _count, "update_hash": _hash},
    ),
    # Its training ended without an update; it stays charged.
    EntryKind.BUDGET_ABORTED: ({**_IN_RUN, "round": _count, "reservation": _count},),
    # Charges of the log that this site kept under another signing key, a mechanism an entry.
    EntryKind.BUDGET_INHERITED: (
        {"key_id": _hash, "root": _hash, "size": _count, **_MECHANISM, **_ACCOUNT},
    ),
    # A signed checkpoint of this log was given out; its tree ends before this entry.
    EntryKind.CHECKPOINT: ({**_IN_ROUND, "size": _count, "root": _hash, "checkpoint_hash": _hash},),
    # A bundle was verified, or an empirical audit run, on this site's word.
    EntryKind.AUDIT: ({"audit": _name, "result": _name, "report_hash": _hash},),
    # What this site kept of a person to verify them by is erased. ``runs`` are all those that this site has
    # trained in: their models may remember the person, and would have to be trained anew without them.
    # Where they are too many for an entry ``runs`` has the newest, and ``earlier`` how many came before
    # them.
    EntryKind.SUBJECT_ERASED: ({"runs": _names, "earlier": _count},),
    # The database and the mark of the site's vault named different sets of records (hashes of their root
    # records), and a person who could unlock it goes on with the database's: it may be an older one.
    EntryKind.VAULT_ACCEPTED: ({"database": _hash_or_none, "mark": _hash_or_none},),
}


def check_body(kind: EntryKind, body: Body) -> None:
    """Refuse a body that is not one of the kind's forms.

    Raises:
        ProtocolError: a field is missing, unknown, or holds something else than it should.
    """
    for form in FORMS[kind]:
        if set(form) == set(body):
            for field, rule in form.items():
                if not rule(body[field]):
                    raise ProtocolError(f"{kind.value}: {field} holds {str(body[field])[:80]!r}")
            return
    raise ProtocolError(f"a {kind.value} entry has no form with the fields {sorted(body)[:20]}")
