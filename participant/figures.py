"""Metrics of a training in one line, for the site's own people."""

from __future__ import annotations

from collections.abc import Mapping


def figures(metrics: Mapping[str, float | None]) -> str:
    """``loss 1.234, eta.task 0.5``: names and values, shortened to four digits; empty if there are none."""
    return ", ".join(
        f"{_short(name)} {'not finite' if value is None else format(value, '.4g')}"
        for name, value in metrics.items()
    )


def _short(metric: str) -> str:
    """``routing.open.east`` as ``open<east``, ``teim.open.alpha`` as ``open.alpha``."""
    match metric.split(".", 2):
        case ["routing", model, expert]:
            return f"{model}<{expert}"
        case ["teim", model, name]:
            return f"{model}.{name}"
        case _:
            return metric
