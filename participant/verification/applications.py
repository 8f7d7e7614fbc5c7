"""Which applications may call this site's verification service: a small CA of the site's own.

``applications/`` in the home holds ``ca/`` (:mod:`fedpalm.pki.authority`) and ``server/``, the service's
identity. The CA's trust domain is the site's alone: nothing of the federation, and no other site, is a
caller here. A certificate counts as long as it is in the table ``applications`` and not revoked there.
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from fedpalm.errors import ConfigError, NotFoundError, RevokedError, StateError
from fedpalm.pki.authority import Authority, create_authority, load_authority, save_authority
from fedpalm.pki.bundle import (
    TLS_CHAIN,
    begin_renewal,
    create_keys,
    install_certificates,
    load_tls_identity,
    read_certificates,
)
from fedpalm.pki.files import make_private_folder
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role, verifier_dns_name
from fedpalm.pki.request import create_request
from fedpalm.pki.validity import end_ms

from ..config import ParticipantConfig
from ..store import SiteStore

SERVER_NAME = "verifier"
DEFAULT_DAYS = 365
_SERVER_DAYS, _RENEW_DAYS = 90, 30
_DAY_MS = 86_400_000
_DOMAIN_ENDS = "-verification"
_LOOPBACK = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))


@dataclass(frozen=True)
class Application:
    """A certificate that was issued to an application."""

    name: str
    fingerprint: str
    issued_ms: int
    expires_ms: int
    revoked_ms: int | None

    def to_json(self) -> dict[str, object]:
        return dict(vars(self))


class Applications:
    """The site's CA for its applications, and the list of those that may call."""

    def __init__(self, config: ParticipantConfig, store: SiteStore) -> None:
        self._store, self._folder = store, store.home.applications
        self.domain = trust_domain(config.site)

    @property
    def server_folder(self) -> Path:
        return self._folder / "server"

    @property
    def server_name(self) -> str:
        """What a client must demand of the service's certificate, whatever address it dials."""
        return verifier_dns_name(self.domain)

    def allow(self, name: str, out: Path, *, days: int = DEFAULT_DAYS) -> Application:
        """Make the keys and certificate of an application, in a new folder that it can be given.

        Raises:
            StateError: it has a certificate that is in force.
            ConfigError: the folder exists.
            IdentityError: the name is no DNS label.
            KeyFileError: the folder cannot be written.
        """
        identity, now = Identity(self.domain, Role.APPLICATION, name), self._store.clock.now()
        if any(one.name == name and self._in_force(one) for one in self.all()):
            raise StateError(
                f"{name} may call already",
                next_step=f"fedpalm-participant serve revoke {name}, then allow it again",
            )
        if out.exists():
            raise ConfigError(f"{out}: exists already", next_step="choose another --out")
        authority = self._authority()
        make_private_folder(out)
        request = create_request(identity, *create_keys(out))
        leaf = authority.issue(request, identity, now=now, lifetime=timedelta(days=days))
        # The row first: a certificate that nobody knows of would be refused, not the other way round.
        self._note(name, leaf)
        install_certificates(out, authority.chain(leaf), authority.anchors, now=now)
        return next(one for one in self.all() if one.fingerprint == fingerprint(leaf))

    def revoke(self, name: str) -> int:
        """Let an application call no more, in open calls neither; how many certificates it had.

        Raises:
            NotFoundError: it has none in force.
        """
        with self._store.transaction() as db:
            done = db.execute(
                "UPDATE applications SET revoked_ms = ? WHERE name = ? AND revoked_ms IS NULL",
                (self._store.now_ms(), name),
            )
            if not done.rowcount:
                raise NotFoundError(
                    f"no application {name!r} may call",
                    next_step="fedpalm-participant serve applications lists them",
                )
            return done.rowcount

    def all(self) -> list[Application]:
        """Every certificate that was issued, oldest first."""
        rows = self._store.rows("SELECT * FROM applications ORDER BY issued_ms, rowid")
        return [
            Application(
                row["name"],
                row["fingerprint"],
                row["issued_ms"],
                row["expires_ms"],
                row["revoked_ms"],
            )
            for row in rows
        ]

    def require_allowed(self, certificate_fingerprint: str) -> None:
        """Raises RevokedError: no certificate of this fingerprint is in force."""
        row = self._store.row(
            "SELECT 1 FROM applications WHERE fingerprint = ? AND revoked_ms IS NULL",
            certificate_fingerprint,
        )
        if row is None:
            raise RevokedError(
                "this application may not call, or no more",
                safe="nothing was looked at",
                next_step="have somebody at the site allow it: fedpalm-participant serve allow NAME",
            )

    def renew_server(self) -> None:
        """Make the service's identity, or a new certificate where a third of the old one's time is left.

        Raises:
            KeyFileError, IdentityError: a file is damaged, or the CA has ended.
        """
        folder, now = self.server_folder, self._store.clock.now()
        identity = Identity(self.domain, Role.VERIFIER, SERVER_NAME)
        authority = self._authority()
        if not (folder / TLS_CHAIN).exists():
            make_private_folder(folder)
            request = create_request(identity, *create_keys(folder))
        elif self._lasts(folder, now):
            return
        else:
            # What has ended can be renewed here, too: the CA is at hand.
            leaf = read_certificates(folder / TLS_CHAIN)[0]
            then = min(now, leaf.not_valid_after_utc.timestamp() - 1)
            request = begin_renewal(folder, load_tls_identity(folder, now=then))
        leaf = authority.issue(
            request,
            identity,
            now=now,
            lifetime=timedelta(days=_SERVER_DAYS),
            dns_names=["localhost"],
            ip_addresses=_LOOPBACK,
        )
        install_certificates(folder, authority.chain(leaf), authority.anchors, now=now)

    # --- inside -----------------------------------------------------------------------------------

    def _authority(self) -> Authority:
        """The CA, made at first need."""
        folder = self._folder / "ca"
        if not folder.exists():
            # Whole under another name first: half a CA would be in the way for ever.
            made = self._folder / f"ca.{secrets.token_hex(4)}"
            make_private_folder(self._folder)
            save_authority(made, *create_authority(self.domain, self._store.clock.now()))
            made.rename(folder)
        return load_authority(folder)

    def _note(self, name: str, leaf: x509.Certificate) -> None:
        with self._store.transaction() as db:
            db.execute(
                "INSERT INTO applications VALUES (?, ?, ?, ?, ?, NULL)",
                (
                    f"{leaf.serial_number:x}",
                    name,
                    fingerprint(leaf),
                    self._store.now_ms(),
                    end_ms(leaf),
                ),
            )

    def _in_force(self, one: Application) -> bool:
        return one.revoked_ms is None and one.expires_ms > self._store.now_ms()

    def _lasts(self, folder: Path, now: float) -> bool:
        leaf = read_certificates(folder / TLS_CHAIN)[0]
        return end_ms(leaf) - now * 1000 > _RENEW_DAYS * _DAY_MS


def trust_domain(site: str) -> str:
    """The DNS label of the site's own CA; no federation's, since its certificates are of other CAs."""
    return site[: 63 - len(_DOMAIN_ENDS)].rstrip("-") + _DOMAIN_ENDS
