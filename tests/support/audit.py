"""A federation's statements and one site's log, round by round, as honest or lying as a test wants."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedpalm.audit.bundle import Contents, PlanRecord, write_bundle
from fedpalm.audit.trust import Trust
from fedpalm.exchange.consent import Consent, Coverage, Party, commit, sanction_hash, verify_consent
from fedpalm.exchange.sealing import sealed_bytes
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.bodies import Body, EntryKind
from fedpalm.ledger.chain import Head, append
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.ledger.entries import Entry
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.methods.contribution import codec_for
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.profile import certificate_hash
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan, PlanDraft
from fedpalm.privacy.accounting import Charge, epsilon_pld, mechanism
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer
from fedpalm.rounds.manifest import Countersignature, ManifestHead, RoundManifest
from fedpalm.rounds.receipt import PayloadReceipt
from tests.support.pki import TestAuthority

FEDERATION, SITE = "palms", "site-a"
SITES = ("site-a", "site-b", "site-c", "site-d")
RUN, EXCHANGE = "palms-1", "palms-1-x1"
COORDINATOR = Identity(FEDERATION, Role.COORDINATOR, "coordinator").uri
LAYOUT = ({"name": "open_set.weight", "shape": (4, 8)},)
EXPERT = ({"name": "closed_set.expert.weight", "shape": (8,)},)
BEGAN_MS = 1_780_000_000_000


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def make_plan(rounds: int = 3, sites: tuple[str, ...] = SITES, **privacy: Any) -> Plan:
    """A plan with DP by person, unless ``unit`` says otherwise; ``masking``, ``experts`` and
    ``without_refusers`` are its own."""
    masking, experts = privacy.pop("masking", "none"), privacy.pop("experts", False)
    without_refusers = privacy.pop("without_refusers", False)
    draft = PlanDraft.model_validate(
        {
            "name": "palms",
            "method": "fedpalm" if experts else "fedavg",
            "rounds": rounds,
            "quorum": 3 if masking == "secagg" else 2,
            "masking": masking,
            "exchange_without_refusers": without_refusers,
            "training": {
                "privacy": {
                    "unit": "subject",
                    "noise_multiplier": 1.1,
                    "sampling_rate": 0.05,
                    "steps": 10,
                    "population": 200,
                    **privacy,
                }
            },
        }
    )
    return Plan(
        federation=FEDERATION,
        draft=draft,
        roster=sites,
        layout=LAYOUT,
        expert_layout=EXPERT if experts else (),
        initial_model=digest("model", 0),
    )


@dataclass
class World:
    """The parties, and what ``site-a`` has logged and been given so far.

    ``delta`` and ``budget`` go into charges; ``entries`` is the log, ``clock_ms`` goes on with it.
    """

    plan: Plan = field(default_factory=make_plan)
    authority: TestAuthority = field(default_factory=lambda: TestAuthority(FEDERATION))
    run: str = RUN
    delta: float = 1e-3
    budget: float = 50.0

    def __post_init__(self) -> None:
        self.coordinator = self.authority.enrol(Role.COORDINATOR, "coordinator")
        self.sites = {
            name: self.authority.enrol(Role.PARTICIPANT, name) for name in self.plan.roster
        }
        self.entries: list[Entry] = []
        self._tree = MerkleTree()
        self.contents = {name: [] for name in Contents.__dataclass_fields__}
        self.charges: list[Charge] = []
        self.manifests = ManifestHead.start(self.plan, self.run)
        self.clock_ms = BEGAN_MS
        self.newest: SignedStatement | None = None

    @property
    def own(self) -> TlsIdentity:
        return self.sites[SITE]

    @property
    def own_key_id(self) -> str:
        return key_id(self.own.signing_key.public_key()).hex()

    @property
    def trust(self) -> Trust:
        """What an auditor pinned who asked everybody."""
        keys = {
            name: key_id(one.signing_key.public_key()).hex()
            for name, one in {**self.sites, "coordinator": self.coordinator}.items()
        }
        return Trust(self.own.anchors, keys)

    # --- the log ----------------------------------------------------------------------------------

    def log(self, kind: EntryKind, body: Body) -> Entry:
        head = (
            Head.after(self.entries[-1])
            if self.entries
            else Head.genesis(self.own.signing_key.public_key())
        )
        self.clock_ms += 1000
        self.entries.append(
            append(head, kind, body, time_ms=self.clock_ms, key=self.own.signing_key)
        )
        self._tree.append(self.entries[-1].to_bytes())
        return self.entries[-1]

    def send(self, payload: str, size: int, place: Mapping[str, Any], **more: Any) -> Entry:
        body = {
            "payload": payload,
            "payload_hash": digest(payload, len(self.entries)),
            "bytes": size,
            "recipient": COORDINATOR,
            **place,
            **more,
        }
        return self.log(EntryKind.EGRESS, body)

    def receipt(self, sent: Entry) -> None:
        body = sent.body
        names = ("run", "round", "attempt", "exchange")
        said = PayloadReceipt(
            federation=FEDERATION,
            site=SITE,
            payload=body["payload"],
            place="/".join(str(body[name]) for name in names if name in body),
            payload_hash=body["payload_hash"],
            payload_bytes=body["bytes"],
            received_ms=self.clock_ms,
        ).sign(self.coordinator)
        self.contents["receipts"].append(said)
        self.log(
            EntryKind.RECEIPT,
            {
                "egress": sent.seq,
                "payload_hash": body["payload_hash"],
                "receipt_hash": said.hash.hex(),
                "sender": COORDINATOR,
            },
        )

    def join(self) -> None:
        """Enrolled, asked, and approved by a person."""
        leaf = self.own.leaf
        self.log(
            EntryKind.CERTIFICATE,
            {
                "serial": f"{leaf.serial_number:x}",
                "certificate_hash": certificate_hash(leaf).hex(),
                "expires_ms": int(leaf.not_valid_after_utc.timestamp() * 1000),
            },
        )
        self.send("hello", 30, {})
        named = {"federation": FEDERATION, "run": self.run, "plan_hash": self.plan.hash.hex()}
        offer = PlanOffer(**named, offered_ms=self.clock_ms).sign(self.coordinator)
        answer = PlanAnswer(
            **named, site=SITE, answer="approve", by="person", number=1, answered_ms=self.clock_ms
        ).sign(self.own)
        self.contents["plans"].append(PlanRecord(self.run, self.plan.to_bytes(), offer, answer))
        self.log(
            EntryKind.PLAN_APPROVED,
            {
                "run": self.run,
                "plan_hash": self.plan.hash.hex(),
                "answer_hash": answer.hash.hex(),
                "number": 1,
                "by": "person",
            },
        )
        self.send("answer_plan", 900, {"run": self.run})

    def reserve(self, number: int, **changes: Any) -> Entry:
        """Charge a round; ``epsilon`` left out is what it adds up to."""
        body = {**mechanism(self.plan), **changes}
        self.charges.append(
            Charge(
                float(body["noise_multiplier"]), float(body["sampling_rate"]), int(body["steps"])
            )
        )
        account = {
            "run": self.run,
            "round": self.plan.rounds_before + number,
            "plan_hash": self.plan.hash.hex(),
            "delta": repr(self.delta),
            "budget": repr(self.budget),
            "accountant": "prv+pld opacus 1.6.0, dp-accounting 0.6.0",
        }
        if "epsilon" not in body:
            body["epsilon"] = repr(epsilon_pld(self.charges, self.delta))
        return self.log(EntryKind.BUDGET_RESERVED, {**account, **body})

    def checkpoint(self, place: Mapping[str, Any], size: int | None = None) -> SignedStatement:
        """Of the log as it is; the newest one is what a witness holds."""
        size = len(self.entries) if size is None else size
        said = Checkpoint(
            federation=FEDERATION,
            site=SITE,
            key_id=self.own_key_id,
            size=size,
            root=self._tree.root(size).hex(),
            **place,
            time_ms=self.clock_ms,
        ).sign(self.own)
        self.contents["checkpoints"].append(said)
        self.log(
            EntryKind.CHECKPOINT,
            {
                **place,
                "size": size,
                "root": Checkpoint.read(said).root,
                "checkpoint_hash": said.hash.hex(),
            },
        )
        self.newest = said
        return said

    def manifest(
        self, place: Mapping[str, Any], given: SignedStatement | None, cohort: Iterable[str]
    ) -> RoundManifest:
        cohort = sorted(cohort)
        checkpoints = {}
        if self.plan.witnessed:
            checkpoints = {name: digest("checkpoint", name, place) for name in cohort}
            if given is not None:
                checkpoints[SITE] = given.hash.hex()
        manifest = RoundManifest(
            federation=FEDERATION,
            **place,
            plan_hash=self.plan.hash.hex(),
            seq=self.manifests.size,
            previous=self.manifests.hash.hex(),
            cohort=cohort,
            signing_keys={
                name: self.sites[name].signing_key.public_key().public_bytes_raw().hex()
                for name in cohort
            },
            model_hash=digest("model", place["round"] - 1),
            checkpoints=checkpoints,
            sealed_ms=self.clock_ms,
        )
        self.manifests = ManifestHead.after(manifest)
        self.contents["manifests"].append(manifest.sign(self.coordinator))
        self.log(
            EntryKind.MANIFEST_ACCEPTED,
            {**place, "seq": manifest.seq, "manifest_hash": manifest.hash.hex()},
        )
        return manifest

    def countersign(self, manifest: RoundManifest, signers: Iterable[str]) -> None:
        for name in sorted(signers):
            said = Countersignature(
                federation=FEDERATION,
                run=manifest.run,
                round=manifest.round,
                attempt=manifest.attempt,
                manifest_hash=manifest.hash.hex(),
                site=name,
            )
            self.contents["countersignatures"].append(said.sign(self.sites[name]))

    def round(
        self,
        number: int,
        attempt: int = 1,
        *,
        charge: bool = True,
        commit: bool = True,
        mechanism: Mapping[str, Any] | None = None,
        cohort: Iterable[str] | None = None,
        signers: Iterable[str] | None = None,
        update: Mapping[str, Any] | None = None,
    ) -> Entry:
        """One round as the agent does it; each argument makes one thing of it wrong.

        Returns:
            The entry of the update that left.
        """
        cohort = self.plan.roster if cohort is None else tuple(cohort)
        place = {"run": self.run, "round": number, "attempt": attempt}
        reserved, given = None, None
        if self.plan.witnessed:
            if charge:
                reserved = self.reserve(number, **(mechanism or {}))
            given = self.checkpoint(place)
            self.send("countersign", 4000, place)
        manifest = self.manifest(place, given, cohort)
        self.countersign(manifest, cohort if signers is None else signers)
        self.send("fetch_countersignatures", 60, place)
        trained = digest("update", self.run, number)
        if reserved is not None and commit:
            self.log(
                EntryKind.BUDGET_COMMITTED,
                {
                    "run": self.run,
                    "round": self.plan.rounds_before + number,
                    "reservation": reserved.seq,
                    "update_hash": trained,
                },
            )
        masked = self.plan.draft.masking != "none"
        if masked:
            self.send("masking_keys", 2600, place)
            self.send("masking_boxes", 9000, place)
        body = {
            "payload_hash": digest("masked", number, attempt) if masked else trained,
            "layout_hash": self.plan.model_layout.hash.hex(),
            **(update or {}),
        }
        size = int(body.pop("bytes", 4 * codec_for(self.plan).length))
        sent = self.send("update", size, place, **body)
        self.receipt(sent)
        return sent

    def terms(self, exchange: str = EXCHANGE, **changes: Any) -> ExchangeTerms:
        """Of exchange 1, valid for a day from now on."""
        values = {
            "number": 1,
            "purpose": "verification",
            "expires_ms": self.clock_ms + 86_400_000,
            **changes,
        }
        return ExchangeTerms.of(self.plan, self.run, exchange, **values)

    def consents(self, terms: ExchangeTerms, **own: Any) -> dict[str, SignedStatement]:
        """A yes of everybody on the roster; ``own`` changes what this site's says."""
        made = {}
        for name in self.plan.roster:
            values = {
                "federation": FEDERATION,
                "terms": terms,
                "site": name,
                "recipient_key": HybridKey.generate().public_bytes.hex(),
                "commitment": commit(terms.plan_hash, name, bytes(32), digest("expert", name)),
                "log_size": len(self.entries),
                "log_root": self._tree.root(len(self.entries)).hex(),
                "privacy": self.coverage(),
                **(own if name == SITE else {}),
            }
            made[name] = Consent(**values).sign(self.sites[name])
        return made

    def coverage(self) -> Coverage:
        """What the log was charged with so far."""
        if not self.charges:
            return Coverage()
        epsilon = repr(epsilon_pld(self.charges, self.delta))
        unit = self.plan.draft.privacy.unit
        return Coverage(unit=unit, epsilon=epsilon, delta=repr(self.delta))

    def exchange(
        self,
        *,
        terms: ExchangeTerms | None = None,
        consents: Mapping[str, SignedStatement] | None = None,
        signers: Iterable[str] | None = None,
        approved: Mapping[str, Any] | None = None,
        released: Mapping[str, Any] | None = None,
        sealed: Mapping[str, Any] | None = None,
        keys: Mapping[str, Any] | None = None,
        steps: Iterable[str] = ("approve", "release", "seal", "keys"),
    ) -> None:
        """One exchange as the agent does it; each argument makes one thing of it wrong.

        Args:
            signers: whose consents the site seals under and to.
            approved, released, sealed, keys: fields of the entries that say something else.
            steps: in which order what is logged.
        """
        terms = terms or self.terms()
        consents = consents or self.consents(terms)
        signers = sorted(self.plan.roster if signers is None else signers)
        place = {"run": terms.run, "exchange": terms.exchange_id}
        common = {**place, "plan_hash": terms.plan_hash}
        others = [name for name in signers if name != SITE]
        sanction = sanction_hash(terms, self.parties(terms, consents, signers)).hex()
        own = Consent.read(consents[SITE])

        def approve() -> None:
            body = {
                **common,
                "number": terms.number,
                "consent_hash": own.hash.hex(),
                "commitment": own.commitment,
                "layout_hash": terms.layout_hash,
            }
            self.log(EntryKind.EXCHANGE_APPROVED, {**body, **(approved or {})})
            self.send("consent", 5000, place)

        def refuse() -> None:
            self.log(EntryKind.EXCHANGE_REFUSED, common)

        def release() -> None:
            for other in others:
                body = {
                    **common,
                    "sanction": sanction,
                    "expert_hash": digest("expert"),
                    "sealed_hash": digest("sealed"),
                    "recipient": Identity(FEDERATION, Role.PARTICIPANT, other).uri,
                }
                self.log(EntryKind.EXPERT_RELEASED, {**body, **(released or {})})

        def seal() -> None:
            layout = self.plan.released_layout
            size = sealed_bytes(layout, terms, sender=SITE, recipients=others)
            body = {"bytes": size, "layout_hash": terms.layout_hash, **(sealed or {})}
            self.receipt(self.send("sealed_expert", int(body.pop("bytes")), place, **body))

        def send_keys() -> None:
            body = {
                "bytes": 1250 * len(others),
                "payload_hash": digest("keys", terms.exchange_id),
                **(keys or {}),
            }
            self.send("expert_keys", int(body.pop("bytes")), place, **body)

        does = {
            "approve": approve,
            "refuse": refuse,
            "release": release,
            "seal": seal,
            "keys": send_keys,
        }
        for step in steps:
            does[step]()
        self.contents["consents"] += [consents[name].to_bytes() for name in signers]

    def parties(
        self, terms: ExchangeTerms, consents: Mapping[str, SignedStatement], names: Iterable[str]
    ) -> dict[str, Party]:
        now = self.own.leaf.not_valid_before_utc.timestamp() + 600
        anchors = self.own.anchors
        return {name: verify_consent(consents[name], terms, anchors, now=now) for name in names}

    def close(self) -> None:
        """The checkpoint that ends a run."""
        self.checkpoint({"run": self.run, "round": 0, "attempt": 0})

    def trained(self, rounds: int | None = None) -> World:
        """Joined, every round done, closed."""
        self.join()
        for number in range(1, (rounds or self.plan.draft.rounds) + 1):
            self.round(number)
        if self.plan.expert_layout:
            self.exchange()
        if self.plan.witnessed:
            self.close()
        return self

    # --- the bundle -------------------------------------------------------------------------------

    def bundle(self, **changes: Any) -> bytes:
        """The bundle that the site exports and seals; ``entries`` and sections may be other ones."""
        entries = changes.pop("entries", self.entries)
        contents = Contents(**{**self.contents, **changes})
        out = io.BytesIO()
        lines = [one if isinstance(one, bytes) else one.to_bytes() for one in entries]
        write_bundle(out, contents, lines, len(lines), self.own, time_ms=self.clock_ms)
        return out.getvalue()

    def resigned(self, entries: Iterable[tuple[EntryKind, Body, int]]) -> list[Entry]:
        """A log of these kinds, bodies and times, signed anew by the site's own key."""
        head, made = Head.genesis(self.own.signing_key.public_key()), []
        for kind, body, time_ms in entries:
            made.append(append(head, kind, body, time_ms=time_ms, key=self.own.signing_key))
            head = Head.after(made[-1])
        return made


def written(folder: Path, content: bytes, name: str = "") -> Path:
    """A file with this content."""
    path = folder / (name or f"{secrets.token_hex(4)}.bundle")
    path.write_bytes(content)
    return path


def again(entry: Entry, **changes: Any) -> tuple[EntryKind, Body, int]:
    """What :meth:`World.resigned` takes, with these fields of the body changed."""
    return entry.kind, {**entry.body, **changes}, entry.time_ms


def unsigned(entry: Entry) -> Entry:
    return replace(entry, signature=bytes(64))
