"""Results as the paper's tables: figures first (:func:`summarise`), then markdown (:func:`markdown`)."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ..jobs.markdown import grid, percent, percent_range, signed, signed_range
from ..jobs.results import Result
from .scoring import SETS, difference, interval
from .variants import BASELINE, VARIANTS

Summary = dict[str, Any]


@functools.cache
def paper() -> dict[str, Any]:
    """The paper's own figures."""
    text = files(__package__).joinpath("paper.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def experiments(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results that may be compared with each other, by experiment."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result["experiment"], []).append(result)
    return found


def summarise(results: Sequence[Result]) -> Summary:
    """Figures of one experiment, means over the seeds; rates 0..1.

    Each set of a variant has ``eer`` with ``interval``, ``sites``, ``auc``, ``rank1``, and
    ``against`` the baseline on the seeds that both have: the difference, its paired interval, what
    the paper finds (``better``, ``worse``, or None where its data sets disagree) and whether that holds.
    """
    first = results[0]
    by_variant: dict[str, dict[int, Result]] = {}
    for one in results:
        by_variant.setdefault(one["variant"], {})[one["seed"]] = one
    names = [name for name in VARIANTS if name in by_variant]
    baseline = by_variant.get(BASELINE, {})
    data = first["config"]["data"]
    return {
        "experiment": first["experiment"],
        "config": {key: value for key, value in first["config"].items() if key != "training"},
        "seeds": sorted({one["seed"] for one in results}),
        "variants": {
            name: {
                "seeds": sorted(by_variant[name]),
                **{which: _set(which, by_variant[name]) for which in SETS},
                "against": {
                    which: _against(which, name, by_variant[name], baseline, data) for which in SETS
                },
                "cost": _cost(list(by_variant[name].values())),
            }
            for name in names
        },
    }


def paper_order(name: str, which: str, data: str) -> str | None:
    """``better`` or ``worse`` than FedAvg; of the data set, else where all of the paper's agree."""
    row = VARIANTS[name].row
    sets = paper()["datasets"]
    chosen = [sets[data]] if data in sets else list(sets.values())
    orders = {_order(row, which, tables) for tables in chosen} if row else {None}
    return orders.pop() if len(orders) == 1 else None


def _order(row: str, which: str, tables: Mapping[str, Any]) -> str | None:
    gap = _paper_mean(row, which, tables) - _paper_mean("FedAvg", which, tables)
    return None if gap == 0 else "better" if gap < 0 else "worse"


def _paper_mean(row: str, which: str, tables: Mapping[str, Any]) -> float:
    if which == "closed":
        return float(tables["closed"][row][-1])
    generic = tables["open_generic"]
    return float(generic[row] if row in generic else tables["open_personal"][row][-1])


def _set(which: str, by_seed: Mapping[int, Result]) -> dict[str, Any]:
    found = [one["figures"][which] for one in by_seed.values()]
    draws = np.mean([one["draws"] for one in found], axis=0)
    genuine = sum(one["mean"]["genuine_pairs"] for one in found)
    sites = sorted(found[0]["sites"])
    return {
        **{key: _mean(one["mean"][key] for one in found) for key in ("eer", "auc", "rank1")},
        "interval": interval(draws, genuine),
        "sites": {site: _mean(one["sites"][site]["eer"] for one in found) for site in sites},
    }


def _against(
    which: str,
    name: str,
    by_seed: Mapping[int, Result],
    baseline: Mapping[int, Result],
    data: str,
) -> dict[str, Any] | None:
    seeds = sorted(by_seed.keys() & baseline.keys())
    if name == BASELINE or not seeds:
        return None
    pairs = [(by_seed[s]["figures"][which], baseline[s]["figures"][which]) for s in seeds]
    gap = _mean(one["mean"]["eer"] - other["mean"]["eer"] for one, other in pairs)
    draws = np.mean([np.subtract(one["draws"], other["draws"]) for one, other in pairs], axis=0)
    order = paper_order(name, which, data)
    holds = None if order is None else bool(gap < 0 if order == "better" else gap > 0)
    return {"eer": gap, "interval": difference(draws), "paper": order, "holds": holds}


def _cost(results: Sequence[Result]) -> dict[str, Any]:
    sites = results[0]["config"]["sites"]
    epsilons = [one["epsilon"] for one in results if one["epsilon"] is not None]
    return {
        **results[0]["bytes"],
        **{
            key: statistics.median(value for one in results for value in one[key]) / sites
            for key in ("seconds", "cpu_seconds")
        },
        "epsilon": max(epsilons) if epsilons else None,
    }


def _mean(values: Iterable[float]) -> float:
    return float(statistics.fmean(values))


# --- markdown -------------------------------------------------------------------------------------


_LEGEND = """\
Order: the paper's against FedAvg. + holds, - does not, ~ behind it: the interval of the paired
difference holds 0, so it may be chance; = no difference. Empty: the paper has none, or its data sets
disagree."""


def markdown(summary: Summary) -> str:
    """All tables of one experiment."""
    config, variants = summary["config"], summary["variants"]
    data = config["data"]
    known = paper()["datasets"].get(data)
    closed, personal, generic, ten = known["tables"] if known else (None,) * 4
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = [
        f"## {data}: {config['sites']} sites, {config['rounds']} rounds, seeds {seeds}",
        f"Experiment `{summary['experiment']}`. Equal error rates in percent; in brackets 95 % "
        "intervals over identities.",
        _eer_table(
            _title(closed, "I, IV, VII", "closed set: people that the site trained on"),
            summary, "closed", list(variants), known and known["closed"], by_site=True,
        ),
        _eer_table(
            _title(personal, "II, V, VIII", "open set, a model a site: people that nobody trained on"),
            summary, "open", [name for name in variants if VARIANTS[name].personal],
            known and known["open_personal"], by_site=True,
        ),
        _eer_table(
            _title(generic, "III, VI, IX", "open set, a shared model"),
            summary, "open",
            [name for name in variants if not VARIANTS[name].personal or name == "local"],
            known and {row: [value] for row, value in known["open_generic"].items()}, by_site=False,
        ),
        _LEGEND,
        _identification(ten, summary, known),
        _ablation(summary),
        _cost_table(summary),
        "### What the rows are",
        "\n".join(f"- {VARIANTS[name].label}: {VARIANTS[name].about}" for name in variants),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(number: str | None, numbers: str, text: str) -> str:
    return f"### Table {number}: {text}" if number else f"### As tables {numbers}: {text}"


def _eer_table(
    title: str,
    summary: Summary,
    which: str,
    names: Sequence[str],
    published: Mapping[str, Sequence[float]] | None,
    *,
    by_site: bool,
) -> str:
    variants = summary["variants"]
    if not names:
        return ""
    sites = sorted(variants[names[0]][which]["sites"]) if by_site else []
    best = min(variants[name][which]["eer"] for name in names)
    rows = []
    for name in names:
        one, against = variants[name][which], variants[name]["against"][which]
        mean = f"{percent(one['eer'])} {percent_range(one['interval'])}"
        rows.append(
            [
                VARIANTS[name].label,
                *(percent(one["sites"][site]) for site in sites),
                f"**{mean}**" if one["eer"] == best else mean,
                f"{signed(against['eer'])} {signed_range(against['interval'])}" if against else "",
                _mark(against),
            ]
        )
        figures = (published or {}).get(VARIANTS[name].row)
        if figures:
            each = (
                [f"{value:.2f}" for value in figures[:-1]] if len(sites) + 1 == len(figures) else []
            )
            rows.append(
                ["*in the paper*", *(each or [""] * len(sites)), f"*{figures[-1]:.2f}*", "", ""]
            )  # fmt: skip
    return f"{title}\n\n" + grid(["method", *sites, "mean", "against FedAvg", "order"], rows)


def _identification(number: str | None, summary: Summary, known: Mapping[str, Any] | None) -> str:
    rows = []
    for name, one in summary["variants"].items():
        row = [VARIANTS[name].label, percent(one["open"]["rank1"]), f"{one['open']['auc']:.4f}"]
        if known:
            accuracy, area = (known["identification"][key] for key in ("ACC", "AUC"))
            published = VARIANTS[name].row
            row += (
                [f"{accuracy[published]:.2f}", f"{area[published]:.4f}"] if published else ["", ""]
            )
        rows.append(row)
    head = [
        "method",
        "rank 1, %",
        "AUC",
        *(["rank 1 in the paper", "AUC in the paper"] if known else []),
    ]
    return _title(number, "X", "open set, identification and area under the ROC") + (
        "\n\n" + grid(head, rows)
    )


def _ablation(summary: Summary) -> str:
    names = [name for name in summary["variants"] if VARIANTS[name].ablation]
    if not set(names) - {BASELINE, "fedpalm"}:
        return ""
    published = paper()["ablation"]
    beside = ("EER", "ACC", "AUC") if summary["config"]["data"] == published["data"] else ()
    rows = []
    for name in names:
        one, row = summary["variants"][name]["open"], VARIANTS[name].ablation
        rows.append(
            [
                row,
                f"{percent(one['eer'])} {percent_range(one['interval'])}",
                percent(one["rank1"]),
                f"{one['auc']:.4f}",
                *(f"{published['rows'][key][row]:g}" for key in beside),
            ]
        )
    head = ["variant", "EER", "rank 1, %", "AUC", *(f"{key} in the paper" for key in beside)]
    title = _title("XI" if beside else None, "XI", "open set, K and the start of the TEIM")
    return f"{title}\n\n" + grid(head, rows)


def _cost_table(summary: Summary) -> str:
    rows = []
    for name, one in summary["variants"].items():
        cost = one["cost"]
        masked = cost["masked"]
        rows.append(
            [
                VARIANTS[name].label,
                _bytes(cost["plain"]["up"]) + _factors(cost),
                _bytes(cost["plain"]["down"]),
                *(_bytes(masked[way]) if masked else "" for way in ("up", "down")),
                _bytes(cost["exchange"]["up"]),
                f"{cost['seconds']:.2f}",
                f"{cost['cpu_seconds']:.2f}",
                "" if cost["epsilon"] is None else f"{cost['epsilon']:.2f}",
            ]
        )
    head = [
        "method", "MB up", "MB down", "masked, up", "masked, down", "experts, once", "s", "CPU s",
        "epsilon",
    ]  # fmt: skip
    return "### Cost of one site: bytes and seconds a round\n\n" + grid(head, rows)


def _mark(against: Mapping[str, Any] | None) -> str:
    if against is None or against["paper"] is None:
        return ""
    if against["eer"] == 0:
        return "="
    low, high = against["interval"]
    return ("+" if against["holds"] else "-") + (" ~" if low <= 0 <= high else "")


def _factors(cost: Mapping[str, Any]) -> str:
    count = cost["factors_up"]
    return f" (as factors {_bytes(count)})" if count is not None else ""


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f}" if count else "0"
