"""How the benchmarks' plots look."""

from __future__ import annotations

from typing import Any

INK, FAINT = "#1d2329", "#c9ced3"
RC: dict[str, Any] = {
    "font.size": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
