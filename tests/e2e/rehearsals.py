"""What a rehearsal must come to, computed here with plain integers and none of the coordinator's code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from fedpalm.layout import FloatVector
from fedpalm.methods.base import RoundContext
from fedpalm.methods.contribution import codec_for, rounding_key
from fedpalm.methods.rehearsal import RehearsalMethod, rehearsal_vector
from fedpalm.methods.rules import server_rule
from fedpalm.plan import Plan


def encoded_update(plan: Plan, site: str, number: int, shared: FloatVector) -> bytes:
    """The payload of a site in a round; the same every time."""
    update = RehearsalMethod(plan, site).train_round(
        RoundContext(number, plan.draft.rounds), shared
    )
    encoded = codec_for(plan).encode(
        update.delta, update.weight, update.stats, rounding_key(plan, site, number), site
    )
    return encoded.astype("<u4").tobytes()


def expected_model(plan: Plan, survivors: Mapping[int, Sequence[str]] | None = None) -> str:
    """Hex SHA-256 of the model after all rounds.

    Args:
        survivors: round -> sites whose updates count; a round that is not named has all.
    """
    vector = rehearsal_vector(plan.model_layout, plan.draft.seed)
    codec, rule = codec_for(plan), server_rule(plan.draft.method)
    for number in range(1, plan.draft.rounds + 1):
        total = np.zeros(codec.length, dtype=np.int64)
        for site in (survivors or {}).get(number, plan.roster):
            total += np.frombuffer(encoded_update(plan, site, number, vector), "<i4")
        modular = (total % 2**32).astype(np.uint32)
        stats = codec.decode_stats(modular[codec.parameters :])
        for group in codec.parts:
            deltas = codec.decode_deltas(modular[group.span], group)
            vector[group.span] = rule.step(vector[group.span], deltas, codec.stats_of(stats, group))
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
