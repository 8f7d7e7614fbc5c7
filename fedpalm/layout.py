"""The declared shape of everything that travels: named tensors in one flat float32 vector.

A layout is public: it is part of the plan, both sides check its hash, and what it does not name
cannot be encoded. Names say which side of the wall a tensor lives on: ``open_set.*`` is shared in
rounds, ``closed_set.expert.*`` may leave once, inside a sanctioned exchange; nothing else has a name
that a layout accepts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .canonical import canonical_json, domain_hash
from .errors import LayoutMismatchError, NonFiniteUpdateError

FloatVector = npt.NDArray[np.float32]

OPEN_SET = "open_set."
CLOSED_SET_EXPERT = "closed_set.expert."
MAX_TENSORS = 4096
MAX_PARAMETERS = 256_000_000
_NAME = re.compile(r"(open_set|closed_set\.expert)(\.[a-z0-9_]{1,64}){1,8}")


@dataclass(frozen=True)
class TensorSpec:
    """One float32 tensor: its dotted name and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """An ordered, named partition of a flat (P,) float32 vector.

    Raises:
        LayoutMismatchError: on construction, for a name outside the two allowed families, a
            duplicate, a negative dimension, or more than MAX_TENSORS / MAX_PARAMETERS.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        for spec in self.tensors:
            if not _NAME.fullmatch(spec.name):
                raise LayoutMismatchError(
                    f"{spec.name[:120]!r} is not a name that may leave a site"
                )
            if any(d < 0 for d in spec.shape) or len(spec.shape) > 8:
                raise LayoutMismatchError(f"{spec.name}: impossible shape {spec.shape}")
        if len(set(names)) != len(names):
            raise LayoutMismatchError("a tensor name occurs twice in the layout")
        if len(names) > MAX_TENSORS or self.size > MAX_PARAMETERS:
            raise LayoutMismatchError(
                f"{len(names)} tensors, {self.size} parameters: more than allowed"
            )

    @cached_property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(spec.size for spec in self.tensors)

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name this layout."""
        return domain_hash("layout/v1", canonical_json(self.to_json()))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": s.name, "shape": list(s.shape)} for s in self.tensors]

    @classmethod
    def from_json(cls, items: Iterable[Mapping[str, Any]]) -> Layout:
        """Inverse of :meth:`to_json`. Raises LayoutMismatchError on anything malformed."""
        try:
            return cls(
                tuple(TensorSpec(str(i["name"]), tuple(int(d) for d in i["shape"])) for i in items)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LayoutMismatchError(f"malformed layout: {error!r}") from error

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> Layout:
        """The layout of named arrays, in their order."""
        return cls(tuple(TensorSpec(name, tuple(a.shape)) for name, a in tensors.items()))

    def flatten(self, tensors: Mapping[str, npt.NDArray[Any]]) -> FloatVector:
        """Copy named arrays into one (P,) float32 vector.

        Raises:
            LayoutMismatchError: names, shapes or dtype (float32) are not exactly the layout's.
            NonFiniteUpdateError: a tensor holds NaN or infinity.
        """
        if set(tensors) != {s.name for s in self.tensors}:
            odd = sorted(set(tensors) ^ {s.name for s in self.tensors})
            raise LayoutMismatchError(f"tensor names differ from the layout: {', '.join(odd[:5])}")
        vector = np.empty(self.size, dtype=np.float32)
        at = 0
        for spec in self.tensors:
            array = tensors[spec.name]
            if tuple(array.shape) != spec.shape or array.dtype != np.float32:
                raise LayoutMismatchError(
                    f"{spec.name}: got {array.dtype} {tuple(array.shape)}, layout float32 {spec.shape}"
                )
            vector[at : at + spec.size] = array.reshape(-1)
            at += spec.size
        check_finite(vector)
        return vector

    def unflatten(self, vector: FloatVector) -> dict[str, FloatVector]:
        """Views of a (P,) float32 vector by name.

        Raises:
            LayoutMismatchError: the vector's size or dtype is not the layout's.
            NonFiniteUpdateError: it holds NaN or infinity.
        """
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise LayoutMismatchError(
                f"got {vector.dtype} {vector.shape}, layout float32 ({self.size},)"
            )
        check_finite(vector)
        views: dict[str, FloatVector] = {}
        at = 0
        for spec in self.tensors:
            views[spec.name] = vector[at : at + spec.size].reshape(spec.shape)
            at += spec.size
        return views

    def only(self, prefix: str) -> bool:
        """True if every name begins with ``prefix`` and there is at least one."""
        return bool(self.tensors) and all(s.name.startswith(prefix) for s in self.tensors)


def check_finite(vector: FloatVector) -> None:
    """Raise NonFiniteUpdateError if the array holds NaN or infinity."""
    if not np.isfinite(vector).all():
        raise NonFiniteUpdateError(
            "the vector holds NaN or infinity",
            safe="nothing was sent or stored",
            next_step="lower the learning rate or look at the site's images",
        )
