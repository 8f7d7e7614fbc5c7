"""Who is at which site, who trains and who tests: all by keyed hashes of names.

Sites share no identity. Within a site half of the identities are closed (they train; half of their
images are the gallery and the training set, the other half probes) and half are open (nobody trains
on them; half gallery, half probes). Paper, section V-A. Where a data set has sessions, the halves of
an identity's images are its first session and the later ones: a probe is of another day.

That identities are disjoint across sites holds here by construction. Between institutions that
bring their own folders it is an assumption: it cannot be checked without looking into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..errors import DataError
from .records import ImageRecord, by_identity, order_key, problems_error, seeded_order


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
    records: Sequence[ImageRecord], sites: int, identities_per_site: int | None, seed: int
) -> list[list[ImageRecord]]:
    """Deal identities to ``sites`` sites; no identity is at two.

    Args:
        identities_per_site: how many each gets, or None to deal them all (counts differ by one at
            most).
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
    order = sorted(groups, key=lambda identity: order_key("site", seed, identity))
    if identities_per_site is not None:
        order = order[:needed]
    return [
        [record for identity in sorted(order[site::sites]) for record in groups[identity]]
        for site in range(sites)
    ]


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


def split_site(records: Sequence[ImageRecord], seed: int, site: int | str) -> SiteSplit:
    """Split one site's images; an odd identity or image goes to training.

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
    order = sorted(groups, key=lambda identity: order_key("closed-open", seed, scope, identity))
    half = (len(order) + 1) // 2
    return _split(groups, order[:half], order[half:], seed, scope)


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

    Paths are absolute. White space and ``%`` in a label are percent-encoded, as the label is the
    last field of a line.

    Raises:
        DataError: no records, or a path that a line cannot hold.
    """
    if not records:
        raise DataError("a list needs at least one image")
    lines: list[str] = []
    for record in records:
        image = str(record.path.absolute())
        label = "".join(quote(c) if c.isspace() or c == "%" else c for c in record.identity)
        if len(image.splitlines()) != 1 or not label:
            raise DataError(
                f"{image!r}: a list line cannot hold this path and label",
                next_step="rename the file or folder",
            )
        lines.append(f"{image} {label}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)
