"""One image on disk and whom it shows, and the secret-free randomness that orders records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..canonical import domain_hash
from ..errors import DataError

PERSON_FIELD = "person="
"""Begins the field behind the label, in a line of a list, that says whose palm the label is."""

SIDE_PX = 128
"""Of the square that every image becomes as network input."""

UNTOUCHED = "nothing was read beyond this folder, changed or sent"


@dataclass(frozen=True)
class ImageRecord:
    """An image file and the identity it shows. The pixels are read later, by :func:`load_roi`.

    ``session`` 1, 2, ... where a data set says on which occasion the image was taken; ``person`` where
    it says whose palm this is, since two palms of one person are two identities.
    """

    path: Path
    identity: str
    session: int | None = None
    person: str | None = None

    @property
    def subject(self) -> str:
        """Whom differential privacy protects: the person, or the identity if nobody says whose it is."""
        return self.identity if self.person is None else f"{PERSON_FIELD}{self.person}"


Record = TypeVar("Record", bound=ImageRecord)


def by_identity(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records; identities and, within one, paths in sorted order."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.identity, r.path.as_posix())):
        groups.setdefault(record.identity, []).append(record)
    return groups


def order_key(purpose: str, seed: int, *names: str) -> bytes:
    """32 bytes that place a named thing in a seeded order.

    The order depends on names alone, never on a position in a listing: adding or removing one image
    leaves the relative order of all others as it was.
    """
    return domain_hash(f"data/{purpose}/v1", str(seed).encode(), *(n.encode() for n in names))


def seeded_order(purpose: str, seed: int, records: Iterable[Record], *scope: str) -> list[Record]:
    """Records of one identity by :func:`order_key` of identity and file name, ties by path."""
    return sorted(
        records,
        key=lambda r: (
            order_key(purpose, seed, *scope, r.identity, r.path.name),
            r.path.as_posix(),
        ),
    )


def problems_error(title: str, problems: Sequence[str], next_step: str) -> DataError:
    """One :class:`DataError` for several findings: the first five and how many there are."""
    lines = [f"{title} ({len(problems)} {'problem' if len(problems) == 1 else 'problems'}):"]
    lines += [f"  - {problem}" for problem in problems[:5]]
    if len(problems) > 5:
        lines.append(f"  - and {len(problems) - 5} more")
    return DataError("\n".join(lines), safe=UNTOUCHED, next_step=next_step)
