"""The limits that the contract declares, checked before anybody looks at a message.

proto/fedpalm/wire/v1/limits.proto defines the three options. One set of rules is derived from each
message's descriptor, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from ..errors import MessageTooLargeError, ProtocolError
from .v1.limits_pb2 import exact_len, max_items, max_len

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class FieldLimits:
    """What the contract says of one field; lengths in bytes (UTF-8 for strings), None: not said."""

    name: str
    sized: bool
    message: bool
    repeated: bool
    presence: bool
    max_len: int | None
    exact_len: int | None
    max_items: int | None

    @property
    def unlimited(self) -> bool:
        """A peer could make this field as long as it likes."""
        return (self.sized and self.max_len is None and self.exact_len is None) or (
            self.repeated and self.max_items is None
        )


@cache
def limits_of(descriptor: Descriptor) -> tuple[FieldLimits, ...]:
    """The limits of those fields of a message type that can have any."""
    return tuple(limits for limits in map(_limits, descriptor.fields) if _can_have_any(limits))


def check_limits(message: Message) -> None:
    """Check every field against ``max_len``, ``exact_len`` and ``max_items``, nested messages too.

    A field with ``exact_len`` that is empty breaks its limit, unless it belongs to a oneof that holds
    another member.

    Raises:
        MessageTooLargeError: a field is longer, or has more elements, than its limit.
        ProtocolError: a field does not have its exact length.
    """
    for limits in limits_of(message.DESCRIPTOR):
        if limits.presence and not message.HasField(limits.name):
            continue
        value = getattr(message, limits.name)
        if limits.repeated and limits.max_items is not None and len(value) > limits.max_items:
            raise MessageTooLargeError(
                f"{message.DESCRIPTOR.name}.{limits.name}: {len(value)} elements, "
                f"at most {limits.max_items} are allowed"
            )
        for item in _items(value, limits):
            if limits.message:
                check_limits(item)
            else:
                _check_length(message, limits, item)


def parse_message(parse: Callable[[bytes], M], wire_bytes: bytes) -> M:
    """Parse what came from the network and check its limits.

    Args:
        parse: ``FromString`` of the message type that belongs here.
    Raises:
        ProtocolError: not a message of this type, or a field does not have its exact length.
        MessageTooLargeError: a field exceeds its limit.
    """
    try:
        message = parse(wire_bytes)
    except DecodeError:
        raise ProtocolError(
            f"{len(wire_bytes)} bytes came that are not the message which belongs here",
            next_step="install the same version of fedpalm on both sides",
        ) from None
    check_limits(message)
    return message


def _items(value: Any, limits: FieldLimits) -> Iterator[Any]:
    return iter(value) if limits.repeated else iter((value,))


def _check_length(message: Message, limits: FieldLimits, value: str | bytes) -> None:
    if not limits.sized:
        return
    length = len(value.encode()) if isinstance(value, str) else len(value)
    name = f"{message.DESCRIPTOR.name}.{limits.name}"
    if limits.exact_len is not None and length != limits.exact_len:
        raise ProtocolError(f"{name}: {length} bytes, exactly {limits.exact_len} are needed")
    if limits.max_len is not None and length > limits.max_len:
        raise MessageTooLargeError(f"{name}: {length} bytes, at most {limits.max_len} are allowed")


def _limits(field: FieldDescriptor) -> FieldLimits:
    options = field.GetOptions()

    def option(extension: Any) -> int | None:
        return int(options.Extensions[extension]) if options.HasExtension(extension) else None

    return FieldLimits(
        name=field.name,
        sized=field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES),
        message=field.type == FieldDescriptor.TYPE_MESSAGE,
        repeated=field.is_repeated,
        presence=field.has_presence,
        max_len=option(max_len),
        exact_len=option(exact_len),
        max_items=option(max_items),
    )


def _can_have_any(limits: FieldLimits) -> bool:
    return limits.sized or limits.message or limits.repeated
