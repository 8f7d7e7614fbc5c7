"""What may leave: the one type that the link takes, which only the egress gate can make."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, final

from google.protobuf.message import Message

from fedpalm.errors import EgressRefusedError


class PayloadKind(StrEnum):
    """Everything that a site ever sends, by the name that its log shows."""

    UPDATE = "update"
    SEALED_EXPERT = "sealed_expert"
    CONSENT = "consent"
    REFUSAL = "refusal"
    HELLO = "hello"
    FETCH_PLAN = "fetch_plan"
    JOIN_RUN = "join_run"
    INSTRUCTIONS = "instructions"
    DOWNLOAD_MODEL = "download_model"
    UPDATE_OFFSET = "update_offset"
    FETCH_CONSENTS = "fetch_consents"
    DOWNLOAD_EXPERT = "download_expert"
    EXPERT_KEYS = "expert_keys"
    FETCH_EXPERT_KEYS = "fetch_expert_keys"
    CONFIRM_EXPERTS = "confirm_experts"
    ANSWER_PLAN = "answer_plan"
    FETCH_MANIFESTS = "fetch_manifests"
    COUNTERSIGN = "countersign"
    FETCH_COUNTERSIGNATURES = "fetch_countersignatures"
    LIST_RECEIPTS = "list_receipts"
    GIVE_CHECKPOINT = "give_checkpoint"
    FETCH_CHECKPOINTS = "fetch_checkpoints"
    MASKING_KEYS = "masking_keys"
    MASKING_BOXES = "masking_boxes"
    MASKING_COMPLAINT = "masking_complaint"
    MASKING_AGREEMENT = "masking_agreement"
    MASKING_REVEAL = "masking_reveal"
    FETCH_MASKING = "fetch_masking"
    RENEW = "renew"
    FETCH_TRUST = "fetch_trust"
    ENROL = "enrol"
    """The first request for a certificate, before there is a gate: ``enrolment.py`` logs it."""


MASKING_KINDS = frozenset(
    {
        PayloadKind.MASKING_KEYS,
        PayloadKind.MASKING_BOXES,
        PayloadKind.MASKING_COMPLAINT,
        PayloadKind.MASKING_AGREEMENT,
        PayloadKind.MASKING_REVEAL,
    }
)
"""What a site says in a step of a masked attempt, all its messages of the step together."""

DATA_KINDS = frozenset({PayloadKind.UPDATE, PayloadKind.SEALED_EXPERT})
"""Kinds that carry model weights; all others carry names, hashes, offsets and signed statements."""


@dataclass(frozen=True)
class Place:
    """Where in the protocol a payload belongs: a round, an exchange, a run, or none of them."""

    run: str = ""
    round: int | None = None
    attempt: int | None = None
    exchange: str = ""

    def body(self) -> dict[str, str | int]:
        """The fields that a log entry has for it."""
        if self.exchange:
            return {"run": self.run, "exchange": self.exchange}
        if self.round is not None and self.attempt is not None:
            return {"run": self.run, "round": self.round, "attempt": self.attempt}
        return {"run": self.run} if self.run else {}

    def __str__(self) -> str:
        return "/".join(str(value) for value in self.body().values())


PASSPORT = object()
"""Held by the egress gate (``release.py``) and by nobody else; a test keeps watch."""


@final
class OutgoingPayload:
    """A payload with its log entry: logged durably before the first byte of it can leave.

    ``message`` is the whole of a small payload, ``messages`` all of one that is several (a step of a masked
    attempt; the hash is over their bytes one after the other); ``path`` holds the ``size`` bytes of an
    update or a sealed expert. Exactly one of the three is there. Immutable, and not to be subclassed.

    Raises:
        EgressRefusedError: on construction by anybody but the egress gate.
    """

    __slots__ = (
        *("kind", "message", "messages", "path", "payload_hash", "place", "recipient"),
        *("seq", "size"),
    )

    kind: PayloadKind
    place: Place
    recipient: str
    payload_hash: bytes
    size: int
    seq: int
    message: Message | None
    messages: tuple[Message, ...]
    path: Path | None

    def __init__(self, passport: object, **values: Any) -> None:
        if passport is not PASSPORT:
            raise EgressRefusedError(
                "a payload is made by the egress gate and by nothing else", safe="nothing was sent"
            )
        for name in self.__slots__:
            object.__setattr__(self, name, values[name])

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("OutgoingPayload has no subclasses")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("an OutgoingPayload does not change")


def require_outgoing(payload: object, *kinds: PayloadKind) -> OutgoingPayload:
    """What stands before every send: the exact type, of one of the kinds, with unaltered bytes.

    Raises:
        EgressRefusedError: anything else.
    """
    if type(payload) is not OutgoingPayload or payload.kind not in kinds:
        raise EgressRefusedError(
            f"{type(payload).__name__} was not released by the egress gate for this call",
            safe="nothing was sent",
        )
    said = payload.messages if payload.message is None else (payload.message,)
    if (payload.path is None or said) and messages_hash(said) != payload.payload_hash:
        raise EgressRefusedError(
            f"the {payload.kind.value} is not the one that was logged", safe="nothing was sent"
        )
    return payload


def message_bytes(message: Message) -> bytes:
    """The bytes of a small message, the same on every call."""
    return message.SerializeToString(deterministic=True)


def message_hash(message: Message) -> bytes:
    """32 bytes, SHA-256 of :func:`message_bytes`."""
    return messages_hash((message,))


def messages_hash(messages: Iterable[Message]) -> bytes:
    """32 bytes, SHA-256 of the :func:`message_bytes` of several, one after the other."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(message_bytes(message))
    return digest.digest()
