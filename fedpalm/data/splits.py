"""Who is at which site, who trains and who tests: all by keyed hashes of names.

Sites share no identity. Within a site half of the identities are closed (they train; half of their
images are the gallery and the training set, the other half probes) and half are open (nobody trains
on them; half gallery, half probes). Paper, section V-A. Where a data set has sessions, the halves of
an identity's images are its first session and the later ones: a probe is of another day.

Under differential privacy whether somebody trains depends on the hash of their own name alone, never on
who else is there: ranks would let one person more or less move another one into training, and the
promise is about data sets that differ in one person.

That identities are disjoint across sites holds here by construction. Between institutions that
bring their own folders it is an assumption: it cannot be checked without looking into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ..errors import DataError
from .records import (
    PERSON_FIELD,
    ImageRecord,
    Record,
    by_identity,
    order_key,
    problems_error,
    seeded_order,
)
from .signatures import SignatureRecord

Unit = Literal["none", "subject", "record"]
"""Whom a plan protects (``training.privacy.unit``), and so on what a split may depend."""


@dataclass(frozen=True)
class SiteSplit:
    """One site's images by use; ``train`` is also the closed-set gallery.

    ``classes`` gives label 0..C-1 to the closed identities, ``open_classes`` to the open ones.
    """

    train: tuple[ImageRecord, ...]
    closed_probe: tuple[ImageRecord, ...]
    open_gallery: tuple[ImageRecord, ...]
    open_probe: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    open_classes: tuple[str, ...]


def partition_sites(
    records: Sequence[Record], sites: int, identities_per_site: int | None, seed: int
) -> list[list[Record]]:
    """Deal identities to ``sites`` sites; no identity is at two, and no person.

    Args:
        identities_per_site: how many each gets, or None to deal them all (counts differ by one at
            most, or by the palms of one person). Whoever has more palms than a site has room for is
            there with some of them.
    Raises:
        DataError: too few identities.
    """
    groups = by_identity(records)
    needed = sites * (4 if identities_per_site is None else identities_per_site)
    if sites < 1 or needed < sites * 4 or len(groups) < needed:
        raise DataError(
            f"{len(groups)} identities are too few for {sites} sites with "
            f"{identities_per_site or '4 or more'} each",
            next_step="use fewer sites or fewer identities a site (4 are the least), or more data",
        )
    dealt: list[list[str]] = [[] for _ in range(sites)]
    for palms in _in_order("site", seed, groups):
        emptiest = min(dealt, key=len)
        room = None if identities_per_site is None else identities_per_site - len(emptiest)
        emptiest += palms[:room]
    return [[record for name in sorted(site) for record in groups[name]] for site in dealt]


def _in_order(purpose: str, seed: int, groups: dict[str, list[Record]]) -> list[list[str]]:
    """Everybody's identities, by a hash of the only one's name, or of the person's if there are more."""
    people: dict[str, list[str]] = {}
    for identity, group in groups.items():
        people.setdefault(group[0].subject, []).append(identity)
    named = [(palms[0] if len(palms) == 1 else who, palms) for who, palms in people.items()]
    return [palms for _, palms in sorted(named, key=lambda one: order_key(purpose, seed, one[0]))]


def split_as_paper(records: Sequence[ImageRecord], sites: int, seed: int) -> list[SiteSplit]:
    """Halve all identities first, then deal each half evenly to the sites, as the paper does.

    With 460 palms and 8 sites, 6 sites train on 29 identities and 2 on 28. (The paper tests every
    model on the whole open half; pool the sites' open sets for that.)

    Raises:
        DataError: fewer than four identities a site, or fewer than two images of an identity.
    Source: paper, section V-A.
    """
    groups = by_identity(records)
    if sites < 1 or len(groups) < 4 * sites:
        raise DataError(
            f"{len(groups)} identities are too few for {sites} sites: a site needs four or more",
            next_step="use fewer sites, or more data",
        )
    _require_two_images(groups, "this source")
    order = sorted(groups, key=lambda identity: order_key("paper-half", seed, identity))
    half = (len(order) + 1) // 2
    return [
        _split(groups, order[:half][site::sites], order[half:][site::sites], seed, str(site))
        for site in range(sites)
    ]


def split_site(
    records: Sequence[ImageRecord], seed: int, site: int | str, unit: Unit = "none"
) -> SiteSplit:
    """Split one site's images; an odd identity or image goes to training.

    Args:
        unit: of the plan's differential privacy. ``subject``: everybody's own hash says whether they
            train, with all their identities; their images are halved as ever. ``record``: every
            identity's own hash does, and of its images those train that are of the first session, or
            whose own hash says so.
    Raises:
        DataError: fewer than two identities in a half, or fewer than two images of an identity.
    """
    groups = by_identity(records)
    if len(groups) < 4:
        raise DataError(
            f"site {site}: {len(groups)} identities; two that train and two that test are the least",
            next_step="give this site four identities or more",
        )
    _require_two_images(groups, f"site {site}")
    scope = str(site)
    if unit != "none":
        return _split_by_own_hashes(groups, seed, scope, unit)
    order = sorted(groups, key=lambda identity: order_key("closed-open", seed, scope, identity))
    half = (len(order) + 1) // 2
    return _split(groups, order[:half], order[half:], seed, scope)


def _split_by_own_hashes(
    groups: dict[str, list[ImageRecord]], seed: int, scope: str, unit: Literal["subject", "record"]
) -> SiteSplit:
    def coin(purpose: str, *names: str) -> bool:
        return order_key(purpose, seed, scope, *names)[0] < 128

    def trains(record: ImageRecord) -> bool:
        if record.session is not None:
            return record.session == 1
        return coin("private-image", record.identity, record.path.name)

    closed, open_ = list[str](), list[str]()
    for identity, group in groups.items():
        name = group[0].subject if unit == "subject" else identity
        (closed if coin("private-closed", name) else open_).append(identity)
    split = _split(groups, closed, open_, seed, scope)
    if unit == "record":
        images = [record for identity in split.classes for record in groups[identity]]
        split = replace(
            split,
            train=tuple(record for record in images if trains(record)),
            closed_probe=tuple(record for record in images if not trains(record)),
        )
    training = len({record.identity for record in split.train})
    if min(training, len(open_)) < 2:
        raise DataError(
            f"site {scope}: {training} identities train here and {len(open_)} are kept for tests, two of "
            "each are the least; with differential privacy everybody's own hash decides, so that nobody "
            "moves another",
            next_step="give this site more people",
        )
    return split


def _require_two_images(groups: dict[str, list[ImageRecord]], where: str) -> None:
    few = [f"{name}: {len(group)} image" for name, group in groups.items() if len(group) < 2]
    if few:
        raise problems_error(
            f"{where}: identities with fewer than two images", few, "add images or remove them"
        )


def _split(
    groups: dict[str, list[ImageRecord]],
    closed: list[str],
    open_: list[str],
    seed: int,
    scope: str,
) -> SiteSplit:
    closed, open_ = sorted(closed), sorted(open_)
    train, closed_probe = _halves(groups, closed, seed, scope)
    open_gallery, open_probe = _halves(groups, open_, seed, scope)
    return SiteSplit(train, closed_probe, open_gallery, open_probe, tuple(closed), tuple(open_))


def _halves(
    groups: dict[str, list[ImageRecord]], identities: list[str], seed: int, scope: str
) -> tuple[tuple[ImageRecord, ...], tuple[ImageRecord, ...]]:
    gallery: list[ImageRecord] = []
    probe: list[ImageRecord] = []
    for identity in identities:
        ordered = seeded_order("gallery-probe", seed, groups[identity], scope)
        first = sum(record.session == 1 for record in ordered)
        half = (len(ordered) + 1) // 2
        if 0 < first < len(ordered):
            ordered.sort(key=lambda record: record.session != 1)
            half = first
        gallery += sorted(ordered[:half], key=lambda r: r.path.as_posix())
        probe += sorted(ordered[half:], key=lambda r: r.path.as_posix())
    return tuple(gallery), tuple(probe)


def write_list(records: Sequence[ImageRecord], path: Path) -> None:
    """Write a ``path label`` file that ``open_source`` reads back to the same records.

    Behind the label is ``person=NAME`` where the person is known; sessions are not written. Paths are
    absolute. White space and ``%`` in a label or name are percent-encoded, as each is one field of a
    line, and so is the ``=`` of a label that begins as a person's field does.

    Raises:
        DataError: no records, or a path that a line cannot hold.
    """
    if not records:
        raise DataError("a list needs at least one image")
    lines: list[str] = []
    for record in records:
        image = str(record.path.absolute())
        label = _field(record.identity)
        if label.startswith(PERSON_FIELD):
            label = label.replace("=", "%3D")
        if len(image.splitlines()) != 1 or not label:
            raise DataError(
                f"{image!r}: a list line cannot hold this path and label",
                next_step="rename the file or folder",
            )
        whose = "" if record.person is None else f" {PERSON_FIELD}{_field(record.person)}"
        lines.append(f"{image} {label}{whose}\n")
    _replace(path, lines)


def write_signature_list(records: Sequence[SignatureRecord], path: Path) -> None:
    """Write a ``signature-list`` that ``open_signatures`` reads back to the same records.

    Tab-separated: absolute path, writer, ``genuine`` or ``skilled``, and the name where one is known.

    Raises:
        DataError: no records, a forgery that was found and not made, or a field that a line cannot hold.
    """
    if not records:
        raise DataError("a list needs at least one image")
    lines: list[str] = []
    for record in records:
        fields = [str(record.path.absolute()), record.writer, record.kind]
        fields += [] if record.text is None else [record.text]
        if record.kind not in ("genuine", "skilled"):
            raise DataError(
                f"{record.path}: a {record.kind} forgery is another writer's own signature",
                next_step="list it once, as genuine, under its author",
            )
        whole = all(f == f.strip() and len(f.splitlines()) == 1 and "\t" not in f for f in fields)
        if not whole or not all(f.isprintable() for f in fields[1:]):
            raise DataError(
                f"{fields}: a list line cannot hold these",
                next_step="rename the file, folder or writer: no tab, line break or space at an end, and "
                "printable text for writers and their names",
            )
        lines.append("\t".join(fields) + "\n")
    _replace(path, lines)


def _replace(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)


def _field(name: str) -> str:
    return "".join(quote(c) if c.isspace() or c == "%" else c for c in name)
