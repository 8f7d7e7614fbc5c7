"""A coordinator's manifests and receipts, one at a time and as wrong as a test wants them."""

from __future__ import annotations

from typing import Any

from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import ManifestHead, RoundManifest
from fedpalm.rounds.receipt import PayloadReceipt
from participant.outgoing import OutgoingPayload
from tests.support.agreement import countersignature
from tests.support.participant import FEDERATION, Site, World

RUN = "toy-1"


class Chain:
    """Signs the manifests of a run, each after the one before it."""

    def __init__(self, world: World, plan: Plan, run_id: str = RUN) -> None:
        self.world, self.plan, self.run_id = world, plan, run_id
        self.head = ManifestHead.start(plan, run_id)

    def say(
        self,
        round_number: int = 1,
        attempt: int = 1,
        *,
        by: TlsIdentity | None = None,
        **changes: Any,
    ) -> SignedStatement:
        """A manifest for what comes next, with these fields changed; the chain does not move."""
        values = {
            "federation": FEDERATION,
            "run": self.run_id,
            "plan_hash": self.plan.hash.hex(),
            "seq": self.head.size,
            "previous": self.head.hash.hex(),
            "round": round_number,
            "attempt": attempt,
            "cohort": sorted(self.plan.roster),
            "model_hash": self.head.model_hash or self.plan.initial_model,
            "sealed_ms": 1,
            **changes,
        }
        keys = {"signing_keys": self.world.signing_keys(values["cohort"])}
        said = RoundManifest.model_validate({**keys, **values})
        return said.sign(by or self.world.coordinator)

    def next(self, round_number: int = 1, attempt: int = 1, **changes: Any) -> SignedStatement:
        """The same, and the chain goes on from it."""
        signed = self.say(round_number, attempt, **changes)
        self.head = ManifestHead.after(RoundManifest.read(signed))
        return signed

    def ask(
        self,
        site: Site,
        round_number: int = 1,
        attempt: int = 1,
        signers: tuple[str, ...] = ("west",),
        **changes: Any,
    ) -> RoundManifest:
        """The next manifest, accepted and signed by ``site``, and signed by sites without a home."""
        signed = self.next(round_number, attempt, **changes)
        book = site.gate.manifests
        manifest = book.accept(signed)
        book.countersign(manifest)
        for name in signers:
            assert book.take_countersignature(
                manifest, countersignature(self.world.absent(name), signed)
            )
        return manifest


def receipt_for(world: World, sent: OutgoingPayload, /, **changes: Any) -> SignedStatement:
    """The coordinator's receipt for what ``north`` sent, with these fields changed."""
    values = {
        "federation": FEDERATION,
        "site": "north",
        "payload": sent.kind.value,
        "place": str(sent.place),
        "payload_hash": sent.payload_hash.hex(),
        "payload_bytes": sent.size,
        "received_ms": 1,
    }
    said = PayloadReceipt.model_validate({**values, **changes})
    return said.sign(world.coordinator)
