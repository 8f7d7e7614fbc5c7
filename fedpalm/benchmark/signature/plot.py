"""Error rates of all contenders as one picture: a panel for each set that was trained on and claimed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from ..jobs.results import whole
from ..plot_style import INK, RC
from .contenders import CONTENDERS, REFERENCE
from .summary import MEAN, Summary, shown_of

_COLORS = {"random": "#0072b2", "simple": "#009e73", "skilled": "#d55e00"}
"""Okabe and Ito 2008."""
_RC: Any = RC
_MARKS = {"random": "o", "simple": "^", "skilled": "s"}


def draw(summary: Summary, path: Path) -> None:
    """Points with their intervals, contenders from top to bottom; a PNG, whole or not at all."""
    panels = [
        (found["name"], which, found["contenders"])
        for found in summary["trained_on"].values()
        for which in next(iter(found["contenders"].values()))["sets"]
        if which != "closed"
    ]
    names = [name for name in CONTENDERS if any(name in of for _, _, of in panels)]
    labels = [CONTENDERS[name].label for name in names]
    with mpl.rc_context(_RC):
        figure = Figure(
            figsize=(2.6 + 2.9 * len(panels), 1.4 + 0.32 * len(labels)), layout="constrained"
        )
        every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        kinds_seen: dict[str, Line2D] = {}
        for axes, (name, which, contenders) in zip(every, panels, strict=True):
            first = next(iter(contenders.values()))["sets"][which]
            count = shown_of(first)
            kinds = [kind for kind in first[count] if kind != MEAN]
            for turn, kind in enumerate(kinds):
                for key, one in contenders.items():
                    rate = one["sets"][which][count][kind]["eer"]
                    at = names.index(key) + 0.22 * (turn - (len(kinds) - 1) / 2)
                    axes.plot(
                        [100 * end for end in rate["interval"]], [at, at], color=_COLORS[kind],
                        linewidth=1.2, alpha=0.6,
                    )  # fmt: skip
                    (kinds_seen[kind],) = axes.plot(
                        100 * rate["mean"], at, _MARKS[kind], color=_COLORS[kind],
                        markersize=6 if key == REFERENCE else 4.5,
                    )  # fmt: skip
            where = "open writers" if which == "open" else "the other set"
            axes.set_title(
                f"trained on {name}:\n{where}, references: {count}", loc="left", fontsize=10
            )
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
            axes.set_xlim(left=0)
            axes.grid(axis="x")
            axes.axhline(0.5, color=INK, linewidth=0.4)
        every[0].set_yticks(range(len(labels)), labels)
        every[0].invert_yaxis()
        figure.supxlabel("equal error rate", fontsize=10)
        figure.legend(
            list(kinds_seen.values()), list(kinds_seen), loc="outside upper right",
            ncols=len(kinds_seen),
        )  # fmt: skip
        with whole(path) as partial:
            figure.savefig(partial, format="png", dpi=130, facecolor="white")
