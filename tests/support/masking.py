"""A masked federation in memory: sites that keep what a participant keeps, and a coordinator to script."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest

from fedpalm.canonical import domain_hash
from fedpalm.errors import BoxesRefusedError, FedPalmError
from fedpalm.pki.keys import SigningKey
from fedpalm.secagg import site as core
from fedpalm.secagg.codec import Encoded
from fedpalm.secagg.masks import apply_masks
from fedpalm.secagg.memory import AttemptRef, ContributionMemory
from fedpalm.secagg.messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    Reveal,
    ShareKind,
    SiteKeys,
    signed,
)
from fedpalm.secagg.site import AttemptFacts, SiteAttempt
from fedpalm.secagg.stored import attempt_from_bytes, attempt_to_bytes
from fedpalm.secagg.terms import SecAggTerms
from fedpalm.secagg.unmasking import Collection

LENGTH = 37
E = TypeVar("E", bound=FedPalmError)
Show = Callable[[str, str, Any], Any]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"s{at:02}" for at in range(count))


def signing_key(name: str) -> SigningKey:
    return SigningKey.from_private_bytes(hashlib.sha256(f"test key of {name}".encode()).digest())


def manifest_hash(ref: AttemptRef, model: str, cohort: Iterable[str], version: str = "") -> bytes:
    """What stands for a signed manifest here."""
    return domain_hash("test-manifest", f"{ref} {model} {' '.join(cohort)} {version}".encode())


def payload_hash(vector: Encoded) -> str:
    return hashlib.sha256(vector.astype("<u4").tobytes()).hexdigest()


class Crash(Exception):
    """The site's process ended."""


@dataclass
class Site:
    """Drives the core as a participant does: every step loads, computes, stores, then answers.

    ``disk`` is all that survives a crash. ``crash`` is set to ``"before store"`` or ``"before send"`` to
    end the next step there.
    """

    name: str
    disk: dict[str, Any] = field(default_factory=dict)
    crash: str = ""
    given: list[tuple[AttemptFacts, Reveal]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = signing_key(self.name)
        self.disk.setdefault("memory", json.dumps(ContributionMemory().to_json()))
        self.disk.setdefault("vectors", {})

    @property
    def memory(self) -> ContributionMemory:
        return ContributionMemory.from_json(json.loads(self.disk["memory"]))

    def vector(self, ref: AttemptRef) -> Encoded:
        """Trained and encoded once for a round; stored before anything is done with it."""
        stored = self.disk["vectors"].get((ref.run, ref.round))
        if stored is None:
            fresh = np.random.default_rng().integers(0, 2**32, LENGTH, dtype=np.uint32)
            stored = self.disk["vectors"][ref.run, ref.round] = fresh.tobytes()
        return np.frombuffer(stored, dtype=np.uint32).copy()

    def join(self, facts: AttemptFacts, ref: AttemptRef, model: str) -> SiteKeys:
        if self.disk.get("joined") == (facts.context, ref):
            return self._load(facts, ref).own_keys
        memory = self.memory.begin_attempt(ref, model, payload_hash(self.vector(ref)))
        attempt, keys = core.begin(facts, self.key)
        self._store(attempt, memory, joined=(facts.context, ref))
        return keys

    def share(
        self, facts: AttemptFacts, ref: AttemptRef, keys: Iterable[SiteKeys]
    ) -> tuple[Box, ...]:
        attempt, boxes = core.share(self._load(facts, ref), keys, self.key)
        self._store(attempt, self.memory)
        return boxes

    def mask(
        self, facts: AttemptFacts, ref: AttemptRef, boxes: Iterable[Box]
    ) -> tuple[MaskedInput, Encoded]:
        attempt = self._load(facts, ref)
        vector = self.vector(ref)
        memory = self.memory.note_masked(ref, payload_hash(vector))
        if attempt.masked is None:
            attempt, _ = core.mask(attempt, boxes, vector, self.key)
            self._store(attempt, memory, masked=vector.tobytes())
        assert attempt.masked is not None
        return attempt.masked, np.frombuffer(self.disk["masked"], dtype=np.uint32).copy()

    def complain(self, facts: AttemptFacts, ref: AttemptRef, accused: Iterable[str]) -> Complaint:
        attempt, complaint = core.complain(self._load(facts, ref), accused, self.key)
        self._store(attempt, self.memory)
        return complaint

    def agree(
        self, facts: AttemptFacts, ref: AttemptRef, inputs: Iterable[MaskedInput]
    ) -> Agreement:
        attempt, agreement = core.agree(self._load(facts, ref), inputs, self.key)
        self._store(attempt, self.memory)
        return agreement

    def reveal(
        self, facts: AttemptFacts, ref: AttemptRef, agreements: Iterable[Agreement]
    ) -> Reveal:
        attempt, reveal = core.reveal(self._load(facts, ref), agreements, self.key)
        self._store(attempt, self.memory.note_revealed(ref))
        self.given.append((facts, reveal))
        return reveal

    def _load(self, facts: AttemptFacts, ref: AttemptRef) -> SiteAttempt:
        self.memory.require_live(ref)
        return attempt_from_bytes(self.disk["attempt"], facts)

    def _store(self, attempt: SiteAttempt, memory: ContributionMemory, **more: Any) -> None:
        crash, self.crash = self.crash, ""
        if crash == "before store":
            raise Crash
        stored = {"attempt": attempt_to_bytes(attempt), "memory": json.dumps(memory.to_json())}
        self.disk |= stored | more
        if attempt.reveal is not None:
            # Stored is as good as given: whoever asks again gets it.
            self.given.append((attempt.facts, attempt.reveal))
        if crash == "before send":
            raise Crash


def leave_alone(step: str, site: str, messages: Any) -> Any:
    return messages


class Attempt:
    """A coordinator's part in one attempt: honest unless ``show`` changes what a site is shown.

    ``show(step, site, messages)`` gets what an honest coordinator would send to ``site`` in ``keys``,
    ``boxes``, ``inputs`` or ``agreements``, and returns what is sent.
    """

    def __init__(
        self,
        federation: Federation,
        ref: AttemptRef,
        *,
        cohort: tuple[str, ...] | None = None,
        model: str = "m0",
        show: Show = leave_alone,
        manifests: dict[str, bytes] | None = None,
    ) -> None:
        self.federation, self.ref, self.model, self.show = federation, ref, model, show
        self.cohort = federation.terms.roster if cohort is None else cohort
        honest = manifest_hash(ref, model, self.cohort)
        self.manifests = dict.fromkeys(self.cohort, honest) | (manifests or {})
        self.collection = Collection(self.facts("", honest))
        self.vectors: dict[str, Encoded] = {}

    def facts(self, site: str, manifest: bytes | None = None) -> AttemptFacts:
        keys = {name: signing_key(name).public_key() for name in self.cohort}
        return AttemptFacts(
            self.federation.terms, site, manifest or self.manifests[site], self.cohort, keys
        )

    def keys(self, drop: Iterable[str] = ()) -> Attempt:
        for name in sorted(set(self.cohort) - set(drop)):
            self.collection = self.collection.take_keys(
                self.federation.sites[name].join(self.facts(name), self.ref, self.model)
            )
        self.collection = self.collection.close_step()
        return self

    def boxes(
        self, drop: Iterable[str] = (), junk: Callable[[Box], Box] = lambda box: box
    ) -> Attempt:
        """``junk`` is what its sender makes of a box before it signs it."""
        listed = tuple(self.collection.keys.values())
        for name in sorted(set(self.collection.keys) - set(drop)):
            boxes = self.federation.sites[name].share(
                self.facts(name), self.ref, self.show("keys", name, listed)
            )
            boxes = tuple(self.resigned(junk(box)) for box in boxes)
            self.collection = self.collection.take_boxes(name, boxes)
        self.collection = self.collection.close_step()
        return self

    def resigned(self, box: Box) -> Box:
        return signed(box, self.collection.context, signing_key(box.sender))

    def inputs_or_complaints(self, drop: Iterable[str] = ()) -> Attempt:
        """As :meth:`inputs`, but a site to which boxes do not open says so, once more if asked."""
        for name in sorted(set(self.collection.boxes) - set(drop)):
            site, facts = self.federation.sites[name], self.facts(name)
            try:
                said, self.vectors[name] = site.mask(
                    facts, self.ref, self.collection.boxes_for(name)
                )
                self.collection = self.collection.take_input(said)
            except BoxesRefusedError as error:
                complaint = site.complain(facts, self.ref, error.accused)
                assert site.complain(facts, self.ref, error.accused) == complaint
                self.collection = self.collection.take_complaint(complaint)
        return self

    def close(self) -> Attempt:
        self.collection = self.collection.close_step()
        return self

    def inputs(self, drop: Iterable[str] = ()) -> Attempt:
        for name in sorted(set(self.collection.boxes) - set(drop)):
            shown = self.show("boxes", name, self.collection.boxes_for(name))
            said, vector = self.federation.sites[name].mask(self.facts(name), self.ref, shown)
            assert said.payload_hash.hex() == payload_hash(vector)
            self.collection = self.collection.take_input(said)
            self.vectors[name] = vector
        self.collection = self.collection.close_step()
        return self

    def agreements(self, drop: Iterable[str] = ()) -> Attempt:
        listed = tuple(self.collection.inputs.values())
        for name in sorted(set(self.collection.inputs) - set(drop)):
            said = self.federation.sites[name].agree(
                self.facts(name), self.ref, self.show("inputs", name, listed)
            )
            self.collection = self.collection.take_agreement(said)
        self.collection = self.collection.close_step()
        return self

    def reveals(self, drop: Iterable[str] = ()) -> Attempt:
        listed = tuple(self.collection.agreements.values())
        for name in sorted(set(self.collection.agreements) - set(drop)):
            said = self.federation.sites[name].reveal(
                self.facts(name), self.ref, self.show("agreements", name, listed)
            )
            self.collection = self.collection.take_reveal(said)
        self.collection = self.collection.close_step()
        return self

    def until_masked(self, drop: Iterable[str] = ()) -> Attempt:
        """Three steps; ``drop`` have shared keys and boxes, and then masked nothing."""
        return self.keys().boxes().inputs(drop)

    def sum(self) -> Encoded:
        return opened_sum(self.collection, self.vectors)

    def expected_sum(self) -> Encoded:
        total = np.zeros(LENGTH, dtype=np.uint32)
        for name in self.collection.survivors:
            total += self.federation.sites[name].vector(self.ref)
        return total


def opened_sum(collection: Collection, vectors: dict[str, Encoded]) -> Encoded:
    """What the coordinator computes: the survivors' masked vectors and the corrections."""
    total = np.zeros(LENGTH, dtype=np.uint32)
    for name in collection.survivors:
        total += vectors[name]
    add, subtract = collection.corrections()
    apply_masks(total, add, subtract)
    return total


@dataclass
class Federation:
    """n sites of one roster, of which ``corrupt`` tell the coordinator everything."""

    terms: SecAggTerms
    corrupt: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.sites = {name: Site(name) for name in self.terms.roster}

    @classmethod
    def of(
        cls, count: int, colluders: int = 1, corrupt: Iterable[str] = (), **more: Any
    ) -> Federation:
        return cls(SecAggTerms(names(count), colluders, **more), frozenset(corrupt))

    def attempt(self, round_: int = 1, attempt: int = 1, run: str = "r", **more: Any) -> Attempt:
        return Attempt(self, AttemptRef(run, round_, attempt), **more)

    def reveals(self) -> list[tuple[AttemptFacts, Reveal]]:
        """All that honest sites gave."""
        return [
            given for name, site in self.sites.items() if name not in self.corrupt
            for given in site.given
        ]  # fmt: skip

    def openable(self) -> dict[tuple[bytes, str], set[ShareKind]]:
        """By attempt and honest owner: the secrets that coordinator and corrupt sites can open together.

        A corrupt site is counted as a holder of both shares of everybody.
        """
        holders: Counter[tuple[bytes, str, ShareKind]] = Counter()
        for context, name, share_of in {
            (facts.context, said.site, (one.owner, one.kind))
            for facts, said in self.reveals()
            for one in said.shares
        }:
            assert name not in self.corrupt
            holders[context, *share_of] += 1
        found: dict[tuple[bytes, str], set[ShareKind]] = {}
        for (context, owner, kind), count in holders.items():
            if owner not in self.corrupt and count + len(self.corrupt) >= self.terms.threshold:
                found.setdefault((context, owner), set()).add(kind)
        return found

    def assert_no_sum_can_be_opened(self) -> None:
        """Not one honest site's own mask can be taken off, so no masked vector tells anything."""
        opened = self.openable()
        assert not [where for where, kinds in opened.items() if ShareKind.SEED in kinds]
        assert all(len(kinds) == 1 for kinds in opened.values())

    def assert_nothing_was_revealed(self) -> None:
        assert not self.reveals()
        self.assert_no_sum_can_be_opened()


def refused(kind: type[E], step: Callable[[], object], match: str | None = None) -> E:
    """The step ends in exactly this error."""
    with pytest.raises(kind, match=match) as caught:
        step()
    assert type(caught.value) is kind
    return caught.value
