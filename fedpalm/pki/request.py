"""The certificate signing request: the only thing of an identity that travels before it is trusted.

It asks for one SAN URI, and carries the Ed25519 signing key in a private extension beside a proof
of possession: that key's signature over the TLS public key and the identity. The request's own
ECDSA signature covers both, so each key vouches for the other. The leaf repeats the first of them.

The object identifiers stand under a UUID arc (ITU-T X.667: 2.25.<uuid>): no registration needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from ..canonical import domain_hash
from ..errors import IdentityError
from .identity import PARSE_ERRORS, Identity
from .keys import SigningKey, TlsKey, VerifyingKey

_ARC = "2.25.108052677240061060111824959998301742707"
SIGNING_KEY_OID = x509.ObjectIdentifier(f"{_ARC}.1")
POSSESSION_OID = x509.ObjectIdentifier(f"{_ARC}.2")
HANDOVER_OID = x509.ObjectIdentifier(f"{_ARC}.3")
"""In a certificate that hands trust on: SHA-256 of the trust anchor it stands for (``profile.py``)."""
MAX_REQUEST_BYTES = 16 * 1024


@dataclass(frozen=True)
class VerifiedRequest:
    """What a request asks for, after every signature in it has been checked."""

    identity: Identity
    tls_key: ec.EllipticCurvePublicKey
    signing_key: VerifyingKey


def subject_name(identity: Identity) -> x509.Name:
    """The distinguished name, for people and tools that show one; trust reads the SAN URI only."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.federation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, identity.name),
        ]
    )


def create_request(
    identity: Identity, tls_key: TlsKey, signing_key: SigningKey
) -> x509.CertificateSigningRequest:
    """Ask for ``identity`` with proof that the asker holds both keys."""
    proof = signing_key.sign(_possession(tls_key.public_key(), identity))
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject_name(identity))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]),
            critical=False,
        )
        .add_extension(signing_key_extension(signing_key.public_key()), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(POSSESSION_OID, octet_string(proof)), critical=False
        )
        .sign(tls_key, hashes.SHA256())
    )


def parse_request(pem: bytes) -> x509.CertificateSigningRequest:
    """Read a PEM request. Raises IdentityError if it is none or exceeds MAX_REQUEST_BYTES."""
    if len(pem) > MAX_REQUEST_BYTES:
        raise IdentityError(
            f"the request has {len(pem)} bytes, at most {MAX_REQUEST_BYTES} are read"
        )
    try:
        return x509.load_pem_x509_csr(pem)
    except PARSE_ERRORS as error:
        raise IdentityError(f"not a certificate signing request: {error}") from error


def verify_request(csr: x509.CertificateSigningRequest) -> VerifiedRequest:
    """Check both signatures and that nothing beyond one identity is asked for.

    Raises:
        IdentityError: wrong key type, an unexpected or missing extension, more names than one, or a
            signature of either key that does not hold.
    """
    try:
        tls_key = csr.public_key()
        extensions = {extension.oid: extension.value for extension in csr.extensions}
        signed = csr.is_signature_valid
    except PARSE_ERRORS as error:
        raise IdentityError(f"the request cannot be read: {error}") from error
    if not isinstance(tls_key, ec.EllipticCurvePublicKey) or not isinstance(
        tls_key.curve, ec.SECP256R1
    ):
        raise IdentityError("the request's TLS key is not P-256")
    if not signed:
        raise IdentityError("the request is not signed by its own TLS key")
    san = x509.SubjectAlternativeName.oid
    if set(extensions) != {san, SIGNING_KEY_OID, POSSESSION_OID}:
        raise IdentityError("the request must hold one SAN, one signing key and its proof, no more")
    names = extensions[san]
    assert isinstance(names, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or len(list(names)) != 1:
        raise IdentityError("the request must ask for exactly one SAN URI and no other name")
    identity = Identity.from_uri(uris[0])
    signing_key = _signing_key(extensions[SIGNING_KEY_OID])
    proof = octets(extensions[POSSESSION_OID], 64)
    try:
        signing_key.verify(proof, _possession(tls_key, identity))
    except InvalidSignature:
        raise IdentityError(
            f"{identity}: the request does not prove possession of its signing key"
        ) from None
    return VerifiedRequest(identity, tls_key, signing_key)


def signing_key_extension(key: VerifyingKey) -> x509.UnrecognizedExtension:
    """The private extension that binds an Ed25519 key to a request or certificate."""
    return x509.UnrecognizedExtension(SIGNING_KEY_OID, octet_string(key.public_bytes_raw()))


def signing_key_of(certificate: x509.Certificate) -> VerifyingKey:
    """The Ed25519 key that a leaf is bound to. Raises IdentityError if there is none."""
    try:
        extension = certificate.extensions.get_extension_for_oid(SIGNING_KEY_OID)
    except x509.ExtensionNotFound:
        raise IdentityError("the certificate is bound to no signing key") from None
    except PARSE_ERRORS as error:
        raise IdentityError(f"the certificate's extensions cannot be read: {error}") from error
    return _signing_key(extension.value)


def _possession(tls_key: ec.EllipticCurvePublicKey, identity: Identity) -> bytes:
    spki = tls_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return domain_hash("csr-possession/v1", spki, identity.uri.encode())


def _signing_key(value: x509.ExtensionType) -> VerifyingKey:
    raw = octets(value, 32)
    try:
        return VerifyingKey.from_public_bytes(raw)
    except ValueError as error:
        raise IdentityError(f"the signing key is not an Ed25519 key: {error}") from error


def octet_string(content: bytes) -> bytes:
    """The DER OCTET STRING of fewer than 128 bytes."""
    return bytes((0x04, len(content))) + content  # DER; the short form of length ends at 127


def octets(value: x509.ExtensionType, length: int) -> bytes:
    """The content of a DER OCTET STRING of exactly ``length`` < 128 bytes. Raises IdentityError."""
    raw = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    if len(raw) != length + 2 or raw[:2] != bytes((0x04, length)):
        raise IdentityError(f"a private extension does not hold {length} bytes")
    return raw[2:]
