"""How a site becomes a member: keys made here, one request, and a chain that fits both.

Every step may be taken again: the keys and the request of an earlier try are taken up as they are, since
an invitation (``claim.py``) answers the very same request alone. What is under way stands in
``enrolment.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.clock import Clock
from fedpalm.errors import (
    IdentityError,
    IntegrityError,
    InvitationError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.bundle import (
    CA,
    SIGNING_KEY,
    TLS_CHAIN,
    TLS_KEY,
    TlsIdentity,
    begin_renewal,
    create_keys,
    install_certificates,
    load_tls_identity,
    read_certificates,
)
from fedpalm.pki.files import read_public, write_public
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import COORDINATOR_NAME, Identity, Role, identity_of
from fedpalm.pki.invitation import Invitation
from fedpalm.pki.keys import key_of, read_signing_key, read_tls_key
from fedpalm.pki.profile import certificate_hash
from fedpalm.pki.request import create_request, parse_request, verify_request
from fedpalm.pki.validity import end_ms

from .config import Home, ParticipantConfig
from .files import write_durably
from .log import SiteLog
from .outgoing import PayloadKind
from .store import SiteStore


@dataclass(frozen=True)
class Progress:
    """Which invitation this home goes by, and whether it holds the answer."""

    invitation_id: str
    answered: bool

    @classmethod
    def load(cls, home: Home) -> Progress | None:
        """None if the site was not invited over the network. Raises IntegrityError."""
        try:
            values = json.loads(home.enrolment.read_bytes())
            return cls(str(values["invitation"]), bool(values["answered"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{home.enrolment} cannot be read: {error!r}",
                safe="keys and request are as they were",
                next_step=f"remove {home.enrolment} and run join again",
            ) from error

    def save(self, home: Home) -> None:
        values = {"invitation": self.invitation_id, "answered": self.answered}
        write_durably(home.enrolment, json.dumps(values).encode())


def site_identity(config: ParticipantConfig) -> Identity:
    """Who the settings say that this site is."""
    return Identity(config.federation, Role.PARTICIPANT, config.site)


def check_invitation(home: Home, invitation: Invitation, now: float) -> None:
    """Refuse an invitation that cannot be meant for this home, before anything is made or sent.

    Raises:
        InvitationError: it has expired.
        StateError: the home is another site's.
        IdentityError: it comes from another CA than the one that this site has pinned.
    """
    begun = Progress.load(home)
    asked = begun is not None and begun.invitation_id == invitation.invitation_id
    # Who has asked in time may come for the answer later; the coordinator knows until when.
    if not asked and now * 1000 >= invitation.expires_ms:
        raise InvitationError(
            f"the invitation of {invitation.site} has expired",
            safe="nothing was made or sent",
            next_step="ask the operator for a new one: fedpalm-coordinator invite",
        )
    if home.config.exists():
        config = home.load()
        ours, theirs = (config.federation, config.site), (invitation.federation, invitation.site)
        if ours != theirs:
            raise StateError(
                f"{home.path} is the home of {config.site} in {config.federation}, the invitation "
                f"is for {invitation.site} in {invitation.federation}",
                safe="nothing was changed",
                next_step="use another --home",
            )
    if not set(trusted_anchors(home, invitation)) & set(invitation.anchors):
        raise IdentityError(
            f"the invitation is of another CA than {home.tls / CA}, which this site trusts",
            safe="nothing was changed or sent",
            next_step="ask the operator why; a CA that nobody handed over to is compared by hand: "
            "fedpalm-participant request, then install",
        )


def trusted_anchors(home: Home, invitation: Invitation) -> tuple[x509.Certificate, ...]:
    """Whom this home believes: what it has pinned, or the invitation while it has pinned nothing.

    An invitation adds nothing to what is pinned, for anybody can write one; that takes a handover.
    """
    pinned = home.tls / CA
    return read_certificates(pinned) if pinned.exists() else invitation.anchors


def prepare_request(home: Home, config: ParticipantConfig) -> x509.CertificateSigningRequest:
    """The site's request: that of an earlier try, or a new one over keys that never leave the home.

    A site that holds a certificate asks with a fresh TLS key; its signing key stays, for its log is
    signed with it.

    Raises:
        KeyFileError: a key is damaged or open to others.
    """
    identity = site_identity(config)
    if home.request.exists():
        request = parse_request(read_public(home.request))
        if _is_ours(request, home, identity):
            return request
    if (home.tls / TLS_CHAIN).exists():
        request = begin_renewal(home.tls, _present_identity(home))
    else:
        if (home.tls / SIGNING_KEY).exists():
            # An earlier try ended between the keys and the request: the keys are good.
            tls_key = read_tls_key(home.tls / TLS_KEY)
            signing_key = read_signing_key(home.tls / SIGNING_KEY)
        else:
            (home.tls / TLS_KEY).unlink(missing_ok=True)
            tls_key, signing_key = create_keys(home.tls)
        request = create_request(identity, tls_key, signing_key)
    write_public(home.request, request.public_bytes(Encoding.PEM))
    return request


def install_member(
    home: Home,
    config: ParticipantConfig,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    clock: Clock,
) -> TlsIdentity:
    """Store what came, if it is for this site's name and keys, and log which certificate it is.

    Args:
        config: this home's settings from here on.
    Raises:
        IdentityError: it is for somebody else, for other keys, or does not lead to ``anchors``.
    """
    expected = site_identity(config)
    if not chain or identity_of(chain[0]) != expected:
        found = identity_of(chain[0]) if chain else "nobody"
        raise IdentityError(
            f"the certificate is for {found}, this site is {expected}",
            safe="nothing was installed",
        )
    identity = install_certificates(home.tls, chain, anchors, now=clock.now())
    if home.load() != config:
        home.save(config)
    with closing(SiteStore(home, clock=clock)) as store:
        record_certificate(store, SiteLog(store, identity.signing_key), identity)
    home.request.unlink(missing_ok=True)
    return identity


def record_certificate(store: SiteStore, log: SiteLog, identity: TlsIdentity) -> bool:
    """Log the certificate that the site goes by from here on; False if the log says so already.

    Called after every installation and again when the agent starts, so that a crash between the
    files and the log leaves no gap.
    """
    digest = certificate_hash(identity.leaf).hex()
    with store.transaction() as db:
        known = [e for e in log.entries() if e.kind is EntryKind.CERTIFICATE]
        if known and known[-1].body["certificate_hash"] == digest:
            return False
        log.append(
            db,
            EntryKind.CERTIFICATE,
            {
                "serial": f"{identity.leaf.serial_number:x}",
                "certificate_hash": digest,
                "expires_ms": end_ms(identity.leaf),
            },
        )
    return True


def record_request(
    home: Home, config: ParticipantConfig, request: x509.CertificateSigningRequest, clock: Clock
) -> None:
    """Log that the request leaves, before it does: the first thing that ever left this site."""
    content = request.public_bytes(Encoding.PEM)
    digest = hashlib.sha256(content).hexdigest()
    recipient = Identity(config.federation, Role.COORDINATOR, COORDINATOR_NAME)
    with closing(SiteStore(home, clock=clock)) as store:
        log = SiteLog(store, read_signing_key(home.tls / SIGNING_KEY))
        with store.transaction() as db:
            if any(e.body.get("payload_hash") == digest for e in log.entries()):
                return
            log.append(
                db,
                EntryKind.EGRESS,
                {
                    "payload": PayloadKind.ENROL.value,
                    "payload_hash": digest,
                    "bytes": len(content),
                    "recipient": recipient.uri,
                },
            )


def request_summary(home: Home) -> dict[str, str] | None:
    """What waits for the operator, if anything does."""
    if not home.request.exists():
        return None
    request = parse_request(read_public(home.request))
    return {"request": str(home.request), "fingerprint": fingerprint(request)}


def _is_ours(request: x509.CertificateSigningRequest, home: Home, identity: Identity) -> bool:
    """Whether the request is for this name and for keys that the home holds."""
    asked = verify_request(request)
    if asked.identity != identity:
        return False
    signing = home.tls / SIGNING_KEY
    if not signing.exists() or asked.signing_key != read_signing_key(signing).public_key():
        return False
    return key_of(home.tls / TLS_KEY, asked.tls_key) is not None


def _present_identity(home: Home) -> TlsIdentity:
    """The identity that the home holds, also if it has expired."""
    leaf = read_certificates(home.tls / TLS_CHAIN)[0]
    return load_tls_identity(home.tls, now=leaf.not_valid_before_utc.timestamp() + 1)
