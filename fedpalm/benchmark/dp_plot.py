"""Accuracy by epsilon, drawn from the figures of :mod:`.dp_utility`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .plot_style import RC

_COLORS = {"cold": "#0072b2", "warm": "#d55e00"}  # Okabe and Ito 2008
_RC: Any = RC
_ORDINARY = "ordinary"
_LABELS = {"cold": "begins at random", "warm": "begins at the public warm start"}


def plot_utility(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """EER with intervals by epsilon, a line a start, as ``path`` (its suffix decides)."""
    found = {one["epsilon"] for one in results}
    epsilons = sorted(found - {_ORDINARY}, key=float) + [_ORDINARY] * (_ORDINARY in found)
    place = {epsilon: at for at, epsilon in enumerate(epsilons)}
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axes = figure.subplots()
        for shift, start in ((-0.06, "cold"), (0.06, "warm")):
            mine = [one for one in results if one["start"] == start]
            if not mine:
                continue
            rates = [one["mean"]["eer"] for one in mine]
            ends = [one["mean"]["interval"] for one in mine]
            axes.errorbar(
                [place[one["epsilon"]] + shift for one in mine],
                rates,
                yerr=[
                    [max(0.0, rate - low) for rate, (low, _) in zip(rates, ends, strict=True)],
                    [max(0.0, high - rate) for rate, (_, high) in zip(rates, ends, strict=True)],
                ],
                color=_COLORS[start],
                marker="o",
                markersize=5,
                capsize=3,
                linestyle="none",
                label=_LABELS[start],
            )
        axes.set_xticks(range(len(epsilons)), [_name(one) for one in epsilons])
        axes.set_xlabel("epsilon of each person, all rounds together")
        axes.set_ylabel("Open-set equal error rate, mean of the sites")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")


def _name(epsilon: str) -> str:
    names = {"0.0": "0\n(nobody's data)", "inf": "no noise", _ORDINARY: "no privacy\n(ordinary)"}
    return names.get(epsilon) or f"{float(epsilon):g}"
