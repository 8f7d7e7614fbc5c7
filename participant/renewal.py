"""Keeping a membership: fresh certificates before the old ones end, new trust anchors as they come.

A renewal makes a fresh TLS key, asks for a certificate under the one in force, and installs both at once
(``fedpalm/pki/bundle.py``); the old certificate stays good at the coordinator for an overlap. Nothing
here stops the site's work: what does not succeed is told, and tried again later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.clock import Clock
from fedpalm.errors import DeadlineError, FedPalmError, IdentityError, UnavailableError
from fedpalm.pki.bundle import (
    TlsIdentity,
    begin_renewal,
    install_certificates,
    replace_anchors,
)
from fedpalm.pki.identity import identity_of
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.signing import verify_chain
from fedpalm.pki.trust import TrustBundle, accept_trust
from fedpalm.pki.validity import end_of

from .config import Home
from .enrolment import record_certificate
from .log import SiteLog
from .reporter import Reporter
from .store import SiteStore

CHECK_S = 60.0
LOOK_S = 1.0
TRUST_S = 3600.0
RETRY_S = 3600.0
WARN_S = 14 * 86400.0
WARN_AGAIN_S = 86400.0

Chain = tuple[x509.Certificate, ...]


class RenewalLink(Protocol):
    """What is used of :class:`participant.link.Link`."""

    async def fetch_trust(self) -> TrustBundle: ...

    async def renew(self, csr_pem: bytes) -> tuple[Chain, TrustBundle]: ...


class Renewal:
    """The certificates of one home, kept from one connection to the next.

    Args:
        look_s: how often the files are looked at, for what another process installs.
    """

    def __init__(
        self,
        home: Home,
        live: LiveIdentity,
        clock: Clock,
        report: Reporter,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._home, self._live, self._clock, self._report = home, live, clock, report
        self._look_s = look_s
        self._not_before = 0.0
        self._warn_after = 0.0

    async def keep(self, link: RenewalLink) -> None:
        """Watch over the identity for as long as a connection lasts.

        Returns when the identity or the anchors on disk are no longer those that the connection was
        made with, whoever has changed them: connect anew.

        Raises:
            UnavailableError, DeadlineError: the connection is gone.
        """
        began = self._live.current
        check_at = trust_at = 0.0
        while self._live.current is began:
            now = time.monotonic()
            if now >= trust_at:
                trust_at = now + TRUST_S
                await self._follow_trust(link)
            if now >= check_at and self._live.current is began:
                check_at = now + CHECK_S
                await self._renew_if_due(link)
                self._warn()
            if self._live.current is began:
                await asyncio.sleep(self._look_s)

    async def renew(self, link: RenewalLink) -> TlsIdentity:
        """Renew now, and log the new certificate.

        Raises:
            IdentityError: what came is not for this site's name and keys, or not under its anchors.
            FedPalmError: what the coordinator answers.
        """
        before = self._live.current
        csr = begin_renewal(self._home.tls, before)
        chain, trust = await link.renew(csr.public_bytes(Encoding.PEM))
        now = self._clock.now()
        if (
            not chain
            or identity_of(chain[0]) != before.identity
            or chain[0].public_key() != csr.public_key()
        ):
            raise IdentityError(
                f"the certificate that came is not for {before.identity} and its fresh key",
                safe="the present one stays in force",
            )
        pinned = self._live.current.anchors  # another process may have pinned a newer one meanwhile
        anchors = accept_trust(pinned, trust, before.identity.federation, now)
        renewed = install_certificates(self._home.tls, chain, anchors, now=now)
        self._record(renewed)
        return renewed

    async def _follow_trust(self, link: RenewalLink) -> None:
        try:
            offered = await link.fetch_trust()
            present = self._live.current
            anchors = accept_trust(
                present.anchors, offered, present.identity.federation, self._clock.now()
            )
            if anchors != present.anchors:
                replace_anchors(self._home.tls, anchors)
                self._report.line(f"the federation's trust anchors are {len(anchors)} now")
        except (UnavailableError, DeadlineError):
            raise
        except FedPalmError as error:
            self._report.line(f"the trust anchors stay as they are: {error.what}")

    async def _renew_if_due(self, link: RenewalLink) -> None:
        now = self._clock.now()
        present = self._live.current
        if now < self._not_before or not renewal_is_due(present, now):
            return
        self._not_before = now + min(RETRY_S, _lifetime_s(present.leaf) / 20)
        try:
            renewed = await self.renew(link)
        except (UnavailableError, DeadlineError):
            self._not_before = 0.0
            raise
        except FedPalmError as error:
            self._report.line(f"the certificate could not be renewed: {error.what}")
            return
        self._report.line(f"certificate renewed: it lasts until {end_of(renewed.leaf)}")

    def _warn(self) -> None:
        now = self._clock.now()
        left_s = seconds_left(self._live.current.leaf, now)
        if left_s < WARN_S and now >= self._warn_after:
            self._warn_after = now + WARN_AGAIN_S
            self._report.line(f"warning: {expiry_words(self._live.current.leaf, now)}")

    def _record(self, identity: TlsIdentity) -> None:
        with closing(SiteStore(self._home, clock=self._clock)) as store:
            record_certificate(store, SiteLog(store, identity.signing_key), identity)


def renewal_is_due(identity: TlsIdentity, now: float) -> bool:
    """Less than a third of the lifetime is left, or the CA has moved on to a newer anchor."""
    if seconds_left(identity.leaf, now) < _lifetime_s(identity.leaf) / 3:
        return True
    return not _leads_to(identity, identity.anchors[-1:], now)


def seconds_left(leaf: x509.Certificate, now: float) -> float:
    """Seconds until a certificate ends; negative when it has."""
    return leaf.not_valid_after_utc.timestamp() - now


def expiry_words(leaf: x509.Certificate, now: float) -> str:
    """What is to be said about the end of a certificate; empty while there is time."""
    left_s = seconds_left(leaf, now)
    if left_s <= 0:
        return (
            f"this site's certificate ended at {end_of(leaf)}; it cannot renew itself any more: ask "
            "the operator for a new invitation (or, by files, run request and install)"
        )
    if left_s < WARN_S:
        return (
            f"this site's certificate ends at {end_of(leaf)}, in {_span(left_s)}, and has not been "
            "renewed: run fedpalm-participant renew, or look why it fails"
        )
    return ""


def _span(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{int(seconds // 86400)} days"
    if seconds >= 2 * 3600:
        return f"{int(seconds // 3600)} hours"
    return f"{max(1, int(seconds // 60))} min"


def _lifetime_s(leaf: x509.Certificate) -> float:
    return (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()


def _leads_to(identity: TlsIdentity, anchors: Sequence[x509.Certificate], now: float) -> bool:
    who = identity.identity
    try:
        verify_chain(
            identity.leaf,
            identity.chain[1:],
            anchors,
            now=now,
            role=who.role,
            federation=who.federation,
        )
    except IdentityError:
        return False
    return True
