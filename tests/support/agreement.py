"""Statements that tests sign in the name of a coordinator and of sites, and an identity that stays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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


def key_texts(identities: Sequence[TlsIdentity]) -> dict[str, str]:
    """``signing_keys`` of a manifest for a cohort of these sites."""
    return {
        one.identity.name: one.signing_key.public_key().public_bytes_raw().hex()
        for one in identities
    }


def made_up_keys(cohort: Sequence[str]) -> dict[str, str]:
    """``signing_keys`` of the right form for sites that sign nothing."""
    return {site: hashlib.sha256(site.encode()).hexdigest() for site in cohort}


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
