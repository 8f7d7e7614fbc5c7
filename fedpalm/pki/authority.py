"""The federation's certificate authority: a root that can stay offline and an issuing CA under it.

The profile, in full (``certs/README.md`` tells it in words):

=========  =====================  =========================  ====================================
what       basic constraints      key usage                  extended key usage, names
=========  =====================  =========================  ====================================
root       CA, path length 1      cert sign, CRL sign        URI ``spiffe://<federation>``
issuing    CA, path length 0      cert sign, CRL sign        URI ``spiffe://<federation>``
leaf       not a CA               digital signature          server (coordinator) or client auth;
                                                             one URI; coordinator: DNS, IP
=========  =====================  =========================  ====================================

All keys are P-256; serials are random; everything is backdated by five minutes for clock skew.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ..errors import FedPalmError, IdentityError
from ..ids import federation_id
from .bundle import chain_from_pem, pem_of
from .files import read_public, write_public
from .identity import PARSE_ERRORS, Identity, Role, coordinator_dns_name
from .keys import TlsKey, new_tls_key, read_tls_key, write_private_key
from .request import signing_key_extension, subject_name, verify_request
from .signing import at_time, key_usage_of

BACKDATE = timedelta(minutes=5)
ROOT_LIFETIME = timedelta(days=3650)
ISSUING_LIFETIME = timedelta(days=1095)
LEAF_LIFETIME = timedelta(days=90)
MAX_LEAF_LIFETIME = timedelta(days=398)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Authority:
    """What it takes to issue leaves: both CA certificates and the issuing key; no root key."""

    federation: str
    root: x509.Certificate
    issuing: x509.Certificate
    issuing_key: TlsKey = field(repr=False)

    def issue(
        self,
        csr: x509.CertificateSigningRequest,
        identity: Identity,
        *,
        now: float,
        lifetime: timedelta = LEAF_LIFETIME,
        dns_names: Sequence[str] = (),
        ip_addresses: Sequence[IpAddress] = (),
    ) -> x509.Certificate:
        """Issue the leaf that the operator means, to the keys of the request.

        The request's name must be the operator's: a newcomer does not choose who it is. The leaf
        ends with the issuing CA at the latest.

        Args:
            identity: the name that the operator approved.
            now: seconds since the Unix epoch.
            dns_names, ip_addresses: where a coordinator is reached, beside the fixed name that
                clients demand (``coordinator_dns_name``); nobody else has any.
        Raises:
            IdentityError: a bad request, another name or federation, host names that do not fit the
                role, a lifetime out of bounds, or an issuing CA that has expired.
        """
        request = verify_request(csr)
        if request.identity != identity:
            raise IdentityError(
                f"the request asks for {request.identity}, not for {identity}",
                safe="nothing was issued",
            )
        if identity.federation != self.federation:
            raise IdentityError(f"{identity}: not of federation {self.federation!r}")
        if identity.role is not Role.COORDINATOR and (dns_names or ip_addresses):
            raise IdentityError(f"{identity}: host names and addresses belong to a coordinator")
        if not timedelta(0) < lifetime <= MAX_LEAF_LIFETIME:
            raise IdentityError(
                f"a leaf lives at most {MAX_LEAF_LIFETIME.days} days, not {lifetime}"
            )
        start = at_time(now)
        if start >= self.issuing.not_valid_after_utc:
            raise IdentityError(
                f"the issuing CA expired at {self.issuing.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
                next_step="make a new issuing CA with the root key",
            )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        try:
            if identity.role is Role.COORDINATOR:
                dns_names = [coordinator_dns_name(self.federation), *dns_names]
            names += [x509.DNSName(name) for name in dns_names]
        except ValueError as error:
            raise IdentityError(f"{dns_names!r}: not DNS names: {error}") from error
        names += [x509.IPAddress(address) for address in ip_addresses]
        return (
            x509.CertificateBuilder()
            .subject_name(subject_name(identity))
            .issuer_name(self.issuing.subject)
            .public_key(request.tls_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - BACKDATE)
            .not_valid_after(min(start + lifetime, self.issuing.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([key_usage_of(identity.role)]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(signing_key_extension(request.signing_key), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(request.tls_key), critical=False
            )
            .add_extension(_authority_key(self.issuing), critical=False)
            .sign(self.issuing_key, hashes.SHA256())
        )


def create_authority(federation: str, now: float) -> tuple[Authority, TlsKey]:
    """A new CA for a federation, and its root key, which needs to be kept but not to be online.

    Raises:
        IdentityError: ``federation`` is not a DNS label.
    """
    try:
        federation_id(federation)
    except FedPalmError as error:
        raise IdentityError(error.what) from None
    root_key, issuing_key = new_tls_key(), new_tls_key()
    root = _ca_certificate(federation, "root", root_key.public_key(), root_key, None, now)
    issuing = _ca_certificate(federation, "issuing", issuing_key.public_key(), root_key, root, now)
    return Authority(federation, root, issuing, issuing_key), root_key


def save_authority(folder: Path, authority: Authority, root_key: TlsKey) -> None:
    """Write ``root.key``, ``root.pem``, ``issuing.key``, ``issuing.pem``; no key is replaced.

    ``root.key`` may (and should) then be moved to a medium that stays offline.

    Raises:
        KeyFileError: a CA is there already, or the folder is open to others or not writable.
    """
    write_private_key(folder / "root.key", root_key)
    write_private_key(folder / "issuing.key", authority.issuing_key)
    write_public(folder / "root.pem", pem_of([authority.root]))
    write_public(folder / "issuing.pem", pem_of([authority.issuing]))


def load_authority(folder: Path) -> Authority:
    """Load what is needed to issue; the root key need not be there.

    Raises:
        KeyFileError: a file is missing, damaged or open to others.
        IdentityError: key and certificates do not belong together.
    """
    issuing_key = read_tls_key(folder / "issuing.key")
    (root, *_), (issuing, *_) = (
        chain_from_pem(read_public(folder / name), str(folder / name))
        for name in ("root.pem", "issuing.pem")
    )
    if issuing.public_key() != issuing_key.public_key():
        raise IdentityError(f"{folder}: issuing.pem is not the certificate of issuing.key")
    try:
        issuing.verify_directly_issued_by(root)
    except (*PARSE_ERRORS, InvalidSignature) as error:
        raise IdentityError(f"{folder}: issuing.pem was not issued by root.pem") from error
    return Authority(federation_of(root), root, issuing, issuing_key)


def federation_of(ca: x509.Certificate) -> str:
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


def _ca_certificate(
    federation: str,
    rank: str,
    public_key: ec.EllipticCurvePublicKey,
    signer: TlsKey,
    parent: x509.Certificate | None,
    now: float,
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{rank} CA"),
        ]
    )
    start = at_time(now)
    end = start + (ISSUING_LIFETIME if parent else ROOT_LIFETIME)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.subject if parent else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(end)
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=0 if parent else 1), critical=True
        )
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{federation}")]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if parent:
        builder = builder.add_extension(_authority_key(parent), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _authority_key(parent: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
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
