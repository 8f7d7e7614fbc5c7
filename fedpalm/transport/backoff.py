"""How long to wait before trying again: exponential, with full jitter.

Source: Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog ("full jitter").
"""

from __future__ import annotations

import random


class Backoff:
    """Delays drawn from U(0, min(cap, base * 2**n)), n counting failures since the last reset.

    Args:
        base_s: upper end of the first delay, > 0.
        cap_s: no delay is longer, >= ``base_s``.
        rng: source of jitter; a seeded one makes tests deterministic.
    """

    def __init__(self, base_s: float, cap_s: float, rng: random.Random) -> None:
        if not 0 < base_s <= cap_s:
            raise ValueError(f"0 < base_s <= cap_s does not hold: {base_s}, {cap_s}")
        self._base_s, self._cap_s, self._rng = base_s, cap_s, rng
        self._ceiling_s = base_s

    def next_delay_s(self) -> float:
        """The delay after one more failure."""
        delay = self._rng.uniform(0.0, self._ceiling_s)
        self._ceiling_s = min(self._cap_s, 2 * self._ceiling_s)
        return delay

    def reset(self) -> None:
        """It worked: begin at the base again."""
        self._ceiling_s = self._base_s
