"""The egress gate's second look: not at names and shapes, but at the values that would leave."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedpalm.errors import EgressRefusedError
from fedpalm.layout import FloatVector, Layout

MIN_VALUES = 64
"""Smaller tensors (alpha, beta, Gabor scalars) may coincide by chance and are not compared."""

_TOLERANCE = 1e-6
"""Of the largest magnitude: global + (private - global) is the private tensor but for rounding."""


def refuse_private_content(
    layout: Layout, delta: FloatVector, shared: FloatVector, private: Mapping[str, np.ndarray]
) -> None:
    """Refuse a delta that carries a private tensor under a shared tensor's name.

    A layout says what a tensor is called, not what is in it. So each part of the delta, and of the
    model that the coordinator could compute from it, is compared with every private tensor of as many
    values; a tensor of one repeated value tells nothing and is left out, and so is a part that the round
    did not move: what the coordinator could compute from it is what it sent.

    Args:
        delta, shared: (P,) float32 of ``layout``.
        private: the site's private state by name.
    Raises:
        EgressRefusedError: names the shared and the private tensor.
    """
    by_size: dict[int, list[tuple[str, FloatVector]]] = {}
    for name, tensor in private.items():
        if tensor.size >= MIN_VALUES and tensor.dtype.kind == "f":
            values = np.asarray(tensor, dtype=np.float32).reshape(-1)
            if values.min() != values.max():
                by_size.setdefault(values.size, []).append((name, values))
    at = 0
    for spec in layout.tensors:
        part, base = delta[at : at + spec.size], shared[at : at + spec.size]
        at += spec.size
        for name, secret in by_size.get(spec.size, ()) if part.any() else ():
            if _same(part, None, secret) or _same(part, base, secret):
                raise EgressRefusedError(
                    f"egress gate: {spec.name} of this update holds the values of the private "
                    f"tensor {name}",
                    safe="nothing was encoded, stored or sent",
                    next_step="if both models were trained alike on purpose, set training.dropout "
                    "above 0 in the plan, so that they differ",
                )


def _same(sent: FloatVector, base: FloatVector | None, secret: FloatVector) -> bool:
    """True if ``sent`` (plus ``base``) is ``secret`` but for rounding."""
    bound = _TOLERANCE * float(np.abs(secret).max())
    # A few values first: they tell two tensors apart almost always, at almost no cost.
    for part in (slice(0, MIN_VALUES), slice(None)):
        found = sent[part] if base is None else sent[part] + base[part]
        if not np.all(np.abs(found - secret[part]) <= bound):
            return False
    return True
