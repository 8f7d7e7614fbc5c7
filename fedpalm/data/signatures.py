"""What a signature is: one image on disk and whose it claims to be, and a site's images as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .records import ImageRecord
from .roi import SIDE_PX

SignatureKind = Literal["genuine", "skilled", "simple", "random"]
"""``skilled``: practised on the original; ``simple``: the name, without its shape (the same name by
another writer); ``random``: another writer's own signature, given as this one's."""


@dataclass(frozen=True)
class SignatureRecord(ImageRecord):
    """An image and the writer whose signature it is, or claims to be.

    ``identity`` is that writer. ``text`` says which of the writer's names is claimed, where a data set has
    several; ``author`` who held the pen, where that is known (for a genuine signature it is the writer).
    """

    kind: SignatureKind = "genuine"
    text: str | None = None
    author: str | None = None

    @property
    def writer(self) -> str:
        return self.identity

    @property
    def genuine(self) -> bool:
        return self.kind == "genuine"

    @property
    def sample(self) -> str:
        """The file's name without its suffix: one of a writer's signatures of a kind."""
        return self.path.stem


@dataclass(frozen=True)
class SignatureImages:
    """Prepared signatures with what a site trains on.

    ``images`` (N, 1, 128, 128) float32: paper 0, ink above it; ``writers`` (N,) int64 in
    0..``classes``-1, who each claims to be; ``genuine`` (N,) bool, False for a forgery of that writer.
    """

    images: npt.NDArray[np.float32]
    writers: npt.NDArray[np.int64]
    genuine: npt.NDArray[np.bool_]
    classes: int

    def __post_init__(self) -> None:
        count = len(self.images)
        if (
            self.images.shape[1:] != (1, SIDE_PX, SIDE_PX)
            or self.writers.shape != (count,)
            or self.genuine.shape != (count,)
        ):
            raise DataError(
                f"signatures of shapes {self.images.shape}, {self.writers.shape} and "
                f"{self.genuine.shape} do not belong together"
            )
        if count and not 0 <= self.writers.min() <= self.writers.max() < self.classes:
            raise DataError(f"a signature's writer is outside 0..{self.classes - 1}")

    def of(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> SignatureImages:
        """The chosen rows, of the same writers."""
        return SignatureImages(
            self.images[rows], self.writers[rows], self.genuine[rows], self.classes
        )


def writers_of(records: Iterable[SignatureRecord]) -> tuple[str, ...]:
    """Who is claimed, in sorted order."""
    return tuple(sorted({record.writer for record in records}))
