"""Which signatures a site trained on, so that a folder to which some were added still splits as it did.

An image is known by its content, a moved or renamed one, too. Whose it was said to be is part of what
trained: the network has a place for every writer's name.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from .names import one_spelling
from .signatures import SignatureRecord


class TrainedImage(NamedTuple):
    """SHA-256 of the file in hex, whose signature it claims to be (``text`` may be empty), and if it is."""

    digest: str
    writer: str
    text: str
    genuine: bool


class Found(NamedTuple):
    """What of it is among today's images: ``train`` as it trained, ``others`` otherwise named, or copies.

    ``writers``: who trained, by name or by a genuine image.
    """

    writers: frozenset[str]
    train: frozenset[Path]
    others: frozenset[Path]


@dataclass(frozen=True)
class TrainedSignatures:
    """All images that one run trains on at a site."""

    images: tuple[TrainedImage, ...]

    @classmethod
    def of(cls, train: Iterable[SignatureRecord]) -> TrainedSignatures:
        """Raises DataError: a file cannot be read."""
        return cls(tuple(sorted(_image(one, _digest(one.path)) for one in train)))

    @property
    def writers(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(sorted({one.writer for one in self.images}))

    def among(self, records: Sequence[SignatureRecord]) -> Found:
        """Raises DataError: a file cannot be read."""
        left, known = Counter(self.images), {one.digest for one in self.images}
        writers = {one_spelling(one.writer) for one in self.images}
        named = {r.writer for r in records if one_spelling(r.writer) in writers}
        train, others = set[Path](), set[Path]()
        for record in sorted(records, key=lambda one: one.path.as_posix()):
            digest = _digest(record.path)
            if digest not in known:
                continue
            if record.genuine:
                named.add(record.writer)
            image = _image(record, digest)
            (train if left[image] > 0 else others).add(record.path)
            left[image] -= 1
        return Found(frozenset(named), frozenset(train), frozenset(others))

    def to_bytes(self) -> bytes:
        return json.dumps(self.images).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> TrainedSignatures:
        """Of a record that the vault has found to be what was put into it."""
        return cls(tuple(TrainedImage(*one) for one in json.loads(data)))


def _image(record: SignatureRecord, digest: str) -> TrainedImage:
    return TrainedImage(digest, *record.claimed, record.genuine)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
