"""The egress gate's second look: not at names and shapes, but at the values that would leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from fedpalm.errors import EgressRefusedError
from fedpalm.layout import FloatVector, Layout

MIN_VALUES = 64
"""Smaller tensors (alpha, beta, Gabor scalars) may coincide by chance and are not compared."""

_HEAD = "head."
"""What a site calls the tensors of its heads; a row of a two-dimensional one is a person's."""

_TOLERANCE = 1e-6
"""Of a secret's largest magnitude: a copy of it is the secret but for rounding."""

_ROUNDING = 2.0**-22
"""Of a shared value: what private - shared, and shared + that, may lose of it in float32, twice over."""


def refuse_private_content(
    layout: Layout, delta: FloatVector, shared: FloatVector, private: Mapping[str, np.ndarray]
) -> None:
    """Refuse a delta that carries a private tensor under a shared tensor's name.

    A layout says what a tensor is called, not what is in it. So every private tensor, and every row of a
    head, is looked for in each shared tensor, at any place of it: in the delta, and in the model that the
    coordinator could compute from it. Values that are all alike tell nothing and are left out, and so is a
    shared tensor that the round did not move: what the coordinator could compute from it is what it sent.

    What is found are whole and plain copies, against mistakes. **Not found** is what is scaled, shifted,
    permuted or spread over several shared tensors, a part of a tensor that is no row of a head, a part of a
    row, or fewer than MIN_VALUES values; a flat copy of the whole model is no find either.

    Args:
        delta, shared: (P,) float32 of ``layout``.
        private: the site's private state by name.
    Raises:
        EgressRefusedError: names the shared and the private tensor.
    """
    ends = np.cumsum([spec.size for spec in layout.tensors])
    begins = ends - [spec.size for spec in layout.tensors]
    moved = np.array([delta[a:b].any() for a, b in zip(begins, ends, strict=True)], dtype=bool)
    places = np.flatnonzero(np.repeat(moved, ends - begins))
    # Of the delta, rounded once from what it copies, no more may be off than the secret's own tolerance.
    sent = (
        _Sent(delta, np.zeros_like(shared), places),
        _Sent(shared + delta, np.float32(_ROUNDING) * np.abs(shared), places),
    )
    for name, secret in _secrets(private):
        for one in sent:
            found = one.places_of(secret)
            tensor = np.searchsorted(ends, found, side="right")
            held = found + secret.size <= ends[tensor]
            if held.any():
                where = layout.tensors[tensor[held][0]].name
                raise EgressRefusedError(
                    f"egress gate: {where} of this update holds the values of the private tensor {name}",
                    safe="nothing was encoded, stored or sent",
                    next_step="if both models were trained alike on purpose, set training.dropout "
                    "above 0 in the plan, so that they differ",
                )


def _secrets(private: Mapping[str, np.ndarray]) -> Iterator[tuple[str, FloatVector]]:
    """Private tensors and rows of heads that are long enough, and not of one value."""
    for name, tensor in private.items():
        if tensor.dtype.kind != "f":
            continue
        values = np.asarray(tensor, dtype=np.float32)
        rows = values if name.startswith(_HEAD) and values.ndim == 2 else ()
        for secret in (values.reshape(-1), *rows):
            if secret.size >= MIN_VALUES and secret.min() != secret.max():
                yield name, secret


class _Sent:
    """Values that would be known outside, sorted once for all secrets.

    Args:
        values: (P,) float32.
        slack: (P,) how far off each may be, beside the tolerance of the secret.
        places: where to look.
    """

    def __init__(
        self, values: FloatVector, slack: FloatVector, places: npt.NDArray[np.intp]
    ) -> None:
        self._values, self._slack = values, slack
        self._order = places[np.argsort(values[places])]
        self._sorted = values[self._order].astype(np.float64)
        self._reach = float(np.nanmax(slack[places], initial=0.0))

    def places_of(self, secret: FloatVector) -> npt.NDArray[np.intp]:
        """Where ``secret`` begins, but for rounding."""
        size = np.abs(secret)
        peak = int(size.argmax())
        bound = _TOLERANCE * float(size[peak])
        # The value of largest magnitude first: it is the rarest, so that few places are left to look at.
        near = float(secret[peak]) + np.array([-1, 1]) * (bound + self._reach)
        low, high = np.searchsorted(self._sorted, near)
        found = self._order[low:high] - peak
        found = np.sort(found[(found >= 0) & (found + secret.size <= self._values.size)])
        for at in (peak, *range(MIN_VALUES)):
            if not found.size:
                return found
            found = found[self._off(found + at, secret[at]) <= bound]
        whole = [
            at for at in found if np.all(self._off(slice(at, at + secret.size), secret) <= bound)
        ]
        return np.array(whole, dtype=np.intp)

    def _off(self, at: npt.NDArray[np.intp] | slice, wanted: FloatVector) -> FloatVector:
        off: FloatVector = np.abs(self._values[at] - wanted) - self._slack[at]
        return off
