"""What a signature is: one image on disk and whose it claims to be, and a site's images as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .records import SIDE_PX, ImageRecord

ForgeryKind = Literal["random", "simple", "skilled"]
"""``random``: another writer's own signature, given as this one's; ``simple``: the name, without its shape
(the same name by another writer); ``skilled``: practised on the original."""

SignatureKind = Literal["genuine", ForgeryKind]
FORGERY_KINDS: tuple[ForgeryKind, ...] = get_args(ForgeryKind)


class Claimed(NamedTuple):
    """Whose signature; ``text``: which of the writer's names, empty where there is one signature only."""

    writer: str
    text: str

    def __str__(self) -> str:
        return f"{self.writer}/{self.text}" if self.text else self.writer


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
    def claimed(self) -> Claimed:
        """What is enrolled and claimed: the writer's signature or, of a writer with several names, one."""
        return Claimed(self.writer, self.text or "")

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
    0..``classes``-1, what each claims to be (:attr:`SignatureRecord.claimed`); ``genuine`` (N,) bool, False
    for a forgery of that.
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


def by_claim(records: Iterable[SignatureRecord]) -> dict[Claimed, list[SignatureRecord]]:
    """Group by what is claimed, in sorted order."""
    groups: dict[Claimed, list[SignatureRecord]] = {}
    for record in records:
        groups.setdefault(record.claimed, []).append(record)
    return dict(sorted(groups.items()))
