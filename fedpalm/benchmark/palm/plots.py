"""Results as pictures: ROC and DET curves, convergence, the TEIM over the rounds, privacy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..jobs.results import Result, Store
from ..plot_style import INK, RC
from .scoring import SETS, mean_curve
from .variants import VARIANTS

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a6a6a")
"""Okabe and Ito 2008, in turn; the dash changes when they begin again."""
_DASHES: tuple[Any, ...] = ("-", (0, (5.0, 2.0)), (0, (1.2, 1.6)))
_FIRST = ("fedpalm", "fedavg", "local")
_RC: Any = {**RC, "axes.titlesize": 11, "legend.fontsize": 9, "lines.linewidth": 1.6}
_DET_TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
_TITLES = {"closed": "Closed set", "open": "Open set"}

Runs = dict[str, list[Result]]
"""Results by variant, one a seed."""


def write_plots(
    results: Sequence[Result], store: Store, folder: Path
) -> tuple[list[Path], list[str]]:
    """Draw one experiment as PNG files; also says, in sentences, what could not be drawn.

    Raises:
        IntegrityError: a file of scores is damaged.
    """
    runs = {
        name: [one for one in results if one["variant"] == name]
        for name in VARIANTS
        if any(one["variant"] == name for one in results)
    }
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    left_out: list[str] = []

    def draw(name: str, width: float, panels: Mapping[str, Callable[[Axes], None]]) -> None:
        with mpl.rc_context(_RC):
            figure = Figure(figsize=(width, 4.3), layout="constrained")
            axes = figure.subplots(1, len(panels), squeeze=False)[0]
            for axis, (title, panel) in zip(axes, panels.items(), strict=True):
                axis.set_title(title, loc="left")
                panel(axis)
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right upper", handlelength=2.8)
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=150, facecolor="white")
        written.append(path)

    curves = {which: _curves(runs, store, which) for which in SETS}
    for which, found in curves.items():
        if found:
            draw(f"roc-{which}", 7.0, {_TITLES[which]: partial(_roc, curves=found)})
    if all(curves.values()):
        draw("det", 10.5, {_TITLES[w]: partial(_det, curves=curves[w]) for w in SETS})
    else:
        left_out.append("ROC and DET: the files of scores are not there, only figures")
    draw("convergence", 7.0, {"Open set": partial(_convergence, runs=runs)})
    routed = {name: many for name, many in runs.items() if _has(many, "teim.open.alpha")}
    if routed:
        draw(
            "teim",
            13.0,
            {
                "alpha, global model": partial(_metric, runs=routed, metric="teim.open.alpha"),
                "beta, global model": partial(_metric, runs=routed, metric="teim.open.beta"),
                "beta, own model": partial(_metric, runs=routed, metric="teim.closed.beta"),
                "Routed to others": partial(_routing, runs=routed),
            },
        )
    else:
        left_out.append("alpha, beta and routing: no variant with a TEIM was run")
    private = {n: [r for r in many if r["epsilon"] is not None] for n, many in runs.items()}
    if any(private.values()):
        draw("privacy", 7.0, {"Open set": partial(_privacy, runs=private)})
    else:
        left_out.append("privacy and accuracy: no run with differential privacy")
    return written, left_out


def style(name: str) -> dict[str, Any]:
    """Colour and dash of a variant; the same in every plot."""
    order = [*_FIRST, *(one for one in VARIANTS if one not in _FIRST)]
    at = order.index(name)
    return {
        "color": _COLORS[at % len(_COLORS)],
        "linestyle": _DASHES[at // len(_COLORS)],
        "linewidth": 2.4 if name in _FIRST[:2] else 1.5,
        "label": VARIANTS[name].label,
        "zorder": 3 if name in _FIRST[:2] else 2,
    }


Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _curves(runs: Runs, store: Store, which: str) -> dict[str, Curve]:
    """(FMR, FNMR) of a variant, averaged over sites and seeds; without those that have no scores."""
    found: dict[str, Curve] = {}
    for name, results in runs.items():
        pairs = []
        for result in results:
            packed = store.scores(result["job"])
            if packed is not None:
                pairs += [
                    (packed[f"{which}/{site}/genuine"], packed[f"{which}/{site}/impostor"])
                    for site in result["figures"][which]["sites"]
                ]
        if pairs:
            found[name] = mean_curve(pairs)
    return found


def _roc(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for name, (fmr, fnmr) in curves.items():
        axes.plot(fmr, 1 - fnmr, **style(name))
    axes.set_xscale("log")
    axes.set_xlim(min(fmr[0] for fmr, _ in curves.values()), 1.0)
    axes.set_ylim(top=1.005)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.set_xlabel("False match rate")
    axes.set_ylabel("True match rate")
    axes.grid()


def _det(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Both axes on the normal deviate (Martin et al. 1997)."""
    low, high = 5e-4, 0.5
    for name, (fmr, fnmr) in curves.items():
        seen = (fnmr > 0) & (fnmr < 1) & (fmr < 1)
        axes.plot(_deviate(fmr[seen]), _deviate(fnmr[seen]), **style(name))
    ticks = _deviate(np.array(_DET_TICKS))
    names = [f"{100 * tick:g} %" for tick in _DET_TICKS]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(list(ticks), names)
    ends = _deviate(np.array([low, high]))
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("False match rate")
    axes.set_ylabel("False non-match rate")
    axes.grid()
    if all((fnmr[fmr < high] < low).all() for fmr, fnmr in curves.values()):
        axes.text(0.5, 0.5, "no errors to show", ha="center", transform=axes.transAxes)


def _deviate(rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.array([NormalDist().inv_cdf(float(rate)) for rate in rates])


def _convergence(axes: Axes, runs: Runs) -> None:
    for name, results in runs.items():
        points = [result["convergence"] for result in results]
        rounds = [point["round"] for point in points[0]]
        eers = np.mean([[point["eer"] for point in one] for one in points], axis=0)
        axes.plot(rounds, eers, marker="o", markersize=3, **style(name))
        if results[0]["exchange"] == "deployment":
            after = np.mean([result["figures"]["open"]["mean"]["eer"] for result in results])
            axes.plot(
                rounds[-1:], [after], marker="D", markersize=6, markerfacecolor="none",
                linestyle="none", color=style(name)["color"],
            )  # fmt: skip
    axes.plot([], [], "D", markerfacecolor="none", color=INK, label="after the exchange")
    axes.set_xlabel("Round")
    axes.set_ylabel("Equal error rate, mean of the sites")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.grid(axis="y")


def _metric(axes: Axes, runs: Runs, metric: str) -> None:
    for name, results in runs.items():
        axes.plot(*_series(results, metric), **style(name))
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")


def _routing(axes: Axes, runs: Runs) -> None:
    """Part of what the global model's anchor was routed to; the rest is the site's own expert."""
    for name, results in runs.items():
        rounds = range(1, len(results[0]["rounds"]) + 1)
        parts = [[one.get("routing.open.others", 0.0) for one in r["rounds"]] for r in results]
        axes.plot(rounds, np.mean(parts, axis=0), **style(name))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.grid(axis="y")


def _privacy(axes: Axes, runs: Runs) -> None:
    for name, results in runs.items():
        points = sorted((one["epsilon"], one["figures"]["open"]["mean"]["eer"]) for one in results)
        if points:
            epsilons, eers = zip(*points, strict=True)
            axes.plot(epsilons, eers, marker="o", **style(name))
    axes.set_xscale("log")
    axes.set_xlabel("epsilon")
    axes.set_ylabel("Equal error rate, mean of the sites")
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.grid()


def _has(results: Sequence[Result], metric: str) -> bool:
    return any(metric in one for result in results for one in result["rounds"])


def _series(results: Sequence[Result], metric: str) -> tuple[list[int], npt.NDArray[np.float64]]:
    rounds = [at for at, one in enumerate(results[0]["rounds"], 1) if metric in one]
    values = [[result["rounds"][at - 1][metric] for at in rounds] for result in results]
    means: npt.NDArray[np.float64] = np.mean(values, axis=0)
    return rounds, means


_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.12g} %")
