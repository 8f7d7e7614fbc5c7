"""A name in a federation, and the SAN URI that carries it in a certificate.

``spiffe://<federation>/<role>/<name>``: the trust domain is the federation, the path is the role
and the site, person or host that holds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ..errors import FedPalmError, IdentityError
from ..ids import federation_id, site_id

_URI = re.compile(r"spiffe://([^/]*)/([^/]*)/([^/]*)")


# What the parsers of pyca/cryptography raise on certificates and requests that are not well formed.
PARSE_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Role(StrEnum):
    """What a certificate's bearer may be; a certificate has exactly one."""

    COORDINATOR = "coordinator"
    PARTICIPANT = "participant"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    VERIFIER = "verifier"
    """A site's own verification service, under the site's own CA; no federation has one."""
    APPLICATION = "application"
    """What may call that service."""

    @property
    def serves(self) -> bool:
        """Whether others dial it; then its certificate may name hosts."""
        return self in (Role.COORDINATOR, Role.VERIFIER)


@dataclass(frozen=True)
class Identity:
    """Federation, role and name; ``federation`` and ``name`` are DNS labels.

    Raises:
        IdentityError: on construction, for a name that is not a DNS label.
    """

    federation: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        try:
            federation_id(self.federation)
            site_id(self.name)
        except FedPalmError as error:
            raise IdentityError(error.what) from None

    @property
    def uri(self) -> str:
        """The SAN URI of this identity."""
        return f"spiffe://{self.federation}/{self.role.value}/{self.name}"

    def __str__(self) -> str:
        return self.uri

    @classmethod
    def from_uri(cls, uri: str) -> Identity:
        """Inverse of :attr:`uri`. Raises IdentityError for anything else, however close."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise IdentityError(f"{uri[:120]!r} is not spiffe://<federation>/<role>/<name>")
        federation, role, name = match.groups()
        if role not in {r.value for r in Role}:
            raise IdentityError(f"{uri[:120]!r} names no known role")
        return cls(federation, Role(role), name)


COORDINATOR_NAME = "coordinator"
"""A federation has one coordinator, and this is its name."""


def coordinator_dns_name(federation: str) -> str:
    """The name that clients demand of the certificate at whatever address they dial.

    It binds a connection to the federation, not to a host: addresses change, and NAT hides them.
    """
    return f"coordinator.{federation_id(federation)}.fedpalm.internal"


def verifier_dns_name(domain: str) -> str:
    """The name that applications demand of the certificate of a site's verification service.

    Args:
        domain: the trust domain of the site's own CA.
    """
    return f"verifier.{federation_id(domain)}.fedpalm.internal"


def server_dns_name(identity: Identity) -> str:
    """The fixed name in the certificate of a role that serves."""
    of_role = verifier_dns_name if identity.role is Role.VERIFIER else coordinator_dns_name
    return of_role(identity.federation)


def identity_of(certificate: x509.Certificate) -> Identity:
    """The one identity that a leaf certificate names.

    Only a role that serves may have host names and addresses beside it; any other kind of alternative
    name is refused for everybody, so that no reader can prefer another name than we do.

    Raises:
        IdentityError: no or several URIs, another form, or names that do not fit the role.
    """
    names = _alternative_names(certificate)
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise IdentityError(f"the certificate has {len(uris)} SAN URIs where exactly one belongs")
    identity = Identity.from_uri(uris[0])
    hosts = (x509.DNSName, x509.IPAddress)
    allowed = hosts if identity.role.serves else ()
    for name in names:
        if not isinstance(name, (x509.UniformResourceIdentifier, *allowed)):
            raise IdentityError(
                f"{identity}: {type(name).__name__} has no place in this certificate"
            )
    return identity


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise IdentityError("the certificate has no subject alternative name") from None
    except PARSE_ERRORS as error:
        raise IdentityError(f"the certificate's extensions cannot be read: {error}") from error
    return list(extension.value)
