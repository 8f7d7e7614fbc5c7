"""An experiment's figures as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..jobs.markdown import grid, percent, percent_range, signed, signed_range
from .contenders import CONTENDERS, HETEROGENEOUS, REFERENCE
from .summary import MEAN, Summary, shown_of

_SETS = {"closed": "closed writers (the site trained on them)", "open": "open writers (nobody did)"}


def markdown(summary: Summary) -> str:
    """All tables."""
    config = summary["config"]
    seeds = ", ".join(map(str, summary["seeds"]))
    families = ", ".join(f"{site} {backbone}" for site, backbone in config["backbones"].items())
    parts = [
        f"Experiment `{summary['experiment']}`: {config['sites']} sites ({families}), "
        f"{config['rounds']} rounds of {config['training']['local_epochs']} local epochs, seeds {seeds}. "
        "Equal error rates in percent, means over the sites; in brackets 95 % intervals over writers.",
        *(f"**Not measured:** {one}." for one in summary["left_out"]),
        *(_of_one(summary, data) for data in summary["trained_on"]),
        "### What the rows are",
        "\n".join(
            f"- {CONTENDERS[name].label}: {CONTENDERS[name].about}"
            for name in CONTENDERS
            if any(name in one["contenders"] for one in summary["trained_on"].values())
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_one(summary: Summary, data: str) -> str:
    found = summary["trained_on"][data]
    contenders = found["contenders"]
    sets = next(iter(contenders.values()))["sets"]
    parts = [
        f"## Trained on {found['name']}",
        _site_line(found["sites"]),
        _verdicts(found["lowest"], summary["names"]),
    ]
    for which in sets:
        shown = shown_of(sets[which])
        title = f"{_title(which, summary['names'])}; references: {shown}"
        parts.append(f"### {title}\n\n{_rates(contenders, which, shown)}")
    parts += [
        "### Open writers by number of references\n\n" + _by_references(contenders, "open"),
        "### Open writers, site by site: mean over the kinds of forgery\n\n"
        + _by_site(contenders, "open", shown_of(sets["open"])),
        _poison(found["poison"]),
        _rounds(found["rounds"]),
        "### Cost of one site\n\n" + _cost(contenders),
    ]
    return "\n\n".join(part for part in parts if part)


def _title(which: str, names: Mapping[str, str]) -> str:
    if which in _SETS:
        return _SETS[which].capitalize()
    return f"A set that nobody trained on: all writers of {names[which.partition(':')[2]]}"


def _site_line(sites: Mapping[str, Mapping[str, int]]) -> str:
    each = "; ".join(
        f"{site}: {one['classes']} names of writers, {one['genuine']} genuine, {one['forged']} forged"
        for site, one in sites.items()
    )
    return f"Trained on ({each}), a part of which every contender keeps aside."


def _verdicts(lowest: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What the figures say, in words: nobody needs to look for it."""
    lines = []
    for which, one in lowest.items():
        rival, against = CONTENDERS[one["rival"]].label, one["against"]
        low, high = against["interval"]
        if REFERENCE in one["lowest"]:
            shared = " (shared)" if len(one["lowest"]) > 1 else ""
            place = f"FedMH has the lowest mean error{shared}"
            next_best = "next"
        else:
            place = f"FedMH has **not** the lowest mean error, it is number {one['place']}"
            next_best = "lowest"
        doubt = "; the interval holds 0, so it may be chance" if low <= 0 <= high else ""
        left_out = ", ".join(CONTENDERS[name].label for name in one["unranked"])
        unranked = f" Not ranked, having other seeds: {left_out}." if left_out else ""
        lines.append(
            f"- {_title(which, names)}: {place} of {one['of']} methods, {percent(one['fedmh'])}; "
            f"{next_best} is {rival} with {percent(one['rival_eer'])}, {signed(against['mean'])} "
            f"{signed_range(against['interval'])} against FedMH{doubt}.{unranked}"
        )
    return "\n".join(lines)


def _rates(contenders: Mapping[str, Any], which: str, shown: str) -> str:
    kinds = list(next(iter(contenders.values()))["sets"][which][shown])
    rates = {name: one["sets"][which][shown] for name, one in contenders.items()}
    methods = [name for name in HETEROGENEOUS if name in rates]
    best = min((rates[name][MEAN]["eer"]["mean"] for name in methods), default=-1.0)
    rows = []
    for name, by_kind in rates.items():
        row = [CONTENDERS[name].label]
        for kind in kinds:
            one = by_kind[kind]["eer"]
            text = f"{percent(one['mean'])} {percent_range(one['interval'])}"
            lowest = kind == MEAN and name in methods and one["mean"] == best
            row.append(f"**{text}**" if lowest else text)
        against = by_kind[MEAN]["eer"]["against"]
        row.append(
            f"{signed(against['mean'])} {signed_range(against['interval'])}" if against else ""
        )
        row += [percent(by_kind[kind]["user_eer"]["mean"]) for kind in kinds if kind != MEAN]
        rows.append(row)
    head = ["", *kinds, "against FedMH", *(f"{k}, own thresholds" for k in kinds if k != MEAN)]
    return grid(head, rows)


def _by_references(contenders: Mapping[str, Any], which: str) -> str:
    first = next(iter(contenders.values()))["sets"][which]
    columns = [
        (kind, count) for kind in first[next(iter(first))] if kind != MEAN for count in first
    ]
    rows = [
        [
            CONTENDERS[name].label,
            *(percent(one["sets"][which][count][kind]["eer"]["mean"]) for kind, count in columns),
        ]
        for name, one in contenders.items()
    ]
    return grid(["", *(f"{kind}, {count}" for kind, count in columns)], rows)


def _by_site(contenders: Mapping[str, Any], which: str, shown: str) -> str:
    rates = {n: one["sets"][which][shown][MEAN]["eer"]["sites"] for n, one in contenders.items()}
    sites = list(next(iter(rates.values())))
    rows = [
        [CONTENDERS[name].label, *(percent(one[site]) for site in sites)]
        for name, one in rates.items()
    ]
    return grid(["", *sites], rows)


def _poison(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    before, rows = found["before"], []
    for kind_of, ways in found["aggregates"].items():
        for way, one in ways.items():
            probe = one["probe"]
            rows.append(
                [
                    f"{kind_of}, {way}",
                    percent(one["refused_sites"]),
                    percent(one["refused_groups"]),
                    *(
                        f"{percent(before[kind])} -> {percent(one['after'][kind])}"
                        for kind in before
                    ),
                    *(
                        f"{probe['before'][task]:.2f} -> {probe['after'][task]:.2f}"
                        for task in probe["before"]
                    ),
                ]
            )
    told = {"user": "probe loss, writers", "forged": "probe loss, forgeries"}
    head = [
        "", "sites that refuse all, %", "groups refused, %", *(f"EER, {kind}" for kind in before),
        *(told[task] for task in found["aggregates"]["honest"]["taken"]["probe"]["before"]),
    ]  # fmt: skip
    return "### Poisoned aggregates at trained FedMH sites, open writers\n\n" + grid(head, rows)


def _rounds(rounds: Sequence[Mapping[str, float]]) -> str:
    """Of FedMH: a few rounds; all of them are in the figures."""
    if not rounds:
        return ""
    at = sorted({1, 2, (len(rounds) + 1) // 2, len(rounds)} & set(range(1, len(rounds) + 1)))
    wanted = {
        "guidance.cosine": "cosine of the tasks",
        "guidance.opposed": "opposed steps",
        "guidance.user_weight": "weight of writers",
        "probe.user_before": "probe, writers, before",
        "probe.user_after": "after",
        "probe.forged_before": "probe, forgeries, before",
        "probe.forged_after": "after",
    }
    etas = sorted({key for one in rounds for key in one if key.startswith("eta.")})
    columns = [key for key in wanted if any(key in one for one in rounds)] + etas
    rows = [
        [f"{number}", *(_number(rounds[number - 1].get(key)) for key in columns)] for number in at
    ]
    head = ["round", *(wanted.get(key, key.replace("eta.", "eta, ")) for key in columns)]
    return "### FedMH by round, means over the sites\n\n" + grid(head, rows)


def _cost(contenders: Mapping[str, Any]) -> str:
    rows = [
        [
            CONTENDERS[name].label,
            f"{one['cost']['values']:,.0f}",
            f"{one['cost']['seconds']:.2f}",
            f"{one['cost']['cpu_seconds']:.2f}",
        ]
        for name, one in contenders.items()
    ]
    return grid(["", "values given a round", "s a round", "CPU s a round"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
