"""Sections of the page with the figures of signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .figures import Estimate, Report, SiteReport, SiteRound
from .markup import keyed, rate, table
from .wording import count, percent
from .words import SIGNATURES


def figures(report: Report, plots: Mapping[str, str]) -> str:
    parts = (_open_set(report, plots), _sites(report), _learning(report, plots))
    return "".join(parts) + _closed_set(report)


def _open_set(report: Report, plots: Mapping[str, str]) -> str:
    rows = []
    for kind, estimates in report.by_forgery.items():
        for name in report.contenders:
            one = estimates[name]
            rows.append(
                [
                    keyed(report, name),
                    escape(kind),
                    rate(one),
                    percent(report.open_set.one_threshold[kind][name].eer),
                    f"{one.genuine:,}",
                    f"{one.impostor:,}",
                ]
            )
    several = count(report.open_set.references or 0, "reference")
    return (
        "<section>\n<h2>Writers nobody trained on</h2>\n"
        "<p>Half of every site\u2019s writers were kept out of training: "
        f"{count(report.open_set.identities, 'writer')} with "
        f"{count(report.open_set.images, 'signature')}. Each was enrolled with {several} at their own "
        "site, whose own model judged every further signature of theirs and every forgery.</p>\n"
        + table(
            ["Model", "Forgery", "EER", "One threshold", "Genuine claims", "Forged claims"], rows
        )
        + f"<figure>{plots['rates']}<figcaption>The same rates, with their intervals over writers."
        "</figcaption></figure>\n"
        f'<p class="note">{_kinds(report)} The EER is the mean of the sites\u2019, each at a threshold of '
        "its own. One threshold: all sites\u2019 scores together, which only this demo can read; models "
        "that differ from site to site have scores that differ, too.</p>\n</section>\n"
    )


def _kinds(report: Report) -> str:
    meaning = {
        "random": "A random forgery is another writer\u2019s own signature.",
        "simple": "A simple one is the same name, written by another writer.",
        "skilled": "A skilled one was practised on the original.",
    }
    return " ".join(meaning[kind] for kind in report.by_forgery)


def _sites(report: Report) -> str:
    rows = []
    for site in report.sites:
        groups = [name for name, members in report.groups.items() if site.site in members]
        ours = report.settings.method
        kinds: dict[str, Mapping[str, Estimate]] = {"random": site.open, **site.open_forgeries}
        rows.append(
            [
                escape(site.site),
                escape(site.backbone or ""),
                escape(", ".join(groups)),
                *(rate(kinds[k][ours]) if k in kinds else "\u2013" for k in report.by_forgery),
            ]
        )
    head = ["Site", "Backbone", "Shares", *(f"Open EER, {kind}" for kind in report.by_forgery)]
    shared = {name.removeprefix("trunk.") for name in report.groups}
    own = sorted({site.backbone for site in report.sites if site.backbone} - shared)
    kept = (
        f" The trunk of {' and that of '.join(map(escape, own))} stayed at its sites: "
        + (
            "a masked sum over so few could not hide one of them."
            if report.settings.masked
            else "nobody else has it."
        )
        if own
        else ""
    )
    label = SIGNATURES.labels[report.settings.method]
    return (
        "<section>\n<h2>Sites and their backbones</h2>\n"
        "<p>Every site chose a backbone. Trunks are averaged among those who have the same one, the "
        f"projection and the detection head among all, in one sum.{kept}</p>\n"
        + table(head, rows)
        + f'<p class="note">{label}, each site\u2019s own open writers. With this few an EER moves in '
        "coarse steps; the interval says how coarse.</p>\n</section>\n"
    )


def _learning(report: Report, plots: Mapping[str, str]) -> str:
    rows = [_told(site) for site in report.sites if site.rounds]
    head = ["Site", "Cosine", "Steps opposed", "Weight of writers", "Went towards the average"]
    return (
        "<section>\n<h2>While it trained</h2>\n"
        "<p>Some of every site\u2019s training signatures are kept aside to judge what it receives, the "
        "same ones for every method. After each round\u2019s receipt, before training, the mean over sites "
        "of both tasks\u2019 losses on them (of detection, those that keep forgeries aside):</p>\n"
        f'<div class="pair wide"><figure>{plots["writers"]}<figcaption>Telling writers (ArcFace '
        f"cross-entropy, nats).</figcaption></figure><figure>{plots['forgeries']}<figcaption>Telling "
        "forgeries from genuine ones (balanced binary cross-entropy, nats).</figcaption></figure></div>\n"
        + table(head, rows)
        + '<p class="note">Means over rounds, as each site told them. Cosine: between the gradients of '
        "the two tasks; where they oppose each other, their shortest mean is taken, and the weight is "
        "what the writers\u2019 task has in it. Towards the average: the mean eta of the line search in "
        "each group, 0 for what was refused, 1 for all of it.</p>\n</section>\n"
    )


def _told(site: SiteReport) -> list[str]:
    groups = dict.fromkeys(name for one in site.rounds for name in one.etas)
    etas = ", ".join(
        f'<span class="whole">{escape(name)} '
        f"{_mean([one.etas.get(name) for one in site.rounds])}</span>"
        for name in groups
    )
    return [
        escape(site.site),
        _mean([one.cosine for one in site.rounds]),
        _share(site.rounds),
        _mean([one.user_weight for one in site.rounds]),
        etas,
    ]


def _mean(values: Sequence[float | None]) -> str:
    known = [one for one in values if one is not None]
    return f"{sum(known) / len(known):.2f}" if known else "\u2013"


def _share(rounds: Sequence[SiteRound]) -> str:
    known = [one.opposed for one in rounds if one.opposed is not None]
    return percent(sum(known) / len(known), 0) if known else "\u2013"


def _closed_set(report: Report) -> str:
    names = list(report.contenders)
    rows = []
    for site in report.sites:
        kinds: dict[str, Mapping[str, Estimate]] = {"random": site.closed, **site.closed_forgeries}
        rows += [
            [escape(site.site), escape(kind), *(rate(estimates[name]) for name in names)]
            for kind, estimates in kinds.items()
        ]
    head = ["Site", "Forgery", *(keyed(report, name) for name in names)]
    few, many = (f(site.training_identities for site in report.sites) for f in (min, max))
    people = f"{few}" if few == many else f"{few} to {many}"
    return (
        "<section>\n<h2>Writers a site trained on</h2>\n"
        "<p>Each site verifies its own writers: half of their genuine signatures were trained on and are "
        f"their references, the others are claims. {people} writers a site.</p>\n"
        + table(head, rows)
        + "</section>\n"
    )
