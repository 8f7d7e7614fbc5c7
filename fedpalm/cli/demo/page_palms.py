"""Sections of the page with the figures of palms."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from .figures import Report
from .markup import in_order, keyed, rate, table
from .wording import count, percent


def figures(report: Report, plots: Mapping[str, str]) -> str:
    return _open_set(report, plots) + _closed_set(report)


def _open_set(report: Report, plots: Mapping[str, str]) -> str:
    rows = [
        [
            keyed(report, name) + (", mean of sites" if name == "local" else ""),
            rate(estimate),
            f"{estimate.genuine:,}",
            f"{estimate.impostor:,}",
        ]
        for name, estimate in in_order(report, report.open_set.estimates)
    ]
    by_site = ", ".join(
        f'<span class="whole">{escape(site)} {percent(estimate.eer, 1)}</span>'
        for site, estimate in report.open_set.local_by_site.items()
    )
    half = "About half" if report.settings.private else "Half"
    return (
        "<section>\n<h2>People nobody trained on</h2>\n"
        f"<p>{half} of every site\u2019s identities were kept out of training. Pooled over all sites "
        f"they are {count(report.open_set.identities, 'identity', 'identities')} with "
        f"{count(report.open_set.images, 'image')}; every probe is compared with every gallery "
        "image, once with each final model.</p>\n"
        + table(["Model", "EER", "Genuine pairs", "Impostor pairs"], rows)
        + f'<p class="note">No federation: each site\u2019s own model on the same pairs, then the '
        f"mean ({by_site}).</p>\n"
        f'<div class="pair wide"><figure>{plots["roc"]}<figcaption>ROC. The false match rate is on a '
        "logarithmic scale; for no federation, the mean of the sites\u2019 curves at "
        f"equal false match rate.</figcaption></figure><figure>{plots['convergence']}"
        f"<figcaption>Open-set EER while training. {_convergence_note(report)}</figcaption>"
        "</figure></div>\n</section>\n"
    )


def _convergence_note(report: Report) -> str:
    if report.settings.method != "fedpalm":
        return "One point per evaluated round."
    return (
        "FedPalm\u2019s line is the global model by itself; the diamond is the same model with the "
        "exchanged experts."
    )


def _closed_set(report: Report) -> str:
    names = list(report.contenders)
    rows = [
        [escape(site.site), *(rate(site.closed[name]) for name in names)] for site in report.sites
    ]
    mean = ["Mean"] + [
        percent(sum(site.closed[name].eer for site in report.sites) / len(report.sites))
        for name in names
    ]
    head = ["Site", *(keyed(report, name) for name in names)]
    return (
        "<section>\n<h2>People a site trained on</h2>\n"
        "<p>Each site verifies its own people with its personal model: half of their images were "
        f"trained on and are the gallery, the other half are probes. {_people_per_site(report)} "
        "EER with interval.</p>\n"
        + table(head, rows, mean)
        + '<p class="note">With this few identities a site an EER moves in coarse steps; the '
        "interval says how coarse.</p>\n</section>\n"
    )


def _people_per_site(report: Report) -> str:
    numbers = [site.training_identities for site in report.sites]
    few, many = min(numbers), max(numbers)
    return f"{few} identities a site." if few == many else f"{few} to {many} identities a site."
