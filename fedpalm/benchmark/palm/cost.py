"""Bytes of a round, as the deployed protocol moves them: plain, and masked with every step's messages."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...methods.contribution import codec_for
from ...plan import Plan
from ...secagg.codec import BYTES_PER_VALUE
from ...secagg.terms import MIN_MASKED_SITES
from ..masking import Attempt, Load

NOTHING = {
    "parameters": 0,
    "plain": {"up": 0, "down": 0},
    "masked": {"up": 0, "down": 0},
    "exchange": {"up": 0, "down": 0},
    "factors_up": None,
}
"""What a method costs that shares nothing."""


def bytes_of(plan: Plan, rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Bytes of one site: a round ``plain`` and ``masked`` (None for too few sites), one ``exchange``.

    ``factors_up``: of an update that consists of factors (FedKD; metric ``svd.floats``), if they were
    sent instead. Factors do not add, so neither the deployed sum nor masking can take them.
    Frames of the transport and receipts, some kilobytes, are left out; the seal of an expert is too.
    """
    sites = len(plan.roster)
    up = BYTES_PER_VALUE * codec_for(plan).length
    down = BYTES_PER_VALUE * plan.model_layout.size
    expert = BYTES_PER_VALUE * plan.released_layout.size * (sites - 1)
    floats = [one["svd.floats"] for one in rounds if "svd.floats" in one]
    more = _masking(sites) if sites >= MIN_MASKED_SITES else None
    return {
        "parameters": plan.model_layout.size,
        "plain": {"up": up, "down": down},
        "masked": {"up": up + more[0], "down": down + more[1]} if more is not None else None,
        "exchange": {"up": expert, "down": expert},
        "factors_up": round(BYTES_PER_VALUE * statistics.mean(floats)) if floats else None,
    }


@functools.cache
def _masking(sites: int) -> tuple[int, int]:
    """Bytes that a site sends and gets for masking beside its vector, mean over the sites.

    Measured on one attempt with a short vector: what the messages hold does not depend on its length.
    A site gets everybody's keys, its own boxes, everybody's signed inputs and agreements.
    """
    load = Load(sites, 8, 0.0, 0)
    attempt = Attempt(load, lambda what, done, total: None)
    attempt.share_keys()
    codec = load.codec
    total = np.zeros(codec.length, np.uint32)
    for number, name in enumerate(attempt.terms.roster):
        delta, weight = load.update(number)
        encoded = codec.encode(delta, weight, {}, number.to_bytes(32, "big"))
        attempt.mask(name, encoded)
        total += encoded
    attempt.unmask(total)
    vector = BYTES_PER_VALUE * codec.length
    sent = {step: list(sizes) for step, sizes in attempt.sent.items()}
    sent["inputs"] = [size - vector for size in sent["inputs"]]
    up = sum(statistics.mean(sizes) for sizes in sent.values())
    heard = sum(sum(sent[step]) for step in ("keys", "inputs", "agreements"))
    return round(up), round(heard + statistics.mean(sent["boxes"]))
