"""From records to arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .records import SIDE_PX, ImageRecord, problems_error
from .roi import NEXT_STEP, load_roi


@dataclass(frozen=True)
class LoadedImages:
    """``images`` (N, 1, 128, 128) float32; ``labels`` (N,) int64 index ``classes``.

    ``people`` (N,) int64: whose image each is; who has two identities has one number.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    people: npt.NDArray[np.int64]


def load_images(
    records: Sequence[ImageRecord], classes: Sequence[str] | None = None
) -> LoadedImages:
    """Read records in their order.

    Args:
        classes: identities in label order; None takes those of the records, sorted.
    Raises:
        DataError: no records, an identity that ``classes`` does not name, or one message for all
            images that cannot be used.
    """
    if not records:
        raise DataError("there are no images to load")
    names = tuple(classes) if classes is not None else tuple(sorted({r.identity for r in records}))
    index = {name: label for label, name in enumerate(names)}
    if len(index) != len(names):
        raise DataError("an identity occurs twice in the class order")
    unknown = sorted({r.identity for r in records} - set(index))
    if unknown:
        raise DataError(f"identities outside the class order: {', '.join(unknown[:5])}")
    images = np.empty((len(records), 1, SIDE_PX, SIDE_PX), dtype=np.float32)
    problems: list[str] = []
    for at, record in enumerate(records):
        try:
            images[at] = load_roi(record.path)
        except DataError as error:
            problems.append(error.what)
    if problems:
        raise problems_error(
            f"{len(problems)} of {len(records)} images cannot be used", problems, NEXT_STEP
        )
    labels = np.asarray([index[r.identity] for r in records], dtype=np.int64)
    return LoadedImages(images, labels, names, people_of(records))


def people_of(records: Sequence[ImageRecord]) -> npt.NDArray[np.int64]:
    """(N,) number of each record's person, 0..people-1 in the order of their names."""
    numbers = {name: number for number, name in enumerate(sorted({r.subject for r in records}))}
    return np.asarray([numbers[r.subject] for r in records], dtype=np.int64)


@dataclass(frozen=True)
class Trial:
    """Gallery and probes of a verification experiment; labels of one numbering."""

    gallery: npt.NDArray[np.float32]
    gallery_labels: npt.NDArray[np.int64]
    probe: npt.NDArray[np.float32]
    probe_labels: npt.NDArray[np.int64]


def load_trial(
    gallery: Sequence[ImageRecord], probe: Sequence[ImageRecord], classes: Sequence[str]
) -> Trial:
    """Both halves, read as :func:`load_images` does. Raises DataError."""
    rows, columns = load_images(gallery, classes), load_images(probe, classes)
    return Trial(rows.images, rows.labels, columns.images, columns.labels)
