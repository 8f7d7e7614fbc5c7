"""The messages of a masked attempt between their two forms: the core's and the wire's."""

from __future__ import annotations

from ..errors import MaskingMessageError
from ..secagg.messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    OpenedShare,
    Reveal,
    ShareKind,
    Signed,
    SiteKeys,
)
from ..secagg.unmasking import Step
from .v1 import masking_pb2 as wire

_STEPS = {
    Step.KEYS: wire.MASKING_STEP_KEYS,
    Step.BOXES: wire.MASKING_STEP_BOXES,
    Step.INPUTS: wire.MASKING_STEP_INPUTS,
    Step.AGREEMENTS: wire.MASKING_STEP_AGREEMENTS,
    Step.REVEALS: wire.MASKING_STEP_REVEALS,
}


def step_to_wire(step: Step) -> wire.MaskingStep:
    """Raises KeyError for ``Step.DONE``, which nobody is asked for."""
    return _STEPS[step]


def step_from_wire(step: int) -> Step:
    """Raises MaskingMessageError for a step that there is not."""
    for known, number in _STEPS.items():
        if number == step:
            return known
    raise MaskingMessageError(f"masking has no step {step}")


def to_wire(said: Signed) -> wire.MaskingMessage:
    """One message, whatever step it belongs to."""
    if isinstance(said, SiteKeys):
        return wire.MaskingMessage(
            keys=wire.MaskingKeys(
                site=said.site,
                agreement=said.agreement,
                escrow=said.escrow,
                transport=said.transport,
                seed_hash=said.seed_hash,
                signature=said.signature,
            )
        )
    if isinstance(said, Box):
        return wire.MaskingMessage(
            box=wire.MaskingBox(
                sender=said.sender,
                recipient=said.recipient,
                shares=said.shares,
                pair=said.pair,
                mask_share_hash=said.mask_share_hash,
                seed_share_hash=said.seed_share_hash,
                signature=said.signature,
            )
        )
    if isinstance(said, MaskedInput):
        return wire.MaskingMessage(input=input_to_wire(said))
    if isinstance(said, Complaint):
        return wire.MaskingMessage(
            complaint=wire.MaskingComplaint(
                site=said.site, accused=said.accused, signature=said.signature
            )
        )
    if isinstance(said, Agreement):
        return wire.MaskingMessage(
            agreement=wire.MaskingAgreement(
                site=said.site,
                masked_with=said.masked_with,
                survivors=said.survivors,
                inputs_hash=said.inputs_hash,
                signature=said.signature,
            )
        )
    return wire.MaskingMessage(
        reveal=wire.MaskingReveal(
            site=said.site,
            shares=[
                wire.MaskingShare(
                    owner=one.owner,
                    of_mask=one.kind is ShareKind.MASK,
                    share=one.share,
                    salt=one.salt,
                )
                for one in said.shares
            ],
            signature=said.signature,
        )
    )


def input_to_wire(said: MaskedInput) -> wire.MaskedInput:
    return wire.MaskedInput(
        site=said.site,
        masked_with=said.masked_with,
        payload_hash=said.payload_hash,
        signature=said.signature,
    )


def input_from_wire(said: wire.MaskedInput) -> MaskedInput:
    return MaskedInput(
        said.site, tuple(said.masked_with), bytes(said.payload_hash), bytes(said.signature)
    )


def from_wire(message: wire.MaskingMessage) -> Signed:
    """Inverse of :func:`to_wire`; checks form, not truth. Raises MaskingMessageError if it is empty."""
    match message.WhichOneof("said"):
        case "keys":
            keys = message.keys
            return SiteKeys(
                keys.site,
                keys.agreement,
                keys.escrow,
                keys.transport,
                keys.seed_hash,
                keys.signature,
            )
        case "box":
            box = message.box
            return Box(
                box.sender,
                box.recipient,
                box.shares,
                box.pair,
                box.mask_share_hash,
                box.seed_share_hash,
                box.signature,
            )
        case "input":
            return input_from_wire(message.input)
        case "complaint":
            complaint = message.complaint
            return Complaint(complaint.site, tuple(complaint.accused), complaint.signature)
        case "agreement":
            said = message.agreement
            return Agreement(
                said.site,
                tuple(said.masked_with),
                tuple(said.survivors),
                said.inputs_hash,
                said.signature,
            )
        case "reveal":
            given = message.reveal
            shares = tuple(
                OpenedShare(
                    one.owner,
                    ShareKind.MASK if one.of_mask else ShareKind.SEED,
                    one.share,
                    one.salt,
                )
                for one in given.shares
            )
            return Reveal(given.site, shares, given.signature)
        case _:
            raise MaskingMessageError("an empty message of a masked attempt")
