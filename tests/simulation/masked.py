"""The federation in memory under masking: each site says what the coordinator's open step asks for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator.claims import UpdateClaim
from coordinator.facts import CountersignatureRow
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.secagg.messages import Box, MaskedInput, Reveal, Signed, signed
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.masking import step_from_wire
from fedpalm.wire.statements import from_wire
from fedpalm.wire.v1 import federation_pb2 as pb
from tests.simulation.federation import (
    RUN,
    SimulatedFederation,
    encoded_update,
    identity,
    rehearsal_plan,
)
from tests.support.agreement import countersignature
from tests.support.masking_sites import BEFORE, MaskedSite, over_the_wire

Bend = Callable[[MaskedSite, Signed], Signed]
"""What a malicious site makes of a message of its own."""


def junk_for(*recipients: str) -> Bend:
    """Boxes for these sites that do not open."""

    def bend(site: MaskedSite, box: Signed) -> Signed:
        assert isinstance(box, Box)
        if box.recipient not in recipients:
            return box
        return signed(replace(box, shares=bytes(len(box.shares))), site.state.context, site.key)

    return bend


def wrong_own_share(site: MaskedSite, said: Signed) -> Signed:
    """Another share of its own secret, the only one that no hash holds it to."""
    assert isinstance(said, Reveal)
    shares = tuple(
        replace(one, share=one.share[:-1] + bytes([one.share[-1] ^ 1]))
        if one.owner == site.name
        else one
        for one in said.shares
    )
    return signed(replace(said, shares=shares), site.state.context, site.key)


def masked_plan(sites: int = 5, rounds: int = 1, **draft: Any) -> Plan:
    """A reproducible rehearsal under masking: with 5 sites 4 are needed, with 8 of them 5."""
    settings = {"masking": "secagg", "quorum": (sites + 1) // 2 + 1, "max_attempts": 3, **draft}
    return rehearsal_plan(sites, rounds, **settings)


class MaskedFederation(SimulatedFederation):
    """Sites that take part in masked attempts, unless they fall silent.

    ``silent`` is a site's last word: from this step on nothing comes from it. Sites keep what they know
    of an attempt when the coordinator dies. ``bent`` is what malicious sites do to what they say in a step.
    """

    def __init__(self, root: Path, plan: Plan, order: random.Random | None = None) -> None:
        self.silent: dict[str, Step] = {}
        self.bent: dict[tuple[str, Step], Bend] = {}
        self.sites: dict[tuple[RoundRef, str], MaskedSite] = {}
        self.revealed: list[tuple[RoundRef, str]] = []
        super().__init__(root, plan, order)

    @property
    def ref(self) -> RoundRef:
        ref: RoundRef = self.run.current.ref
        return ref

    @property
    def step(self) -> Step:
        """The step that is open."""
        attempt = self.conductor.masking.attempt(RUN)
        assert attempt is not None
        return attempt.step

    def asked(self) -> list[str]:
        """Sites that have an order which they will follow."""
        waiting = [site for site in self.inbox if self._order(site) is not None]
        self.order.shuffle(waiting)
        return waiting

    def _order(self, site: str) -> tuple[Step, pb.Instruction] | None:
        """A site's newest order of the current attempt."""
        for one in reversed(self.inbox[site]):
            kind = one.WhichOneof("kind")
            if kind in ("train", "masking"):
                order = one.train if kind == "train" else one.masking
                step = Step.KEYS if kind == "train" else step_from_wire(one.masking.step)
                late = RoundRef(order.ref.round, order.ref.attempt) != self.ref
                after = list(Step).index(self.silent.get(site, Step.DONE))
                return None if late or list(Step).index(step) >= after else (step, one)
        return None

    def deliver_all(self) -> None:
        for site in self.asked():
            self.follow(site)

    def follow(self, site: str) -> None:
        """Do what the newest order says."""
        order = self._order(site)
        if order is None:
            return
        step, instruction = order
        self.inbox[site].clear()
        if step is Step.KEYS:
            self.begin(site, from_wire(instruction.train.manifest))
        self.say(site, step)

    def begin(self, site: str, manifest: SignedStatement) -> MaskedSite:
        """Countersign, train, and make fresh secrets; the same order again changes nothing."""
        sealed = RoundManifest.read(manifest)
        if (sealed.ref, site) not in self.sites:
            self.countersign(site, manifest)
            keys = {one: identity(one).signing_key.public_key() for one in sealed.cohort}
            shared = self.model(sealed.model_hash)
            payload = encoded_update(self.plan, site, sealed.round, shared)
            self.sites[sealed.ref, site] = MaskedSite(
                self.plan, identity(site), manifest, keys, payload
            )
        return self.sites[sealed.ref, site]

    def begin_all(self) -> None:
        """Every site that is asked to train has done so, and says nothing yet."""
        for site, inbox in self.inbox.items():
            for one in inbox:
                if one.WhichOneof("kind") == "train":
                    self.begin(site, from_wire(one.train.manifest))

    def countersign(self, site: str, manifest: SignedStatement) -> None:
        sealed = RoundManifest.read(manifest)
        signed = countersignature(identity(site), manifest)
        self.records.write(CountersignatureRow(RUN, sealed.ref, site, signed))

    def answer(self, site: str, step: Step) -> tuple[Signed, ...]:
        """What the site says in a step, after it has fetched what it needs; nothing is sent."""
        came: tuple[Signed, ...] = ()
        if step in BEFORE:
            fetched = self.conductor.masking.fetch(RUN, self.ref, site, BEFORE[step])
            came = over_the_wire(fetched)
        said = self.sites[self.ref, site].say(step, came)
        if (site, step) in self.bent:
            bend = self.bent[site, step]
            said = tuple(bend(self.sites[self.ref, site], one) for one in said)
        if step is Step.REVEALS:
            self.revealed.append((self.ref, site))
        return over_the_wire(said)

    def say(self, site: str, step: Step) -> tuple[Signed, ...]:
        """Answer a step, and send it."""
        said = self.answer(site, step)
        self.send(site, step, said)
        return said

    def send(self, site: str, step: Step, said: tuple[Signed, ...]) -> None:
        if isinstance(said[0], MaskedInput):
            self.upload(site, said[0])
        else:
            self.conductor.masking.take(RUN, self.ref, site, step, said)

    def masked_claim(self, site: str, said: MaskedInput) -> UpdateClaim:
        return replace(self.claim(site, self.sites[self.ref, site].masked), masked=said)

    def upload(self, site: str, said: MaskedInput) -> SignedStatement:
        """Check, spool and accept a masked update, as the service does."""
        claim, payload = self.masked_claim(site, said), self.sites[self.ref, site].masked
        assert hashlib.sha256(payload).hexdigest() == claim.payload_hash
        known = self.conductor.updates.check(claim)
        if known is not None:
            return known
        self.spool.update(RUN, claim.ref, site, claim.payload_hash).write_bytes(payload)
        return self.conductor.updates.accept(claim)

    def play_to(self, step: Step) -> None:
        """Let everybody do what is asked until ``step`` is open."""
        while self.step is not step:
            asked = self.asked()
            assert asked or self.timer is not None, f"stuck in {self.step}"
            for site in asked:
                self.follow(site)
            if not asked:
                self.deadline()

    def play_on(self) -> None:
        """As :meth:`play`, and let deadlines pass."""
        while not self.run.over and self.run.state == "running":
            self.play()
            if not self.run.over and not self.sums:
                self.deadline()
