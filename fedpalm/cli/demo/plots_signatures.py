"""Plots of a demo of signatures: rates by kind of forgery, and both tasks' losses while training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .figures import Report
from .plot_style import STYLES
from .words import words_of

_APART = 0.2
"""Between the contenders of a kind of forgery, which are 1 apart."""


def _draw_rates(report: Report, axes: Axes) -> None:
    labels = words_of(report.settings).labels
    kinds = report.by_forgery
    middle = (len(report.contenders) - 1) / 2
    for place, name in enumerate(report.contenders):
        found = [kinds[kind][name] for kind in kinds]
        axes.errorbar(
            [at + _APART * (place - middle) for at in range(len(kinds))],
            [100 * one.eer for one in found],
            yerr=[
                [100 * max(0.0, one.eer - one.low) for one in found],
                [100 * max(0.0, one.high - one.eer) for one in found],
            ],
            color=STYLES[name][0],
            linestyle="none",
            marker="os^D"[place],
            markersize=7,
            label=labels[name],
            clip_on=False,
        )
    highest = max(one.high for own in kinds.values() for one in own.values())
    axes.set_ylim(0, 140 * max(highest, 0.01))  # room for the legend
    axes.set_xlim(-0.6, len(kinds) - 0.4)
    axes.set_xticks(range(len(kinds)), list(kinds))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
    axes.set_xlabel("Forgery")
    axes.set_ylabel("Open-set EER")
    axes.grid(visible=True, axis="y")
    axes.legend(
        loc="upper left", ncols=len(report.contenders), columnspacing=1.0, handletextpad=0.2
    )


def _draw_losses(task: Literal["user", "forged"], report: Report, axes: Axes) -> None:
    labels = words_of(report.settings).labels
    told = {
        name: [
            (point.round, loss)
            for point in report.open_set.learning.get(name, ())
            if (loss := getattr(point, task)) is not None
        ]
        for name in report.contenders
    }
    for name, points in told.items():
        color, dash = STYLES[name]
        axes.plot(
            [number for number, _ in points],
            [loss for _, loss in points],
            color=color,
            linestyle=dash,
            marker="o",
            markersize=4,
            label=labels[name],
        )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel("Round")
    axes.set_ylabel("Held-out loss: " + ("writers" if task == "user" else "forgeries"))
    axes.grid(visible=True, axis="y")
    if not any(told.values()):
        axes.text(0.5, 0.5, "no site keeps a forgery aside", ha="center", transform=axes.transAxes)
        return
    axes.legend(loc="best", handlelength=2.6)


DRAWINGS: dict[str, tuple[Callable[[Report, Axes], None], str]] = {
    "rates": (_draw_rates, "Open-set equal error rates by kind of forgery, with intervals."),
    "writers": (
        functools.partial(_draw_losses, "user"),
        "Loss of telling writers on held-out signatures, after the receipt of each round.",
    ),
    "forgeries": (
        functools.partial(_draw_losses, "forged"),
        "Loss of telling forgeries on held-out signatures, after the receipt of each round.",
    ),
}
