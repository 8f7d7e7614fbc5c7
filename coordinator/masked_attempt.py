"""One masked attempt in memory, and how it is read back: by replaying what the store says was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpalm.errors import FedPalmError, IntegrityError, MaskingMessageError
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.secagg.messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    Reveal,
    Signed,
    SiteKeys,
)
from fedpalm.secagg.site import AttemptFacts
from fedpalm.secagg.unmasking import Collection, Step

from .conducted import ConductedRun
from .masking_records import RELAYED, MaskingRecords

_SAFE = "nothing was stored; sums stay masked"


@dataclass
class MaskedAttempt:
    """An attempt whose steps go on; ``collection`` is exactly what is stored.

    Args:
        deadline_ms: when the step ends without those who are waited for.
    """

    conducted: ConductedRun
    ref: RoundRef
    collection: Collection
    deadline_ms: int

    @property
    def run_id(self) -> str:
        return self.conducted.run_id

    @property
    def step(self) -> Step:
        return self.collection.step

    @property
    def awaited(self) -> frozenset[str]:
        """Sites that this step waits for; nobody waits for one that was expelled."""
        current = self.conducted.run.current
        expelled = current.expelled if current is not None else frozenset()
        return self.collection.waiting_for - expelled


def taken(collection: Collection, step: Step, site: str, said: Sequence[Signed]) -> Collection:
    """The collection with all that ``site`` says in ``step``; the same object if it had come before.

    Raises:
        MaskingMessageError, BadShareError: it is not the site's own message of this step and attempt.
        IllegalTransitionError: the step is not open.
        ContributionReuseError: the site said something else before.
    """
    if step is Step.BOXES:
        boxes = [one for one in said if isinstance(one, Box)]
        if len(boxes) != len(said):
            raise MaskingMessageError(f"{site}: not only boxes came in step boxes", safe=_SAFE)
        return collection.take_boxes(site, boxes)
    if len(said) != 1:
        raise MaskingMessageError(
            f"{site}: {len(said)} messages in step {step.value}, one belongs there", safe=_SAFE
        )
    (one,) = said
    if isinstance(one, Box) or one.site != site:
        raise MaskingMessageError(f"{site} sent a message that is not its own", safe=_SAFE)
    match step, one:
        case Step.KEYS, SiteKeys():
            return collection.take_keys(one)
        case Step.INPUTS, MaskedInput():
            return collection.take_input(one)
        case Step.INPUTS, Complaint():
            return collection.take_complaint(one)
        case Step.AGREEMENTS, Agreement():
            return collection.take_agreement(one)
        case Step.REVEALS, Reveal():
            return collection.take_reveal(one)
    raise MaskingMessageError(
        f"{site}: a message of another kind came in step {step.value}", safe=_SAFE
    )


def relayed(collection: Collection, step: Step, site: str) -> Sequence[Signed]:
    """What ``site`` may have of a step that is closed.

    Raises:
        MaskingMessageError: the step is not closed, the site dropped out in it, or it is the last one,
            which is for the coordinator alone.
    """
    order = list(Step)
    if step not in RELAYED or order.index(collection.step) <= order.index(step):
        raise MaskingMessageError(
            f"step {step.value} is not closed; the attempt is in step {collection.step.value}",
            safe="nothing was given",
            next_step="wait for the next instruction",
        )
    if step is Step.REVEALS:
        raise MaskingMessageError("what sites reveal is given to no site", safe="nothing was given")
    if site not in getattr(collection, step.value):
        raise MaskingMessageError(
            f"site {site} dropped out in step {step.value}",
            safe="its update stays where it is",
            next_step="wait for the next attempt",
        )
    match step:
        case Step.KEYS:
            return list(collection.keys.values())
        case Step.BOXES:
            return collection.boxes_for(site)
        case Step.INPUTS:
            return list(collection.inputs.values())
        case _:
            return list(collection.agreements.values())


def begun(conducted: ConductedRun, ref: RoundRef, records: MaskingRecords) -> Collection:
    """The current attempt as it stands in the store: empty if it has just been sealed.

    Raises:
        IntegrityError: the store's rows are not of such an attempt.
    """
    terms, current, manifest = conducted.masking, conducted.run.current, conducted.manifest
    if terms is None or current is None or manifest is None or conducted.head.ref != ref:
        raise IntegrityError(f"{ref}: no manifest of a masked attempt is stored", safe=_ABORTED)
    try:
        facts = AttemptFacts(
            terms=terms,
            site="",
            manifest_hash=manifest.hash,
            cohort=current.cohort,
            signing_keys=RoundManifest.read(manifest).verifying_keys,
        )
        return _replayed(Collection(facts), conducted.run_id, ref, records)
    except FedPalmError as error:
        raise IntegrityError(
            f"{ref}: what is stored of its masking does not fit together: {error.what}",
            safe=_ABORTED,
            next_step="look at the disk; the next attempt begins",
        ) from error


def _replayed(
    collection: Collection, run_id: str, ref: RoundRef, records: MaskingRecords
) -> Collection:
    stored = records.step(run_id, ref)
    reached = stored[0] if stored is not None else Step.KEYS
    heard = 0
    for step in RELAYED:
        for site, said in records.messages(run_id, ref, step):
            collection = taken(collection, step, site, said)
            heard += 1
        if step is reached:
            break
        collection = collection.close_step()
    if heard != records.sites_heard(run_id, ref):
        raise IntegrityError(f"messages of steps after {reached.value}")
    return collection


_ABORTED = "sums stay masked, and the attempt is aborted; every site keeps its update"
