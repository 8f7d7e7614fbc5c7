"""Limits: every field has one, and none can be exceeded by what a peer sends."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import MessageTooLargeError, ProtocolError
from fedpalm.wire.limits import check_limits, limits_of, parse_message
from fedpalm.wire.v1 import federation_pb2, operator_pb2, verification_pb2
from fedpalm.wire.v1.federation_pb2 import (
    Chunk,
    Heartbeat,
    HelloRequest,
    Instruction,
    OffsetReply,
    Receipt,
    RoundClosed,
    RoundRef,
    RunOffer,
    SignedStatement,
    UpdateHeader,
    UploadRequest,
)
from fedpalm.wire.v1.operator_pb2 import ListSitesReply, RunStatus, SiteInfo

HASH = bytes(32)


def _all_types() -> list[Descriptor]:
    modules = (federation_pb2, operator_pb2, verification_pb2)
    files = [module.DESCRIPTOR for module in modules]
    return [d for file in files for d in file.message_types_by_name.values()]


def _class(descriptor: Descriptor) -> type[Message]:
    return message_factory.GetMessageClass(descriptor)


@pytest.mark.parametrize("descriptor", _all_types(), ids=lambda d: d.name)
def test_every_string_bytes_and_repeated_field_declares_a_limit(descriptor: Descriptor) -> None:
    assert [f.name for f in limits_of(descriptor) if f.unlimited] == []


@pytest.mark.parametrize("descriptor", _all_types(), ids=lambda d: d.name)
def test_no_message_nests_another_of_its_own_kind(descriptor: Descriptor) -> None:
    def depth(d: Descriptor, above: tuple[str, ...]) -> int:
        assert d.full_name not in above, f"{d.full_name} is recursive"
        children = [f.message_type for f in d.fields if f.message_type]
        return 1 + max((depth(c, (*above, d.full_name)) for c in children), default=0)

    assert depth(descriptor, ()) <= 5


@pytest.mark.parametrize("descriptor", _all_types(), ids=lambda d: d.name)
def test_arbitrary_bytes_parse_or_raise_a_protocol_error(descriptor: Descriptor) -> None:
    kind = _class(descriptor)

    @given(st.binary(max_size=400))
    def parse(wire_bytes: bytes) -> None:
        try:
            message = parse_message(kind.FromString, wire_bytes)
        except ProtocolError:
            return
        assert isinstance(message, kind)

    parse()


@given(st.data())
def test_a_message_filled_at_random_passes_exactly_when_no_field_exceeds_its_limit(
    data: st.DataObject,
) -> None:
    descriptor = data.draw(st.sampled_from(_all_types()))
    message = _fill(_class(descriptor), data)
    if _breaks(message):
        with pytest.raises(ProtocolError):
            parse_message(type(message).FromString, message.SerializeToString())
    else:
        assert parse_message(type(message).FromString, message.SerializeToString()) == message


def _fill(kind: type[Message], data: st.DataObject) -> Message:
    """A message with every field set to a length at its limit, or one above."""
    message = kind()
    for field in limits_of(kind.DESCRIPTOR):
        if field.message:
            child_kind = _class(kind.DESCRIPTOR.fields_by_name[field.name].message_type)
            child = _fill(child_kind, data)
            items = 1 if not field.repeated else data.draw(st.integers(0, 2))
            if field.repeated:
                getattr(message, field.name).extend([child] * items)
            else:
                getattr(message, field.name).CopyFrom(child)
        elif field.sized and not field.repeated:
            top = field.exact_len or min(field.max_len or 0, 70_000)
            over = data.draw(st.booleans()) and (field.exact_len or field.max_len or 0) <= 70_000
            _set(message, field.name, top + over)
    return message


def _set(message: Message, name: str, length: int) -> None:
    is_text = isinstance(getattr(message, name), str)
    setattr(message, name, "x" * length if is_text else bytes(length))


def _breaks(message: Message) -> bool:
    """The same rules, written down a second time, over what is really set."""
    for field in message.DESCRIPTOR.fields:
        options = {d.name: v for d, v in field.GetOptions().ListFields()}
        if field.has_presence and not message.HasField(field.name):
            continue
        value: Any = getattr(message, field.name)
        values = list(value) if field.is_repeated else [value]
        if len(values) > options.get("max_items", len(values)):
            return True
        for item in values:
            if isinstance(item, Message):
                if _breaks(item):
                    return True
            elif isinstance(item, (str, bytes)):
                size = len(item.encode() if isinstance(item, str) else item)
                if size > options.get("max_len", size) or size != options.get("exact_len", size):
                    return True
    return False


@pytest.mark.parametrize(
    "message",
    [
        HelloRequest(protocol_versions=range(9)),
        HelloRequest(site_id="s" * 64),
        HelloRequest(site_id="é" * 32),
        Chunk(data=bytes(1048577)),
        UploadRequest(chunk=Chunk(data=bytes(1048577))),
        SignedStatement(signature=bytes(64), chain=[b"c"] * 5),
        SignedStatement(signature=bytes(64), chain=[bytes(16385)]),
        ListSitesReply(sites=[SiteInfo(site_id="s" * 64)]),
        RunStatus(plan_hash=HASH, model_hash=HASH, joined=["s" * 64]),
    ],
    ids=lambda m: m.DESCRIPTOR.name,
)
def test_a_field_beyond_its_limit_is_too_large_wherever_it_is_nested(message: Message) -> None:
    with pytest.raises(MessageTooLargeError, match="at most"):
        check_limits(message)


@pytest.mark.parametrize(
    "message",
    [
        RunOffer(plan_hash=bytes(31)),
        RunOffer(),
        RoundClosed(model_hash=bytes(33)),
        OffsetReply(receipt=Receipt(receipt=SignedStatement())),
        UploadRequest(header=UpdateHeader(ref=RoundRef(run_id="run"))),
    ],
    ids=lambda m: m.DESCRIPTOR.name,
)
def test_a_hash_or_signature_of_another_length_is_refused(message: Message) -> None:
    with pytest.raises(ProtocolError, match=r"exactly (32|64)"):
        check_limits(message)


@pytest.mark.parametrize(
    "message",
    [
        Chunk(data=bytes(1048576)),
        HelloRequest(protocol_versions=range(8), site_id="s" * 63),
        OffsetReply(offset=7),
        Instruction(heartbeat=Heartbeat()),
        RunOffer(plan_hash=HASH),
        Receipt(receipt=SignedStatement(signature=bytes(64))),
    ],
    ids=lambda m: m.DESCRIPTOR.name,
)
def test_a_message_at_its_limits_passes(message: Message) -> None:
    check_limits(message)


def test_bytes_that_are_no_message_say_how_many_came() -> None:
    with pytest.raises(ProtocolError, match="2 bytes came"):
        parse_message(HelloRequest.FromString, b"\xff\xff")
