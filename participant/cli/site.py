"""Opening a site's home for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpalm.clock import SystemClock
from fedpalm.errors import IdentityError, StateError
from fedpalm.pki.bundle import load_tls_identity
from fedpalm.pki.identity import Identity, Role

from ..config import Home, ParticipantConfig
from ..desk import Desk
from ..log import SiteLog
from ..store import SiteStore


@contextmanager
def open_site(home: Path) -> Iterator[tuple[ParticipantConfig, Desk]]:
    """Configuration, store, log and identity of a home.

    Raises:
        ConfigError, KeyFileError, IdentityError, IntegrityError: what is missing or wrong, and what
            to do.
    """
    place = Home(home)
    config = place.load()
    if not (place.tls / "tls.pem").exists():
        raise StateError(
            f"{home}: this site has asked to join, but holds no certificate yet",
            next_step=f"send {place.request} to the operator, then: fedpalm-participant join "
            f"--install BUNDLE --home {home}",
        )
    clock = SystemClock()
    identity = load_tls_identity(place.tls, now=clock.now())
    expected = Identity(config.federation, Role.PARTICIPANT, config.site)
    if identity.identity != expected:
        raise IdentityError(
            f"{place.tls} is the identity of {identity.identity}, participant.toml says {expected}"
        )
    store = SiteStore(place, clock=clock)
    try:
        yield config, Desk(store, SiteLog(store, identity.signing_key), identity)
    finally:
        store.close()
