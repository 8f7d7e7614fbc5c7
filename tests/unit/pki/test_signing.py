from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import IdentityError, WrongRoleError
from fedpalm.pki.authority import Authority
from fedpalm.pki.identity import PARSE_ERRORS, Identity, Role
from fedpalm.pki.keys import TlsKey, new_signing_key, new_tls_key
from fedpalm.pki.request import signing_key_extension, signing_key_of, subject_name
from fedpalm.pki.signing import at_time, key_id, sign, verify, verify_chain, verify_signed_by

DAY_S = 86_400.0
KEY = new_signing_key()


def check(
    federation, leaf, *, above=None, anchors=None, now=None, role=Role.PARTICIPANT, name="palms"
):
    authority: Authority = federation.authority
    return verify_chain(
        leaf,
        [authority.issuing] if above is None else above,
        anchors or authority.anchors,
        now=federation.now if now is None else now,
        role=role,
        federation=name,
    )


# --- signatures --------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_a_signature_holds_for_its_key_domain_and_message(message: bytes):
    verify(KEY.public_key(), "consent/v1", message, sign(KEY, "consent/v1", message))


@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_signature_holds_for_nothing_else(message: bytes, data: st.DataObject):
    signature = sign(KEY, "consent/v1", message)
    bit = data.draw(st.integers(0, 511))
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    for key, domain, text, proof in (
        (new_signing_key().public_key(), "consent/v1", message, signature),
        (KEY.public_key(), "receipt/v1", message, signature),
        (KEY.public_key(), "consent/v1", message + b"\0", signature),
        (KEY.public_key(), "consent/v1", message[:-1], signature),
        (KEY.public_key(), "consent/v1", message, bytes(flipped)),
        (KEY.public_key(), "consent/v1", message, signature[:-1]),
        (KEY.public_key(), "consent/v1", message, b""),
    ):
        with pytest.raises(IdentityError):
            verify(key, domain, text, proof)


def test_a_signature_of_bare_bytes_is_none_in_any_domain():
    message = b"a message that another protocol let us sign"
    with pytest.raises(IdentityError):
        verify(KEY.public_key(), "consent/v1", message, KEY.sign(message))


def test_domain_and_message_cannot_be_shifted_into_each_other():
    with pytest.raises(IdentityError):
        verify(KEY.public_key(), "consent", b"/v1x", sign(KEY, "consent/v1", b"x"))


def test_key_ids_tell_keys_apart():
    assert key_id(KEY.public_key()) != key_id(new_signing_key().public_key())
    assert len(key_id(KEY.public_key())) == 32


# --- chains ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_a_leaf_of_every_role_leads_to_its_root(federation, role: Role):
    person = federation.enrol(role, "somebody")
    assert check(federation, person.leaf, role=role) == person.identity
    assert signing_key_of(person.leaf) == person.signing_key.public_key()


def test_an_expired_certificate_is_refused(federation):
    person = federation.enrol(Role.PARTICIPANT, "north", timedelta(days=1))
    check(federation, person.leaf, now=federation.now + DAY_S - 1)
    with pytest.raises(IdentityError, match="expired"):
        check(federation, person.leaf, now=federation.now + DAY_S + 1)


def test_a_certificate_that_is_not_yet_valid_is_refused(federation, site):
    check(federation, site.leaf, now=federation.now - 299)
    with pytest.raises(IdentityError, match="not valid before"):
        check(federation, site.leaf, now=federation.now - 301)


def test_a_certificate_outlives_neither_its_issuing_ca_nor_its_root(federation):
    long_ago = federation.authority.issuing.not_valid_after_utc.timestamp() + 1
    person = federation.enrol(Role.PARTICIPANT, "north", timedelta(days=398))
    with pytest.raises(IdentityError):
        check(federation, person.leaf, now=long_ago)


def test_a_certificate_of_another_ca_with_the_same_names_is_refused(federation, stranger):
    person = stranger.enrol(Role.PARTICIPANT, "north")
    for above in ([stranger.authority.issuing], [federation.authority.issuing], []):
        with pytest.raises(IdentityError, match="CA"):
            check(federation, person.leaf, above=above)


def test_another_root_is_no_help_when_it_is_sent_along(federation, stranger):
    person = stranger.enrol(Role.PARTICIPANT, "north")
    with pytest.raises(IdentityError, match="CA"):
        check(
            federation,
            person.leaf,
            above=[stranger.authority.issuing, stranger.authority.anchors[0]],
        )


def test_a_missing_issuing_certificate_is_refused(federation, site):
    with pytest.raises(IdentityError, match="CA"):
        check(federation, site.leaf, above=[])


def test_a_wrong_role_is_refused_by_name(federation, site):
    with pytest.raises(WrongRoleError, match="operator is needed"):
        check(federation, site.leaf, role=Role.OPERATOR)


def test_a_wrong_federation_is_refused(federation, site):
    with pytest.raises(IdentityError, match="not of federation"):
        check(federation, site.leaf, name="prints")


def test_a_chain_padded_with_many_certificates_is_refused(federation, site):
    with pytest.raises(IdentityError, match="above the leaf"):
        check(federation, site.leaf, above=[federation.authority.issuing] * 4)


def test_a_ca_certificate_is_nobodys_leaf(federation):
    with pytest.raises(IdentityError):
        check(federation, federation.authority.issuing, above=[])


@dataclass
class Forger:
    """Makes leaves that the authority would not: every field can be set, and the signer chosen."""

    key: TlsKey
    issuer: x509.Name
    now: float
    overrides: dict[str, object] = field(default_factory=dict)

    def leaf(self, **changes: object) -> x509.Certificate:
        identity = Identity("palms", Role.PARTICIPANT, "north")
        values: dict[str, object] = {
            "basic": x509.BasicConstraints(ca=False, path_length=None),
            "usage": usage(),
            "extended": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
            "names": x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]),
            "signing": signing_key_extension(KEY.public_key()),
            "authority": x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
            **changes,
        }
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject_name(identity))
            .issuer_name(self.issuer)
            .public_key(new_tls_key().public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at_time(self.now) - timedelta(minutes=1))
            .not_valid_after(at_time(self.now) + timedelta(days=1))
        )
        for name, value in values.items():
            if value is not None:
                builder = builder.add_extension(value, critical=name in ("basic", "usage"))
        return builder.sign(self.key, hashes.SHA256())


def usage(*, sign_certificates: bool = False) -> x509.KeyUsage:
    flags = dict.fromkeys(
        [
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
            "crl_sign",
        ],
        False,
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=sign_certificates, **flags)


def test_a_leaf_used_as_a_ca_is_refused(federation, site):
    forger = Forger(site.tls_key, site.leaf.subject, federation.now)
    with pytest.raises(IdentityError, match="CA"):
        check(federation, forger.leaf(), above=[site.leaf, federation.authority.issuing])


def test_a_self_signed_certificate_is_refused(federation):
    key = new_tls_key()
    name = subject_name(Identity("palms", Role.PARTICIPANT, "north"))
    leaf = Forger(key, name, federation.now).leaf()
    for above in ([], [federation.authority.issuing], [leaf]):
        with pytest.raises(IdentityError, match="CA"):
            check(federation, leaf, above=above)


def test_a_certificate_that_copies_the_issuers_name_but_not_its_key_is_refused(federation):
    forger = Forger(new_tls_key(), federation.authority.issuing.subject, federation.now)
    with pytest.raises(IdentityError, match="CA"):
        check(federation, forger.leaf())


@pytest.fixture
def careless(federation) -> Forger:
    """The federation's own issuing CA, signing what its profile does not allow."""
    authority = federation.authority
    return Forger(authority.issuing_key, authority.issuing.subject, federation.now)


def test_the_forger_of_these_tests_makes_good_leaves_when_nothing_is_wrong(federation, careless):
    assert check(federation, careless.leaf()).name == "north"


@pytest.mark.parametrize(
    "changes",
    [
        {"basic": x509.BasicConstraints(ca=True, path_length=None)},
        {"basic": None},
        {"usage": usage(sign_certificates=True)},
        {"usage": None},
        {"extended": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])},
        {"extended": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])},
        {
            "extended": x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            )
        },
        {"extended": None},
        {"names": None},
        {"signing": None},
        {"authority": None},
    ],
    ids=lambda changes: " ".join(
        f"{name}={'absent' if value is None else type(value).__name__}"
        for name, value in changes.items()
    ),
)
def test_a_leaf_outside_the_profile_is_refused_even_if_the_ca_signed_it(
    federation, careless, changes
):
    with pytest.raises(IdentityError):
        check(federation, careless.leaf(**changes))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=300)
@given(data=st.data())
def test_no_flipped_byte_of_what_a_certificate_says_goes_unnoticed(
    federation, site, data: st.DataObject
):
    der = bytearray(site.leaf.public_bytes(Encoding.DER))
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        mutated = x509.load_der_x509_certificate(bytes(der))
    except PARSE_ERRORS:
        return
    if mutated.tbs_certificate_bytes == site.leaf.tbs_certificate_bytes:
        return  # another encoding of the CA's signature, over the same content
    with pytest.raises(IdentityError):
        check(federation, mutated)


def test_a_signed_message_names_its_signer(federation, site):
    chain = (site.leaf, federation.authority.issuing)
    signature = sign(site.signing_key, "note/v1", b"hello")
    arguments = {"now": federation.now, "role": Role.PARTICIPANT, "federation": "palms"}
    anchors = federation.authority.anchors
    good = {"domain": "note/v1", "message": b"hello", "signature": signature, **arguments}
    assert verify_signed_by(chain, anchors, **good) == site.identity
    with pytest.raises(IdentityError):
        verify_signed_by(chain, anchors, **{**good, "message": b"hallo"})
    with pytest.raises(IdentityError, match="without its certificate"):
        verify_signed_by((), anchors, **good)
    other = federation.enrol(Role.PARTICIPANT, "south")
    with pytest.raises(IdentityError):
        verify_signed_by((other.leaf, federation.authority.issuing), anchors, **good)
