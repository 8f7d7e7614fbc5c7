"""What sites claim to send, whether it fits, and the wire forms of claims."""

from __future__ import annotations

from dataclasses import dataclass

from fedpalm.errors import (
    HashMismatchError,
    MaskingMessageError,
    NotOnRosterError,
    ProtocolError,
    StaleRoundError,
)
from fedpalm.plan import Plan
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.machine import RoundState
from fedpalm.rounds.run import Run
from fedpalm.secagg.codec import FixedPointCodec
from fedpalm.secagg.messages import MaskedInput
from fedpalm.wire.masking import input_from_wire
from fedpalm.wire.v1 import federation_pb2 as pb


@dataclass(frozen=True)
class UpdateClaim:
    """What a site says of an update that it wants to send. Hashes are hex SHA-256.

    ``masked``: its signed masked input, which names the same payload; None if nothing is masked.
    """

    run_id: str
    ref: RoundRef
    site: str
    plan_hash: str
    model_hash: str
    payload_hash: str
    payload_bytes: int
    masked: MaskedInput | None = None


@dataclass(frozen=True)
class SealedClaim:
    """What a site says of a sealed expert that it wants to send; hex SHA-256 of its bytes."""

    run_id: str
    exchange_id: str
    sender: str
    payload_hash: str
    payload_bytes: int


def check_claim(claim: UpdateClaim, plan: Plan, codec: FixedPointCodec, run: Run) -> None:
    """May this update, of which nothing has been accepted yet, come now?

    Raises:
        StaleRoundError: not the current attempt, one that takes no more updates, or one that the site
            was expelled from.
        NotOnRosterError: the site is not in the cohort.
        HashMismatchError: another plan or global model.
        ProtocolError: not exactly the bytes that the codec makes.
        MaskingMessageError: an update that is not masked where the plan masks, or the other way round.
    """
    current = run.current
    if current is None or claim.ref != current.ref or current.state is not RoundState.COLLECTING:
        raise StaleRoundError(
            f"run {claim.run_id} takes no updates for {claim.ref}",
            safe="nothing was stored",
            next_step="wait for the next instruction",
        )
    if claim.site not in current.cohort:
        raise NotOnRosterError(
            f"site {claim.site} is not in the cohort of {claim.ref}", safe="nothing was stored"
        )
    if claim.site in current.expelled:
        raise StaleRoundError(
            f"site {claim.site} was expelled from {claim.ref}",
            safe="nothing was stored",
            next_step="wait for the next instruction; it takes part from the next round on",
        )
    if claim.plan_hash != plan.hash.hex():
        raise HashMismatchError(f"run {claim.run_id} has another plan")
    if claim.model_hash != current.model_hash:
        raise HashMismatchError(f"{claim.ref} starts from another global model")
    if claim.payload_bytes != codec.payload_bytes:
        raise ProtocolError(
            f"an update of this run has {codec.payload_bytes} bytes, not {claim.payload_bytes}",
            safe="nothing was stored",
        )
    _check_masked(claim, plan)


def _check_masked(claim: UpdateClaim, plan: Plan) -> None:
    wanted, said = plan.draft.masking != "none", claim.masked
    if wanted != (said is not None):
        raise MaskingMessageError(
            f"run {claim.run_id} is {'' if wanted else 'not '}masked, the update of site {claim.site} "
            f"is {'not' if wanted else 'said to be'}",
            safe="nothing was stored",
            next_step="install the same version of fedpalm on both sides",
        )
    if said is not None and (said.site, said.payload_hash.hex()) != (
        claim.site,
        claim.payload_hash,
    ):
        raise MaskingMessageError(
            f"site {claim.site} signed another masked vector than it sends",
            safe="nothing was stored",
        )


def update_claim(header: pb.UpdateHeader, site: str) -> UpdateClaim:
    return UpdateClaim(
        run_id=header.ref.run_id,
        ref=RoundRef(header.ref.round, header.ref.attempt),
        site=site,
        plan_hash=header.plan_hash.hex(),
        model_hash=header.model_hash.hex(),
        payload_hash=header.payload_hash.hex(),
        payload_bytes=header.payload_bytes,
        masked=input_from_wire(header.masked) if header.HasField("masked") else None,
    )


def sealed_claim(header: pb.SealedExpertHeader, site: str) -> SealedClaim:
    return SealedClaim(
        run_id=header.ref.exchange.run_id,
        exchange_id=header.ref.exchange.exchange_id,
        sender=site,
        payload_hash=header.payload_hash.hex(),
        payload_bytes=header.payload_bytes,
    )


def update_place(run_id: str, ref: RoundRef) -> str:
    """Where an update belongs, as its receipt says it."""
    return f"{run_id}/{ref.round}/{ref.attempt}"


def sealed_place(run_id: str, exchange_id: str) -> str:
    """Where a sealed expert belongs, as its receipt says it."""
    return f"{run_id}/{exchange_id}"
