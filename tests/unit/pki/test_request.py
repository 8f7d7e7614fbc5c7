from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import IdentityError
from fedpalm.pki.identity import PARSE_ERRORS, Identity, Role
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import (
    MAX_REQUEST_BYTES,
    POSSESSION_OID,
    SIGNING_KEY_OID,
    create_request,
    parse_request,
    subject_name,
    verify_request,
)

NORTH = Identity("palms", Role.PARTICIPANT, "north")
SOUTH = Identity("palms", Role.PARTICIPANT, "south")
TLS_KEY, SIGNING_KEY = new_tls_key(), new_signing_key()
GOOD = create_request(NORTH, TLS_KEY, SIGNING_KEY)


def extension(oid: x509.ObjectIdentifier) -> x509.ExtensionType:
    return GOOD.extensions.get_extension_for_oid(oid).value


def rebuilt(
    *,
    names: tuple[x509.GeneralName, ...] = (x509.UniformResourceIdentifier(NORTH.uri),),
    key: x509.ExtensionType | None = None,
    proof: x509.ExtensionType | None = None,
    more: tuple[x509.ExtensionType, ...] = (),
    drop: tuple[x509.ObjectIdentifier, ...] = (),
    tls_key: ec.EllipticCurvePrivateKey = TLS_KEY,
) -> x509.CertificateSigningRequest:
    """The good request with something exchanged, signed anew by its TLS key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name(NORTH))
    for value in (
        x509.SubjectAlternativeName(names),
        key or extension(SIGNING_KEY_OID),
        proof or extension(POSSESSION_OID),
        *more,
    ):
        if value.oid not in drop:
            builder = builder.add_extension(value, critical=False)
    return builder.sign(tls_key, hashes.SHA256())


def test_a_request_proves_its_identity_and_both_keys():
    request = verify_request(parse_request(GOOD.public_bytes(Encoding.PEM)))
    assert request.identity == NORTH
    assert request.tls_key == TLS_KEY.public_key()
    assert request.signing_key == SIGNING_KEY.public_key()


def test_the_rebuilt_request_of_these_tests_is_good_when_nothing_is_exchanged():
    assert verify_request(rebuilt()).identity == NORTH


def test_a_stolen_signing_key_and_proof_do_not_fit_another_tls_key():
    with pytest.raises(IdentityError, match="possession"):
        verify_request(rebuilt(tls_key=new_tls_key()))


def test_a_proof_for_one_name_is_none_for_another():
    with pytest.raises(IdentityError, match="possession"):
        verify_request(rebuilt(names=(x509.UniformResourceIdentifier(SOUTH.uri),)))


def test_a_signing_key_without_its_own_proof_is_refused():
    other = create_request(NORTH, TLS_KEY, new_signing_key())
    key = other.extensions.get_extension_for_oid(SIGNING_KEY_OID).value
    with pytest.raises(IdentityError, match="possession"):
        verify_request(rebuilt(key=key))


@pytest.mark.parametrize(
    "changes",
    [
        {"names": (x509.DNSName("hub.example"),)},
        {"names": tuple(x509.UniformResourceIdentifier(i.uri) for i in (NORTH, SOUTH))},
        {"names": (x509.UniformResourceIdentifier(NORTH.uri), x509.DNSName("hub.example"))},
        {"names": (x509.UniformResourceIdentifier("spiffe://palms/owner/north"),)},
        {"drop": (SIGNING_KEY_OID,)},
        {"drop": (POSSESSION_OID,)},
        {"drop": (x509.SubjectAlternativeName.oid,)},
        {"more": (x509.BasicConstraints(ca=True, path_length=None),)},
        {"tls_key": ec.generate_private_key(ec.SECP384R1())},
        {"key": x509.UnrecognizedExtension(SIGNING_KEY_OID, b"\x04\x1f" + bytes(31))},
        {"key": x509.UnrecognizedExtension(SIGNING_KEY_OID, b"\x03\x20" + bytes(32))},
        {"proof": x509.UnrecognizedExtension(POSSESSION_OID, b"")},
    ],
)
def test_a_request_for_anything_else_than_one_identity_is_refused(changes):
    with pytest.raises(IdentityError):
        verify_request(rebuilt(**changes))


@settings(max_examples=150)
@given(st.data())
def test_no_flipped_byte_of_what_a_request_says_goes_unnoticed(data: st.DataObject):
    der = bytearray(GOOD.public_bytes(Encoding.DER))
    at = data.draw(st.integers(0, len(der) - 1))
    der[at] ^= data.draw(st.integers(1, 255))
    try:
        csr = x509.load_der_x509_csr(bytes(der))
    except PARSE_ERRORS:
        return
    if csr.tbs_certrequest_bytes == GOOD.tbs_certrequest_bytes:
        return  # another encoding of the requester's signature, over the same content
    with pytest.raises(IdentityError):
        verify_request(csr)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_are_an_identity_error(content: bytes):
    with pytest.raises(IdentityError):
        parse_request(content)


def test_an_oversized_request_is_not_parsed():
    pem = GOOD.public_bytes(Encoding.PEM)
    with pytest.raises(IdentityError, match="at most"):
        parse_request(pem + b"\n" * MAX_REQUEST_BYTES)
