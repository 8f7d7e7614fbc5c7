"""Whatever comes in: every parser of the project answers with its value or a FedPalmError.

`make fuzz-wire` runs this folder with at least 100,000 inputs and prints how many each target took.
"""

from __future__ import annotations

import gc
import importlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedpalm.errors import FedPalmError
from fedpalm.exchange.consent import Consent
from fedpalm.exchange.receipt import ExpertReceipt
from fedpalm.exchange.sealing import SealedExpert
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.ledger.entries import Entry
from fedpalm.pki.bundle import chain_from_pem
from fedpalm.pki.identity import Identity
from fedpalm.pki.request import parse_request, verify_request
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer
from fedpalm.rounds.manifest import Countersignature, RoundManifest
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.wire import masking, membership, statements
from fedpalm.wire.limits import parse_message
from fedpalm.wire.v1 import (
    federation_pb2,
    masking_pb2,
    membership_pb2,
    operator_pb2,
    verification_pb2,
)

from . import samples
from .inputs import COPIES, INPUTS, MAX_GROWTH_MIB, Tally, altered, broken, json_bytes, messages

MODULES = (federation_pb2, masking_pb2, membership_pb2, operator_pb2, verification_pb2)
KINDS: list[type[Message]] = [
    getattr(module, name) for module in MODULES for name in module.DESCRIPTOR.message_types_by_name
]
SHARE = INPUTS // 3
"""A third each: messages, documents, and calls (test_rpc.py)."""


def _examples(of: int) -> int:
    return max(1, -(-SHARE // (of * COPIES)))


def _fuzz(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def _try(tally: Tally, parse: Callable[[bytes], object], data: bytes) -> None:
    tally.inputs += 1
    try:
        parse(data)
    except FedPalmError:
        tally.refused += 1
    else:
        tally.taken += 1


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    """One for the folder: what it costs in memory shows over all inputs."""
    counted = Tally()
    yield counted
    gc.collect()
    sys.stdout.write(
        f"\nparsers: {counted.inputs} inputs, {counted.refused} refused, {counted.taken} taken, "
        f"{counted.growth_mib():+.1f} MiB\n"
    )
    assert counted.growth_mib() < MAX_GROWTH_MIB


def _use(message: Message) -> None:
    """What the programs do with the nested documents of a message that keeps its limits."""
    for spec, value in message.ListFields():
        for item in value if spec.is_repeated else [value]:
            if isinstance(item, federation_pb2.SignedStatement):
                statements.from_wire(item)
            elif isinstance(item, masking_pb2.MaskingMessage):
                masking.from_wire(item)
            elif isinstance(item, membership_pb2.IssuedCertificate):
                membership.issued_from_wire(item)
            elif isinstance(item, membership_pb2.TrustBundle):
                membership.trust_from_wire(item)
            elif isinstance(item, Message):
                _use(item)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_a_message_is_taken_or_refused(kind: type[Message], tally: Tally) -> None:
    @_fuzz(_examples(len(KINDS)))
    @given(messages(kind), st.integers(0, 2**32))
    def run(message: Message, seed: int) -> None:
        for data in broken(message.SerializeToString(), random.Random(seed)):
            _try(tally, lambda raw: _use(parse_message(kind.FromString, raw)), data)

    run()


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "replace"))


PARSERS: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes]]] = {
    "signed statement": (SignedStatement.from_bytes, lambda: samples.manifest().to_bytes()),
    **{
        kind.__name__: (
            lambda data, kind=kind: kind.read(samples.saying(data)),  # type: ignore[misc]
            sample,
        )
        for kind, sample in (
            (PlanOffer, lambda: samples.offer().statement),
            (PlanAnswer, lambda: samples.answer().statement),
            (RoundManifest, lambda: samples.manifest().statement),
            (Countersignature, lambda: samples.countersignature().statement),
            (PayloadReceipt, lambda: samples.receipt().statement),
            (Checkpoint, lambda: samples.checkpoint().statement),
            (ExchangeTerms, lambda: samples.terms().statement),
            (Consent, lambda: samples.consent().statement),
            (ExpertReceipt, lambda: samples.expert_receipt().statement),
        )
    },
    "log entry": (Entry.from_bytes, samples.entry),
    # Whoever parses a plan asks for its canonical bytes next.
    "plan": (
        lambda data: Plan.from_bytes(data).to_bytes(),
        lambda: samples.plan().to_bytes(),
    ),
    "sealed expert": (SealedExpert.from_bytes, samples.sealed),
    "request": (lambda data: verify_request(parse_request(data)), samples.request),
    "certificates": (lambda data: chain_from_pem(data, "fuzz"), samples.chain),
    "identity": (_text(Identity.from_uri), lambda: b"spiffe://fuzz/participant/north"),
}


JSON = [
    *("signed statement", "PlanOffer", "PlanAnswer", "RoundManifest", "Countersignature"),
    *("PayloadReceipt", "Checkpoint", "ExchangeTerms", "Consent", "ExpertReceipt"),
    *("log entry", "plan"),
]


@pytest.mark.parametrize("name", PARSERS)
def test_a_document_is_taken_or_refused(name: str, tally: Tally) -> None:
    parse, sample = PARSERS[name]
    good = sample()
    parse(good)

    changed = altered(good) if name in JSON else st.just(good)

    @_fuzz(_examples(len(PARSERS)))
    @given(st.just(good) | changed | json_bytes() | st.binary(), st.integers(0, 2**32))
    def run(data: bytes, seed: int) -> None:
        for copy in broken(data, random.Random(seed)):
            _try(tally, parse, copy)

    run()


@pytest.mark.parametrize("name", JSON)
def test_a_document_with_other_keys_values_or_depths_is_taken_or_refused(
    name: str, tally: Tally
) -> None:
    parse, sample = PARSERS[name]

    @_fuzz(max(300, _examples(len(PARSERS))))
    @given(altered(sample()))
    def run(data: bytes) -> None:
        _try(tally, parse, data)

    run()


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("shape", [b"[%s]", b'{"a":%s}'], ids=["lists", "objects"])
def test_a_document_that_is_nested_without_end_is_refused(name: str, shape: bytes) -> None:
    """Not left to chance: Python's parser gives up on it with an error of its own."""
    opening, closing = shape.split(b"%s")
    with pytest.raises(FedPalmError):
        PARSERS[name][0](opening * 5000 + b"0" + closing * 5000)


def test_every_module_of_the_contract_is_covered() -> None:
    folder = importlib.import_module("fedpalm.wire.v1").__path__[0]
    from pathlib import Path

    found = {path.stem for path in Path(folder).glob("*_pb2.py")} - {"limits_pb2"}
    assert found == {module.__name__.rpartition(".")[2] for module in MODULES}
