"""``report.html``: one file, no script, nothing fetched; light and dark, phone and paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files

from ..narrator import duration
from . import page_palms, page_signatures
from .figures import Report
from .markup import fact_list, in_order, table
from .wording import (
    count,
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

_NUMBERS = ("Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: Report, plots: Mapping[str, str], sample_png: bytes | None) -> str:
    """The page as HTML.

    Args:
        plots: inline SVG by plot name.
        sample_png: some training images, only ever synthetic ones.
    """
    css = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    title = _title(report)
    about = {"palm": page_palms, "signature": page_signatures}[report.settings.modality]
    sections = (
        _head(report, title),
        _sample(report, sample_png),
        about.figures(report, plots),
        _in_use(report),
        _egress(report),
        _privacy(report),
        _how(report),
        _files(report),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)} \u2013 FedPalm</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _title(report: Report) -> str:
    sites = report.settings.sites
    many = _NUMBERS[sites - 2] if sites - 2 < len(_NUMBERS) else str(sites)
    return f"{many} sites, {words_of(report.settings).shared}"


def _head(report: Report, title: str) -> str:
    words = words_of(report.settings)
    against = words.against["random"]
    cells = "".join(
        f'<div style="--tone: var(--{name})"><dt>{escape(words.labels[name])}</dt>'
        f'<dd class="value">{percent(estimate.eer, 1)}</dd>'
        f'<dd class="range">{interval(estimate)}</dd></div>'
        for name, estimate in in_order(report, report.open_set.estimates)
    )
    return (
        '<header>\n<p class="kicker">FedPalm demonstration report</p>\n'
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="byline">{escape(report.created)} \u00b7 {escape(_data(report))} \u00b7 '
        f"run <code>{escape(report.run_id)}</code></p>\n"
        f'<p class="finding">{escape(finding(report))}</p>\n'
        f'<dl class="key">{cells}</dl>\n'
        f'<p class="note">Open-set equal error rate (EER){f" against {against}" if against else ""}, '
        f"lower is better, with its {100 * report.confidence:.0f} % bootstrap interval over "
        f"{words.resampled}. No federation: {words.alone}.</p>\n</header>\n"
    )


def _sample(report: Report, sample_png: bytes | None) -> str:
    if sample_png is None:
        return ""
    data, words = base64.b64encode(sample_png).decode(), words_of(report.settings)
    return (
        f'<figure><img alt="{words.drawn.capitalize()}" src="data:image/png;base64,{data}">'
        f"<figcaption>{words.sample}</figcaption></figure>\n"
    )


def _in_use(report: Report) -> str:
    said = in_use(report)
    if not said:
        return ""
    return (
        f"<section>\n<h2>Verification in daily use</h2>\n<p>{escape(said)}</p>\n"
        '<p class="note">Single claims show how it works, not how well: that is what the rates above '
        f"say. {words_of(report.settings).not_looked_for}</p>\n</section>\n"
    )


def _egress(report: Report) -> str:
    labels = egress_labels(report)
    rows = []
    for site, row in egress_rows(report):
        cells = [
            f'{row[label].count}<span class="range">{size(row[label].bytes)}</span>'
            if label in row
            else "\u2013"
            for label in labels
        ]
        rows.append([escape(site), *cells, size(sum(item.bytes for item in row.values()))])
    stayed = "".join(
        f"<li>{escape(what)}<span>{escape(why)}</span></li>\n" for what, why in never(report)
    )
    expert = (
        "<p>The textural expert is "
        f"{report.expert_parameters:,} of {report.parameters:,} parameters. It left each site "
        "once, after training, when the operator had proposed the exchange and every site had "
        "signed its consent; each copy was sealed to the one site it was for.</p>\n"
        if report.expert_parameters
        else ""
    )
    return (
        "<section>\n<h2>What left each site</h2>\n"
        "<p>Taken from the sites\u2019 own signed, hash-chained logs, where every payload is "
        "written before it is sent: how many, and their bytes. The coordinator\u2019s signed "
        "receipts were held against each log. Every site had approved the plan with its own "
        "signature before anything was trained under it.</p>\n"
        + table(["Site", *labels, "Together"], rows)
        + f"{expert}<h3>What never did</h3>\n"
        f'<ul class="never">\n{stayed}</ul>\n'
        '<p class="note">Protocol messages carry names of sites and runs, versions, hashes and '
        f"offsets; they are in the logs, too. {escape(who_reads_updates(report))}</p>\n</section>\n"
    )


def _privacy(report: Report) -> str:
    sentences = privacy(report)
    if not sentences:
        return ""
    rows = [
        [
            escape(site.site),
            f"{one.spent:.3f}",
            f"{one.budget:g}",
            f"{one.delta:g}",
            f"{one.people:,}",
            f"{one.steps:,}",
        ]
        for site in report.sites
        if (one := site.budget) is not None
    ]
    first, *others = (escape(one) for one in sentences)
    return (
        "<section>\n<h2>What differential privacy cost</h2>\n"
        f"<p>{first}</p>\n"
        + table(
            ["Site", "Epsilon spent", "Budget", "Delta", "People declared", "Steps charged"], rows
        )
        + f'<p class="note">{" ".join(others)}</p>\n</section>\n'
    )


def _how(report: Report) -> str:
    settings = report.settings
    compared = words_of(settings).compared
    comparisons = " and ".join(compared[name] for name in report.contenders[1:])
    verb = "were" if len(report.contenders) > 2 else "was"
    timings = " \u00b7 ".join(
        f"{escape(name.replace('_', ' '))} {duration(seconds)}"
        for name, seconds in report.timings_s.items()
    )
    facts = {
        "Data": escape(_data(report)),
        "Plan": f"{settings.rounds} rounds, seed {settings.seed}, "
        f"{'masked (secagg)' if settings.masked else 'not masked'}, "
        f"hash <code>{report.plan_hash[:16]}\u2026</code>",
        "Final model": f"{report.parameters:,} parameters, SHA-256 "
        f"<code>{report.model_hash[:16]}\u2026</code>",
        "Machine": f"{report.machine['cpus']} cores, {escape(str(report.machine['platform']))}",
        "Versions": escape(", ".join(f"{k} {v}" for k, v in report.versions.items())),
        "Time": timings,
    }
    return (
        "<section>\n<h2>How it was run</h2>\n"
        f"<p>One coordinator and {settings.sites} sites, each a process with its own keys and "
        "store, spoke over mutually authenticated TLS 1.3 on this machine. The demo typed every "
        "command: it played the operator, and each site\u2019s person where the protocol asks for "
        f"their approval. {comparisons[0].upper() + comparisons[1:]} {verb} simulated beside it, each "
        "in one process without a network, by the same method objects on the same split and "
        "seed.</p>\n"
        f"{fact_list(facts)}"
        "<h3>Read this before quoting a figure</h3>\n<ul>\n"
        + _limits(report)
        + "</ul>\n</section>\n"
    )


def _limits(report: Report) -> str:
    items = [
        "Sites hold different people. Here that is so by construction; between institutions it is "
        "an assumption that cannot be checked without looking into their data.",
        "All processes ran on one machine: times say nothing about a network.",
        "One seed. Intervals cover the choice of identities, not the chance in training.",
    ]
    if report.settings.masked:
        items += [
            "The sites took each other\u2019s masking keys as the coordinator first showed them. "
            "Between institutions people compare them: fedpalm-participant peers.",
        ]
    if report.settings.masked and not report.settings.private:
        items.append(
            "The plan says reproducible = true, which derives the rounding of updates from the plan: "
            "the same command gives the same model on the same machine, as long as no round is "
            "lost to an interruption. Another plan, with masking or without, rounds otherwise."
        )
    if report.settings.private:
        items.append(
            "Noise and draws are secret and never the same again: the same command gives another model."
        )
    if report.settings.drawn:
        items.insert(0, words_of(report.settings).real)
    if report.resumed:
        items.append("The run was cut off and taken up again; times are sums over its parts.")
    if report.lost_rounds:
        items.append(
            f"Without a sum: round {', '.join(map(str, report.lost_rounds))}. The run was cut off while "
            "sites gave their shares, which they do once; nothing was learnt from these rounds."
        )
    return "".join(f"<li>{escape(item)}</li>\n" for item in items)


def _files(report: Report) -> str:
    facts = {name: f"<code>{escape(path)}</code>" for name, path in report.files.items()}
    return (
        "<section>\n<h2>Where everything is</h2>\n"
        "<p>Paths below the folder of this report.</p>\n"
        f"{fact_list(facts)}"
        "<h3>The same run again</h3>\n"
        f"<pre>{escape(report.command)}</pre>\n</section>\n"
    )


def _data(report: Report) -> str:
    settings = report.settings
    people = sum(site.training_identities + site.open_identities for site in report.sites)
    images = sum(site.images for site in report.sites)
    words = words_of(settings)
    source = words.drawn if settings.drawn else settings.data
    return (
        f"{source}, {settings.sites} sites, {count(people, *words.owner)}, "
        f"{count(images, words.image)}"
    )
