"""Results of one experiment as figures: means over seeds, paired differences, who is lowest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.signatures import FORGERY_KINDS
from ...evaluation.signatures import claim_interval
from ..jobs.results import Result
from .contenders import CONTENDERS, HETEROGENEOUS, REFERENCE
from .scoring import shown

Summary = dict[str, Any]
MEAN = "mean"
"""Beside the kinds of forgery: their mean."""
RATES = ("eer", "user_eer")


def summarise(results: Sequence[Result], left_out: Sequence[str]) -> Summary:
    """Figures by set that was trained on; rates 0..1.

    ``contenders.<name>.sets.<set>.<references>.<kind>`` has ``eer`` and ``user_eer``, each with ``mean``,
    ``interval``, ``sites``, and ``against`` FedMH on the seeds that both have: the difference and its
    paired interval. A kind is one of forgery, or their mean. ``left_out`` says what was not measured.
    """
    first = results[0]
    on: dict[str, list[Result]] = {}
    for one in results:
        on.setdefault(one["data"], []).append(one)
    names = first["data_names"]
    return {
        "experiment": first["experiment"],
        "config": first["config"],
        "versions": first["versions"],
        "seeds": sorted({one["seed"] for one in results}),
        "left_out": list(left_out),
        "names": names,
        "trained_on": {
            data: _trained(on[data]) | {"name": names[data]} for data in names if data in on
        },
    }


def shown_of(by_count: Mapping[str, Any]) -> str:
    """The number of references that is shown of a set."""
    return str(shown(map(int, by_count)))


def _trained(results: Sequence[Result]) -> dict[str, Any]:
    by_name: dict[str, dict[int, Result]] = {}
    for one in results:
        by_name.setdefault(one["variant"], {})[one["seed"]] = one
    reference = by_name.get(REFERENCE, {})
    contenders = {
        name: {
            "label": CONTENDERS[name].label,
            "seeds": sorted(by_name[name]),
            "sets": _sets(by_name[name], reference if name != REFERENCE else {}),
            "cost": _cost(list(by_name[name].values())),
        }
        for name in CONTENDERS
        if name in by_name
    }
    own = list(reference.values())
    return {
        "sites": results[0]["trained_on"],
        "contenders": contenders,
        "lowest": _lowest(contenders),
        "poison": own[0]["poison"] if own else None,
        "rounds": own[0]["rounds"] if own else [],
    }


def _sets(by_seed: Mapping[int, Result], reference: Mapping[int, Result]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for which, by_count in next(iter(by_seed.values()))["figures"].items():
        found[which] = {}
        for count, by_kind in by_count.items():
            own = {seed: one["figures"][which][count] for seed, one in by_seed.items()}
            others = {
                seed: one["figures"][which][count] for seed, one in reference.items() if seed in own
            }
            kinds = [kind for kind in FORGERY_KINDS if kind in by_kind]
            found[which][count] = {
                kind: {rate: _rate(own, others, of, rate) for rate in RATES}
                for kind, of in [(kind, [kind]) for kind in kinds] + [(MEAN, kinds)]
            }
    return found


def _rate(
    own: Mapping[int, Any], others: Mapping[int, Any], kinds: Sequence[str], rate: str
) -> dict[str, Any]:
    """Means over seeds and ``kinds``."""
    every = [one[kind] for one in own.values() for kind in kinds]
    draws = np.mean([one[rate]["draws"] for one in every], axis=0)
    genuine = sum(one[kinds[0]]["genuine"] for one in own.values())  # every kind has the same
    found: dict[str, Any] = {
        "mean": _mean(one[rate]["mean"] for one in every),
        "interval": [_short(one) for one in claim_interval(draws, genuine)],
        "sites": {
            site: _mean(one[rate]["sites"][site] for one in every)
            for site in every[0][rate]["sites"]
        },
        "against": None,
    }
    if others:
        pairs = [
            (own[seed][kind][rate], others[seed][kind][rate]) for seed in others for kind in kinds
        ]
        gaps = np.mean([np.subtract(one["draws"], two["draws"]) for one, two in pairs], axis=0)
        found["against"] = {
            "mean": _mean(one["mean"] - two["mean"] for one, two in pairs),
            "interval": [_short(one) for one in np.quantile(gaps, [0.025, 0.975])],
        }
    return found


def _lowest(contenders: Mapping[str, Any]) -> dict[str, Any]:
    """By set: the method of lowest mean error, and where FedMH stands among the methods.

    Ablations are no methods of their own; a method with other seeds than FedMH is in ``unranked``.
    """
    if REFERENCE not in contenders:
        return {}
    seeds = contenders[REFERENCE]["seeds"]
    names = [n for n in HETEROGENEOUS if n in contenders and contenders[n]["seeds"] == seeds]
    if len(names) < 2:
        return {}
    found = {}
    for which, by_count in contenders[REFERENCE]["sets"].items():
        shown = shown_of(by_count)
        rates = {
            name: contenders[name]["sets"][which][shown][MEAN]["eer"]["mean"] for name in names
        }
        order = sorted(rates, key=lambda name: rates[name])
        best = order[0]
        rival = next(name for name in order if name != REFERENCE)
        found[which] = {
            "unranked": [n for n in HETEROGENEOUS if n in contenders and n not in names],
            "lowest": [name for name in names if rates[name] == rates[best]],
            "place": 1 + sum(rate < rates[REFERENCE] for rate in rates.values()),
            "of": len(names),
            "fedmh": rates[REFERENCE],
            "rival": rival,
            "rival_eer": rates[rival],
            "against": contenders[rival]["sets"][which][shown][MEAN]["eer"]["against"],
        }
    return found


def _cost(results: Sequence[Result]) -> dict[str, float]:
    sites = len(results[0]["config"]["backbones"])
    return {
        "values": results[0]["values"],
        **{
            key: statistics.median(value for one in results for value in one[key]) / sites
            for key in ("seconds", "cpu_seconds")
        },
    }


def _mean(values: Iterable[float]) -> float:
    return _short(statistics.fmean(values))


def _short(value: float) -> float:
    """Six digits behind the point: far below an interval's width, and a file that people can read."""
    return round(float(value), 6)
