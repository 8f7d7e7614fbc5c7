"""How long an audit takes: a bundle of many entries, made up and signed as a long-lived site's would be.

Every round has a charge, a checkpoint, a manifest with everybody's countersignature, a commit, an update
with its receipt, and control messages that fill the log up.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..audit.bundle import Contents, PlanRecord, write_bundle
from ..audit.charges import EXACT_FIGURES
from ..audit.findings import Exit
from ..audit.trust import Trust
from ..audit.verify import verify_bundle
from ..errors import IntegrityError
from ..ledger.bodies import Body, EntryKind
from ..ledger.chain import Head, append
from ..ledger.checkpoint import Checkpoint
from ..ledger.merkle import MerkleTree
from ..methods.contribution import codec_for
from ..pki.authority import create_authority
from ..pki.bundle import TlsIdentity, pem_of
from ..pki.identity import COORDINATOR_NAME, Identity, Role
from ..pki.keys import new_signing_key, new_tls_key, private_key_pem
from ..pki.request import create_request
from ..pki.signing import key_id
from ..pki.statement import SignedStatement
from ..plan import Plan, PlanDraft, TensorEntry
from ..privacy.accounting import Charge, coalesce, epsilon_pld, mechanism
from ..rounds.agreement import PlanOffer
from ..rounds.manifest import Countersignature, ManifestHead, RoundManifest
from ..rounds.receipt import PayloadReceipt

FEDERATION, RUN, SITE = "bench", "bench-1", "site-1"
DELTA, BUDGET = 1e-5, 1000.0
BEGAN_MS = 1_780_000_000_000


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class MadeUpSite:
    """The log and the statements of a site that trained for ``rounds`` rounds with ``sites`` sites."""

    rounds: int
    sites: int
    log: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [f"site-{at}" for at in range(1, self.sites + 1)]
        authority, _ = create_authority(FEDERATION, time.time())
        self.anchors = authority.anchors

        def enrol(role: Role, name: str) -> TlsIdentity:
            identity, tls_key, key = (
                Identity(FEDERATION, role, name),
                new_tls_key(),
                new_signing_key(),
            )
            leaf = authority.issue(
                create_request(identity, tls_key, key),
                identity,
                now=time.time(),
                lifetime=timedelta(days=30),
                ip_addresses=[ip_address("127.0.0.1")] if role is Role.COORDINATOR else [],
            )
            chain = authority.chain(leaf)
            return TlsIdentity(
                identity, pem_of(chain), private_key_pem(tls_key), pem_of(self.anchors), key, chain,
                self.anchors,
            )  # fmt: skip

        self._parties = {name: enrol(Role.PARTICIPANT, name) for name in names}
        self._coordinator = enrol(Role.COORDINATOR, COORDINATOR_NAME)
        self.own = self._parties[SITE]
        self._head = Head.genesis(self.own.signing_key.public_key())
        self._tree = MerkleTree()
        self.plan = Plan(
            federation=FEDERATION,
            draft=PlanDraft.model_validate(
                {
                    "name": "bench",
                    "method": "fedavg",
                    "rounds": self.rounds,
                    "training": {
                        "privacy": {
                            "unit": "subject",
                            "noise_multiplier": 2.0,
                            "sampling_rate": 0.01,
                        }
                    },
                }
            ),
            roster=tuple(sorted(names)),
            layout=(TensorEntry(name="open_set.weight", shape=(1000, 1000)),),
            initial_model=_digest("model", 0),
        )
        self._statements: dict[str, list[SignedStatement]] = {
            name: [] for name in ("manifests", "countersignatures", "checkpoints", "receipts")
        }
        self._manifests = ManifestHead.start(self.plan, RUN)
        self._epsilon = self._figures()

    def make(self, entries: int, progress: Callable[[str], None]) -> None:
        """The log, exactly so long."""
        self._log(
            EntryKind.PLAN_APPROVED,
            {
                "run": RUN,
                "plan_hash": self.plan.hash.hex(),
                "answer_hash": _digest("answer"),
                "number": 1,
                "by": "person",
            },
        )
        for number in range(1, self.rounds + 1):
            self._round(number, entries * number // self.rounds)
            if number % max(1, self.rounds // 10) == 0:
                progress(f"made {len(self.log)} of {entries} entries")

    def write(self, path: Path) -> None:
        offer = PlanOffer(
            federation=FEDERATION, run=RUN, plan_hash=self.plan.hash.hex(), offered_ms=BEGAN_MS
        ).sign(self._coordinator)
        contents = Contents(
            plans=[PlanRecord(RUN, self.plan.to_bytes(), offer, None)],
            manifests=self._statements["manifests"],
            countersignatures=self._statements["countersignatures"],
            checkpoints=self._statements["checkpoints"],
            receipts=self._statements["receipts"],
        )
        with path.open("wb") as file:
            write_bundle(file, contents, self.log, len(self.log), self.own, time_ms=BEGAN_MS)

    @property
    def statements(self) -> int:
        return sum(map(len, self._statements.values()))

    def _figures(self) -> Iterator[float]:
        """Epsilon after each round: where an audit computes it, and in between that of the next such."""
        charge = self._charge
        last = EXACT_FIGURES - 1
        points = sorted({1 + round((self.rounds - 1) * at / last) for at in range(EXACT_FIGURES)})
        at = 0
        for number in range(1, self.rounds + 1):
            at += number > points[at]
            upto = Charge(charge.noise_multiplier, charge.sampling_rate, charge.steps * points[at])
            yield epsilon_pld(coalesce([upto]), DELTA)

    @property
    def _charge(self) -> Charge:
        return Charge.of(self.plan.draft.privacy)

    def _log(self, kind: EntryKind, body: Body) -> int:
        entry = append(
            self._head,
            kind,
            body,
            time_ms=BEGAN_MS + 1000 * len(self.log),
            key=self.own.signing_key,
        )
        self._head = Head.after(entry)
        self.log.append(entry.to_bytes())
        self._tree.append(self.log[-1])
        return entry.seq

    def _round(self, number: int, end: int) -> None:
        place: dict[str, str | int] = {"run": RUN, "round": number, "attempt": 1}
        plan_hash = self.plan.hash.hex()
        reserved = self._log(
            EntryKind.BUDGET_RESERVED,
            {
                "run": RUN,
                "round": number,
                "plan_hash": plan_hash,
                **mechanism(self.plan),
                "delta": repr(DELTA),
                "epsilon": repr(next(self._epsilon)),
                "budget": repr(BUDGET),
                "accountant": "pld",
            },
        )
        given = self._checkpoint(place)
        cohort = list(self.plan.roster)
        manifest = RoundManifest.model_validate(
            {
                **place,
                "federation": FEDERATION,
                "plan_hash": plan_hash,
                "seq": self._manifests.size,
                "previous": self._manifests.hash.hex(),
                "cohort": cohort,
                "signing_keys": {
                    name: one.signing_key.public_key().public_bytes_raw().hex()
                    for name, one in self._parties.items()
                },
                "model_hash": _digest("model", number - 1),
                "checkpoints": {**dict.fromkeys(cohort, _digest(number)), SITE: given.hash.hex()},
                "sealed_ms": BEGAN_MS,
            }
        )
        self._manifests = ManifestHead.after(manifest)
        self._statements["manifests"].append(manifest.sign(self._coordinator))
        named = {"manifest_hash": manifest.hash.hex()}
        self._log(EntryKind.MANIFEST_ACCEPTED, {**place, "seq": manifest.seq, **named})
        for name in cohort:
            said = Countersignature.model_validate(
                {"federation": FEDERATION, **place, **named, "site": name}
            )
            self._statements["countersignatures"].append(said.sign(self._parties[name]))
        trained = _digest("update", number)
        self._log(
            EntryKind.BUDGET_COMMITTED,
            {"run": RUN, "round": number, "reservation": reserved, "update_hash": trained},
        )
        size = 4 * codec_for(self.plan).length
        layout = {"layout_hash": self.plan.model_layout.hash.hex()}
        sent = self._send("update", trained, size, {**place, **layout})
        receipt = PayloadReceipt(
            federation=FEDERATION,
            site=SITE,
            payload="update",
            place=f"{RUN}/{number}/1",
            recipient="",
            payload_hash=trained,
            payload_bytes=size,
            received_ms=BEGAN_MS,
        ).sign(self._coordinator)
        self._statements["receipts"].append(receipt)
        self._log(
            EntryKind.RECEIPT,
            {
                "egress": sent,
                "payload_hash": trained,
                "receipt_hash": receipt.hash.hex(),
                "sender": self._coordinator.identity.uri,
            },
        )
        while len(self.log) < end:
            self._send("fetch_countersignatures", _digest(len(self.log)), 60, place)

    def _checkpoint(self, place: Mapping[str, str | int]) -> Checkpoint:
        said = Checkpoint.model_validate(
            {
                **place,
                "federation": FEDERATION,
                "site": SITE,
                "key_id": key_id(self.own.signing_key.public_key()).hex(),
                "size": len(self.log),
                "root": self._tree.root().hex(),
                "time_ms": BEGAN_MS,
            }
        )
        self._statements["checkpoints"].append(said.sign(self.own))
        self._log(
            EntryKind.CHECKPOINT,
            {
                **place,
                "size": said.size,
                "root": said.root,
                "checkpoint_hash": said.hash.hex(),
            },
        )
        return said

    def _send(self, payload: str, digest: str, size: int, place: Body) -> int:
        body = {"payload": payload, "payload_hash": digest, "bytes": size, **place}
        return self._log(EntryKind.EGRESS, {**body, "recipient": self._coordinator.identity.uri})


def measure_audit(
    folder: Path, entries: int, rounds: int, sites: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds to verify one made-up bundle, from a cold cache of accounting figures, on one core.

    Raises:
        IntegrityError: it did not verify: then the figure means nothing.
    """
    site = MadeUpSite(rounds, sites)
    site.make(entries, progress)
    path = folder / "bench.bundle"
    site.write(path)
    from ..privacy import accounting

    accounting._pld.cache_clear()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    progress("verifying")
    began, cpu = time.perf_counter(), time.process_time()
    audit = verify_bundle(path, Trust(site.anchors))
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    if audit.exit is not Exit.OK:
        raise IntegrityError(f"the made-up bundle does not verify: {audit.findings[0]}")
    return {
        "entries": audit.log.size,
        "rounds": rounds,
        "sites": sites,
        "statements": site.statements,
        "bundle_bytes": path.stat().st_size,
        "figures_recomputed": sum(one.recomputed is not None for one in audit.account.spent),
        "verify_s": wall_s,
        "verify_cpu_s": cpu_s,
        "entries_per_s": audit.log.size / wall_s,
        "load_average": os.getloadavg()[0],
    }
