"""How masking grows with the number of sites, drawn from the figures of :mod:`.masking`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plot_style import RC

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6a6a6a"  # Okabe and Ito 2008
_RC: Any = {**RC, "lines.linewidth": 2.0, "svg.fonttype": "none", "svg.hashsalt": "secagg"}


def plot_growth(rounds: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds and bytes by number of sites, on logarithmic axes, as ``path`` (its suffix decides)."""
    sites = [one["sites"] for one in rounds]
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        seconds, sent = figure.subplots(1, 2)
        _lines(
            seconds,
            sites,
            (
                ("all of it in one process", [one["round_s"] for one in rounds], GREY, ":"),
                ("the coordinator", [one["coordinator_s"] for one in rounds], ORANGE, "--"),
                ("one site", [one["client_all_steps_s"] for one in rounds], BLUE, "-"),
            ),
        )
        seconds.set_ylabel("seconds of work, a round")
        parts = [one["steps"] for one in rounds]
        _lines(
            sent,
            sites,
            (
                ("shares and pair secrets", _kilobytes(parts, "boxes"), BLUE, "-"),
                ("shares given at the end", _kilobytes(parts, "reveals"), ORANGE, "--"),
                ("public keys", _kilobytes(parts, "keys"), GREY, ":"),
            ),
        )
        sent.set_ylabel("kB a site sends beside its vector (mean)")
        figure.suptitle(
            f"{rounds[0]['parameters']:,} parameters, "
            f"{rounds[0]['drop']:.0%} of the sites drop after sharing keys",
            fontsize=11,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")


def _kilobytes(parts: Sequence[dict[str, Any]], step: str) -> list[float]:
    return [one[step]["site_sends_bytes"]["mean"] / 1e3 for one in parts]


def _lines(
    axes: Axes, sites: list[int], lines: Sequence[tuple[str, list[float], str, str]]
) -> None:
    for label, values, color, style in lines:
        axes.plot(sites, values, color=color, linestyle=style, marker="o", ms=4, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sites, [str(one) for one in sites])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel("sites")
    axes.grid(axis="y")
    axes.legend()
