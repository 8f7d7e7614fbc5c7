"""The report's plots: colours that survive print and colour blindness (Okabe and Ito 2008), each
line with a dash of its own, and SVG that follows the page into the dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from . import plots_signatures
from .figures import Report
from .plot_style import FAINT, INK, STYLES
from .words import words_of

_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--rule)",
    **{color: f"var(--{name})" for name, (color, _) in STYLES.items()},
}
_RC: Any = {
    "font.family": "sans-serif",
    "font.size": 11.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.9,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
}
Draw = Callable[[Report, Axes], None]


def drawings(report: Report) -> dict[str, tuple[Draw, str]]:
    """What is drawn of a report, and what each plot shows, by the plot's name."""
    if report.settings.modality == "signature":
        return plots_signatures.DRAWINGS
    return {
        "roc": (
            _draw_roc,
            "ROC curves of the open set: true match rate against false match rate.",
        ),
        "convergence": (_draw_convergence, "Open-set equal error rate after each round."),
    }


def write_plots(report: Report, folder: Path) -> dict[str, str]:
    """Write ``<plot>.svg`` and ``<plot>.png`` for every plot; return inline SVG by plot."""
    folder.mkdir(parents=True, exist_ok=True)
    inline: dict[str, str] = {}
    for name, (draw, about) in drawings(report).items():
        with mpl.rc_context({**_RC, "svg.hashsalt": name}):
            figure = Figure(figsize=(5.4, 3.7), layout="constrained")
            draw(report, figure.subplots())
            svg = _svg(figure)
            figure.savefig(folder / f"{name}.png", dpi=200, facecolor="white")
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        inline[name] = _inline(svg, about)
    return inline


def _draw_roc(report: Report, axes: Axes) -> None:
    floor = 1.0 / max(estimate.impostor for estimate in report.open_set.estimates.values())
    for contender in report.contenders:
        curve = report.open_set.curves[contender]
        color, dash = STYLES[contender]
        axes.plot(
            [max(fmr, floor) for fmr in curve.fmr],
            [1.0 - fnmr for fnmr in curve.fnmr],
            color=color,
            linestyle=dash,
            label=words_of(report.settings).labels[contender],
        )
    axes.set_xscale("log")
    axes.set_xlim(floor, 1.0)
    axes.set_ylim(0.0, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _percent(x)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    axes.set_xlabel("False match rate")
    axes.set_ylabel("True match rate")
    axes.grid(visible=True, which="major")
    axes.legend(loc="lower right", handlelength=2.6)


def _draw_convergence(report: Report, axes: Axes) -> None:
    for contender in report.contenders:
        points = report.open_set.convergence.get(contender, ())
        color, dash = STYLES[contender]
        axes.plot(
            [point.round for point in points],
            [100 * point.eer for point in points],
            color=color,
            linestyle=dash,
            marker="o",
            markersize=4,
            label=words_of(report.settings).labels[contender],
        )
    if report.expert_parameters:
        axes.plot(
            [report.settings.rounds],
            [100 * report.open_set.estimates["fedpalm"].eer],
            color=STYLES["fedpalm"][0],
            linestyle="none",
            marker="D",
            markersize=7,
            markerfacecolor="none",
            markeredgewidth=1.6,
            label="with the exchanged experts",
            zorder=4,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
    axes.set_xlabel("Round")
    axes.set_ylabel("Open-set EER")
    axes.grid(visible=True, axis="y")
    axes.legend(loc="best", handlelength=2.6)


def _percent(value: float) -> str:
    return f"{100 * value:.12g} %"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _inline(svg: str, about: str) -> str:
    """The ``<svg>`` element for a page: its size and font set by the page, colours by variables."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'^<svg[^>]*?viewBox="([^"]+)"[^>]*>', _opening(about), body, count=1)
    body = re.sub(r' id="((?:figure|axes|patch|line2d|text|matplotlib)[^"]*)"', "", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    return body


def _opening(about: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{about}">'
