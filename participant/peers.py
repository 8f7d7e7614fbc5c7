"""The signing keys of the other sites, remembered: what the coordinator cannot exchange unnoticed.

Certificates come from the federation's CA, which the coordinator may run. A site that kept a peer's key
when it first saw it notices a second one under the same name, and masks nothing with it before a person
here has asked that site, by telephone, which key is its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from fedpalm.errors import NotFoundError, StateError
from fedpalm.pki.keys import VerifyingKey
from fedpalm.pki.signing import key_id

from .store import SiteStore


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

    def accept(self, site: str, key_id: str) -> Peer:
        """A person here says that the other key is the site's own.

        Args:
            key_id: of that key, as the site read it out; another one may have come meanwhile.
        Raises:
            NotFoundError: this site has seen no key of it.
            StateError: there is no other key, or it is not the one that was read out.
        """
        with self._store.transaction() as db:
            row = db.execute("SELECT * FROM peers WHERE site = ?", (site,)).fetchone()
            if row is None:
                raise NotFoundError(f"no key of site {site[:63]!r} has been seen here")
            if row["other_key"] is None:
                raise StateError(f"{site} has come with no other key than the one that is known")
            other = _peer(row).other_key_id
            if "".join(key_id.split()).lower() != "".join(other.split()):
                raise StateError(
                    f"{site} has come with the key {other}, which is not the one that was named",
                    safe="the known key stays",
                    next_step="read the id to that site by telephone once more",
                )
            db.execute(
                "UPDATE peers SET key = other_key, other_key = NULL, since_ms = ? WHERE site = ?",
                (self._store.now_ms(), site),
            )
        accepted = self.get(site)
        assert accepted is not None
        return accepted


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
