"""Shamir's secret sharing of 32-byte secrets over a prime field just above 2**256.

Any t shares give the secret, fewer tell nothing. Source: Shamir 1979. Shares are points at the
roster's positions 1 to n; the secret is the value at 0.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

from ..errors import ProtocolError

PRIME = 2**256 + 297
"""The smallest prime above 2**256: every 32-byte secret is an element."""
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, threshold: int, sites: int, *, below: Callable[[int], int] = secrets.randbelow
) -> list[bytes]:
    """n shares of SHARE_BYTES bytes, of which any ``threshold`` give ``secret`` (32 bytes).

    Args:
        below: uniform integer in [0, bound); a CSPRNG but in tests.
    Raises:
        ValueError: another length, or not 1 <= threshold <= sites.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= sites:
        raise ValueError("a secret of 32 bytes and 1 <= threshold <= sites")
    polynomial = [below(PRIME) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "big")
    shares = []
    for position in range(1, sites + 1):
        value = 0
        for coefficient in polynomial:
            value = (value + coefficient) * position % PRIME
        shares.append(((value + constant) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


def is_share(share: bytes) -> bool:
    """Whether ``share`` is an element of the field in its one encoding."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME


class Interpolation:
    """Opens secrets from shares at the same positions; the coefficients are computed once.

    Args:
        positions: exactly ``threshold`` distinct positions from 1.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        if len(set(positions)) != len(positions) or min(positions, default=0) < 1:
            raise ValueError("distinct positions from 1")
        self.positions = tuple(positions)
        self._weights = {at: _weight_at_zero(at, self.positions) for at in self.positions}

    def open(self, shares: Mapping[int, bytes]) -> bytes:
        """The secret whose shares these are, by position; further positions are left out.

        Raises:
            ProtocolError: a share is missing or malformed, or they are shares of no 32-byte secret.
        """
        value = 0
        for at in self.positions:
            share = shares.get(at, b"")
            if not is_share(share):
                raise ProtocolError(f"the share at position {at} is missing or malformed")
            value += self._weights[at] * int.from_bytes(share, "big")
        value %= PRIME
        if value >> 256:
            raise ProtocolError("these shares do not belong to one secret")
        return value.to_bytes(SECRET_BYTES, "big")


def _weight_at_zero(at: int, positions: Sequence[int]) -> int:
    """Lagrange's coefficient of ``at`` for the value at 0."""
    above = below = 1
    for other in positions:
        if other != at:
            above = above * other % PRIME
            below = below * (other - at) % PRIME
    return above * pow(below, -1, PRIME) % PRIME
