from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.canonical import canonical_json
from fedpalm.errors import FedPalmError, IdentityError, ProtocolError, WrongRoleError
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.pki.signing import sign
from fedpalm.pki.statement import (
    MAX_SIGNED_BYTES,
    MAX_STATEMENT_BYTES,
    HexHash,
    Label,
    SignedStatement,
    Statement,
    TimeMs,
)
from tests.support.pki import TestAuthority

NOW = 1_700_000_000.0
DAY_S = 86_400.0


class Note(Statement):
    """A site says something."""

    DOMAIN: ClassVar[str] = "note/v1"

    site: Label
    text_hash: HexHash
    at_ms: TimeMs

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.PARTICIPANT, self.site)


class Memo(Note):
    """The same fields for another purpose."""

    DOMAIN: ClassVar[str] = "memo/v1"


class Order(Note):
    """The same fields, said by the coordinator."""

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.COORDINATOR, self.site)


def note(**changes: object) -> Note:
    values = {"federation": "palms", "site": "north", "text_hash": "ab" * 32, "at_ms": 5}
    return Note.model_validate(values | changes)


def person(federation, role: Role = Role.PARTICIPANT, name: str = "north", **how) -> TlsIdentity:
    return TestAuthority.of(federation.authority).enrol(role, name, now=NOW, **how)


@pytest.fixture(scope="module")
def north(federation) -> TlsIdentity:
    return person(federation)


@pytest.fixture(scope="module")
def signed(north: TlsIdentity) -> SignedStatement:
    return note().sign(north)


def forged(by: TlsIdentity, statement: bytes, domain: str = Note.DOMAIN) -> SignedStatement:
    """Whatever bytes, well signed by whoever."""
    return SignedStatement(statement, sign(by.signing_key, domain, statement), by.chain)


def test_a_statement_says_what_was_signed(federation, signed: SignedStatement):
    assert Note.open(signed, federation.authority.anchors, now=NOW) == note()


def test_nobody_signs_what_another_says(federation, north: TlsIdentity):
    with pytest.raises(IdentityError, match="cannot sign"):
        note(site="south").sign(north)
    with pytest.raises(IdentityError, match="cannot sign"):
        note(federation="prints").sign(north)


def test_a_statement_signed_by_somebody_else_is_refused(federation):
    south = person(federation, name="south")
    with pytest.raises(IdentityError, match="is signed by"):
        Note.open(forged(south, note().to_bytes()), south.anchors, now=NOW)


def test_a_statement_signed_under_another_role_is_refused(federation, north: TlsIdentity):
    operator = person(federation, Role.OPERATOR)
    with pytest.raises(WrongRoleError):
        Note.open(forged(operator, note().to_bytes()), operator.anchors, now=NOW)
    with pytest.raises(WrongRoleError):
        Order.open(forged(north, note().to_bytes()), north.anchors, now=NOW)


def test_a_signature_for_one_purpose_is_none_for_another(federation, signed: SignedStatement):
    with pytest.raises(IdentityError, match="memo/v1"):
        Memo.open(signed, federation.authority.anchors, now=NOW)


def test_a_statement_of_another_federation_is_refused(federation, north: TlsIdentity):
    with pytest.raises(IdentityError, match="not of federation"):
        Note.open(forged(north, note(federation="prints").to_bytes()), north.anchors, now=NOW)


def test_a_statement_under_another_ca_with_the_same_names_is_refused(
    stranger, signed: SignedStatement
):
    with pytest.raises(IdentityError, match="CA"):
        Note.open(signed, stranger.authority.anchors, now=NOW)


def test_a_statement_with_the_certificate_of_another_is_refused(
    federation, signed: SignedStatement
):
    south = person(federation, name="south")
    with pytest.raises(IdentityError):
        Note.open(replace(signed, chain=south.chain), south.anchors, now=NOW)


def test_another_certificate_of_the_same_name_with_other_keys_is_refused(
    federation, signed: SignedStatement
):
    twin = person(federation)
    with pytest.raises(IdentityError, match="does not hold"):
        Note.open(replace(signed, chain=twin.chain), twin.anchors, now=NOW)


def test_a_renewed_certificate_of_the_same_signing_key_still_vouches(federation, north):
    """The signing key is for life: what it signed holds under each of its certificates."""
    authority = federation.authority
    leaf = authority.issue(
        create_request(north.identity, new_tls_key(), north.signing_key), north.identity, now=NOW
    )
    renewed = replace(note().sign(north), chain=authority.chain(leaf))
    assert Note.open(renewed, authority.anchors, now=NOW) == note()


def test_a_statement_outlives_its_certificate_at_the_time_it_was_logged_alone(federation):
    brief = person(federation, lifetime=timedelta(days=1))
    old = note().sign(brief)
    assert Note.open(old, brief.anchors, now=NOW + DAY_S - 1) == note()
    with pytest.raises(IdentityError, match="expired"):
        Note.open(old, brief.anchors, now=NOW + DAY_S + 1)
    with pytest.raises(IdentityError, match="not valid before"):
        Note.open(old, brief.anchors, now=NOW - DAY_S)


def test_an_older_statement_is_looked_at_in_the_last_moment_of_its_certificate(federation):
    brief = person(federation, lifetime=timedelta(days=1))
    old = note().sign(brief)
    assert old.last_valid(NOW + 60) == NOW + 60
    late = old.last_valid(NOW + 30 * DAY_S)
    assert late == NOW + DAY_S
    assert Note.open(old, brief.anchors, now=late) == note()


def test_a_logged_statement_is_verified_under_an_anchor_that_was_retired_since(
    federation, stranger, signed: SignedStatement
):
    today = replace(
        person(stranger), anchors=stranger.authority.anchors,
        past_anchors=federation.authority.anchors,
    )  # fmt: skip
    assert Note.open(signed, today.record_anchors, now=NOW) == note()
    with pytest.raises(IdentityError, match="CA"):
        Note.open(signed, today.anchors, now=NOW)


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text.replace(b":", b": ", 1),
        lambda text: text + b"\n",
        lambda text: b" " + text,
        lambda text: json.dumps(dict(reversed(json.loads(text).items()))).encode(),
        lambda text: text.replace(b'"at_ms":5', b'"at_ms":5.0'),
        lambda text: text.replace(b'"at_ms":5', b'"at_ms":5,"at_ms":5'),
        lambda text: text.replace(b"north", b"\\u006eorth"),
    ],
)
def test_a_statement_in_other_words_is_refused_even_if_signed(federation, north, spell):
    other = spell(note().to_bytes())
    assert other != note().to_bytes()
    with pytest.raises(ProtocolError, match="malformed"):
        Note.open(forged(north, other), north.anchors, now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "North"},
        {"site": "north\n"},
        {"site": ""},
        {"text_hash": "AB" * 32},
        {"text_hash": "ab" * 31},
        {"at_ms": -1},
        {"at_ms": 2**53},
        {"at_ms": "5"},
        {"at_ms": True},
        {"more": 1},
    ],
    ids=str,
)
def test_a_statement_with_other_fields_or_values_is_refused_even_if_signed(north, changes):
    values = json.loads(note().to_bytes()) | changes
    text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ProtocolError, match="malformed"):
        Note.open(forged(north, text), north.anchors, now=NOW)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 60_000, b"{" * 900])
def test_bytes_that_are_no_statement_are_refused_even_if_signed(north: TlsIdentity, text: bytes):
    with pytest.raises(ProtocolError, match="malformed"):
        Note.open(forged(north, text), north.anchors, now=NOW)


@settings(max_examples=150)
@given(data=st.data())
def test_no_changed_byte_of_a_signed_statement_goes_unnoticed(federation, signed, data):
    kept = bytearray(signed.to_bytes())
    kept[data.draw(st.integers(0, len(kept) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = SignedStatement.from_bytes(bytes(kept))
        opened = Note.open(found, federation.authority.anchors, now=NOW)
    except FedPalmError:
        return
    # An ECDSA signature of the CA has several spellings; what it covers is the same.
    assert opened == note() and found.statement == signed.statement
    assert found.signature == signed.signature
    assert [c.tbs_certificate_bytes for c in found.chain] == [
        c.tbs_certificate_bytes for c in signed.chain
    ]


def test_a_signed_statement_comes_back_from_its_bytes(signed: SignedStatement):
    again = SignedStatement.from_bytes(signed.to_bytes())
    assert again == signed and again.hash == signed.hash == note().hash


def test_the_name_of_a_statement_does_not_depend_on_who_signed_it(federation, signed):
    assert note().sign(person(federation)).hash == signed.hash
    assert note(at_ms=6).hash != signed.hash


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v | {"more": 1},
        lambda v: {k: v[k] for k in v if k != "signature"},
        lambda v: v | {"signature": "00" * 63},
        lambda v: v | {"signature": " ".join(["00"] * 64)},
        lambda v: v | {"signature": 5},
        lambda v: v | {"chain": []},
        lambda v: v | {"chain": v["chain"] * 3},
        lambda v: v | {"chain": ["?"]},
        lambda v: v | {"chain": ["AAAA"]},
        lambda v: v | {"chain": "AAAA"},
        lambda v: v | {"statement": None},
        lambda v: [v],
    ],
)
def test_stored_bytes_of_another_form_are_refused(signed: SignedStatement, change):
    values = change(json.loads(signed.to_bytes()))
    with pytest.raises(ProtocolError):
        SignedStatement.from_bytes(canonical_json(values))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_signed_statement_are_a_protocol_error(data: bytes):
    with pytest.raises(ProtocolError):
        SignedStatement.from_bytes(data)


def test_what_is_too_large_is_not_parsed(signed: SignedStatement):
    with pytest.raises(ProtocolError, match="bytes"):
        SignedStatement.from_bytes(b" " * (MAX_SIGNED_BYTES + 1))
    with pytest.raises(ProtocolError, match="sizes"):
        SignedStatement.from_parts(
            b" " * (MAX_STATEMENT_BYTES + 1), signed.signature, signed.chain_der
        )


@pytest.mark.parametrize("text", [b"\xff\xfe", b'{"site":"\xc3"}'])
def test_a_statement_that_is_no_text_is_refused_as_it_arrives(signed: SignedStatement, text: bytes):
    """It is stored and shown as text."""
    with pytest.raises(ProtocolError, match="malformed"):
        SignedStatement.from_parts(text, signed.signature, signed.chain_der)


def test_reading_unverified_checks_form_alone(north: TlsIdentity, signed: SignedStatement):
    assert Note.read(replace(signed, signature=bytes(64))) == note()
    with pytest.raises(ProtocolError):
        Note.read(replace(signed, statement=b"{}"))


def test_a_kind_of_statement_that_names_no_signer_cannot_be_made() -> None:
    class Anonymous(Statement):
        DOMAIN = "anonymous/v1"

    with pytest.raises(TypeError, match="signer"):
        Anonymous(federation="trial")  # type: ignore[abstract]
