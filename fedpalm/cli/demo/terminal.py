"""The result as a newcomer wants to see it in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..narrator import duration
from .figures import Estimate, Report
from .wording import (
    egress_labels,
    egress_rows,
    finding,
    in_use,
    interval,
    never,
    percent,
    privacy,
    size,
    who_reads_updates,
)
from .words import words_of
from .workspace import Workspace


def summary(report: Report, workspace: Workspace) -> RenderableType:
    """Error rates, what left each site and what never did, and where everything is."""
    return Group(
        Text(),
        _error_rates(report),
        Text(finding(report).replace("\u00a0", " ")),
        Text(),
        *_in_use(report),
        _egress(report),
        _never(report),
        Text(who_reads_updates(report)),
        *_privacy(report),
        Text(),
        _files(report, workspace),
    )


def _error_rates(report: Report) -> Table:
    words = words_of(report.settings)
    confidence = f"{100 * report.confidence:.0f} %"
    table = _table(
        f"Equal error rates, with {confidence} bootstrap intervals over {words.resampled}"
    )
    table.add_column("")
    for name in report.contenders:
        table.add_column(words.labels[name], justify="right")
    for site in report.sites:
        backbone = f" ({site.backbone})" if site.backbone else ""
        for kind, closed in {"random": site.closed, **site.closed_forgeries}.items():
            against = f", {kind}" if words.against[kind] else ""
            table.add_row(
                f"closed set, {site.site}{backbone}{against}",
                *(_rate(closed[name]) for name in report.contenders),
            )
    table.add_section()
    for kind, estimates in report.by_forgery.items():
        against = f", {words.against[kind]}" if words.against[kind] else ""
        table.add_row(
            Text(f"open set, {report.open_set.identities} {words.owner[1]}{against}", style="bold"),
            *(_rate(estimates[name]) for name in report.contenders),
        )
        if pooled := report.open_set.one_threshold.get(kind):
            shown = (percent(pooled[name].eer).replace("\u00a0", " ") for name in report.contenders)
            table.add_row("  under one threshold for all sites", *shown)
    return table


def _in_use(report: Report) -> list[RenderableType]:
    said = in_use(report).replace("\u00a0", " ")
    if not said:
        return []
    return [Text("Verification in daily use", style="bold"), Text(said), Text()]


def _egress(report: Report) -> Table:
    table = _table("What left each site (from its own signed log)")
    labels = egress_labels(report)
    table.add_column("")
    for label in labels:
        table.add_column(label, justify="right")
    for site, row in egress_rows(report):
        table.add_row(
            site,
            *(f"{row[at].count} x, {size(row[at].bytes)}" if at in row else "-" for at in labels),
        )
    return table


def _privacy(report: Report) -> list[RenderableType]:
    sentences = privacy(report)
    if not sentences:
        return []
    table = _table("What differential privacy cost each site (from its own signed log)")
    for name in ("", "epsilon spent", "budget", "delta", "people declared", "steps charged"):
        table.add_column(name, justify="right" if name else "left")
    for site in report.sites:
        if (one := site.budget) is not None:
            cells = (f"{one.spent:.3f}", f"{one.budget:g}", f"{one.delta:g}")
            table.add_row(site.site, *cells, str(one.people), str(one.steps))
    return [Text(), table, Text(" ".join(sentences).replace("\u00a0", " "))]


def _never(report: Report) -> Text:
    text = Text("What never left any site: ", style="bold")
    items = [what[0].lower() + what[1:] for what, _ in never(report)]
    text.append(", ".join(items) + ".", style="not bold")
    return text


def _files(report: Report, workspace: Workspace) -> Text:
    rows = {"report": workspace.page, "figures": workspace.report, "everything": workspace.root}
    lines = [f"{name:<11} {path}" for name, path in rows.items()]
    lines.append(f"{'took':<11} {duration(report.timings_s['whole demo'])}")
    return Text("\n".join(lines))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _rate(estimate: Estimate) -> str:
    return f"{percent(estimate.eer)} ({interval(estimate)})".replace("\u00a0", " ")
