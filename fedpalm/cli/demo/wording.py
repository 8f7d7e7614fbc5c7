"""Words that the terminal and the page share: rates, sizes, what was found, what left and what did not."""

from __future__ import annotations

from collections.abc import Mapping

from .figures import Claim, Egress, Estimate, Report
from .words import words_of

KINDS = {
    "update": "Round updates",
    "sealed_expert": "Sealed experts",
    "expert_keys": "Expert keys",
    "consent": "Signed consents",
    "refusal": "Refusals",
    "answer_plan": "Signed answers to plans",
    "countersign": "Countersigned rounds",
    "masking_keys": "Masking messages",
    "masking_boxes": "Masking messages",
    "masking_complaint": "Masking messages",
    "masking_agreement": "Masking messages",
    "masking_reveal": "Masking messages",
}
PROTOCOL = "Protocol messages"

_NEAR_CHANCE = 0.45


def percent(rate: float, digits: int = 2) -> str:
    """With a no-break space; the terminal shows it as a space."""
    return f"{100 * rate:.{digits}f}\u00a0%"


def interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f}\u00a0%"


def size(count: int) -> str:
    """Bytes in decimal units, three figures or so."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.{1 if value < 100 else 0}f} {unit}"


def count(number: int, one: str, many: str | None = None) -> str:
    """``3 sites``; numbers below thirteen as words belong to prose, figures to tables."""
    return f"{number:,} {one if number == 1 else many or one + 's'}".replace(",", "\u202f")


def egress_rows(report: Report) -> list[tuple[str, dict[str, Egress]]]:
    """What left, by site and label: the kinds of ``KINDS``, and all other messages as one."""
    rows = []
    for site in report.sites:
        row: dict[str, Egress] = {}
        for item in site.egress:
            label = KINDS.get(item.kind, PROTOCOL)
            before = row.get(label, Egress(kind=label, count=0, bytes=0))
            row[label] = Egress(
                kind=label, count=before.count + item.count, bytes=before.bytes + item.bytes
            )
        rows.append((site.site, row))
    return rows


def egress_labels(report: Report) -> list[str]:
    """Labels that occur, in their order."""
    there = {label for _, row in egress_rows(report) for label in row}
    return [label for label in dict.fromkeys((*KINDS.values(), PROTOCOL)) if label in there]


def never(report: Report) -> tuple[tuple[str, str], ...]:
    """What left no site, and why not."""
    stays = words_of(report.settings).stays
    if not report.settings.masked:
        return stays
    return (("A site\u2019s update by itself", "it left masked; alone it reads like noise"), *stays)


def who_reads_updates(report: Report) -> str:
    """What the coordinator could see of the rounds, in two sentences."""
    images = words_of(report.settings).images
    if report.settings.masked:
        return (
            f"Every update left masked: the coordinator opened sums over all {report.settings.sites} "
            f"sites, and could read no site\u2019s own update or its number of training {images}. "
            'A site\u2019s policy can require this: masking = "required".'
        )
    return (
        f"This plan did not mask: a site\u2019s round update, and its number of training {images} as "
        "the weight inside it, can be read by the coordinator, and by nobody on the way. A site\u2019s "
        'policy can refuse such plans: masking = "required".'
    )


def privacy(report: Report) -> tuple[str, ...]:
    """What differential privacy cost and what it promises, in sentences; nothing without it."""
    budgets = [site.budget for site in report.sites if site.budget is not None]
    if not budgets:
        return ()
    most, any_of_them = max(one.spent for one in budgets), budgets[0]
    sentences = [
        "Trained with differential privacy for every person (add/remove), noise added at each site: "
        f"epsilon {most:.2f} of {any_of_them.budget:g} at delta {any_of_them.delta:g} is spent at the "
        "site that spent most, charged in its log before its training began.",
        "Everything began at a warm start, trained on drawn palms of nobody, and only the expert was "
        "trained on.",
    ]
    start = report.open_set.warm_start
    if start is not None:
        sentences.append(
            f"The warm start by itself has an open-set equal error rate of {percent(start.eer, 1)} "
            f"({interval(start)})."
        )
    sentences.append(
        "What it is compared with was simulated: FedAvg with the same noise, drawn from seeds, and no "
        "federation without any noise, since nothing leaves."
    )
    return tuple(sentences)


def in_use(report: Report) -> str:
    """A threshold and some claims in a paragraph; empty if there was no threshold."""
    one = report.in_use
    if one is None:
        return ""
    words = words_of(report.settings)
    low, high = (percent(rate, 1) for rate in one.fmr_interval)

    def said(claim: Claim, who: str) -> str:
        verdict = "matches" if claim.match else "does not match"
        return f"{who} scores {claim.score:.3f} and {verdict}"

    claims = [
        said(one.genuine, f"Another {words.image} of them"),
        said(one.impostor, f"{_a(words.image)} of somebody else under that name"),
    ]
    if one.forgery is not None:
        claims.append(said(one.forgery, f"a {one.forgery_kind} forgery"))
    return (
        f"{one.site} set its threshold at {one.threshold:.3f} on its own open {words.owner[1]}, for a "
        f"false match rate of {percent(one.target_fmr, 0)}: measured there {percent(one.fmr, 1)} "
        f"({low} to {high}, {one.impostor_pairs:,} impostor comparisons), at a false non-match rate of "
        f"{percent(one.fnmr, 1)}. "
        "It then enrolled somebody whom no site trained on, under a key of their own. "
        f"{'; '.join(claims)}."
    )


def finding(report: Report) -> str:
    """The result in a few sentences, whichever way it went; nothing is claimed inside an interval."""
    words = words_of(report.settings)
    people = f"{report.open_set.identities} {words.strangers}"
    sentences = []
    for kind, estimates in report.by_forgery.items():
        against = words.against[kind]
        if kind == "random":
            sentences += _together(report, estimates, people, against)
        else:
            sentences.append(_against(report, estimates, against))
    return " ".join(sentences)


def _together(
    report: Report, estimates: Mapping[str, Estimate], people: str, against: str
) -> list[str]:
    words = words_of(report.settings)
    ours, alone = estimates[report.settings.method], estimates["local"]
    label = words.labels[report.settings.method]
    how = f" against {against}" if against else ""
    on_average = "" if against else " on average"
    if report.federation_helps or not _apart(ours, alone):
        sentences = [
            f"Trained together, the sites verify {people} with an equal error rate of "
            f"{percent(ours.eer, 1)}{how}; trained alone, with {percent(alone.eer, 1)}{on_average}."
        ]
        if not _apart(ours, alone):
            sentences.append(
                "These intervals overlap: this run does not show that training together pays."
            )
    else:
        sentences = [
            f"In this run training together did not pay: on {people} the equal error rate is "
            f"{percent(ours.eer, 1)}{how}, and {percent(alone.eer, 1)}{on_average} for sites that train "
            "alone."
        ]
    if "fedavg" in estimates and report.settings.method != "fedavg":
        average = estimates["fedavg"]
        sentences.append(
            f"{label} and {words.labels['fedavg']} ({percent(average.eer, 1)}) "
            + (
                "differ by more than their intervals."
                if _apart(ours, average)
                else "have overlapping intervals: a run this small cannot tell them apart."
            )
        )
    if ours.high > _NEAR_CHANCE:
        sentences.append(
            f"Rates near {percent(0.5, 0)} are chance: so short a training did not learn to "
            f"verify these {words.images}."
        )
    return sentences


def _against(report: Report, estimates: Mapping[str, Estimate], against: str) -> str:
    ours = estimates[report.settings.method]
    labels = words_of(report.settings).labels
    others = {name: one for name, one in estimates.items() if one is not ours}
    said = ", ".join(f"{labels[name]} {percent(one.eer, 1)}" for name, one in others.items())
    near = [labels[name] for name, one in others.items() if not _apart(ours, one)]
    doubt = f"; its interval overlaps that of {' and that of '.join(near)}" if near else ""
    chance = "; this is near chance" if ours.high > _NEAR_CHANCE else ""
    return f"Against {against} it is {percent(ours.eer, 1)} ({said}){doubt}{chance}."


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _apart(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low or other.high < one.low
