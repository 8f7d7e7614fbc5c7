"""Signatures of the application layer, and the chain that says whose they are.

Every signature names its purpose: what is signed is the domain-separated hash of the message, so a
signature made for one purpose is never one for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from ..canonical import domain_hash
from ..errors import IdentityError, WrongRoleError
from .identity import PARSE_ERRORS, Identity, Role, identity_of
from .keys import SigningKey, VerifyingKey
from .request import signing_key_of
from .validity import end_of

SIGNATURE_BYTES = 64
MAX_INTERMEDIATES = 3


def sign(private: SigningKey, domain: str, message: bytes) -> bytes:
    """Ed25519 over the hash of ``message`` in ``domain``: 64 bytes."""
    return private.sign(domain_hash(f"signature/{domain}", message))


def verify(public: VerifyingKey, domain: str, message: bytes, signature: bytes) -> None:
    """Check what :func:`sign` made. Raises IdentityError if any of the four differs."""
    try:
        public.verify(signature, domain_hash(f"signature/{domain}", message))
    except InvalidSignature:
        raise IdentityError(
            f"the {domain} signature does not hold for this message and key"
        ) from None


def key_id(public: VerifyingKey) -> bytes:
    """32 bytes that name a signing key."""
    return domain_hash("signing-key/v1", public.public_bytes_raw())


def at_time(now: float) -> datetime:
    """Whole seconds since the Unix epoch as X.509 writes time."""
    return datetime.fromtimestamp(int(now), UTC)


def key_usage_of(role: Role) -> x509.ObjectIdentifier:
    """Extended key usage of a role: some serve, everybody else dials out."""
    if role.serves:
        return ExtendedKeyUsageOID.SERVER_AUTH
    return ExtendedKeyUsageOID.CLIENT_AUTH


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: float,
    role: Role,
    federation: str,
) -> Identity:
    """Whose certificate this is, if it leads to a pinned trust anchor and fits its use.

    Path, signatures, validity, basic constraints and key usage: pyca's RFC 5280 verifier. Role,
    federation and extended key usage: here. Revocation is the caller's question.

    Args:
        now: seconds since the Unix epoch.
        role: the only role that the caller accepts.
    Raises:
        IdentityError: expired, not yet valid, another CA, self-signed, a leaf used as a CA, too
            long a chain, another federation, or a certificate that is not of our profile.
        WrongRoleError: a good certificate of another role.
    """
    identity = identity_of(leaf)
    try:
        _check_path(identity, leaf, intermediates, anchors, at_time(now))
    except PARSE_ERRORS as error:
        raise IdentityError(f"{identity}: the certificate cannot be read: {error}") from error
    if identity.federation != federation:
        raise IdentityError(f"{identity}: not of federation {federation!r}")
    if identity.role is not role:
        raise WrongRoleError(f"{identity}: a {role.value} is needed here")
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if list(usage) != [key_usage_of(role)]:
        raise IdentityError(f"{identity}: the extended key usage does not fit a {role.value}")
    signing_key_of(leaf)
    return identity


def verify_signed_by(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    domain: str,
    message: bytes,
    signature: bytes,
    now: float,
    role: Role,
    federation: str,
) -> Identity:
    """Who signed ``message``: :func:`verify_chain`, then :func:`verify` with the leaf's key.

    Args:
        chain: the leaf first, then what lies between it and the anchor.
    Raises:
        IdentityError, WrongRoleError: as the two functions do, or the chain is empty.
    """
    if not chain:
        raise IdentityError("a signature came without its certificate")
    identity = verify_chain(chain[0], chain[1:], anchors, now=now, role=role, federation=federation)
    verify(signing_key_of(chain[0]), domain, message, signature)
    return identity


def _check_path(
    identity: Identity,
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    moment: datetime,
) -> None:
    if moment > leaf.not_valid_after_utc:
        raise IdentityError(
            f"{identity}: the certificate expired at {end_of(leaf)}",
            next_step=_after_expiry(identity),
        )
    if moment < leaf.not_valid_before_utc:
        raise IdentityError(
            f"{identity}: the certificate is not valid before "
            f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            next_step="compare the clocks of both machines",
        )
    if len(intermediates) > MAX_INTERMEDIATES:
        raise IdentityError(f"{identity}: {len(intermediates)} certificates above the leaf")
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(anchors)))
        .time(moment)
        .max_chain_depth(MAX_INTERMEDIATES)
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=_leaf_policy()
        )
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, list(intermediates))
    except (verification.VerificationError, ValueError) as error:
        raise IdentityError(
            f"{identity}: the certificate does not lead to this federation's CA: {error}",
            next_step="compare the CA fingerprint on both ends",
        ) from error


def _after_expiry(identity: Identity) -> str:
    if identity.role is Role.PARTICIPANT:
        return "ask the operator for a new invitation: fedpalm-coordinator invite"
    return "at the coordinator: fedpalm-coordinator renew"


def _leaf_policy() -> verification.ExtensionPolicy:
    """Web PKI's rules for a leaf but for its extended key usage, which depends on the role."""
    agnostic = verification.Criticality.AGNOSTIC
    return (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.SubjectAlternativeName, verification.Criticality.NON_CRITICAL, None)
        .require_present(x509.KeyUsage, verification.Criticality.CRITICAL, _signs_only)
        .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, _is_leaf)
        .require_present(x509.ExtendedKeyUsage, agnostic, None)
        .require_present(x509.AuthorityKeyIdentifier, agnostic, None)
    )


def _signs_only(
    policy: verification.Policy, certificate: x509.Certificate, usage: x509.KeyUsage
) -> None:
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise ValueError("a leaf's key usage is to sign, and not to sign certificates")


def _is_leaf(
    policy: verification.Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints
) -> None:
    if constraints.ca:
        raise ValueError("a CA certificate stands where a leaf belongs")
