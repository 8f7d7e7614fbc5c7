"""Every way in which a sanction must not come into being."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpalm.errors import ConsentError, NotOnRosterError, ProtocolError, SanctionExpiredError
from fedpalm.exchange.consent import Consent, Coverage, Sanction, commit, new_salt, sanction_hash
from fedpalm.pki.authority import create_authority
from fedpalm.pki.hybrid import PUBLIC_BYTES, HybridKey
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.pki.statement import SignedStatement
from tests.support.exchange import (
    EXPIRES_MS,
    NOW,
    PLAN_HASH,
    ROSTER,
    Group,
    Member,
    authority,
    changed_in,
    identity,
    make_terms,
    member,
    signed_by,
)
from tests.support.pki import TestAuthority


def refused(group: Group, consents: list[SignedStatement]) -> str:
    with pytest.raises(ConsentError) as caught:
        group.sanction(consents)
    return caught.value.what


def in_norths_place(group: Group, one: SignedStatement) -> str:
    """Why a sanction with this instead of north's yes does not exist."""
    east, _, west = group.consents()
    return refused(group, [east, one, west])


# --- what a sanction is ------------------------------------------------------------------------------


def test_a_yes_of_every_site_is_a_sanction_and_names_who_signs_with_what(group: Group):
    sanction = group.sanction(reversed(group.consents()))
    assert sanction.signers == ROSTER
    assert sanction.others("north") == ("east", "west")
    for name, one in group.members.items():
        party = sanction.party(name)
        assert party.signing_key == one.identity.signing_key.public_key()
        assert party.recipient_key == one.key.public_bytes


def test_its_hash_is_that_of_the_terms_and_of_every_consent(group: Group, sanction: Sanction):
    assert group.sanction(reversed(group.consents())).hash == sanction.hash
    assert sanction_hash(group.terms, sanction.parties) == sanction.hash
    others = [
        group.other(purpose="another purpose"),
        group.other(number=2),
        group.other(replace(group.members["north"], key=HybridKey.generate())),
        group.other(replace(group.members["west"], salt=new_salt())),
    ]
    assert len({sanction.hash, *(one.sanction().hash for one in others)}) == 5


def test_the_parties_of_a_sanction_cannot_be_changed(group: Group):
    sanction = group.sanction()
    with pytest.raises(TypeError):
        sanction.parties["south"] = sanction.party("north")  # type: ignore[index]


def test_a_stranger_has_no_part_in_it(sanction: Sanction):
    with pytest.raises(NotOnRosterError):
        sanction.party("south")


# --- who is missing, and who is too many -------------------------------------------------------------


def test_a_missing_yes_is_named(group: Group):
    assert "no consent of west" in refused(group, group.consents("east", "north"))
    assert "no consent of east, north, west" in refused(group, [])


def test_without_those_who_refuse_it_goes_on_only_if_the_terms_say_so(group: Group):
    free = group.other(without_refusers=True)
    sanction = free.sanction(free.consents("east", "north"))
    assert sanction.signers == ("east", "north")
    assert sanction.hash != free.sanction().hash
    with pytest.raises(NotOnRosterError):
        sanction.party("west")


@pytest.mark.parametrize("names", [(), ("north",)])
def test_one_site_alone_exchanges_with_nobody(group: Group, names: tuple[str, ...]):
    free = group.other(without_refusers=True)
    assert "fewer than two" in refused(free, free.consents(*names) if names else [])


def test_the_same_yes_twice_is_refused(group: Group):
    consents = group.consents()
    assert "two consents of north" in refused(group, [*consents, consents[1]])


def test_two_different_yeses_of_one_site_are_refused(group: Group):
    again = replace(group.members["north"], key=HybridKey.generate()).consent(group.terms)
    assert "two consents of north" in refused(group, [*group.consents(), again])


def test_a_stranger_has_no_say(group: Group):
    south = member("south").consent(group.terms)
    assert "south is not on the roster" in refused(group, [*group.consents(), south])


# --- to what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"run": "trial-2"},
        {"exchange_id": "trial-1-x2"},
        {"number": 2},
        {"plan_hash": "00" * 32},
        {"layout_hash": "00" * 32},
        {"roster": ("east", "north", "south", "west")},
        {"federation": "prints"},
        {"without_refusers": True},
        {"purpose": "something else"},
        {"expires_ms": EXPIRES_MS + 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_yes_to_other_terms_is_none_to_these(group: Group, change: dict[str, Any]):
    other = changed_in(group.terms, **change)
    yes = group.members["north"].consent(other, federation="palms")
    assert "other terms" in in_norths_place(group, yes)


def test_too_late_there_is_no_sanction(group: Group):
    group.sanction(now=EXPIRES_MS / 1000)
    with pytest.raises(SanctionExpiredError) as caught:
        group.sanction(now=EXPIRES_MS / 1000 + 0.001)
    assert caught.value.safe and "exchange propose" in caught.value.next_step


# --- by whom -----------------------------------------------------------------------------------------


def test_a_coordinator_cannot_put_its_own_recipient_key_in_a_sites_place(group: Group):
    north = group.members["north"].consent(group.terms)
    mine = HybridKey.generate().public_bytes.hex()
    swapped = group.members["north"].says(group.terms, recipient_key=mine).to_bytes()
    assert "not its site's own" in in_norths_place(group, replace(north, statement=swapped))


@pytest.mark.parametrize(
    ("forger", "why"),
    [
        (lambda: identity("hub", Role.COORDINATOR), "participant is needed"),
        (lambda: identity("east"), "is signed by"),
        (lambda: _of_another_ca("north"), "federation's CA"),
    ],
    ids=["coordinator", "another site", "another CA"],
)
def test_nobody_says_yes_for_another(group: Group, forger: Callable[[], Any], why: str):
    forged = signed_by(forger(), member("north").says(group.terms))
    assert why in in_norths_place(group, forged)


def _of_another_ca(name: str) -> Any:
    other = TestAuthority.of(create_authority("palms", NOW)[0])
    return other.enrol(Role.PARTICIPANT, name, now=NOW)


def test_a_yes_under_an_expired_certificate_is_refused():
    late = NOW + 31 * 86_400
    group = Group(make_terms(expires_ms=round((late + 60) * 1000)))
    with pytest.raises(ConsentError, match="expired"):
        group.sanction(now=late)


def test_a_yes_of_record_counts_after_its_certificate_but_not_after_the_terms():
    late = NOW + 40 * 86_400
    group = Group(make_terms(expires_ms=round((late + 60) * 1000)))
    anchors = authority().authority.anchors
    found = Sanction(group.consents(), group.terms, anchors, now=late, of_record=True)
    assert found.hash == group.sanction().hash
    with pytest.raises(SanctionExpiredError):
        Sanction(group.consents(), group.terms, anchors, now=late + 61, of_record=True)
    stranger = TestAuthority.of(create_authority("palms", NOW)[0]).authority.anchors
    with pytest.raises(ConsentError):
        Sanction(group.consents(), group.terms, stranger, now=late, of_record=True)


def test_a_yes_signed_for_another_purpose_is_refused(group: Group):
    said = group.members["north"].says(group.terms)
    forged = signed_by(identity("north"), said, domain="exchange-terms/v1")
    assert "not its site's own" in in_norths_place(group, forged)


def test_a_yes_without_its_certificate_is_refused(group: Group):
    north = group.members["north"].consent(group.terms)
    assert "not its site's own" in in_norths_place(group, replace(north, chain=()))


# --- what two sites must not share -------------------------------------------------------------------


def test_a_site_cannot_receive_with_the_key_of_another(group: Group):
    copied = replace(group.members["north"], key=group.members["east"].key)
    assert "same recipient key" in in_norths_place(group, copied.consent(group.terms))


def test_a_site_cannot_copy_the_commitment_of_another(group: Group):
    commitment = group.members["east"].says(group.terms).commitment
    copied = group.members["north"].consent(group.terms, commitment=commitment)
    assert "same commitment" in in_norths_place(group, copied)


def test_two_sites_cannot_sign_with_one_key(group: Group):
    """A CA that binds one key to two names, or one person behind two sites."""
    made = authority()
    east = identity("east")
    other = made.enrol(Role.PARTICIPANT, "north", now=NOW)
    leaf = _leaf_of(made, "north", east.signing_key)
    both = made.assemble(other.identity, leaf, other.key_pem, east.signing_key)
    assert "same signing key" in in_norths_place(group, Member("north", both).consent(group.terms))


def _leaf_of(made: TestAuthority, name: str, signing_key: Any) -> Any:
    who = Identity("palms", Role.PARTICIPANT, name)
    return made.authority.issue(create_request(who, new_tls_key(), signing_key), who, now=NOW)


# --- the commitment ----------------------------------------------------------------------------------


def test_a_commitment_binds_plan_site_salt_and_expert():
    given = (PLAN_HASH, "north", bytes(32), "11" * 32)
    others = [
        ("22" * 32, *given[1:]),
        (given[0], "nort", b"h" + bytes(31), given[3]),
        (given[0], "east", *given[2:]),
        (*given[:2], b"\1" + bytes(31), given[3]),
        (*given[:3], "33" * 32),
    ]
    assert commit(*given) == commit(*given)
    assert len({commit(*given), *(commit(*one) for one in others)}) == 6


def test_a_salt_is_new_each_time():
    assert len({new_salt() for _ in range(50)}) == 50


# --- bytes -------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.data())
def test_no_flipped_byte_of_a_consent_goes_unnoticed(group: Group, data: st.DataObject):
    east, north, west = group.consents()
    content = bytearray(north.to_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((ConsentError, ProtocolError)):
        group.sanction([east, SignedStatement.from_bytes(bytes(content)), west])


@pytest.mark.parametrize(
    "change",
    [
        {"recipient_key": ""},
        {"recipient_key": "00" * (PUBLIC_BYTES - 1)},
        {"recipient_key": "00" * PUBLIC_BYTES},
        {"recipient_key": "ff" * PUBLIC_BYTES},
        {"commitment": "ab"},
        {"log_size": -1},
        {"log_size": 2**53},
        {"log_root": ""},
        {"site": "North"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_malformed_consent_cannot_be_made(group: Group, change: dict[str, Any]):
    with pytest.raises(ValidationError):
        group.members["north"].says(group.terms, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"roster": ("north",)},
        {"roster": ("north", "east")},
        {"roster": ("east", "east")},
        {"roster": ("East", "north")},
        {"roster": tuple(f"s{at:03}" for at in range(201))},
        {"number": 0},
        {"number": 2**31},
        {"plan_hash": "00"},
        {"plan_hash": "zz" * 32},
        {"run": ""},
        {"purpose": ""},
        {"purpose": "x" * 201},
        {"purpose": "two\nlines"},
        {"purpose": "a bell \x07"},
        {"expires_ms": -1},
        {"surprise": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_malformed_terms_cannot_be_made(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        make_terms(**change)


@pytest.mark.parametrize(
    "said",
    [
        {"unit": "none", "epsilon": "1.0"},
        {"unit": "none", "delta": "0.001"},
        {"unit": "subject"},
        {"unit": "subject", "epsilon": "1.0"},
        {"unit": "subject", "delta": "0.001"},
        {"unit": "record", "epsilon": "1......", "delta": "0.001"},
        {"unit": "record", "epsilon": "1", "delta": "0.001"},
        {"unit": "record", "epsilon": "1e999", "delta": "0.001"},
        {"unit": "record", "epsilon": "nan", "delta": "0.001"},
        {"unit": "person", "epsilon": "1.0", "delta": "0.001"},
    ],
    ids=str,
)
def test_coverage_is_epsilon_with_delta_or_none_at_all(said: dict[str, str]):
    with pytest.raises(ValidationError):
        Coverage(**said)  # type: ignore[arg-type]


def test_a_consent_survives_its_bytes_with_its_coverage(group: Group):
    covered = Coverage(unit="subject", epsilon="3.25", delta="1e-05")
    for privacy in (covered, Coverage()):
        signed = group.members["north"].consent(group.terms, privacy=privacy)
        again = SignedStatement.from_bytes(signed.to_bytes())
        found = Consent.open(again, authority().authority.anchors, now=NOW)
        assert found == group.members["north"].says(group.terms, privacy=privacy)
