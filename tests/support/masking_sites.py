"""Sites that speak the masked steps with a real coordinator: honest ones, for tests to bend.

What a participant stores, these keep in memory; what they say crosses the wire's form and its limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedpalm.errors import BoxesRefusedError
from fedpalm.methods.contribution import masking_terms
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.keys import VerifyingKey
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.secagg import site as core
from fedpalm.secagg.messages import Agreement, Box, MaskedInput, Reveal, Signed, SiteKeys
from fedpalm.secagg.site import AttemptFacts
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.limits import parse_message
from fedpalm.wire.masking import from_wire, to_wire
from fedpalm.wire.v1 import masking_pb2 as wire

BEFORE = {
    Step.BOXES: Step.KEYS,
    Step.INPUTS: Step.BOXES,
    Step.AGREEMENTS: Step.INPUTS,
    Step.REVEALS: Step.AGREEMENTS,
}
"""Whose messages a step needs."""


def over_the_wire(said: Sequence[Signed]) -> tuple[Signed, ...]:
    """What the other side has of these messages."""
    sent = [to_wire(one).SerializeToString() for one in said]
    return tuple(from_wire(parse_message(wire.MaskingMessage.FromString, one)) for one in sent)


class MaskedSite:
    """An honest site in one attempt.

    Args:
        keys: the signing key of every site of the cohort.
        payload: the encoded update, (P + k,) little-endian uint32.
    """

    def __init__(
        self,
        plan: Plan,
        identity: TlsIdentity,
        manifest: SignedStatement,
        keys: Mapping[str, VerifyingKey],
        payload: bytes,
    ) -> None:
        terms = masking_terms(plan)
        assert terms is not None
        sealed = RoundManifest.read(manifest)
        self.name, self.key, self.payload = identity.identity.name, identity.signing_key, payload
        self.facts = AttemptFacts(
            terms,
            self.name,
            manifest.hash,
            tuple(sealed.cohort),
            {s: keys[s] for s in sealed.cohort},
        )
        self.state, self.own_keys = core.begin(self.facts, self.key)
        self.masked = b""
        """The masked vector, once there is one."""

    def say(self, step: Step, came: Sequence[Signed] = ()) -> tuple[Signed, ...]:
        """This site's messages of a step, given what the step before it gave; the same again."""
        match step:
            case Step.KEYS:
                return (self.own_keys,)
            case Step.BOXES:
                keys = [one for one in came if isinstance(one, SiteKeys)]
                self.state, boxes = core.share(self.state, keys, self.key)
                return boxes
            case Step.INPUTS:
                return (self.mask_or_complain([one for one in came if isinstance(one, Box)]),)
            case Step.AGREEMENTS:
                inputs = [one for one in came if isinstance(one, MaskedInput)]
                self.state, agreement = core.agree(self.state, inputs, self.key)
                return (agreement,)
            case _:
                agreements = [one for one in came if isinstance(one, Agreement)]
                self.state, reveal = core.reveal(self.state, agreements, self.key)
                return (reveal,)

    def mask_or_complain(self, boxes: Sequence[Box]) -> Signed:
        """A masked input, or a complaint of those whose boxes do not open; the same again."""
        if self.state.complaint is not None:
            return self.state.complaint
        try:
            return self.mask(boxes)
        except BoxesRefusedError as error:
            self.state, complaint = core.complain(self.state, error.accused, self.key)
            return complaint

    def mask(self, boxes: Sequence[Box]) -> MaskedInput:
        """Mask a copy of the update, once."""
        if self.state.masked is None:
            vector = np.frombuffer(self.payload, dtype="<u4").astype(np.uint32)
            self.state, _ = core.mask(self.state, boxes, vector, self.key)
            self.masked = vector.astype("<u4").tobytes()
        assert self.state.masked is not None
        return self.state.masked

    @property
    def revealed(self) -> Reveal | None:
        """What this site has given away of others' secrets."""
        return self.state.reveal
