"""Tables as people read them: a markdown grid, and rates in percent."""

from __future__ import annotations

from collections.abc import Sequence


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        " | ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def percent(rate: float) -> str:
    return f"{100 * rate:.2f}"


def signed(rate: float) -> str:
    return f"{100 * rate:+.2f}"


def percent_range(ends: Sequence[float]) -> str:
    return f"[{percent(ends[0])}, {percent(ends[1])}]"


def signed_range(ends: Sequence[float]) -> str:
    return f"[{signed(ends[0])}, {signed(ends[1])}]"
