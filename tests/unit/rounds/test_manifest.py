"""The chain of a run's manifests: what may come next, and what is a fork, a repeat or a rollback."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpalm.errors import (
    FedPalmError,
    ForkError,
    HashMismatchError,
    IdentityError,
    NotOnRosterError,
    ProtocolError,
    StaleRoundError,
    WrongRoleError,
)
from fedpalm.pki.identity import Role
from fedpalm.pki.statement import MAX_STATEMENT_BYTES, SignedStatement
from fedpalm.plan import MAX_SITES, Plan
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer
from fedpalm.rounds.manifest import (
    Countersignature,
    ManifestHead,
    RoundManifest,
    follow,
    genesis,
)
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from tests.simulation.federation import AUTHORITY, BEGIN, identity, rehearsal_plan
from tests.support.agreement import answer, countersignature, made_up_keys

RUN = "trial-1"
PLAN = rehearsal_plan(sites=3, rounds=5)
START = ManifestHead.start(PLAN, RUN)
M1, M2 = "1" * 64, "2" * 64


def manifest(head: ManifestHead = START, **changes: Any) -> RoundManifest:
    """What honestly follows ``head``, unless changed."""
    values = {
        "federation": "simulated",
        "run": RUN,
        "plan_hash": PLAN.hash.hex(),
        "seq": head.size,
        "previous": head.hash.hex(),
        "round": head.ref.round + 1 if head.ref else 1,
        "attempt": 1,
        "cohort": list(PLAN.roster),
        "model_hash": M1 if head.ref else PLAN.initial_model,
        "sealed_ms": 7,
        **changes,
    }
    return RoundManifest.model_validate({"signing_keys": made_up_keys(values["cohort"]), **values})


FIRST = manifest()
AFTER = follow(START, FIRST, PLAN, RUN)


def test_a_chain_begins_at_its_run_and_plan_and_nowhere_else() -> None:
    assert START.hash == genesis(PLAN, RUN)
    assert len({genesis(PLAN, RUN), genesis(PLAN, "trial-2"), genesis(changed(), RUN)}) == 3
    assert (AFTER.size, AFTER.hash, AFTER.ref) == (1, FIRST.hash, FIRST.ref)


def changed() -> Plan:
    return rehearsal_plan(sites=3, rounds=6)


def test_a_retry_keeps_its_model_and_the_next_round_brings_another() -> None:
    retry = manifest(AFTER, round=1, attempt=3, model_hash=PLAN.initial_model)
    head = follow(AFTER, retry, PLAN, RUN)
    second = manifest(head, round=2, attempt=1, model_hash=M2)
    assert follow(head, second, PLAN, RUN).size == 3


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"run": "trial-2"}, HashMismatchError),
        ({"federation": "elsewhere"}, HashMismatchError),
        ({"plan_hash": "0" * 64}, HashMismatchError),
        ({"seq": 0}, StaleRoundError),
        ({"seq": 2}, ProtocolError),
        ({"previous": "0" * 64}, ForkError),
        ({"previous": START.hash.hex()}, ForkError),
        ({"round": 1}, StaleRoundError),
        ({"round": 1, "attempt": 2, "model_hash": M2}, ForkError),
        ({"round": 3}, ProtocolError),
        ({"round": 6}, ProtocolError),
        ({"cohort": ["mallory", *PLAN.roster]}, NotOnRosterError),
        ({"cohort": [PLAN.roster[0]]}, ProtocolError),
    ],
)
def test_what_may_not_come_next_is_refused_by_its_kind(
    wrong: dict[str, Any], error: type[FedPalmError]
) -> None:
    with pytest.raises(error) as caught:
        follow(AFTER, manifest(AFTER, **wrong), PLAN, RUN)
    assert type(caught.value) is error


def test_the_first_round_starts_from_the_plans_model() -> None:
    with pytest.raises(ForkError, match="another model than the plan's"):
        follow(START, manifest(model_hash=M2), PLAN, RUN)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from([M1, M2])), max_size=12
    )
)
def test_rounds_and_attempts_only_ever_grow_and_a_round_has_one_model(
    wanted: list[tuple[int, int, str]],
) -> None:
    head, models, last = START, {1: PLAN.initial_model}, (0, 0)
    for number, attempt, model in wanted:
        offered = manifest(head, round=number, attempt=attempt, model_hash=model)
        if number == 1:
            offered = manifest(head, round=1, attempt=attempt)
            offered = offered.model_copy(update={"model_hash": PLAN.initial_model})
        try:
            head = follow(head, offered, PLAN, RUN)
        except FedPalmError:
            continue
        assert (number, attempt) > last and number <= last[0] + 1
        last = (number, attempt)
        assert models.setdefault(number, offered.model_hash) == offered.model_hash


# --- form and signature ---------------------------------------------------------------------------

HUB, SITE = identity(), identity("site-000")


def statements() -> list[tuple[Any, SignedStatement]]:
    """One of each kind, signed by whom it names."""
    sealed = FIRST.sign(HUB)
    offer = PlanOffer(federation="simulated", run=RUN, plan_hash=PLAN.hash.hex(), offered_ms=1)
    receipt = PayloadReceipt(
        federation="simulated",
        site="site-000",
        payload="update",
        place=f"{RUN}/1/1",
        payload_hash=M1,
        payload_bytes=4,
        received_ms=9,
    )
    return [
        (RoundManifest, sealed),
        (PlanOffer, offer.sign(HUB)),
        (PayloadReceipt, receipt.sign(HUB)),
        (PlanAnswer, answer(SITE, RUN, PLAN)),
        (Countersignature, countersignature(SITE, sealed)),
    ]


@pytest.mark.parametrize(("kind", "signed"), statements())
def test_a_statement_survives_the_wire_and_the_store_and_is_still_true(
    kind: Any, signed: SignedStatement
) -> None:
    message = wire.SignedStatement.FromString(to_wire(signed).SerializeToString())
    assert from_wire(message) == signed
    assert SignedStatement.from_bytes(signed.to_bytes()) == signed
    said = kind.open(signed, HUB.anchors, now=BEGIN)
    assert said.to_bytes() == signed.statement
    assert said.hash == signed.hash


@pytest.mark.parametrize(("kind", "signed"), statements())
def test_a_statement_is_refused_if_a_byte_differs_or_another_party_signed_it(
    kind: Any, signed: SignedStatement
) -> None:
    said = kind.read(signed)
    other = SITE if said.signer.role is Role.COORDINATOR else identity("site-001")
    forged = SignedStatement(signed.statement, signed.signature, other.chain)
    with pytest.raises((IdentityError, WrongRoleError)):
        kind.open(forged, HUB.anchors, now=BEGIN)
    with pytest.raises(IdentityError):
        said.sign(other)
    flipped = bytes([signed.signature[0] ^ 1, *signed.signature[1:]])
    with pytest.raises(IdentityError):
        kind.open(SignedStatement(signed.statement, flipped, signed.chain), HUB.anchors, now=BEGIN)
    spaced = signed.statement.replace(b":", b": ", 1)
    with pytest.raises(ProtocolError):
        kind.read(SignedStatement(spaced, signed.signature, signed.chain))
    with pytest.raises((IdentityError, WrongRoleError)):
        kind.open(signed, AUTHORITY_ELSEWHERE.anchors, now=BEGIN)


AUTHORITY_ELSEWHERE = type(AUTHORITY)("simulated").authority


def test_no_statement_passes_for_one_of_another_kind() -> None:
    kinds = statements()
    for kind, _ in kinds:
        for other, signed in kinds:
            if kind is not other:
                with pytest.raises(ProtocolError):
                    kind.read(signed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cohort": ["b", "a"]},
        {"cohort": ["a", "a"]},
        {"signing_keys": made_up_keys(PLAN.roster[1:])},
        {"signing_keys": made_up_keys([*PLAN.roster, "site-999"])},
        {"signing_keys": dict.fromkeys(PLAN.roster, "a" * 63)},
        {"round": 0},
        {"attempt": 0},
        {"seq": -1},
        {"model_hash": "A" * 64},
        {"surprise": 1},
    ],
)
def test_a_manifest_of_another_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        manifest(**wrong)


@pytest.mark.parametrize("place", ["", "run", "run/1/x", "run//1", "../../etc", "run/1/1/1"])
def test_a_receipt_names_a_place_that_there_can_be(place: str) -> None:
    good = PayloadReceipt.read(statements()[2][1])
    with pytest.raises(ValueError):
        PayloadReceipt.model_validate({**good.model_dump(), "place": place})


# --- under differential privacy -------------------------------------------------------------------

PRIVATE_PLAN = rehearsal_plan(
    sites=3, rounds=5, reproducible=False, training={"privacy": {"unit": "subject"}}
)


def private(**changes: Any) -> RoundManifest:
    start = ManifestHead.start(PRIVATE_PLAN, RUN)
    values = {"plan_hash": PRIVATE_PLAN.hash.hex(), "model_hash": PRIVATE_PLAN.initial_model}
    return manifest(start, **{**values, **changes})


@pytest.mark.parametrize(
    "checkpoints",
    [
        {},
        made_up_keys(PRIVATE_PLAN.roster[1:]),
        made_up_keys([*PRIVATE_PLAN.roster, "site-999"]),
        made_up_keys(["site-997", "site-998", "site-999"]),
    ],
)
def test_a_manifest_names_a_checkpoint_of_each_site_of_its_cohort(checkpoints: Any) -> None:
    start = ManifestHead.start(PRIVATE_PLAN, RUN)
    good = private(checkpoints=made_up_keys(PRIVATE_PLAN.roster))
    assert follow(start, good, PRIVATE_PLAN, RUN) == ManifestHead.after(good)
    with pytest.raises(ProtocolError, match="names checkpoints"):
        follow(start, private(checkpoints=checkpoints), PRIVATE_PLAN, RUN)


def test_without_differential_privacy_it_names_none() -> None:
    with pytest.raises(ProtocolError, match="names checkpoints"):
        follow(START, manifest(checkpoints=made_up_keys(PLAN.roster)), PLAN, RUN)


def test_the_largest_manifest_fits_a_statement() -> None:
    roster = [f"{number:03}{'x' * 51}" for number in range(MAX_SITES)]
    keys = made_up_keys(roster)
    largest = manifest(
        federation="f" * 63,
        run="r" * 63,
        seq=2**31 - 1,
        round=2**31 - 1,
        attempt=2**31 - 1,
        cohort=roster,
        signing_keys=keys,
        checkpoints=keys,
        sealed_ms=2**53 - 1,
    )
    assert len(largest.to_bytes()) <= MAX_STATEMENT_BYTES
    values = PLAN.model_dump(mode="json")
    assert Plan.model_validate({**values, "roster": roster}).roster == tuple(roster)
    with pytest.raises(ValidationError):
        Plan.model_validate({**values, "roster": ["0", "x" * 55]})
