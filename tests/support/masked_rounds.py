"""A coordinator of masked rounds in memory: it relays with the core's Collection, and lies on demand."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from fedpalm.errors import IllegalTransitionError, StaleRoundError
from fedpalm.methods.contribution import masking_terms
from fedpalm.methods.rules import server_rule
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.secagg.masks import apply_masks
from fedpalm.secagg.messages import Reveal
from fedpalm.secagg.site import AttemptFacts
from fedpalm.secagg.unmasking import Collection, Step
from fedpalm.wire.masking import from_wire, input_from_wire, step_from_wire, step_to_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import SITES, World, make_plan


def masked_plan(rounds: int = 1, **changes: Any) -> Plan:
    plan = make_plan(rounds, **changes)
    draft = plan.draft.model_copy(update={"masking": "secagg", "quorum": 3})
    return plan.model_copy(update={"draft": draft})


class MaskedCoordinator(FakeCoordinator):
    """Every step is closed once all of the roster gave theirs.

    ``sent`` keeps every message and masked vector that ever came, by place; ``sums`` what was opened.
    """

    def __init__(self, world: World, plan: Plan | None = None) -> None:
        super().__init__(world, plan or masked_plan(), expected=SITES)
        self.absent_sign = False
        self.collections: dict[tuple[int, int], Collection] = {}
        self.sent: dict[tuple[str, int, int, str], set[bytes]] = {}
        self.vectors: dict[str, bytes] = {}
        self.sums: list[np.ndarray] = []
        self.abort_at: dict[tuple[int, int], Step] = {}

    def collection(self) -> Collection:
        place = (self.round, self.attempt)
        if place not in self.collections:
            signed = self._manifest(place)
            manifest = RoundManifest.read(signed)
            terms = masking_terms(self.plan)
            assert terms is not None
            facts = AttemptFacts(
                terms, "", manifest.hash, tuple(manifest.cohort), manifest.verifying_keys
            )
            self.collections[place] = Collection(facts)
        return self.collections[place]

    async def SendMasking(
        self, site: str, requests: AsyncIterator[wire.SendMaskingRequest]
    ) -> wire.SendMaskingReply:
        header, said = None, []
        async for request in requests:
            if header is None:
                header = request.header
            else:
                said.append(request.message)
        assert header is not None
        assert header.site_id == site
        self._require_current(header.ref)
        step = step_from_wire(header.step)
        data = b"".join(one.SerializeToString(deterministic=True) for one in said)
        self._saw(site, step, data)
        collection, messages = self.collection(), [from_wire(one) for one in said]
        match step:
            case Step.KEYS:
                after = collection.take_keys(messages[0])  # type: ignore[arg-type]
            case Step.BOXES:
                after = collection.take_boxes(site, messages)  # type: ignore[arg-type]
            case Step.INPUTS:
                after = collection.take_complaint(messages[0])  # type: ignore[arg-type]
            case Step.AGREEMENTS:
                after = collection.take_agreement(messages[0])  # type: ignore[arg-type]
            case _:
                assert isinstance(messages[0], Reveal)
                after = collection.take_reveal(messages[0])
        self._keep(after)
        return wire.SendMaskingReply()

    async def FetchMasking(
        self, site: str, request: wire.FetchMaskingRequest
    ) -> AsyncIterator[Any]:
        self._require_current(request.ref)
        collection, step = self.collection(), step_from_wire(request.step)
        assert list(Step).index(collection.step) > list(Step).index(step)
        for said in self.relayed(site, collection, step):
            yield to_wire(said)

    def relayed(self, site: str, collection: Collection, step: Step) -> list[Any]:
        """What a site gets; a test may have it get something else."""
        match step:
            case Step.KEYS:
                return list(collection.keys.values())
            case Step.BOXES:
                return list(collection.boxes_for(site))
            case Step.INPUTS:
                return list(collection.inputs.values())
            case _:
                return list(collection.agreements.values())

    def _advance(self) -> None:
        """Nothing follows from an upload before :meth:`UploadUpdate` has taken its signed input."""

    async def UploadUpdate(self, site: str, requests: Any) -> wire.Receipt:
        headers: list[wire.UpdateHeader] = []

        async def watched() -> AsyncIterator[wire.UploadRequest]:
            async for request in requests:
                if request.HasField("header"):
                    headers.append(request.header)
                yield request

        receipt = await super().UploadUpdate(site, watched())
        said = input_from_wire(headers[0].masked)
        self._saw(site, Step.INPUTS, self.accepted[site])
        assert hashlib.sha256(self.accepted[site]).digest() == said.payload_hash
        self._keep(self.collection().take_input(said))
        return receipt

    def _saw(self, site: str, step: Step, data: bytes) -> None:
        place = (site, self.round, self.attempt, step.value)
        self.sent.setdefault(place, set()).add(data)

    def _require_current(self, ref: wire.RoundRef) -> None:
        if ref != self.ref() or self.ended is not None:
            raise StaleRoundError(f"round {ref.round}.{ref.attempt} is over")

    def _keep(self, after: Collection) -> None:
        place = (self.round, self.attempt)
        self.collections[place] = after
        if self.abort_at.get(place) is after.step and not after.waiting_for:
            self.abort("aborted on purpose")
            return
        if after.waiting_for:
            return
        try:
            after = after.close_step()
        except IllegalTransitionError:
            return
        self.collections[place] = after
        if after.step is Step.DONE:
            self._commit(after)
        else:
            for site in list(self.queues):
                self.tell(site, self.step_open())

    def step_open(self, step: Step | None = None) -> wire.Instruction:
        now = step or self.collection().step
        return wire.Instruction(
            masking=wire.MaskingStepOpen(ref=self.ref(), step=step_to_wire(now))
        )

    def abort(self, reason: str) -> None:
        ref = self.ref()
        self.attempt += 1
        self.accepted, self.partial = {}, {}
        closed = wire.RoundClosed(ref=ref, model_hash=self.model_hash, reason=reason)
        for site in list(self.queues):
            self.tell(site, wire.Instruction(round_closed=closed), self._train())

    def _commit(self, done: Collection) -> None:
        total = np.zeros(self.codec.length, np.uint32)
        for site in done.survivors:
            total += np.frombuffer(self.accepted[site], "<u4")
        apply_masks(total, *done.corrections())
        self.sums.append(total)
        split = self.codec.parameters
        stepped = server_rule("fedpalm").step(
            np.frombuffer(self.models[max(self.models)], "<f4"),
            self.codec.decode_deltas(total[:split]),
            self.codec.decode_stats(total[split:]),
        )
        ref = self.ref()
        self.models[self.round + 1] = stepped.astype("<f4").tobytes()
        self.round, self.attempt = self.round + 1, 1
        self.accepted, self.partial = {}, {}
        closed = wire.RoundClosed(ref=ref, committed=True, model_hash=self.model_hash)
        if self.round > self.plan.draft.rounds:
            self.ended = True
        for site in list(self.queues):
            self.tell(site, wire.Instruction(round_closed=closed))
            self.tell(site, self._run_ended() if self.ended else self._train())

    def _standing(self, site: str) -> list[wire.Instruction]:
        standing = super()._standing(site)
        if self.ended is None and site in self.joined:
            current = self.collections.get((self.round, self.attempt))
            if current is not None and current.step is not Step.KEYS:
                return [*standing[:-1], self.step_open()]
        return standing
