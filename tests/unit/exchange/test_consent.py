from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import ConsentError, NotOnRosterError, ProtocolError
from fedpalm.exchange.consent import Agreement, Consent, SignedConsent, sign_consent
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.pki.authority import create_authority
from fedpalm.pki.hybrid import PUBLIC_BYTES, HybridKey
from fedpalm.pki.identity import Role

from .conftest import NOW, ROSTER, Site, World, enrol


def refused(world: World, consents: list[SignedConsent]) -> str:
    with pytest.raises(ConsentError) as caught:
        world.agree(consents)
    return caught.value.what


def test_a_yes_of_every_site_is_an_agreement(world: World):
    agreement = world.agree(reversed(world.consents()))
    assert set(agreement.parties) == set(ROSTER)
    for name, site in world.sites.items():
        party = agreement.party(name)
        assert party.signing_key == site.signing_key.public_key()
        assert party.recipient_key == site.recipient_key.public_bytes


def test_a_missing_yes_is_named(world: World):
    assert "west" in refused(world, world.consents()[:2])
    assert "east, north, west" in refused(world, [])


def test_the_same_yes_twice_is_refused(world: World):
    consents = world.consents()
    assert "two consents of north" in refused(world, [*consents, consents[1]])


def test_a_stranger_has_no_say(world: World):
    with pytest.raises(NotOnRosterError):
        world.enrol("south").consent(world.terms)
    with pytest.raises(NotOnRosterError):
        world.agree().party("south")


@pytest.mark.parametrize(
    "change",
    [
        {"run": "trial-0002"},
        {"exchange_id": "trial-0001-x2"},
        {"plan_hash": bytes(32)},
        {"layout_hash": bytes(32)},
        {"roster": ("east", "north", "south", "west")},
        {"federation": "prints"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_yes_to_other_terms_is_none_to_these(world: World, change: dict[str, object]):
    other = world.sites["north"].consent(replace(world.terms, **change))
    east, _, west = world.consents()
    assert "other terms" in refused(world, [east, other, west])


def test_a_coordinator_cannot_put_its_own_recipient_key_in_a_sites_place(world: World):
    east, north, west = world.consents()
    mine = HybridKey.generate()
    swapped = replace(north.consent, recipient_key=mine.public_bytes)
    assert "not its own" in refused(world, [east, replace(north, consent=swapped), west])


def test_a_coordinator_cannot_say_yes_for_a_site_with_its_own_certificate(world: World):
    hub = world.enrol("hub", Role.COORDINATOR)
    forged = Site("north", hub.signing_key, hub.chain, hub.recipient_key).consent(world.terms)
    east, _, west = world.consents()
    assert "participant is needed" in refused(world, [east, forged, west])


def test_one_site_cannot_say_yes_for_another(world: World):
    east, _, west = world.consents()
    liar = world.sites["east"]
    forged = replace(liar, name="north", recipient_key=HybridKey.generate())
    assert "signed by" in refused(world, [east, forged.consent(world.terms), west])


def test_a_site_of_another_ca_has_no_say(world: World):
    other, _ = create_authority("palms", NOW)
    east, _, west = world.consents()
    forged = enrol(other, "north").consent(world.terms)
    assert "federation's CA" in refused(world, [east, forged, west])


def test_a_yes_under_an_expired_certificate_is_refused(world: World):
    with pytest.raises(ConsentError, match="expired"):
        Agreement(world.consents(), world.terms, world.authority.anchors, now=NOW + 91 * 86_400)


def test_a_yes_signed_for_another_purpose_is_refused(world: World):
    east, north, west = world.consents()
    bare = world.sites["north"].signing_key.sign(north.consent.signed_bytes)
    assert "not its own" in refused(world, [east, replace(north, signature=bare), west])


def test_a_yes_without_certificates_is_refused(world: World):
    east, north, west = world.consents()
    assert "without its certificate" in refused(world, [east, replace(north, chain=()), west])


def test_a_site_cannot_reuse_the_key_of_another(world: World):
    east, _, west = world.consents()
    copied = world.sites["north"].consent(world.terms, world.sites["east"].recipient_key)
    assert "same key" in refused(world, [east, copied, west])


def test_the_parties_of_an_agreement_cannot_be_changed(world: World):
    agreement = world.agree()
    with pytest.raises(TypeError):
        agreement.parties["south"] = agreement.party("north")


def test_a_consent_survives_its_bytes(world: World):
    for signed in world.consents():
        assert SignedConsent.from_bytes(signed.to_bytes()) == signed


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_byte_of_a_consent_goes_unnoticed(world: World, data: st.DataObject):
    east, north, west = world.consents()
    content = bytearray(north.to_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((ConsentError, ProtocolError, NotOnRosterError)):
        world.agree([east, SignedConsent.from_bytes(bytes(content)), west])


@given(st.one_of(st.binary(max_size=300), st.just(b"[" * 60_000), st.just(b" " * 70_000)))
def test_bytes_that_are_no_consent_are_a_protocol_error(content: bytes):
    with pytest.raises(ProtocolError):
        SignedConsent.from_bytes(content)


@pytest.mark.parametrize("length", [0, 32, PUBLIC_BYTES - 1, PUBLIC_BYTES + 1])
def test_a_recipient_key_of_another_length_is_refused(world: World, length: int):
    with pytest.raises(ProtocolError, match="public key"):
        Consent(world.terms, "north", bytes(length))


def test_an_impossible_ml_kem_key_is_refused(world: World):
    with pytest.raises(ProtocolError):
        Consent(world.terms, "north", b"\xff" * PUBLIC_BYTES)


@pytest.mark.parametrize(
    "change",
    [
        {"roster": ["north"]},
        {"roster": ["north", "east"]},
        {"roster": ["east", "east"]},
        {"roster": ["East", "north"]},
        {"plan_hash": "00"},
        {"plan_hash": "zz" * 32},
        {"run": ""},
        {"run": 7},
        {"note": "more"},
    ],
    ids=str,
)
def test_malformed_terms_are_a_protocol_error(world: World, change: dict[str, object]):
    with pytest.raises(ProtocolError):
        ExchangeTerms.from_json({**world.terms.to_json(), **change})


def test_terms_survive_json(world: World):
    assert ExchangeTerms.from_json(world.terms.to_json()) == world.terms


def test_signing_is_over_every_field(world: World):
    site = world.sites["north"]
    first = Consent(world.terms, "north", site.recipient_key.public_bytes)
    signatures = {
        sign_consent(consent, site.signing_key, site.chain).signature
        for consent in (
            first,
            replace(first, site="east"),
            replace(first, recipient_key=HybridKey.generate().public_bytes),
            replace(first, terms=replace(world.terms, run="trial-0002")),
        )
    }
    assert len(signatures) == 4
