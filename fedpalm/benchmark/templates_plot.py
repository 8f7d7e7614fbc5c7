"""Scores of mated and non-mated pairs across systems, and D of each score: figures of :mod:`.templates`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plot_style import INK, RC

MATED, OTHERS = "#0072b2", "#d55e00"  # Okabe and Ito 2008
_RC: Any = RC
_TITLES = {
    "fresh_keys": "another key in every system",
    "own_keys": "the same key in two systems: what not to do",
}


def plot_linkability(found: Mapping[str, Any], path: Path) -> None:
    """Both distributions of keys side by side, as ``path`` (its suffix decides)."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, 2), _TITLES.items(), strict=True):
            _curves(axes, found["curves"][name])
            axes.set_title(f"{title}\nD_sys {found['cases'][name]['d_sys']:.3f}", fontsize=10.5)
        figure.axes[0].legend(loc="upper right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")


def _curves(axes: Axes, curve: Mapping[str, Any]) -> None:
    edges = curve["edges"]
    for part, label, color in (
        ("mated", "one person, two systems", MATED),
        ("non_mated", "two people", OTHERS),
    ):
        axes.stairs(curve[part], edges, color=color, label=label, linewidth=1.4, fill=False)
    axes.set_ylim(bottom=0, top=1.35 * max(max(curve["mated"]), max(curve["non_mated"])))
    axes.set_xlabel("score: part of equal signs")
    axes.set_ylabel("part of the pairs, a bin")
    right = axes.twinx()
    right.stairs(
        curve["local"], edges, color=INK, linestyle=":", linewidth=1.2, label="D of the score"
    )
    right.set_ylim(0, 1.05)
    right.set_ylabel("D of the score (dotted)")
    right.spines["right"].set_visible(True)
