"""An expert stands under the one sanction that its site approved, or the auditor says what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedpalm.audit.findings import Exit
from fedpalm.exchange.consent import Consent, Coverage
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.statement import SignedStatement
from tests.support.audit import EXCHANGE, FEDERATION, RUN, SITE, World, again, digest, make_plan

STRANGER = Identity(FEDERATION, Role.PARTICIPANT, "site-x").uri
OTHER_SITE = Identity(FEDERATION, Role.PARTICIPANT, "site-b").uri
IN_ORDER = ("approve", "release", "seal", "keys")


def one_round(**plan: Any) -> World:
    """Trained for a round; no differential privacy, so that nothing is charged."""
    world = World(make_plan(**{"unit": "none", "experts": True, **plan}))
    world.join()
    world.round(1)
    return world


def private_round() -> World:
    world = World(make_plan(experts=True, rounds=1))
    world.join()
    world.round(1)
    return world


# --- by the book --------------------------------------------------------------------------------------


def test_one_expert_leaves_for_all_and_holds(audited):
    world = one_round()
    world.exchange()
    audit = audited(world)
    assert audit.exit is Exit.OK, audit.findings
    assert audit.to_json()["released"] == {"update": 1, "sealed_expert": 1}
    assert all(one.receipt for one in audit.releases.released)


def test_keys_that_are_sent_again_are_the_same_keys(audited):
    world = one_round()
    world.exchange(steps=(*IN_ORDER, "keys"))
    assert audited(world).exit is Exit.OK


def test_an_exchange_that_was_called_off_and_one_with_a_higher_number_hold(audited):
    world = one_round()
    world.exchange(steps=("approve",), signers=[SITE])
    world.exchange(terms=world.terms("palms-1-x2", number=2))
    audit = audited(world)
    assert audit.exit is Exit.OK, audit.findings


def test_it_goes_on_without_those_who_refuse_if_the_plan_says_so(audited):
    world = one_round(without_refusers=True)
    world.exchange(signers=["site-a", "site-d"])
    audit = audited(world)
    assert audit.exit is Exit.OK, audit.findings


def test_a_refusal_after_the_expert_left_is_no_fault(audited):
    world = one_round()
    world.exchange(steps=("approve", "release", "seal", "refuse"))
    assert audited(world).exit is Exit.OK


# --- what is wrong with what left -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"signers": ["site-a", "site-b", "site-d"]}, "under no sanction: no consent of site-c"),
        ({"steps": ("release", "seal", "keys")}, "without this site's approval"),
        ({"steps": ("release", "seal", "approve", "keys")}, "without this site's approval"),
        ({"steps": ("approve", "refuse", "release", "seal")}, "without this site's approval"),
        ({"approved": {"consent_hash": "ab" * 32}}, "another consent than the site's approved"),
        ({"approved": {"commitment": "ab" * 32}}, "another exchange or commitment"),
        ({"approved": {"number": 2}}, "another exchange or commitment"),
        ({"approved": {"plan_hash": "ab" * 32}}, "another exchange or commitment"),
        ({"approved": {"layout_hash": "ab" * 32}}, "another exchange or commitment"),
        ({"sealed": {"recipient": OTHER_SITE}}, "an expert left to spiffe://palms/participant/"),
        ({"sealed": {"layout_hash": "ab" * 32}}, "another layout than the plan's"),
        ({"sealed": {"bytes": 4 * 8}}, "sealed it has"),
        ({"sealed": {"bytes": 20_000_000}}, "an expert of 20000000 bytes left, sealed it has"),
        ({"released": {"sanction": "ab" * 32}}, "another sanction than the consents make"),
        ({"released": {"plan_hash": "ab" * 32}}, "another sanction than the consents make"),
        ({"released": {"recipient": STRANGER}}, "does not say once of each recipient"),
        ({"steps": ("approve", "seal", "keys")}, "does not say once of each recipient"),
        ({"steps": ("approve", "seal", "release")}, "does not say once of each recipient"),
        ({"steps": ("approve", "release", "release", "seal")}, "does not say once of each"),
        ({"steps": ("approve", "release", "seal", "seal", "keys")}, "a second expert left"),
        ({"steps": ("approve", "release", "keys", "seal")}, "keys left before any sealed expert"),
        ({"steps": ("approve", "keys")}, "keys left before any sealed expert"),
        ({"steps": ("approve", "release", "seal", "refuse", "keys")}, "keys left without"),
        ({"keys": {"recipient": OTHER_SITE}}, "keys left to spiffe://palms/participant/site-b"),
        ({"keys": {"bytes": 100_000}}, "keys of 100000 bytes left, for 3 sites at most"),
    ],
    ids=str,
)
def test_each_lie_about_an_expert_is_caught(refused, lie: dict[str, Any], words: str):
    world = one_round()
    world.exchange(**lie)
    assert words in refused(Exit.UNCHARGED, world)


def test_other_keys_than_the_first_ones_are_caught(refused):
    world = one_round()
    world.exchange()
    place = {"run": RUN, "exchange": EXCHANGE}
    world.send("expert_keys", 3750, place, payload_hash=digest("other keys"))
    assert "other keys left than before" in refused(Exit.UNCHARGED, world)


@pytest.mark.parametrize("payload", ["sealed_expert", "expert_keys"])
@pytest.mark.parametrize("place", [{}, {"run": RUN}, {"run": RUN, "exchange": "palms-1-x9"}])
def test_nothing_of_an_expert_leaves_outside_an_exchange(refused, payload: str, place):
    world = one_round()
    world.exchange()
    world.send(payload, 1000, place)
    refused(Exit.UNCHARGED, world)


def test_a_plan_without_experts_releases_none(refused):
    world = World(make_plan(unit="none"))
    world.join()
    world.round(1)
    world.send("sealed_expert", 1000, {"run": RUN, "exchange": EXCHANGE})
    assert "outside any exchange of a plan" in refused(Exit.UNCHARGED, world)


def test_the_log_names_one_expert_for_all_recipients(refused):
    world = one_round()
    world.exchange()
    last = [one for one in world.entries if one.kind is EntryKind.EXPERT_RELEASED][-1]
    entries = world.resigned(
        again(one, expert_hash="ab" * 32) if one is last else again(one) for one in world.entries
    )
    content = world.bundle(entries=entries)
    assert "different experts for one" in refused(Exit.UNCHARGED, world, content)


def test_a_plan_releases_once(refused):
    world = one_round()
    world.exchange()
    world.exchange(terms=world.terms("palms-1-x2", number=2))
    assert "a second expert left under one plan" in refused(Exit.UNCHARGED, world)


@pytest.mark.parametrize("number", [1, 2])
def test_exchanges_of_a_plan_have_rising_numbers(refused, number: int):
    world = one_round()
    world.exchange(terms=world.terms("palms-1-x1", number=2), steps=("approve",), signers=[SITE])
    world.exchange(terms=world.terms("palms-1-x2", number=number))
    words = refused(Exit.UNCHARGED, world)
    assert f"exchange {number} of a plan was approved after exchange 2" in words


def test_after_its_expiry_nothing_may_have_been_sealed(refused):
    world = one_round()
    world.exchange(terms=world.terms(expires_ms=world.clock_ms - 3_600_000))
    assert "after its sanction had expired" in refused(Exit.UNCHARGED, world)


def test_the_terms_are_those_of_the_plan(refused):
    """A coordinator that asks fewer sites than the plan names, or goes on without those who refuse."""
    for change in ({"roster": ("site-a", "site-b")}, {"without_refusers": True}):
        world = one_round()
        honest = world.terms()
        fields = {name: getattr(honest, name) for name in ExchangeTerms.model_fields}
        world.exchange(terms=ExchangeTerms(**{**fields, **change}), signers=["site-a", "site-b"])
        assert "terms that are not its plan's" in refused(Exit.UNCHARGED, world)


# --- the consents ---------------------------------------------------------------------------------------


def _shared(field: str) -> Callable[[World, ExchangeTerms], dict[str, SignedStatement]]:
    def consents(world: World, terms: ExchangeTerms) -> dict[str, SignedStatement]:
        made = world.consents(terms)
        one, other = (Consent.read(made[name]) for name in ("site-b", "site-c"))
        fields = {name: getattr(other, name) for name in Consent.model_fields}
        copied = Consent(**{**fields, field: getattr(one, field)})
        return {**made, "site-c": copied.sign(world.sites["site-c"])}

    return consents


@pytest.mark.parametrize("field", ["recipient_key", "commitment"])
def test_consents_that_share_what_they_must_not_are_no_sanction(refused, field: str):
    world = one_round()
    terms = world.terms()
    world.exchange(terms=terms, consents=_shared(field)(world, terms))
    assert "under no sanction: two sites use the same" in refused(Exit.UNCHARGED, world)


@pytest.mark.parametrize(
    "own", [{"log_size": 3}, {"log_size": 10_000}, {"log_root": "ab" * 32}], ids=str
)
def test_a_consent_names_the_log_as_it_was(refused, own: dict[str, Any]):
    world = one_round()
    terms = world.terms()
    world.exchange(terms=terms, consents=world.consents(terms, **own))
    assert "another state of the log" in refused(Exit.UNCHARGED, world)


def test_without_the_sites_own_consent_its_expert_stands_under_nothing(refused):
    world = one_round()
    world.exchange()
    others = world.contents["consents"][1:]
    assert "another consent" in refused(Exit.UNCHARGED, world, world.bundle(consents=others))
    assert "another consent" in refused(Exit.UNCHARGED, world, world.bundle(consents=[]))


def test_a_consent_that_somebody_else_signed_is_caught(refused):
    world = one_round()
    world.exchange()
    said = [SignedStatement.from_bytes(one) for one in world.contents["consents"]]
    forged = SignedStatement(said[1].statement, said[2].signature, said[2].chain)
    content = world.bundle(consents=[said[0].to_bytes(), forged.to_bytes()])
    assert "is signed by" in refused(Exit.TAMPERED, world, content)
    cut = SignedStatement(said[1].statement, bytes(64), said[1].chain)
    refused(Exit.TAMPERED, world, world.bundle(consents=[said[0].to_bytes(), cut.to_bytes()]))


def test_a_consent_is_there_once_and_in_its_one_form(refused):
    world = one_round()
    world.exchange()
    said = world.contents["consents"]
    assert "says yes twice" in refused(
        Exit.MALFORMED, world, world.bundle(consents=[*said, said[1]])
    )
    spaced = said[1].replace(b'"chain":', b'"chain": ')
    refused(Exit.MALFORMED, world, world.bundle(consents=[said[0], spaced]))
    refused(
        Exit.MALFORMED, world, world.bundle(consents=[world.contents["receipts"][0].to_bytes()])
    )


# --- what it says of privacy ----------------------------------------------------------------------------


def test_under_differential_privacy_an_expert_leaves_only_after_a_training_was_paid_for(
    audited, refused
):
    world = World(make_plan(experts=True))
    world.join()
    world.reserve(1)  # charged, and nothing committed
    world.exchange()
    assert "an expert left that no committed reservation" in refused(Exit.UNCHARGED, world)
    assert audited(World(world.plan).trained()).exit is Exit.OK


def claiming(world: World, **said: str) -> World:
    """The exchange under a consent that says this of privacy."""
    true = world.coverage()
    values = {name: getattr(true, name) for name in Coverage.model_fields}
    terms = world.terms()
    consents = world.consents(terms, privacy=Coverage(**{**values, **said}))  # type: ignore[arg-type]
    world.exchange(terms=terms, consents=consents)
    world.close()
    return world


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"epsilon": "0.01"}, "claims epsilon 0.01 at delta 0.001"),
        ({"delta": "0.0001"}, "at delta 0.0001, charged were"),
        ({"unit": "record"}, "claims privacy by record, and the plan's unit is subject"),
    ],
    ids=str,
)
def test_a_consent_that_claims_better_privacy_than_was_charged_is_caught(refused, said, words):
    assert words in refused(Exit.EPSILON, claiming(private_round(), **said))


def test_a_consent_that_claims_less_privacy_than_was_charged_holds(audited):
    assert audited(claiming(private_round(), epsilon="49.5")).exit is Exit.OK
    none = claiming(private_round(), unit="none", epsilon="", delta="")
    assert audited(none).exit is Exit.OK


def test_what_was_not_charged_covers_nothing(refused):
    claims = {"unit": "subject", "epsilon": "3.5", "delta": "0.001"}
    world = one_round()
    terms = world.terms()
    world.exchange(terms=terms, consents=world.consents(terms, privacy=Coverage(**claims)))
    assert "the plan's unit is none" in refused(Exit.EPSILON, world)


def test_a_coverage_before_any_charge_is_none(audited):
    world = World(make_plan(experts=True))
    world.join()
    terms = world.terms()
    claims = Coverage(unit="subject", epsilon="3.5", delta="0.001")
    world.exchange(terms=terms, consents=world.consents(terms, privacy=claims))
    words = [str(one) for one in audited(world).findings]
    assert any("and nothing had been charged" in one for one in words)
