"""Colours and dashes of the contenders, apart in print and to the colour-blind (Okabe and Ito 2008)."""

from __future__ import annotations

INK, FAINT = "#1d2329", "#c9ced3"
STYLES: dict[str, tuple[str, str | tuple[int, tuple[float, ...]]]] = {
    "fedmh": ("#0072b2", "-"),
    "fedpalm": ("#0072b2", "-"),
    "fedavg": ("#d55e00", (0, (5.0, 2.0))),
    "local": ("#6a6a6a", (0, (1.2, 1.6))),
}
"""By contender; the one that a demo is about is drawn alike in all of them."""
