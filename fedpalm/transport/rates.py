"""How often those may call who have proved nothing yet: token buckets, per address and in all.

Source of the scheme: Turner 1986, "New directions in communications" (leaky bucket as a meter).
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections import OrderedDict
from dataclasses import dataclass

from ..clock import Clock
from ..errors import ResourceError
from .occasional import OccasionalLog

log = logging.getLogger(__name__)

_IPV6_NETWORK_BITS = 64


@dataclass(frozen=True)
class Rate:
    """``burst`` calls at once, then ``per_s`` a second."""

    burst: int
    per_s: float


PER_ADDRESS = Rate(burst=10, per_s=0.5)
IN_ALL = Rate(burst=100, per_s=20.0)
# An address is forgotten when its bucket is full again, after 20 s at most; IN_ALL admits fewer calls
# in that time than this, so nobody is forgotten early and starts with a fresh burst.
MAX_ADDRESSES = 1024


class CallRates:
    """Both limits; a call that is refused by one is not charged to the other."""

    def __init__(
        self, clock: Clock, per_address: Rate = PER_ADDRESS, in_all: Rate = IN_ALL
    ) -> None:
        self._clock, self._per_address = clock, per_address
        self._all = _Bucket(in_all, clock.now())
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._refusals = OccasionalLog(log)

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._buckets)

    def charge(self, address: str) -> None:
        """Count one call from ``address`` (``caller_address``). Raises ResourceError over a limit."""
        now, key = self._clock.now(), network_of(address)
        bucket = self._buckets.pop(key, None) or _Bucket(self._per_address, now)
        wait_s = max(bucket.wait_s(now), self._all.wait_s(now))
        if wait_s > 0:
            if not bucket.is_full:
                self._buckets[key] = bucket
            self._refusals.warning(f"too many calls from {key}, or in all")
            raise ResourceError(
                "too many calls for now",
                safe="nothing was looked at",
                next_step=f"try again in {math.ceil(wait_s)} s",
            )
        bucket.take()
        self._all.take()
        self._buckets[key] = bucket
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop the longest unused, as long as they are full again or too many."""
        while self._buckets:
            oldest = next(iter(self._buckets))
            self._buckets[oldest].wait_s(now)
            if not self._buckets[oldest].is_full and len(self._buckets) <= MAX_ADDRESSES:
                return
            del self._buckets[oldest]


def network_of(address: str) -> str:
    """What one caller can be expected to have: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "elsewhere"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, _IPV6_NETWORK_BITS), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)


class _Bucket:
    """Tokens that come at a rate; full at first."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate, self._tokens, self._at = rate, float(rate.burst), now

    @property
    def is_full(self) -> bool:
        return self._tokens >= self._rate.burst

    def wait_s(self, now: float) -> float:
        """Seconds until there is a token; 0 if there is one. A clock that was set back adds none."""
        come = max(0.0, now - self._at) * self._rate.per_s
        self._tokens, self._at = min(float(self._rate.burst), self._tokens + come), now
        return max(0.0, 1.0 - self._tokens) / self._rate.per_s

    def take(self) -> None:
        self._tokens -= 1.0
