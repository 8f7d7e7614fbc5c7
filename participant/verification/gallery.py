"""Who is enrolled: for each subject three sealed records, apart from each other in the vault.

=======================  =======================================================================
kind                     content
=======================  =======================================================================
``verification-ref``     the protected template, the mode and model that it was made with
``verification-key``     32 random bytes, the key of the subject's transform
``verification-images``  enrolment images, (k, 128, 128) grey levels that the network's input is made of
=======================  =======================================================================

No unprotected template is ever stored. Torch-free.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fedpalm.data.names import one_spelling
from fedpalm.data.roi import SIDE_PX, Grey
from fedpalm.errors import DataError, NotFoundError
from fedpalm.protection import Transform

from ..store import SiteStore

REFERENCE, KEY, IMAGES = "verification-ref", "verification-key", "verification-images"
MAX_NAME_BYTES = 400

Mode = Literal["closed", "open"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""Templates of people whom this site trained on, and of everybody else."""

Protected = npt.NDArray[np.uint8]
_Templates = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What a subject is verified against.

    ``protected`` (m,) bytes of signs of a template of ``length`` features; ``model`` is the hash of what
    made it (:class:`.model.ModelId`), ``images`` how many images it was made from, ``images_kept``
    whether they are here.
    """

    subject: str
    mode: Mode
    model: str
    run_id: str
    protected: Protected
    length: int
    images: int
    images_kept: bool
    enrolled_ms: int
    renewed_ms: int

    def to_bytes(self) -> bytes:
        values = {**vars(self), "protected": base64.b64encode(self.protected.tobytes()).decode()}
        return json.dumps(values).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """Of a record that the vault has found to be what was put into it."""
        values: dict[str, Any] = json.loads(data)
        signs = np.frombuffer(base64.b64decode(values.pop("protected")), dtype=np.uint8)
        return cls(protected=signs, **values)


class Gallery:
    """The sealed records of everybody who is enrolled."""

    def __init__(self, store: SiteStore) -> None:
        self._store = store

    def all(self) -> Iterator[Reference]:
        """By name."""
        for _, data in self._store.items.all(REFERENCE):
            yield Reference.from_bytes(data)

    def find(self, subject: str) -> Reference | None:
        data = self._store.items.get(REFERENCE, subject)
        return None if data is None else Reference.from_bytes(data)

    def get(self, subject: str) -> Reference:
        """Raises NotFoundError: nobody of this name is enrolled."""
        found = self.find(subject)
        if found is None:
            raise NotFoundError(
                f"{subject!r} is not enrolled here",
                next_step="fedpalm-participant subjects lists who is; enrol adds somebody",
            )
        return found

    def transform(self, reference: Reference) -> Transform:
        """The transform of the subject's key. Raises NotFoundError: the key is gone."""
        key = self._store.items.get(KEY, reference.subject)
        if key is None:
            raise NotFoundError(
                f"the key of {reference.subject!r} is not in the vault",
                safe="without it the reference tells nothing",
                next_step="enrol them again: fedpalm-participant enrol SUBJECT IMAGES --replace",
            )
        return Transform.of(key, reference.length)

    def images(self, subject: str) -> Grey | None:
        """(k, 128, 128), or None where none were kept."""
        data = self._store.items.get(IMAGES, subject)
        if data is None:
            return None
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, SIDE_PX, SIDE_PX)

    def put(
        self, db: sqlite3.Connection, reference: Reference, key: bytes, images: Grey | None
    ) -> None:
        """Store a reference with its key; images that are None are kept nowhere."""
        items = self._store.items
        items.put(db, KEY, reference.subject, key)
        items.put(db, REFERENCE, reference.subject, reference.to_bytes())
        if images is None:
            items.delete(db, IMAGES, reference.subject)
        else:
            items.put(db, IMAGES, reference.subject, np.ascontiguousarray(images).tobytes())

    def erase(self, db: sqlite3.Connection, subject: str) -> dict[str, bool]:
        """Delete the three records of a subject; which of them there were."""
        items = self._store.items
        return {
            name: items.delete(db, kind, subject)
            for name, kind in (("reference", REFERENCE), ("key", KEY), ("images", IMAGES))
        }


def subject_name(text: str) -> str:
    """A name as it is kept: any printable text, one spelling of each.

    Raises:
        DataError: empty, too long, or with characters that cannot be seen.
    """
    name = one_spelling(text)
    if not name or len(name.encode()) > MAX_NAME_BYTES or not name.isprintable():
        raise DataError(
            f"{text[:40]!r} is no name for a subject: 1 to {MAX_NAME_BYTES} bytes of printable text"
        )
    return name


def fuse(templates: _Templates) -> _Templates:
    """(k, D) templates of one person -> (1, D): the direction of their mean.

    One comparison a verification, however many images somebody gave: the false match rate that a
    threshold was set for holds for all. (The greatest of k scores would raise it with k.)
    """
    unit = templates / np.linalg.norm(templates, axis=1, keepdims=True)
    mean = unit.mean(axis=0, keepdims=True)
    fused: _Templates = (mean / np.linalg.norm(mean)).astype(np.float32)
    return fused
