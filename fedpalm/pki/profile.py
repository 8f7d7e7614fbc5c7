"""The certificates above the leaf: what a CA of ours looks like, and how one is told from others.

=========  =====================  =========================  ====================================
what       basic constraints      key usage                  names
=========  =====================  =========================  ====================================
root       CA, path length 2      cert sign, CRL sign        URI ``spiffe://<federation>``
handover   CA, path length 1      cert sign, CRL sign        the same; names the root it stands for
issuing    CA, path length 0      cert sign, CRL sign        URI ``spiffe://<federation>``
=========  =====================  =========================  ====================================

A handover is a trust anchor's key certified by the anchor before it. It lies between an issuing CA and the
older anchor in a chain, and is the reason for which a member accepts the newer one (``trust.py``).
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from ..errors import FedPalmError, IdentityError
from ..ids import federation_id
from .identity import PARSE_ERRORS
from .keys import TlsKey
from .request import HANDOVER_OID, octet_string, octets
from .signing import at_time

BACKDATE = timedelta(minutes=5)
ROOT_LIFETIME = timedelta(days=3650)
ISSUING_LIFETIME = timedelta(days=1095)
ROOT_DEPTH, HANDOVER_DEPTH, ISSUING_DEPTH = 2, 1, 0


def root_certificate(federation: str, key: TlsKey, now: float) -> x509.Certificate:
    """A self-signed trust anchor."""
    public = key.public_key()
    subject = _subject(federation, "root", public)
    start = at_time(now)
    return _ca_builder(
        federation, subject, subject, public, ROOT_DEPTH, start, start + ROOT_LIFETIME
    ).sign(key, hashes.SHA256())


def issuing_certificate(
    federation: str,
    public: ec.EllipticCurvePublicKey,
    root: x509.Certificate,
    root_key: TlsKey,
    now: float,
) -> x509.Certificate:
    """The CA that signs leaves; it ends with its root at the latest."""
    start = at_time(now)
    end = min(start + ISSUING_LIFETIME, root.not_valid_after_utc)
    return (
        _ca_builder(
            federation, _subject(federation, "issuing", public), root.subject, public,
            ISSUING_DEPTH, start, end,
        )
        .add_extension(authority_key(root), critical=False)
        .sign(root_key, hashes.SHA256())
    )  # fmt: skip


def handover_certificate(
    federation: str,
    later: x509.Certificate,
    earlier: x509.Certificate,
    earlier_key: TlsKey,
    now: float,
) -> x509.Certificate:
    """The anchor ``earlier`` says of ``later``, and of no other certificate: trust this one, too."""
    public = later.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    start = at_time(now)
    end = min(later.not_valid_after_utc, earlier.not_valid_after_utc)
    named = octet_string(certificate_hash(later))
    return (
        _ca_builder(
            federation, later.subject, earlier.subject, public, HANDOVER_DEPTH, start, end
        )
        .add_extension(authority_key(earlier), critical=False)
        .add_extension(x509.UnrecognizedExtension(HANDOVER_OID, named), critical=False)
        .sign(earlier_key, hashes.SHA256())
    )  # fmt: skip


def issuing_request(federation: str, key: TlsKey) -> x509.CertificateSigningRequest:
    """What an institution's CA is asked to sign: the issuing CA, with every extension it must have."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(federation, "issuing", key.public_key()))
        .add_extension(x509.BasicConstraints(ca=True, path_length=ISSUING_DEPTH), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(_federation_name(federation), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def handed_to(handover: x509.Certificate) -> bytes:
    """SHA-256 of the anchor that a handover names. Raises IdentityError if it names none."""
    try:
        extension = handover.extensions.get_extension_for_oid(HANDOVER_OID)
    except (*PARSE_ERRORS, x509.ExtensionNotFound):
        raise IdentityError("a handover names no trust anchor") from None
    return octets(extension.value, 32)


def certificate_hash(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER bytes."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def federation_of(ca: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The federation that a CA certificate of ours names. Raises IdentityError if it names none."""
    try:
        names = ca.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (*PARSE_ERRORS, x509.ExtensionNotFound):
        raise IdentityError("the CA certificate names no federation") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise IdentityError("the CA certificate names no federation")
    try:
        return federation_id(uris[0].removeprefix("spiffe://"))
    except FedPalmError as error:
        raise IdentityError(error.what) from None


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer``'s key has signed this, under its name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*PARSE_ERRORS, InvalidSignature):
        return False
    return True


def check_ca(certificate: x509.Certificate, federation: str, now: float) -> None:
    """Whether this is a CA certificate of the federation, valid now.

    Says nothing of who signed it.

    Raises:
        IdentityError: another federation, not a CA, not for signing certificates, not P-256, without a
            key identifier, or not valid now.
    """
    named = federation_of(certificate)
    if named != federation:
        raise IdentityError(f"the CA certificate is of federation {named!r}, not {federation!r}")
    try:
        find = certificate.extensions.get_extension_for_class
        constraints = find(x509.BasicConstraints)
        usage = find(x509.KeyUsage)
        find(x509.SubjectKeyIdentifier)
        public = certificate.public_key()
    except x509.ExtensionNotFound as error:
        raise IdentityError(f"the CA certificate has no {error.oid._name}") from None
    except PARSE_ERRORS as error:
        raise IdentityError(f"the CA certificate cannot be read: {error}") from error
    if not (constraints.critical and constraints.value.ca):
        raise IdentityError("the certificate is not one of a CA (basic constraints, critical: CA)")
    if not usage.value.key_cert_sign:
        raise IdentityError("the CA certificate's key usage is not to sign certificates")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
        public.curve, ec.SECP256R1
    ):
        raise IdentityError("the CA certificate's key is not P-256")
    _check_time(certificate, now)


def _check_time(certificate: x509.Certificate, now: float) -> None:
    """Raises IdentityError: the CA certificate is not valid at ``now``."""
    moment = at_time(now)
    for over, limit, word in (
        (moment > certificate.not_valid_after_utc, certificate.not_valid_after_utc, "ended"),
        (moment < certificate.not_valid_before_utc, certificate.not_valid_before_utc, "begins"),
    ):
        if over:
            raise IdentityError(f"the CA certificate {word} at {limit:%Y-%m-%d %H:%M} UTC")


def authority_key(parent: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The extension by which a certificate points at its issuer's key."""
    identifier = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """A CA signs certificates and nothing else, a leaf everything else."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(federation: str, rank: str, public: ec.EllipticCurvePublicKey) -> x509.Name:
    """Two CAs of one federation differ in name, so that no path builder takes one for the other."""
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    mark = hashlib.sha256(spki).hexdigest()[:8]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{rank} CA {mark}"),
        ]
    )


def _federation_name(federation: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{federation}")])


def _ca_builder(
    federation: str,
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    depth: int,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(_federation_name(federation), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
