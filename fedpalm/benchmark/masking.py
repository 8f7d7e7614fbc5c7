"""A whole masked round in one process, over the very cores that sites and coordinator run.

Every site's five steps and the coordinator's are done one after the other, so the wall time is the work
of all machines together; what one site and the coordinator do of it is told apart. Vectors exist one at
a time, as a coordinator sees them: encoded, masked, hashed, added, gone. The sites that drop do so after
they shared their keys, which is the dearest moment: their masks are recomputed from m.

Not in here: network, disk, and the check that a payload arrived whole. A message counts as it travels.
"""

from __future__ import annotations

import hashlib
import secrets
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import IntegrityError
from ..layout import FloatVector
from ..pki.keys import SigningKey, new_signing_key
from ..secagg import site
from ..secagg.codec import BYTES_PER_VALUE, Encoded, FixedPointCodec, add_into
from ..secagg.masks import apply_masks
from ..secagg.messages import Box, Signed
from ..secagg.site import AttemptFacts, SiteAttempt
from ..secagg.terms import SecAggTerms
from ..secagg.unmasking import Collection
from ..wire.masking import to_wire
from ..wire.v1.federation_pb2 import SendMaskingRequest
from .resident import peak_resident_bytes, reset_peak, resident_bytes

STEPS = ("keys", "boxes", "inputs", "agreements", "reveals", "unmask")
COLLUDERS = 1
_CLIP, _MAX_WEIGHT = 0.5, 10_000
_FRAME_BYTES = 5
"""gRPC puts a flag and a length before each message."""

Tick = Callable[[str, int, int], None]
"""Told what is done, how often it was done, and how often it will be."""


@dataclass(frozen=True)
class Load:
    """A round: n sites, P parameters, the part of the sites that drop, and a seed of the updates."""

    sites: int
    parameters: int
    drop: float
    seed: int

    @property
    def dropped(self) -> int:
        return int(self.sites * self.drop)

    @property
    def terms(self) -> SecAggTerms:
        """Raises ConfigError for a roster that cannot be masked."""
        return SecAggTerms(tuple(f"site-{k:03d}" for k in range(self.sites)), COLLUDERS)

    @property
    def codec(self) -> FixedPointCodec:
        return FixedPointCodec(self.sites, self.parameters, _CLIP, _MAX_WEIGHT)

    def update(self, number: int) -> tuple[FloatVector, float]:
        """(P,) float32 delta and the weight of a site; the same whenever it is asked for."""
        random = np.random.default_rng((self.seed, number))
        delta = random.standard_normal(self.parameters, dtype=np.float32)
        delta *= np.float32(0.02)
        return delta, float(random.integers(1, _MAX_WEIGHT))

    def leavers(self, terms: SecAggTerms) -> frozenset[str]:
        """Who drops after sharing keys."""
        random = np.random.default_rng((self.seed, self.sites))
        gone = random.choice(self.sites, self.dropped, replace=False)
        return frozenset(terms.roster[k] for k in gone)


def message_bytes(said: Signed | tuple[Box, ...]) -> int:
    """Bytes of a message as it travels; several travel as several, each with its frame on the line."""
    several = said if isinstance(said, tuple) else (said,)
    requests = (SendMaskingRequest(message=to_wire(one)) for one in several)
    return sum(request.ByteSize() + _FRAME_BYTES for request in requests)


@dataclass
class Clock:
    """Seconds by step: of each site's call, and of the coordinator in all."""

    site: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    coordinator: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def of_site(self, step: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.site[step].append(time.perf_counter() - begun)

    @contextmanager
    def of_coordinator(self, step: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.coordinator[step] += time.perf_counter() - begun

    def total(self, step: str) -> float:
        return sum(self.site.get(step, ())) + self.coordinator.get(step, 0.0)


class Attempt:
    """One masked attempt of a load: the sites' states, what the coordinator holds, and the clock."""

    def __init__(self, load: Load, tick: Tick) -> None:
        self.load, self.tick, self.clock = load, tick, Clock()
        self.terms = load.terms
        self.sent: dict[str, list[int]] = {step: [] for step in STEPS[:-1]}
        self.signers: dict[str, SigningKey] = {
            name: new_signing_key() for name in self.terms.roster
        }
        public = {name: key.public_key() for name, key in self.signers.items()}
        manifest = secrets.token_bytes(32)
        roster = self.terms.roster
        self.facts = {
            name: AttemptFacts(self.terms, name, manifest, roster, public) for name in roster
        }
        self.states: dict[str, SiteAttempt] = {}
        self.collection = Collection(AttemptFacts(self.terms, "", manifest, roster, public))

    def share_keys(self) -> None:
        """Steps 1 and 2: afterwards every site can mask."""
        for name in self._each("keys", self.terms.roster):
            with self.clock.of_site("keys"):
                self.states[name], keys = site.begin(self.facts[name], self.signers[name])
            self.sent["keys"].append(message_bytes(keys))
            with self.clock.of_coordinator("keys"):
                self.collection = self.collection.take_keys(keys)
        self._close("keys")
        everyone = tuple(self.collection.keys.values())
        for name in self._each("boxes", self.terms.roster):
            with self.clock.of_site("boxes"):
                self.states[name], boxes = site.share(
                    self.states[name], everyone, self.signers[name]
                )
            self.sent["boxes"].append(message_bytes(boxes))
            with self.clock.of_coordinator("boxes"):
                self.collection = self.collection.take_boxes(name, boxes)
        self._close("boxes")

    def mask(self, name: str, encoded: Encoded) -> None:
        """Step 3 of one site: ``encoded`` is masked in place, and with the coordinator by name."""
        with self.clock.of_site("inputs"):
            self.states[name], said = site.mask(
                self.states[name], self.collection.boxes_for(name), encoded, self.signers[name]
            )
        self.sent["inputs"].append(message_bytes(said) + encoded.nbytes)
        with self.clock.of_coordinator("inputs"):
            self.collection = self.collection.take_input(said)
            arrived = hashlib.sha256(encoded.data).digest()
        if arrived != said.payload_hash:
            raise IntegrityError(f"{name} signed another vector than it sent")

    def unmask(self, total: Encoded) -> None:
        """Steps 4 and 5 and the opening: ``total``, the sum of the masked vectors, in place."""
        self._close("inputs")
        inputs = tuple(self.collection.inputs.values())
        for name in self._each("agreements", self.collection.survivors):
            with self.clock.of_site("agreements"):
                self.states[name], agreed = site.agree(
                    self.states[name], inputs, self.signers[name]
                )
            self.sent["agreements"].append(message_bytes(agreed))
            with self.clock.of_coordinator("agreements"):
                self.collection = self.collection.take_agreement(agreed)
        self._close("agreements")
        agreements = tuple(self.collection.agreements.values())
        for name in self._each("reveals", self.collection.survivors):
            with self.clock.of_site("reveals"):
                self.states[name], given = site.reveal(
                    self.states[name], agreements, self.signers[name]
                )
            self.sent["reveals"].append(message_bytes(given))
            with self.clock.of_coordinator("reveals"):
                self.collection = self.collection.take_reveal(given)
        self._close("reveals")
        self.tick("unmask", 0, 1)
        with self.clock.of_coordinator("unmask"):
            add, subtract = self.collection.corrections()
            apply_masks(total, add, subtract)
        self.tick("unmask", 1, 1)

    def _close(self, step: str) -> None:
        with self.clock.of_coordinator(step):
            self.collection = self.collection.close_step()

    def _each(self, step: str, names: tuple[str, ...]) -> Iterator[str]:
        for done, name in enumerate(names):
            self.tick(step, done, len(names))
            yield name
        self.tick(step, len(names), len(names))


def measure_round(load: Load, tick: Tick) -> dict[str, Any]:
    """One round of ``load``: seconds, bytes and memory.

    Raises:
        IntegrityError: the sum is not, integer for integer, that of the survivors' vectors.
        ConfigError: the load cannot be masked.
        MaskingError: more sites drop than the round tolerates.
    """
    codec = load.codec
    reset_peak()
    idle, cpu, begun = resident_bytes(), time.process_time(), time.perf_counter()
    attempt = Attempt(load, tick)
    attempt.share_keys()
    leavers = load.leavers(attempt.terms)
    total, expected = np.zeros(codec.length, np.uint32), np.zeros(codec.length, np.uint32)
    for number, name in enumerate(attempt.terms.roster):
        tick("inputs", number, load.sites)
        if name in leavers:
            continue
        delta, weight = load.update(number)
        with attempt.clock.of_site("encode"):
            encoded = codec.encode(delta, weight, {}, secrets.token_bytes(32))
        add_into(expected, encoded)
        attempt.mask(name, encoded)
        with attempt.clock.of_coordinator("inputs"):
            add_into(total, encoded)
    tick("inputs", load.sites, load.sites)
    attempt.unmask(total)
    if not np.array_equal(total, expected):
        raise IntegrityError(
            "the unmasked sum is not the sum of the survivors' integers",
            safe="this was a measurement; no federation was touched",
            next_step="run it again with the same --seed, and report the defect",
        )
    measured = {
        "elapsed_s": time.perf_counter() - begun,
        "elapsed_cpu_s": time.process_time() - cpu,
        "peak_over_idle_bytes": peak_resident_bytes() - idle,
    }
    return _figures(load, attempt) | measured


def _figures(load: Load, attempt: Attempt) -> dict[str, Any]:
    clock, model = attempt.clock, BYTES_PER_VALUE * load.parameters
    encode, mask = clock.site["encode"], clock.site["inputs"]
    steps = {
        step: {
            "all_s": clock.total(step) + (sum(encode) if step == "inputs" else 0.0),
            "site_median_s": statistics.median(clock.site[step]) if step in clock.site else None,
            "coordinator_s": clock.coordinator[step],
            "site_sends_bytes": _spread(attempt.sent[step]) if step in attempt.sent else None,
        }
        for step in STEPS
    }
    others = [step for step in attempt.sent if step != "inputs"]
    upload = max(attempt.sent["inputs"])
    return {
        "sites": load.sites,
        "parameters": load.parameters,
        "drop": load.drop,
        "dropped": load.dropped,
        "threshold": attempt.terms.threshold,
        "colluders": COLLUDERS,
        "seed": load.seed,
        "exact": True,
        "round_s": sum(step["all_s"] for step in steps.values()),
        "steps": steps,
        "client_mask_s": statistics.median(mask),
        "client_encode_and_mask_s": statistics.median(
            [one + other for one, other in zip(encode, mask, strict=True)]
        ),
        "client_all_steps_s": sum(statistics.median(one) for one in clock.site.values()),
        "coordinator_s": sum(clock.coordinator.values()),
        "input_over_4d": upload / model,
        "all_steps_over_4d": {
            "mean": (upload + sum(statistics.mean(attempt.sent[one]) for one in others)) / model,
            "max": (upload + sum(max(attempt.sent[one]) for one in others)) / model,
        },
    }


def _spread(sizes: list[int]) -> Mapping[str, float]:
    return {"mean": statistics.mean(sizes), "max": max(sizes)}
