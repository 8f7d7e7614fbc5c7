"""Inputs for the fuzzer: well-formed messages at and beyond their limits, and broken copies of them."""

from __future__ import annotations

import json
import os
import random
import resource
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from fedpalm.wire.limits import limits_of

INPUTS = int(os.environ.get("FEDPALM_FUZZ_INPUTS", "6000"))
"""Inputs in all, over the whole folder; ``make fuzz-wire`` asks for more."""
COPIES = 20
"""Broken copies made of every drawn value."""
MAX_GROWTH_MIB = 48

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.sampled_from([low, high, 0, 1, 2**31 - 1]).filter(
        lambda n: low <= n <= high
    ) | st.integers(low, high)


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], depth: int = 0) -> Message:
    """A message of ``kind`` whose fields are sometimes right, sometimes at or past their limits."""
    message = kind()
    descriptor: Descriptor = message.DESCRIPTOR
    lengths = {limits.name: limits for limits in limits_of(descriptor)}
    for spec in descriptor.fields:
        if draw(st.integers(0, 3)) == 0:
            continue
        limits = lengths.get(spec.name)
        if spec.is_repeated:
            count = draw(st.integers(0, 3))
            values = [draw(_value(spec, limits, depth)) for _ in range(count)]
            target = getattr(message, spec.name)
            target.extend(value for value in values if value is not None)
        else:
            value = draw(_value(spec, limits, depth))
            if value is None:
                continue
            if spec.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                getattr(message, spec.name).CopyFrom(value)
            else:
                setattr(message, spec.name, value)
    return message


def _value(spec: FieldDescriptor, limits: Any, depth: int) -> st.SearchStrategy[Any]:
    if spec.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if depth > 3:
            return st.none()
        return messages(spec.message_type._concrete_class, depth + 1)
    if spec.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if spec.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return st.floats()
    if spec.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return integers(*_INTEGERS[spec.cpp_type])
    exact = limits.exact_len if limits else None
    longest = min((limits.max_len if limits else None) or exact or 64, 70_000)
    names = st.sampled_from(["north", "south", "run-1", "", "../..", "a" * longest, "\u202e\x00"])
    if spec.type == FieldDescriptor.TYPE_STRING:
        return names | st.text(max_size=80) | st.just("z" * (longest + 1))
    right = st.binary(min_size=exact, max_size=exact) if exact else st.binary(max_size=64)
    return right | st.binary(max_size=200) | st.just(bytes(longest + 1)) | json_bytes()


def json_bytes() -> st.SearchStrategy[bytes]:
    """JSON texts: the statements inside messages are JSON."""
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    nested = st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    )
    deep = st.integers(1, 3000).map(lambda n: b"[" * n + b"]" * n)
    return nested.map(lambda value: json.dumps(value).encode()) | deep


@st.composite
def altered(draw: st.DrawFn, document: bytes) -> bytes:
    """A JSON document, still canonical in most cases, with a key more, a value else or another depth."""
    values = json.loads(document)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(list(_containers(values))))
        odd = deepcopy(draw(st.just(_DEEP) | st.sampled_from(_ODD)))
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        if keys and draw(st.booleans()):
            place[draw(st.sampled_from(keys))] = odd
        elif isinstance(place, dict):
            place[draw(st.sampled_from(["zz", "name", "shape", "\udfff"]))] = odd
        else:
            place.append(odd)
    deep = draw(st.sampled_from([b'"x"', b'{"a":1}', b"[]"]))
    depth = draw(st.sampled_from([1, 50, 300, 900]))
    deep = b"[" * depth + deep + b"]" * depth
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return text.encode().replace(json.dumps(_DEEP).encode(), deep)


_DEEP = "put something deep here"
_ODD: list[Any] = [None, True, -1, 2**53, 2**63, 1e308, "", "\ud800", [], {}, [[]]]


def _containers(place: Any) -> Iterator[Any]:
    """``place`` and every object and array inside."""
    if isinstance(place, dict | list):
        yield place
        for inner in place.values() if isinstance(place, dict) else place:
            yield from _containers(inner)


def broken(data: bytes, rng: random.Random, copies: int = COPIES) -> Iterator[bytes]:
    """``data`` itself, then copies with bits flipped, bytes cut, repeated, moved or put in."""
    yield data
    for _ in range(copies - 1):
        copy = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(0, len(copy))
            match rng.randint(0, 6):
                case 0 if copy:
                    copy[at % len(copy)] ^= 1 << rng.randint(0, 7)
                case 1:
                    del copy[at:]
                case 2:
                    copy[at:at] = rng.randbytes(rng.randint(1, 16))
                case 3:
                    copy += copy[at:]
                case 4:
                    del copy[at : at + rng.randint(1, 8)]
                case 5:
                    copy[at : at + 8] = b"\xff" * 8
                case _:
                    copy[at:at] = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        yield bytes(copy[:200_000])


@dataclass
class Tally:
    """How many inputs were tried, and how the process grew meanwhile."""

    inputs: int = 0
    refused: int = 0
    taken: int = 0
    start_mib: float = field(default_factory=lambda: resident_mib())

    def growth_mib(self) -> float:
        return resident_mib() - self.start_mib


def resident_mib() -> float:
    """Resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20
