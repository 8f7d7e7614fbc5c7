"""The signing keys of the other sites, remembered: what the coordinator cannot exchange unnoticed.

Certificates come from the federation's CA, which the coordinator may run. A site that kept a peer's key
when it first saw it notices a second one under the same name, and masks nothing with it before a person
here has asked that site, by telephone, which key is its own. The first sight is proved by a person alone,
who compares the keys, or one code over those of a run's roster, and confirms them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter

from fedpalm.canonical import domain_hash
from fedpalm.errors import NotFoundError, StateError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.fingerprint import same_fingerprint
from fedpalm.pki.keys import VerifyingKey
from fedpalm.pki.signing import key_id

from .log import SiteLog
from .store import SiteStore

Member = tuple[str, VerifyingKey]
"""A site's name and signing key."""


@dataclass(frozen=True)
class Peer:
    """A site's signing key.

    ``confirmed_ms`` is when a person here said that they had compared it, None before; ``other`` another
    key that came since and was not accepted.
    """

    site: str
    key: VerifyingKey
    since_ms: int
    confirmed_ms: int | None
    other: VerifyingKey | None

    @property
    def key_id(self) -> str:
        """64 hex digits to compare by telephone."""
        return key_id(self.key).hex()

    @property
    def other_key_id(self) -> str:
        """The same of the other key; empty if there is none."""
        return key_id(self.other).hex() if self.other is not None else ""


class PeerBook:
    """Rows of ``peers``."""

    def __init__(self, store: SiteStore) -> None:
        self._store = store

    def all(self) -> list[Peer]:
        """By name."""
        rows = self._store.rows("SELECT * FROM peers ORDER BY site")
        return [_peer(row) for row in rows]

    def get(self, site: str) -> Peer | None:
        return next((peer for peer in self.all() if peer.site == site), None)

    def pin(self, keys: Mapping[str, VerifyingKey]) -> dict[str, Peer]:
        """Remember the keys that sites are seen with, and give what is known of these sites.

        A site that is known by another key keeps that one; the other is kept beside it, for a person to
        look at.
        """
        known = {peer.site: peer for peer in self.all()}
        news = {
            site: key
            for site, key in keys.items()
            if site not in known or key not in (known[site].key, known[site].other)
        }
        if news:
            with self._store.transaction() as db:
                for site, key in news.items():
                    db.execute(
                        "INSERT INTO peers (site, key, since_ms) VALUES (?1, ?2, ?3) "
                        "ON CONFLICT (site) DO UPDATE SET other_key = ?2 WHERE key != ?2",
                        (site, key.public_bytes_raw(), self._store.now_ms()),
                    )
            known = {peer.site: peer for peer in self.all()}
        return {site: known[site] for site in keys}

    def accept(self, log: SiteLog, site: str, key_id: str) -> Peer:
        """A person here says that the other key is the site's own; logged.

        Args:
            key_id: of that key, as the site read it out; another one may have come meanwhile.
        Raises:
            NotFoundError: this site has seen no key of it.
            StateError: there is no other key, or it is not the one that was read out.
        """
        with self._store.transaction() as db:
            peer = self._known(db, site)
            if peer.other is None:
                raise StateError(f"{site} has come with no other key than the one that is known")
            _require_same(peer.other_key_id, key_id, f"{site} has come with the key")
            db.execute(
                "UPDATE peers SET key = other_key, other_key = NULL, since_ms = ?1, confirmed_ms = ?1 "
                "WHERE site = ?2",
                (self._store.now_ms(), site),
            )
            _log(log, db, site, peer.other_key_id)
            return self._known(db, site)

    def confirm(self, log: SiteLog, site: str, key_id: str) -> Peer:
        """A person here says that they have compared the known key with the site; logged, once.

        Args:
            key_id: as the site read it out.
        Raises:
            NotFoundError: this site has seen no key of it.
            StateError: the known key is another one.
        """
        with self._store.transaction() as db:
            peer = self._known(db, site)
            _require_same(peer.key_id, key_id, f"{site} is known by the key")
            self._confirm(db, log, [peer])
            return self._known(db, site)

    def confirm_all(
        self, log: SiteLog, own: Member, roster: Iterable[str], code: str
    ) -> list[Peer]:
        """A person here says that all other sites of a roster have read out the same code; logged.

        Returns:
            Those that had not been confirmed.
        Raises:
            NotFoundError: this site has not seen the key of each of them.
            StateError: the code is another one.
        """
        with self._store.transaction() as db:
            peers = [self._known(db, site) for site in roster if site != own[0]]
            _require_same(roster_code(own, peers), code, "the roster code here is")
            return self._confirm(db, log, peers)

    def _confirm(self, db: sqlite3.Connection, log: SiteLog, peers: list[Peer]) -> list[Peer]:
        new = [peer for peer in peers if peer.confirmed_ms is None]
        for peer in new:
            db.execute(
                "UPDATE peers SET confirmed_ms = ? WHERE site = ?",
                (self._store.now_ms(), peer.site),
            )
            _log(log, db, peer.site, peer.key_id)
        return new

    @staticmethod
    def _known(db: sqlite3.Connection, site: str) -> Peer:
        row = db.execute("SELECT * FROM peers WHERE site = ?", (site,)).fetchone()
        if row is None:
            raise NotFoundError(f"no key of site {site[:63]!r} has been seen here")
        return _peer(row)


def roster_code(own: Member, peers: Iterable[Peer]) -> str:
    """48 hex digits in groups of 4, alike at all sites of a roster that know each other by the same keys.

    One telephone conference compares everything: each site reads out its own, and all must be the same.

    Args:
        own: this site's name and signing key.
        peers: all others of the roster; sites of other runs are in no code of this one.
    """
    members = sorted([own, *((peer.site, peer.key) for peer in peers)], key=itemgetter(0))
    parts = [part for site, key in members for part in (site.encode(), key.public_bytes_raw())]
    digits = domain_hash("peer-roster/v1", *parts).hex()[:48]
    return " ".join(digits[at : at + 4] for at in range(0, 48, 4))


def _require_same(found: str, told: str, what: str) -> None:
    if not same_fingerprint(found, told):
        raise StateError(
            f"{what} {found}, which is not the one that was named",
            safe="nothing was changed",
            next_step="compare by telephone once more; if it stays another one, mask nothing together",
        )


def _log(log: SiteLog, db: sqlite3.Connection, site: str, key_id: str) -> None:
    log.append(db, EntryKind.PEER_CONFIRMED, {"site": site, "key_id": key_id})


def _peer(row: sqlite3.Row) -> Peer:
    return Peer(
        row["site"],
        _key(row["key"]),
        row["since_ms"],
        row["confirmed_ms"],
        _optional(row["other_key"]),
    )


def _key(raw: bytes) -> VerifyingKey:
    return VerifyingKey.from_public_bytes(raw)


def _optional(raw: bytes | None) -> VerifyingKey | None:
    return _key(raw) if raw is not None else None
