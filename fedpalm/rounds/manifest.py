"""The signed manifest of an attempt, and the chain that a run's manifests form.

A manifest says which sites train from which model under which plan, and points to the one before it. A
site that keeps the chain sees every fork, repeat and rollback that concerns it; sites that exchange
countersignatures of the same manifest see that all of them were told the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from ..canonical import domain_hash
from ..errors import ForkError, HashMismatchError, NotOnRosterError, ProtocolError, StaleRoundError
from ..pki.identity import COORDINATOR_NAME, Identity, Role
from ..pki.keys import VerifyingKey
from ..pki.statement import HexHash, Label, Statement, TimeMs
from ..plan import MAX_SITES, Plan
from .events import RoundRef


class RoundManifest(Statement):
    """What the coordinator asks of a cohort.

    ``seq`` is the position in the run's chain, from 0; ``previous`` the hash of the manifest before it
    (of the first one: :func:`genesis`); ``model_hash`` the hex SHA-256 of the global vector;
    ``signing_keys`` the Ed25519 public key (32 bytes, hex) of each site of the cohort, and of no other;
    ``checkpoints`` the hash of the checkpoint (:mod:`fedpalm.ledger.checkpoint`) that each of them gave for
    this attempt, empty without differential privacy.
    """

    DOMAIN: ClassVar[str] = "round-manifest/v1"

    run: Label
    plan_hash: HexHash
    seq: int = Field(ge=0, lt=2**31)
    previous: HexHash
    round: int = Field(ge=1, lt=2**31)
    attempt: int = Field(ge=1, lt=2**31)
    cohort: list[Label] = Field(max_length=MAX_SITES)
    signing_keys: dict[Label, HexHash]
    model_hash: HexHash
    checkpoints: dict[Label, HexHash] = Field(default_factory=dict)
    sealed_ms: TimeMs

    @field_validator("cohort")
    @classmethod
    def _sorted(cls, cohort: list[str]) -> list[str]:
        if cohort != sorted(set(cohort)):
            raise ValueError("a cohort is sorted and names each site once")
        return cohort

    @model_validator(mode="after")
    def _one_key_each(self) -> Self:
        if sorted(self.signing_keys) != self.cohort:
            raise ValueError("signing_keys names exactly the sites of the cohort")
        return self

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.COORDINATOR, COORDINATOR_NAME)

    @property
    def ref(self) -> RoundRef:
        return RoundRef(self.round, self.attempt)

    @property
    def verifying_keys(self) -> dict[str, VerifyingKey]:
        """``signing_keys``, by site, as keys."""
        return {
            site: VerifyingKey.from_public_bytes(bytes.fromhex(raw))
            for site, raw in self.signing_keys.items()
        }


class Countersignature(Statement):
    """A site of the cohort has accepted this manifest."""

    DOMAIN: ClassVar[str] = "round-countersignature/v1"

    run: Label
    round: int = Field(ge=1, lt=2**31)
    attempt: int = Field(ge=1, lt=2**31)
    manifest_hash: HexHash
    site: Label

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.PARTICIPANT, self.site)


def genesis(plan: Plan, run_id: str) -> bytes:
    """What a run's first manifest points to: 32 bytes of its plan and name."""
    return domain_hash("manifest-genesis/v1", run_id.encode(), plan.hash)


@dataclass(frozen=True)
class ManifestHead:
    """Where a run's chain stands: how many manifests it has, and what the last one said.

    ``hash`` is 32 bytes; ``ref`` and ``model_hash`` are None and empty before the first manifest.
    """

    size: int
    hash: bytes
    ref: RoundRef | None = None
    model_hash: str = ""

    @classmethod
    def start(cls, plan: Plan, run_id: str) -> ManifestHead:
        return cls(0, genesis(plan, run_id))

    @classmethod
    def after(cls, manifest: RoundManifest) -> ManifestHead:
        return cls(manifest.seq + 1, manifest.hash, manifest.ref, manifest.model_hash)


def follow(head: ManifestHead, manifest: RoundManifest, plan: Plan, run_id: str) -> ManifestHead:
    """The head after ``manifest``, if it is what may come next; its signature is checked elsewhere.

    Raises:
        HashMismatchError: another plan or run.
        StaleRoundError: a position that was filled already, a round or attempt that is past.
        ForkError: it does not follow the manifest before it, or a retry starts from another model.
        NotOnRosterError, ProtocolError: a cohort that the plan does not allow, a round it does not have.
    """
    where = f"run {run_id}, manifest {manifest.seq}"
    if (manifest.federation, manifest.run) != (plan.federation, run_id):
        raise HashMismatchError(f"{where}: it is of run {manifest.run}")
    if manifest.plan_hash != plan.hash.hex():
        raise HashMismatchError(f"{where}: it names another plan", safe=_SAFE)
    if manifest.seq < head.size:
        raise StaleRoundError(f"{where}: that position is past", safe=_SAFE)
    if manifest.seq > head.size:
        raise ProtocolError(f"{where}: manifest {head.size} is missing before it", safe=_SAFE)
    if manifest.previous != head.hash.hex():
        raise ForkError(
            f"{where} does not follow the manifest before it",
            safe=_SAFE,
            next_step="compare with the other sites: fedpalm-participant manifests",
        )
    _check_round(head, manifest, plan, where)
    if sorted(manifest.checkpoints) != (manifest.cohort if plan.witnessed else []):
        raise ProtocolError(
            f"{where}: it names checkpoints of {len(manifest.checkpoints)} sites, the cohort has "
            f"{len(manifest.cohort)}; with differential privacy each of it gives one, without none does",
            safe=_SAFE,
        )
    if unknown := sorted(set(manifest.cohort) - set(plan.roster)):
        raise NotOnRosterError(f"{where}: not on the roster: {', '.join(unknown[:5])}", safe=_SAFE)
    if len(manifest.cohort) < plan.quorum:
        raise ProtocolError(
            f"{where}: a cohort of {len(manifest.cohort)}, the plan's minimum is {plan.quorum}",
            safe=_SAFE,
        )
    return ManifestHead.after(manifest)


def _check_round(head: ManifestHead, manifest: RoundManifest, plan: Plan, where: str) -> None:
    if manifest.round > plan.draft.rounds:
        raise ProtocolError(f"{where}: the plan has no round {manifest.round}", safe=_SAFE)
    last = head.ref or RoundRef(0, 0)
    if (manifest.round, manifest.attempt) <= (last.round, last.attempt):
        raise StaleRoundError(f"{where}: {manifest.ref} comes after {last}", safe=_SAFE)
    if manifest.round > last.round + 1:
        raise ProtocolError(f"{where}: {manifest.ref} skips a round after {last}", safe=_SAFE)
    if manifest.round == 1 and manifest.model_hash != plan.initial_model:
        raise ForkError(f"{where}: round 1 starts from another model than the plan's", safe=_SAFE)
    if manifest.round == last.round and manifest.model_hash != head.model_hash:
        raise ForkError(f"{where}: a retry starts from another model", safe=_SAFE)


_SAFE = "nothing was trained or sent for it"
