"""What the coordinator tells sites, as wire messages."""

from __future__ import annotations

from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.checkpoint import GivenCheckpoint
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.events import CloseRound, RoundRef
from fedpalm.rounds.run import EndRun
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.masking import step_to_wire
from fedpalm.wire.statements import to_wire
from fedpalm.wire.v1 import federation_pb2 as pb

MAX_REASON_BYTES = 500


def clip(reason: str) -> str:
    """A reason or a warning that fits its field."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


def round_ref(run_id: str, ref: RoundRef) -> pb.RoundRef:
    return pb.RoundRef(run_id=run_id, round=ref.round, attempt=ref.attempt)


def exchange_ref(terms: ExchangeTerms) -> pb.ExchangeRef:
    return pb.ExchangeRef(run_id=terms.run, exchange_id=terms.exchange_id)


def heartbeat() -> pb.Instruction:
    return pb.Instruction(heartbeat=pb.Heartbeat())


def run_offer(run_id: str, plan_hash: bytes) -> pb.Instruction:
    return pb.Instruction(run_offer=pb.RunOffer(run_id=run_id, plan_hash=plan_hash))


def prepare(run_id: str, ref: RoundRef, newest: GivenCheckpoint | None) -> pb.Instruction:
    """``newest`` is the site's newest checkpoint here: a copy of its home from before knows it not."""
    held = to_wire(newest.signed) if newest is not None else None
    return pb.Instruction(prepare=pb.PrepareRound(ref=round_ref(run_id, ref), newest=held))


def train(run_id: str, ref: RoundRef, manifest: SignedStatement) -> pb.Instruction:
    return pb.Instruction(
        train=pb.TrainRound(ref=round_ref(run_id, ref), manifest=to_wire(manifest))
    )


def masking_step(run_id: str, ref: RoundRef, step: Step) -> pb.Instruction:
    return pb.Instruction(
        masking=pb.MaskingStepOpen(ref=round_ref(run_id, ref), step=step_to_wire(step))
    )


def round_closed(run_id: str, effect: CloseRound) -> pb.Instruction:
    return pb.Instruction(
        round_closed=pb.RoundClosed(
            ref=round_ref(run_id, effect.ref),
            committed=effect.committed,
            model_hash=bytes.fromhex(effect.model_hash),
            reason=clip(effect.reason),
        )
    )


def run_ended(run_id: str, effect: EndRun) -> pb.Instruction:
    return pb.Instruction(
        run_ended=pb.RunEnded(
            run_id=run_id,
            completed=effect.completed,
            model_hash=bytes.fromhex(effect.model_hash),
            reason=clip(effect.reason),
        )
    )


def exchange_proposed(terms: ExchangeTerms, signed: SignedStatement) -> pb.Instruction:
    """``signed`` is the coordinator's signed form of ``terms``."""
    return pb.Instruction(
        exchange_proposed=pb.ExchangeProposed(ref=exchange_ref(terms), terms=to_wire(signed))
    )


def seal_experts(terms: ExchangeTerms) -> pb.Instruction:
    return pb.Instruction(seal_experts=pb.SealExperts(ref=exchange_ref(terms)))


def reveal_keys(terms: ExchangeTerms) -> pb.Instruction:
    return pb.Instruction(reveal_keys=pb.RevealKeys(ref=exchange_ref(terms)))


def open_experts(terms: ExchangeTerms) -> pb.Instruction:
    return pb.Instruction(open_experts=pb.OpenExperts(ref=exchange_ref(terms)))


def exchange_closed(terms: ExchangeTerms, completed: bool, reason: str) -> pb.Instruction:
    return pb.Instruction(
        exchange_closed=pb.ExchangeClosed(
            ref=exchange_ref(terms), completed=completed, reason=clip(reason)
        )
    )
