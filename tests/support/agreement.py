"""Statements that tests sign in the name of a coordinator and of sites, and an identity that stays."""

from __future__ import annotations

from dataclasses import dataclass

from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanAnswer
from fedpalm.rounds.manifest import Countersignature, RoundManifest


@dataclass(frozen=True)
class Unchanging:
    """What a LiveIdentity is while nobody touches its files."""

    current: TlsIdentity


def answer(
    identity: TlsIdentity, run_id: str, plan: Plan, kind: str = "approve", number: int = 1
) -> SignedStatement:
    """A site's signed answer to a plan."""
    return PlanAnswer.model_validate(
        {
            "federation": plan.federation,
            "run": run_id,
            "plan_hash": plan.hash.hex(),
            "site": identity.identity.name,
            "answer": kind,
            "by": "person",
            "number": number,
            "answered_ms": number,
        }
    ).sign(identity)


def countersignature(identity: TlsIdentity, manifest: SignedStatement) -> SignedStatement:
    """A site's signature over a manifest."""
    sealed = RoundManifest.read(manifest)
    return Countersignature(
        federation=sealed.federation,
        run=sealed.run,
        round=sealed.round,
        attempt=sealed.attempt,
        manifest_hash=manifest.hash.hex(),
        site=identity.identity.name,
    ).sign(identity)
