"""The two identities in a coordinator's home: its own and its operator's, made and kept by its CA.

What is issued is registered before it is installed: nobody ever calls with a certificate that the registry
does not know.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from fedpalm.errors import IdentityError
from fedpalm.pki.authority import Authority, IpAddress
from fedpalm.pki.bundle import (
    CA,
    SIGNING_KEY,
    TLS_CHAIN,
    TLS_KEY,
    begin_renewal,
    create_keys,
    install_certificates,
    load_tls_identity,
    read_certificates,
    replace_anchors,
)
from fedpalm.pki.identity import Identity, Role, coordinator_dns_name
from fedpalm.pki.keys import read_signing_key, read_tls_key
from fedpalm.pki.profile import BACKDATE, certificate_hash, handed_to
from fedpalm.pki.request import create_request

from .config import Home
from .registry import Registry
from .store import Store

NEW_ANCHOR = "new anchor"
"""In ``operator_events``: a rotation has added a trust anchor."""


def own_folders(place: Home) -> tuple[tuple[Path, Role], ...]:
    """Where the home keeps whose keys."""
    return ((place.tls, Role.COORDINATOR), (place.operator, Role.OPERATOR))


def make_own_keys(place: Home) -> None:
    """Make the keys that are not there yet. Raises KeyFileError."""
    for folder, _ in own_folders(place):
        if not (folder / SIGNING_KEY).exists():
            (folder / TLS_KEY).unlink(missing_ok=True)
            create_keys(folder)


def found_own(
    place: Home,
    authority: Authority,
    store: Store,
    dns_names: Sequence[str],
    ip_addresses: Sequence[IpAddress],
    now: float,
) -> None:
    """Issue, register and install both first certificates; one that is there already stays.

    Raises:
        KeyFileError: the keys are missing or open to others.
        IdentityError: a DNS name that is none.
    """
    registry = Registry(store)
    for folder, role in own_folders(place):
        if (folder / TLS_CHAIN).exists():
            continue
        identity = Identity(authority.federation, role, role.value)
        keys = read_tls_key(folder / TLS_KEY), read_signing_key(folder / SIGNING_KEY)
        hosts = (dns_names, ip_addresses) if role is Role.COORDINATOR else ((), ())
        leaf = authority.issue(
            create_request(identity, *keys),
            identity,
            now=now,
            dns_names=hosts[0],
            ip_addresses=hosts[1],
        )
        registry.certificate_issued(leaf, round(now * 1000))
        install_certificates(folder, authority.chain(leaf), authority.anchors, now=now)


def renew_own(
    place: Home, authority: Authority, store: Store, now: float
) -> list[x509.Certificate]:
    """Fresh TLS keys and certificates for both, under the issuing CA of now; the leaves.

    Names, addresses and signing keys stay. A running coordinator picks them up by itself. An identity
    that has expired is renewed all the same: the CA is right here.

    Raises:
        KeyFileError, IdentityError: what is there is damaged.
    """
    registry = Registry(store)
    leaves = []
    for folder, role in own_folders(place):
        present = read_certificates(folder / TLS_CHAIN)[0]
        end = present.not_valid_after_utc.timestamp()
        identity = load_tls_identity(folder, now=min(now, end))
        if identity.identity.role is not role:
            raise IdentityError(f"{folder}: {identity.identity} has no place here")
        dns_names, addresses = _hosts(present, identity.identity)
        leaf = authority.issue(
            begin_renewal(folder, identity),
            identity.identity,
            now=now,
            dns_names=dns_names,
            ip_addresses=addresses,
        )
        registry.certificate_issued(leaf, round(now * 1000))
        install_certificates(folder, authority.chain(leaf), authority.anchors, now=now)
        leaves.append(leaf)
    return leaves


def follow_anchors(place: Home, authority: Authority) -> None:
    """Pin the CA's present anchors in both folders.

    Raises:
        IdentityError: a certificate is under an anchor that is gone; it has to be renewed first.
    """
    for folder in _behind(place, authority):
        replace_anchors(folder, authority.anchors)


def anchors_behind(place: Home, authority: Authority) -> bool:
    """Whether a rotation has changed the CA and not come as far as the identities of this home."""
    return bool(_behind(place, authority))


def _behind(place: Home, authority: Authority) -> list[Path]:
    return [
        folder
        for folder, _ in own_folders(place)
        if read_certificates(folder / CA) != authority.anchors
    ]


def newest_anchor_since(authority: Authority, store: Store) -> int:
    """Since when (Unix ms) certificates are issued under the newest anchor; 0 if there is but one."""
    newest = certificate_hash(authority.anchors[-1])
    handed = [one for one in authority.handovers if handed_to(one) == newest]
    if not handed:
        return 0
    # The handover says it to the second; the record of the rotation, if it was written, to the moment.
    handed_ms = round((handed[-1].not_valid_before_utc + BACKDATE).timestamp() * 1000)
    ((since_ms,),) = store.query(
        "SELECT max(?, coalesce(max(at_ms), 0)) FROM operator_events WHERE action = ?",
        handed_ms,
        NEW_ANCHOR,
    )
    return int(since_ms)


def sites_behind(authority: Authority, store: Store) -> list[str]:
    """Active sites that have not called yet with a certificate from after the newest anchor, by name."""
    since_ms = newest_anchor_since(authority, store)
    if not since_ms:
        return []
    rows = store.query(
        "SELECT site FROM sites WHERE state = 'active' AND NOT EXISTS (SELECT 1 FROM certificates "
        "WHERE role = 'participant' AND name = site AND issued_ms >= ? AND used_ms > 0) "
        "ORDER BY site",
        since_ms,
    )
    return [site for (site,) in rows]


def _hosts(leaf: x509.Certificate, identity: Identity) -> tuple[list[str], list[IpAddress]]:
    """The DNS names and addresses of a leaf, without the name that every coordinator has."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    fixed = coordinator_dns_name(identity.federation)
    addresses = names.get_values_for_type(x509.IPAddress)
    return (
        [name for name in names.get_values_for_type(x509.DNSName) if name != fixed],
        [ipaddress.ip_address(str(address)) for address in addresses],
    )
