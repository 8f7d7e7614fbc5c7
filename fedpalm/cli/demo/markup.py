"""Pieces of the report's page: tables, rates and their colours. Cells are HTML already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from .figures import Estimate, Report
from .wording import interval, percent
from .words import words_of


def in_order(report: Report, estimates: Mapping[str, Estimate]) -> Iterable[tuple[str, Estimate]]:
    return [(name, estimates[name]) for name in report.contenders]


def keyed(report: Report, name: str) -> str:
    """A contender with the colour and dash of its line."""
    return f'<span class="swatch {name}"></span>{escape(words_of(report.settings).labels[name])}'


def rate(estimate: Estimate) -> str:
    return f'{percent(estimate.eer)}<span class="range">{interval(estimate)}</span>'


def fact_list(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>\n" for name, value in facts.items())
    return f'<dl class="facts">\n{items}</dl>\n'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] | None = None
) -> str:
    """Cells are HTML already."""

    def line(cells: Sequence[str], kind: str = "") -> str:
        first, *rest = cells
        return (
            f'<tr{kind}><th scope="row">{first}</th>'
            + "".join(f"<td>{cell}</td>" for cell in rest)
            + "</tr>\n"
        )

    return (
        '<div class="scroll"><table>\n<thead><tr>'
        + "".join(f'<th scope="col">{cell}</th>' for cell in head)
        + "</tr></thead>\n<tbody>\n"
        + "".join(line(row) for row in rows)
        + (line(total, ' class="sum"') if total else "")
        + "</tbody></table></div>\n"
    )
