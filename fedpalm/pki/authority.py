"""The federation's certificate authority: an issuing CA under a root that can stay offline.

The root is its own trust anchor. An institution's CA may take its place: then the issuing CA, which that
CA has signed, is the anchor, and there is no root here. ``profile.py`` has the profile of CAs; a leaf:

=======================  ==============================================================
basic constraints        not a CA
key usage                digital signature
extended key usage       server authentication (coordinator, verifier) or client authentication
names                    one identity URI; a server also DNS names and IP addresses
=======================  ==============================================================

All keys are P-256; serials are random; everything is backdated by five minutes for clock skew.

==================  ====  =====================================================================
file                mode  content
==================  ====  =====================================================================
root.key            0600  belongs offline; issuing does not need it; none under an external CA
issuing.key         0600  signs leaves
issuing.pem         0644  the issuing CA's certificate
anchors.pem         0644  the trust anchors, oldest first
handovers.pem       0644  what leads from each anchor to the next; absent before there are two
==================  ====  =====================================================================

A key that is about to replace another lies beside it as ``*.next.key``; the certificate that replaces
``issuing.pem`` puts it in force, and whoever loads the CA next gives it its name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ..errors import FedPalmError, IdentityError
from ..ids import federation_id
from .bundle import pem_of, read_certificates
from .files import locked, make_private_folder, write_public
from .identity import Identity, server_dns_name
from .keys import TlsKey, new_tls_key, take_key_of, write_private_key
from .profile import (
    BACKDATE,
    authority_key,
    federation_of,
    is_issued_by,
    issuing_certificate,
    key_usage,
    root_certificate,
)
from .request import signing_key_extension, subject_name, verify_request
from .signing import at_time, key_usage_of
from .trust import TrustBundle
from .validity import end_of

LEAF_LIFETIME = timedelta(days=90)
MAX_LEAF_LIFETIME = timedelta(days=398)
ROOT_KEY, ISSUING_KEY = "root.key", "issuing.key"
ISSUING, ANCHORS, HANDOVERS = "issuing.pem", "anchors.pem", "handovers.pem"

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Authority:
    """What it takes to issue leaves, and what members are told to trust; no root key.

    Args:
        anchors: trust anchors, oldest first; the issuing CA is under the last one, or is it.
    """

    federation: str
    anchors: tuple[x509.Certificate, ...]
    handovers: tuple[x509.Certificate, ...]
    issuing: x509.Certificate
    issuing_key: TlsKey = field(repr=False, compare=False)

    @property
    def trust(self) -> TrustBundle:
        """What members are handed."""
        return TrustBundle(self.anchors, self.handovers)

    @property
    def external(self) -> bool:
        """Whether an institution's CA has signed the issuing CA, and there is no root here."""
        return self.issuing in self.anchors

    @property
    def settled(self) -> bool:
        """Whether the issuing CA is under the newest anchor, or is it: if not, a rotation is halfway."""
        newest = self.anchors[-1]
        return self.issuing == newest or is_issued_by(self.issuing, newest)

    def chain(self, leaf: x509.Certificate) -> tuple[x509.Certificate, ...]:
        """A leaf with what leads to every anchor that is in force.

        While an own root is being replaced that includes its handover, so that whoever still pins the
        older root alone follows the chain, too.
        """
        return (leaf, self.issuing, *(h for h in self.handovers if self._bridges(h)))

    def _bridges(self, handover: x509.Certificate) -> bool:
        # An external anchor is a CA of path length 0: no certificate of a CA can lie under it.
        return not self.external and (
            handover.public_key() == self.anchors[-1].public_key()
            and any(is_issued_by(handover, anchor) for anchor in self.anchors[:-1])
        )

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
            dns_names, ip_addresses: where a server is reached, beside the fixed name that clients
                demand (``server_dns_name``); nobody else has any.
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
        if not identity.role.serves and (dns_names or ip_addresses):
            raise IdentityError(f"{identity}: host names and addresses belong to a server")
        if not timedelta(0) < lifetime <= MAX_LEAF_LIFETIME:
            raise IdentityError(
                f"a leaf lives at most {MAX_LEAF_LIFETIME.days} days, not {lifetime}"
            )
        start = at_time(now)
        if start >= self.issuing.not_valid_after_utc:
            raise IdentityError(
                f"the issuing CA expired at {end_of(self.issuing)}",
                next_step="make a new issuing CA: fedpalm-coordinator ca rotate",
            )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        try:
            if identity.role.serves:
                dns_names = [server_dns_name(identity), *dns_names]
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
            .add_extension(key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([key_usage_of(identity.role)]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(signing_key_extension(request.signing_key), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(request.tls_key), critical=False
            )
            .add_extension(authority_key(self.issuing), critical=False)
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
    root = root_certificate(federation, root_key, now)
    issuing = issuing_certificate(federation, issuing_key.public_key(), root, root_key, now)
    return Authority(federation, (root,), (), issuing, issuing_key), root_key


def save_authority(folder: Path, authority: Authority, root_key: TlsKey) -> None:
    """Write a new CA; no key is replaced.

    ``root.key`` may (and should) then be moved to a medium that stays offline.

    Raises:
        KeyFileError: a CA is there already, or the folder is open to others or not writable.
    """
    make_private_folder(folder)
    write_private_key(folder / ROOT_KEY, root_key)
    write_private_key(folder / ISSUING_KEY, authority.issuing_key)
    write_public(folder / ANCHORS, pem_of(authority.anchors))
    write_public(folder / ISSUING, pem_of([authority.issuing]))


def load_authority(folder: Path) -> Authority:
    """Load what is needed to issue; the root key need not be there.

    Raises:
        KeyFileError: a file is missing, damaged or open to others.
        IdentityError: key and certificates do not belong together.
    """
    with locked(folder):
        return load_locked(folder)


def load_trust(folder: Path) -> TrustBundle:
    """The trust anchors alone, for which no key is read. Raises KeyFileError."""
    with locked(folder):
        return _trust(folder)


def load_locked(folder: Path) -> Authority:
    """:func:`load_authority` for a caller that holds the folder's lock."""
    trust = _trust(folder)
    issuing = read_certificates(folder / ISSUING)[0]
    issuing_key = take_key_of(folder / ISSUING_KEY, issuing.public_key())
    if issuing_key is None:
        raise IdentityError(f"{folder}: {ISSUING} is not the certificate of {ISSUING_KEY}")
    federation = federation_of(issuing)
    if any(federation_of(anchor) != federation for anchor in trust.anchors):
        raise IdentityError(f"{folder}: {ISSUING} and {ANCHORS} are of several federations")
    if issuing not in trust.anchors and not any(is_issued_by(issuing, a) for a in trust.anchors):
        raise IdentityError(f"{folder}: {ISSUING} was issued by none of {ANCHORS}")
    return Authority(federation, trust.anchors, trust.handovers, issuing, issuing_key)


def _trust(folder: Path) -> TrustBundle:
    handovers = folder / HANDOVERS
    return TrustBundle(
        read_certificates(folder / ANCHORS),
        read_certificates(handovers) if handovers.exists() else (),
    )
