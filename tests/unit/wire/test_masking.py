"""Messages of a masked attempt on the wire: what was said comes back whole, and nothing is guessed."""

from __future__ import annotations

import pytest

from fedpalm.errors import MaskingMessageError, ProtocolError
from fedpalm.secagg.messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    OpenedShare,
    Reveal,
    ShareKind,
    Signed,
    SiteKeys,
)
from fedpalm.wire.limits import parse_message
from fedpalm.wire.masking import from_wire, to_wire
from fedpalm.wire.v1 import masking_pb2 as wire

SIGNATURE = b"s" * 64
MESSAGES: list[Signed] = [
    SiteKeys("a", b"1" * 32, b"2" * 1216, b"3" * 1216, b"4" * 32, SIGNATURE),
    Box("a", "b", b"1" * 1234, b"", b"3" * 32, b"4" * 32, SIGNATURE),
    MaskedInput("a", ("a", "b", "c"), b"1" * 32, SIGNATURE),
    Complaint("a", ("b", "c"), SIGNATURE),
    Agreement("a", ("a", "b", "c"), ("a", "b"), b"1" * 32, SIGNATURE),
    Reveal(
        "a",
        tuple(OpenedShare("b", kind, b"1" * 33, b"2" * 16) for kind in ShareKind),
        SIGNATURE,
    ),
]


@pytest.mark.parametrize("said", MESSAGES, ids=lambda said: type(said).__name__)
def test_a_message_comes_back_as_it_was_said(said: Signed) -> None:
    raw = to_wire(said).SerializeToString()
    assert from_wire(parse_message(wire.MaskingMessage.FromString, raw)) == said


def test_an_empty_message_says_nothing() -> None:
    with pytest.raises(MaskingMessageError, match="empty"):
        from_wire(wire.MaskingMessage())


@pytest.mark.parametrize(
    "complaint",
    [
        Complaint("a" * 64, ("b",), SIGNATURE),
        Complaint("a", ("b" * 64,), SIGNATURE),
        Complaint("a", ("b",) * 201, SIGNATURE),
        Complaint("a", ("b",), SIGNATURE + b"s"),
    ],
    ids=["site", "accused", "more than a roster", "signature"],
)
def test_a_complaint_has_its_limits(complaint: Complaint) -> None:
    raw = to_wire(complaint).SerializeToString()
    with pytest.raises(ProtocolError):
        parse_message(wire.MaskingMessage.FromString, raw)
