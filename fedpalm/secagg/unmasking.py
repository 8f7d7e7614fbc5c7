"""The coordinator's part in a masked attempt: it relays, waits, and at the end opens one sum.

    keys -> boxes -> inputs -> agreements -> reveals -> done

It takes a message only in its step and only if it is its sender's own, so that whoever sends rubbish counts
as dropped. Who gave nothing in time is left out when a step is closed; with fewer than the quorum left the
attempt ends. A site to which boxes do not open complains of their senders and drops out; nobody can tell
which of the two is to blame, until more sites than there may be colluders complain of the same one. What is
opened is checked against what its owner published: a wrong share costs its giver a place, a wrong secret
the attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from ..errors import (
    BadShareError,
    ContributionReuseError,
    IllegalTransitionError,
    MaskingMessageError,
    ProtocolError,
    TooFewSurvivorsError,
)
from .boxes import open_pair, pair_stream
from .messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    Reveal,
    ShareKind,
    SiteKeys,
    check_box,
    check_keys,
    check_no_key_twice,
    check_signature,
    inputs_hash,
    keys_context,
    share_hash,
)
from .secrets import PairSecrets, own_stream, seed_hash
from .shamir import Interpolation
from .site import AttemptFacts

_SAFE = "sums stay masked; every site keeps its update"


class Step(StrEnum):
    KEYS = "keys"
    BOXES = "boxes"
    INPUTS = "inputs"
    AGREEMENTS = "agreements"
    REVEALS = "reveals"
    DONE = "done"


@dataclass(frozen=True)
class Collection:
    """What has come in an attempt; ``facts.site`` is the coordinator's own name and plays no part."""

    facts: AttemptFacts
    step: Step = Step.KEYS
    keys: Mapping[str, SiteKeys] = field(default_factory=dict)
    boxes: Mapping[str, Mapping[str, Box]] = field(default_factory=dict)
    inputs: Mapping[str, MaskedInput] = field(default_factory=dict)
    complaints: Mapping[str, Complaint] = field(default_factory=dict)
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    reveals: Mapping[str, Reveal] = field(default_factory=dict)

    @cached_property
    def context(self) -> bytes:
        return keys_context(self.facts.context, self.keys.values())

    @property
    def waiting_for(self) -> frozenset[str]:
        """Sites that have not given what this step needs."""
        match self.step:
            case Step.KEYS:
                return frozenset(self.facts.cohort) - frozenset(self.keys)
            case Step.BOXES:
                return frozenset(self.keys) - frozenset(self.boxes)
            case Step.INPUTS:
                return frozenset(self.boxes) - frozenset(self.inputs) - frozenset(self.complaints)
            case Step.AGREEMENTS:
                return frozenset(self.inputs) - frozenset(self.agreements)
            case Step.REVEALS:
                return frozenset(self.agreements) - frozenset(self.reveals)
            case Step.DONE:
                return frozenset()

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum."""
        return tuple(sorted(self.inputs))

    @property
    def caught(self) -> tuple[str, ...]:
        """Sites of which more than n_c others complain, so at least one that tells the truth does.

        Two at least: one word against another proves nothing, even where no liar is expected.
        """
        accused = Counter(name for said in self.complaints.values() for name in said.accused)
        liars = max(1, self.facts.terms.colluders)
        return tuple(sorted(site for site, count in accused.items() if count > liars))

    @property
    def told_complaints(self) -> str:
        """Who says of whom that boxes do not open, in words."""
        return "; ".join(
            f"{site} cannot open what {', '.join(said.accused[:5])} sent"
            for site, said in sorted(self.complaints.items())[:5]
        )

    def boxes_for(self, site: str) -> tuple[Box, ...]:
        """What is relayed to a site, once it is settled whose boxes came: those of all others."""
        if self.step in (Step.KEYS, Step.BOXES):
            raise IllegalTransitionError("boxes are relayed when it is settled whose came")
        return tuple(boxes[site] for sender, boxes in sorted(self.boxes.items()) if sender != site)

    # --- taking -----------------------------------------------------------------------------------

    def take_keys(self, said: SiteKeys) -> Collection:
        """Step 1. Raises MaskingMessageError for keys that are not usable or not the site's own."""
        if (known := self.keys.get(said.site)) is not None:
            return self._again(known, said)
        self._expect(Step.KEYS, said.site, self.facts.cohort)
        check_signature(said, said.site, self.facts.context, self.facts.signing_keys)
        check_keys(said)
        check_no_key_twice((*self.keys.values(), said))
        return replace(self, keys={**self.keys, said.site: said})

    def take_boxes(self, sender: str, boxes: Iterable[Box]) -> Collection:
        """Step 2: one box for each other site with keys, all at once."""
        given = tuple(boxes)
        listed = {box.recipient: box for box in given}
        if (known := self.boxes.get(sender)) is not None:
            return self._again(known, listed)
        self._expect(Step.BOXES, sender, self.keys)
        if len(given) != len(listed) or set(listed) != set(self.keys) - {sender}:
            raise MaskingMessageError(f"{sender} gave no box, or too many, to some", safe=_SAFE)
        for box in given:
            if box.sender != sender:
                raise MaskingMessageError(f"{sender} gave a box of {box.sender[:63]}", safe=_SAFE)
            check_box(box, self.facts.terms)
            check_signature(box, sender, self.context, self.facts.signing_keys)
        return replace(self, boxes={**self.boxes, sender: listed})

    def take_input(self, said: MaskedInput) -> Collection:
        """Step 3; the vector itself is durable and has the hash that is signed."""
        self._neither_nor(said.site, self.complaints)
        if (known := self.inputs.get(said.site)) is not None:
            return self._again(known, said)
        self._expect(Step.INPUTS, said.site, self.boxes)
        if said.masked_with != tuple(sorted(self.boxes)):
            raise MaskingMessageError(f"{said.site} masked with other peers", safe=_SAFE)
        check_signature(said, said.site, self.context, self.facts.signing_keys)
        return replace(self, inputs={**self.inputs, said.site: said})

    def take_complaint(self, said: Complaint) -> Collection:
        """Step 3, from a site that masks nothing because of these peers' boxes: it counts as dropped."""
        self._neither_nor(said.site, self.inputs)
        if (known := self.complaints.get(said.site)) is not None:
            return self._again(known, said)
        self._expect(Step.INPUTS, said.site, self.boxes)
        named = set(said.accused)
        if (
            not named
            or list(said.accused) != sorted(named)
            or not named <= set(self.boxes) - {said.site}
        ):
            raise MaskingMessageError(
                f"{said.site} complains of sites that sent it nothing", safe=_SAFE
            )
        check_signature(said, said.site, self.context, self.facts.signing_keys)
        return replace(self, complaints={**self.complaints, said.site: said})

    def take_agreement(self, said: Agreement) -> Collection:
        """Step 4."""
        if (known := self.agreements.get(said.site)) is not None:
            return self._again(known, said)
        self._expect(Step.AGREEMENTS, said.site, self.inputs)
        expected = (
            tuple(sorted(self.boxes)),
            self.survivors,
            inputs_hash(self.context, self.inputs.values()),
        )
        if said.view != expected:
            raise MaskingMessageError(f"{said.site} agreed to something else", safe=_SAFE)
        check_signature(said, said.site, self.context, self.facts.signing_keys)
        return replace(self, agreements={**self.agreements, said.site: said})

    def take_reveal(self, said: Reveal) -> Collection:
        """Step 5: every share must be the one whose hash its owner published."""
        if (known := self.reveals.get(said.site)) is not None:
            return self._again(known, said)
        self._expect(Step.REVEALS, said.site, self.agreements)
        check_signature(said, said.site, self.context, self.facts.signing_keys)
        if [one.owner for one in said.shares] != sorted(self.boxes):
            raise BadShareError(
                f"{said.site} did not give one share of each site", safe=_SAFE, caught=said.site
            )
        for one in said.shares:
            kind = ShareKind.SEED if one.owner in self.inputs else ShareKind.MASK
            if one.kind is not kind:
                raise BadShareError(
                    f"{said.site} gave the other share of {one.owner}",
                    safe=_SAFE,
                    caught=said.site,
                )
            if one.owner == said.site:
                continue  # Its own share was published nowhere; the secret is checked.
            box = self.boxes[one.owner][said.site]
            promised = box.seed_share_hash if kind is ShareKind.SEED else box.mask_share_hash
            found = share_hash(self.context, one.owner, said.site, kind, one.share, one.salt)
            if found != promised:
                raise BadShareError(
                    f"{said.site} gave another share of {one.owner} than it was sent",
                    safe=_SAFE,
                    caught=said.site,
                )
        return replace(self, reveals={**self.reveals, said.site: said})

    # --- closing ----------------------------------------------------------------------------------

    def close_step(self) -> Collection:
        """Go on without those who are waited for.

        Raises:
            TooFewSurvivorsError: fewer than the quorum (of agreements and reveals: the threshold) are
                left, or fewer of a group than its sum needs.
            IllegalTransitionError: the attempt is done.
        """
        order = list(Step)
        if self.step is Step.DONE:
            raise IllegalTransitionError("a masked attempt that is done has no further step")
        came: Mapping[str, object] = getattr(self, self.step.value)
        terms = self.facts.terms
        if self.step in (Step.AGREEMENTS, Step.REVEALS):
            short = len(came) < terms.threshold
            lacking = f"{len(came)} sites, {terms.threshold} are needed" if short else ""
        else:
            lacking = terms.lacks(came)
        if lacking:
            if self.step is Step.INPUTS and self.complaints:
                lacking += f" ({self.told_complaints})"
            raise TooFewSurvivorsError(
                f"{self.step.value}: {lacking}", safe=_SAFE,
                next_step="wait for the sites (fedpalm-coordinator sites); the next attempt begins",
            )  # fmt: skip
        return replace(self, step=order[order.index(self.step) + 1])

    def corrections(self) -> tuple[list[bytes], list[bytes]]:
        """Stream keys to add to, and to subtract from, the sum of the survivors' vectors.

        Raises:
            BadShareError: the shares give a secret that its owner did not publish, or a survivor gave
                one that dropped a pair secret that does not open.
        """
        if self.step is not Step.DONE:
            raise IllegalTransitionError(f"nothing is opened in step {self.step.value}")
        terms = self.facts.terms
        given = {
            site: {one.owner: one.share for one in said.shares}
            for site, said in self.reveals.items()
        }
        openings: dict[tuple[str, ...], Interpolation] = {}
        add: list[bytes] = []
        subtract: list[bytes] = []
        for owner in sorted(self.boxes):
            # An owner's share of its own secret is the one that nobody can check: it comes last.
            others = sorted(given, key=lambda site: (site == owner, site))[: terms.threshold]
            givers = tuple(sorted(others))
            opening = openings.get(givers)
            if opening is None:
                opening = Interpolation([terms.position(site) for site in givers])
                openings[givers] = opening
            shares = {terms.position(site): given[site][owner] for site in givers}
            try:
                secret = opening.open(shares)
            except ProtocolError as error:
                raise BadShareError(f"{owner}: {error.what}", safe=_SAFE, caught=owner) from error
            if owner in self.inputs:
                if seed_hash(secret) != self.keys[owner].seed_hash:
                    raise BadShareError(
                        f"the shares of {owner} give another secret", safe=_SAFE, caught=owner
                    )
                subtract.append(own_stream(secret))
            else:
                self._pairs_of_dropped(owner, PairSecrets(secret), add, subtract)
        return add, subtract

    def _pairs_of_dropped(
        self, owner: str, pairs: PairSecrets, add: list[bytes], subtract: list[bytes]
    ) -> None:
        keys = self.keys[owner]
        if (
            pairs.agreement.public_key().public_bytes_raw() != keys.agreement
            or pairs.escrow.public_bytes != keys.escrow
        ):
            raise BadShareError(
                f"the shares of {owner} give other keys than its own", safe=_SAFE, caught=owner
            )
        for survivor in self.survivors:
            peer = self.keys[survivor]
            agreed = pairs.agree(peer.agreement)
            if self.facts.terms.chooser(survivor, owner) == survivor:
                box = self.boxes[survivor][owner]
                try:
                    secret = open_pair(self.context, box, pairs.escrow)
                except MaskingMessageError as error:
                    raise BadShareError(error.what, safe=_SAFE, caught=survivor) from None
                stream = pair_stream(self.context, peer, keys, agreed, secret, box)
            else:
                box = self.boxes[owner][survivor]
                secret = pairs.pair_secret(survivor)
                stream = pair_stream(self.context, keys, peer, agreed, secret, box)
            # What the survivor did with the stream is undone: the first of the two in name added it.
            (subtract if survivor < owner else add).append(stream)

    # --- inside -----------------------------------------------------------------------------------

    def _expect(self, step: Step, site: str, allowed: Iterable[str]) -> None:
        if self.step is not step:
            raise IllegalTransitionError(
                f"a masked attempt in step {self.step.value} takes no {step.value}", safe=_SAFE
            )
        if site not in allowed:
            raise MaskingMessageError(f"{site[:63]} dropped out of this attempt", safe=_SAFE)

    def _neither_nor(self, site: str, others: Mapping[str, object]) -> None:
        if site in others:
            raise ContributionReuseError(
                "a site gives a masked vector or a complaint, not both", safe=_SAFE
            )

    def _again(self, known: object, said: object) -> Collection:
        if known != said:
            raise ContributionReuseError("another message in place of one that came", safe=_SAFE)
        return self
