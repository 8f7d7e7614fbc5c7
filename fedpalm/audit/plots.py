"""Plots of a report as inline SVG: no script, no font, no file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 880, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 22, 42
BLUE, RED, GRID = "#1f5fa8", "#b3261e", "#e4e8ec"
COLOURS = ("#1f5fa8", "#c77b15", "#6b4fa0", "#9aa5b1")
MAX_BARS = 60


@dataclass(frozen=True)
class Step:
    """One charge: its label on the axis, the ledger's figure, and ours where it was computed."""

    label: str
    claimed: float
    recomputed: float | None


def epsilon_plot(steps: Sequence[Step], budget: float) -> str:
    """Epsilon over charges against the budget; one far above is said instead of drawn."""
    most = max(one.claimed for one in steps)
    drawn = budget <= 4 * most
    axis = _Axis(max(budget, most) if drawn else 1.3 * most)
    width = (WIDTH - LEFT - RIGHT) / len(steps)
    xs = [LEFT + width * (at + 1) for at in range(len(steps))]
    path = f"M{LEFT},{axis.y(0):.1f}" + "".join(
        f"H{x - width:.1f}V{axis.y(one.claimed):.1f}H{x:.1f}"
        for x, one in zip(xs, steps, strict=True)
    )
    parts = [*axis.grid(), f'<path d="{path}" fill="none" stroke="{BLUE}" stroke-width="2"/>']
    parts += [
        f'<circle cx="{x - width / 2:.1f}" cy="{axis.y(one.recomputed):.1f}" r="3.2" fill="#fff" '
        f'stroke="{BLUE}" stroke-width="1.6"/>'
        for x, one in zip(xs, steps, strict=True)
        if one.recomputed is not None
    ]
    if drawn:
        y = axis.y(budget)
        parts.append(
            f'<path d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}" stroke="{RED}" stroke-width="1.6" '
            f'stroke-dasharray="6 4"/><text x="{WIDTH - RIGHT}" y="{y - 6:.1f}" text-anchor="end" '
            f'style="fill:{RED}">budget {budget:g}</text>'
        )
    else:
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{TOP - 6}" text-anchor="end" style="fill:{RED}">'
            f"the budget, {budget:g}, is above this plot</text>"
        )
    parts += _labels([(x - width / 2, one.label) for x, one in zip(xs, steps, strict=True)])
    return _svg(parts, "epsilon", f"epsilon after each of {len(steps)} charges")


@dataclass(frozen=True)
class Bar:
    """What left in one round (or several, where there are many), by series."""

    label: str
    values: tuple[float, ...]


def bytes_plot(bars: Sequence[Bar]) -> str:
    """Stacked bytes by round."""
    bars = _gathered(bars)
    axis = _Axis(max((sum(bar.values) for bar in bars), default=1) or 1, unit=_byte_words)
    width = (WIDTH - LEFT - RIGHT) / len(bars)
    parts = list(axis.grid())
    for at, bar in enumerate(bars):
        below = 0.0
        for value, colour in zip(bar.values, COLOURS, strict=True):
            if value > 0:
                top, bottom = axis.y(below + value), axis.y(below)
                parts.append(
                    f'<rect x="{LEFT + width * (at + 0.14):.1f}" y="{top:.1f}" '
                    f'width="{width * 0.72:.1f}" height="{max(0.6, bottom - top):.1f}" '
                    f'fill="{colour}"/>'
                )
            below += value
    parts += _labels([(LEFT + width * (at + 0.5), bar.label) for at, bar in enumerate(bars)])
    return _svg(parts, "bytes", f"bytes that left the site in {len(bars)} rounds")


class _Axis:
    """The vertical axis from 0, with round steps."""

    def __init__(self, most: float, unit: object = None) -> None:
        magnitude = 10.0 ** floor(log10(most / 4))
        self.step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if most / (m * magnitude) <= 5)
        self.top = self.step * ceil(most * 1.02 / self.step)
        self._words = unit if callable(unit) else (lambda value: f"{value:g}")

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / self.top

    def grid(self) -> list[str]:
        parts = []
        for at in range(round(self.top / self.step) + 1):
            value = at * self.step
            y = self.y(value)
            parts.append(
                f'<path d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>'
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{self._words(value)}</text>'
            )
        return parts


def _labels(places: Sequence[tuple[float, str]]) -> list[str]:
    every = ceil(len(places) / 20)
    return [
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>'
        for x, label in places[::every]
    ]


def _gathered(bars: Sequence[Bar]) -> list[Bar]:
    together = ceil(len(bars) / MAX_BARS)
    return [
        Bar(
            bars[at].label,
            tuple(map(sum, zip(*(one.values for one in bars[at : at + together]), strict=True))),
        )
        for at in range(0, len(bars), together)
    ]


def _svg(parts: Sequence[str], what: str, described: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described)}">'
        f'<text x="{LEFT - 8}" y="{TOP - 10}" text-anchor="end">{what}</text>'
        + "".join(parts)
        + f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">round</text></svg>'
    )


def _byte_words(value: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:g} {name}"
    return f"{value:g} B"
