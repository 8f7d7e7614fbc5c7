"""One good document of each kind, to be broken."""

from __future__ import annotations

import time
from functools import cache

from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.exchange.consent import Consent, Coverage, Sanction, commit
from fedpalm.exchange.receipt import ExpertReceipt
from fedpalm.exchange.sealing import expert_hash, seal_expert
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.layout import Layout, TensorSpec
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.chain import Head, append
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer
from fedpalm.rounds.manifest import Countersignature, RoundManifest, genesis
from fedpalm.rounds.receipt import PayloadReceipt
from tests.support.agreement import made_up_keys
from tests.support.pki import TestAuthority

FEDERATION, RUN = "fuzz", "run-1"
ROSTER = ("north", "south")


@cache
def authority() -> TestAuthority:
    return TestAuthority(FEDERATION)


@cache
def identity(role: Role, name: str) -> TlsIdentity:
    return authority().enrol(role, name)


def coordinator() -> TlsIdentity:
    return identity(Role.COORDINATOR, "coordinator")


def north() -> TlsIdentity:
    return identity(Role.PARTICIPANT, "north")


@cache
def plan() -> Plan:
    expert = (TensorSpec("closed_set.expert.kernel", (4, 4)),)
    return Plan(
        federation=FEDERATION,
        draft={"name": "fuzz", "method": "fedpalm", "rounds": 2},
        roster=ROSTER,
        layout=Layout((TensorSpec("open_set.weight", (8, 8)),)).to_json(),
        expert_layout=Layout(expert).to_json(),
        initial_model="0" * 64,
    )


def saying(statement: bytes) -> SignedStatement:
    """A signed statement whose text is anything."""
    return SignedStatement(statement, bytes(64), north().chain)


def offer() -> SignedStatement:
    said = PlanOffer(federation=FEDERATION, run=RUN, plan_hash=plan().hash.hex(), offered_ms=1)
    return said.sign(coordinator())


def answer() -> SignedStatement:
    said = PlanAnswer(
        federation=FEDERATION,
        run=RUN,
        plan_hash=plan().hash.hex(),
        site="north",
        answer="approve",
        by="person",
        number=1,
        answered_ms=1,
    )
    return said.sign(north())


def manifest() -> SignedStatement:
    said = RoundManifest(
        federation=FEDERATION,
        run=RUN,
        plan_hash=plan().hash.hex(),
        seq=0,
        previous=genesis(plan(), RUN).hex(),
        round=1,
        attempt=1,
        cohort=list(ROSTER),
        signing_keys=made_up_keys(ROSTER),
        model_hash=plan().initial_model,
        sealed_ms=1,
    )
    return said.sign(coordinator())


def countersignature() -> SignedStatement:
    said = Countersignature(
        federation=FEDERATION,
        run=RUN,
        round=1,
        attempt=1,
        manifest_hash=manifest().hash.hex(),
        site="north",
    )
    return said.sign(north())


def checkpoint() -> SignedStatement:
    said = Checkpoint(
        federation=FEDERATION,
        site="north",
        key_id=key_id(north().signing_key.public_key()).hex(),
        size=7,
        root="3" * 64,
        run=RUN,
        round=1,
        attempt=1,
        time_ms=1,
    )
    return said.sign(north())


def receipt() -> SignedStatement:
    said = PayloadReceipt(
        federation=FEDERATION,
        site="north",
        payload="update",
        place=f"{RUN}/1/1",
        payload_hash="1" * 64,
        payload_bytes=260,
        received_ms=1,
    )
    return said.sign(coordinator())


@cache
def exchange_terms() -> ExchangeTerms:
    expires_ms = round((time.time() + 86_400) * 1000)
    return ExchangeTerms.of(
        plan(), RUN, "exchange-1", number=1, purpose="fuzzing", expires_ms=expires_ms
    )


def terms() -> SignedStatement:
    return exchange_terms().sign(coordinator())


@cache
def _consents() -> dict[str, SignedStatement]:
    made = {}
    about = exchange_terms()
    own = expert_hash(plan().released_layout, rehearsal_vector(plan().released_layout, 0))
    for site in ROSTER:
        said = Consent(
            federation=FEDERATION,
            terms=about,
            site=site,
            recipient_key=HybridKey.generate().public_bytes.hex(),
            commitment=commit(about.plan_hash, site, bytes(32), own),
            log_size=7,
            log_root="3" * 64,
            privacy=Coverage(unit="subject", epsilon="2.5", delta="0.001"),
        )
        made[site] = said.sign(identity(Role.PARTICIPANT, site))
    return made


def consent() -> SignedStatement:
    return _consents()["north"]


@cache
def sealed() -> bytes:
    sanction = Sanction(_consents().values(), exchange_terms(), north().anchors, now=time.time())
    layout = plan().released_layout
    return seal_expert(
        rehearsal_vector(layout, 0),
        layout,
        sanction,
        sender="north",
        salt=bytes(32),
        signing_key=north().signing_key,
    )[0].to_bytes()


def expert_receipt() -> SignedStatement:
    said = ExpertReceipt(
        federation=FEDERATION,
        site="north",
        run=RUN,
        exchange_id="exchange-1",
        sanction="1" * 64,
        experts={"south": "2" * 64},
    )
    return said.sign(north())


@cache
def entry() -> bytes:
    key = new_signing_key()
    head = Head.genesis(key.public_key())
    body = {
        "payload": "hello",
        "payload_hash": "0" * 64,
        "bytes": 1,
        "recipient": "spiffe://fuzz/coordinator/coordinator",
    }
    return append(head, EntryKind.EGRESS, body, time_ms=1, key=key).to_bytes()


@cache
def request() -> bytes:
    asked = create_request(
        Identity(FEDERATION, Role.PARTICIPANT, "north"), new_tls_key(), new_signing_key()
    )
    return asked.public_bytes(Encoding.PEM)


def chain() -> bytes:
    return north().chain_pem
