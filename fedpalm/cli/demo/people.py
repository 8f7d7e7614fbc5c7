"""Who is at which site of a demo: chosen once, written as a list a site, read back by everybody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...data.loading import Trial, load_images, load_trial
from ...data.palms import cache_root, synthetic_palms
from ...data.readers import open_source
from ...data.records import ImageRecord, by_identity
from ...data.roi import preflight
from ...data.signature_sets import open_signatures, signature_layout
from ...data.splits import SiteSplit, partition_sites, split_site, write_list
from ...errors import DataError
from ...methods.base import SiteImages
from .settings import DemoSettings
from .workspace import Workspace

SPLIT_SEED = 0
"""The sites' own default; who is at which site depends on the demo's seed."""

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def choose_people(settings: DemoSettings) -> list[list[ImageRecord]]:
    """Records of every site, identities at one site only; every image has been looked at.

    A folder with too few identities for ``settings.identities`` at each site is an error, and so is a
    private demo with a site where nearly everybody's hash says the same.

    Raises:
        DataError: the source cannot be used, or is too small.
    """
    people = _people(settings)
    if settings.private:
        for site, records in zip(settings.site_names, people, strict=True):
            split_site(records, SPLIT_SEED, site, settings.privacy)
    return people


def _people(settings: DemoSettings) -> list[list[ImageRecord]]:
    per_site = 2 * settings.identities
    if settings.drawn:
        return synthetic_palms(
            cache_root(), settings.sites, per_site, settings.images, settings.seed
        )
    records = _palms(settings.data, settings.images, settings.seed)
    people = partition_sites(records, settings.sites, per_site, settings.seed)
    preflight([record for site in people for record in site])
    return people


def largest_fit(source: str, sites: int) -> int:
    """How many training identities a site a real source allows (as many again are kept open).

    Raises:
        DataError: fewer than two.
    """
    people = len(by_identity(_palms(source)))
    fit = people // sites // 2
    if fit < 2:
        raise DataError(
            f"{people} identities are too few for {sites} sites: a site needs four or more",
            next_step="use fewer --sites or a larger folder",
        )
    return fit


def _palms(source: str, cap: int | None = None, seed: int = 0) -> list[ImageRecord]:
    """What a real source holds. Raises DataError: it cannot be used, or is of signatures."""
    path = Path(source)
    layout = signature_layout(path) if path.is_dir() else None
    if layout is None and path.is_file() and _lists_signatures(path):
        layout = "signature-list"
    if layout is not None:
        raise DataError(
            f"{source} is laid out as signatures ({layout}), and this demo is of palms",
            next_step="for signatures use --method fedmh",
        )
    return open_source(source, cap_per_identity=cap, seed=seed)


def _lists_signatures(path: Path) -> bool:
    try:
        open_signatures(path, "signature-list")
    except DataError:
        return False
    return True


def write_people(
    workspace: Workspace, settings: DemoSettings, people: list[list[ImageRecord]]
) -> list[str]:
    """One ``path label`` list a site; returns the files."""
    for site, records in zip(settings.site_names, people, strict=True):
        write_list(records, workspace.images(site))
    return [str(workspace.images(site)) for site in settings.site_names]


def split_of(workspace: Workspace, site: str) -> SiteSplit:
    """The site's split, by the rule that the site itself applies."""
    unit = workspace.load().privacy
    return split_site(open_source(workspace.images(site)), SPLIT_SEED, site, unit)


def training_images(split: SiteSplit) -> SiteImages:
    loaded = load_images(split.train, split.classes)
    return SiteImages(loaded.images, loaded.labels, len(split.classes), loaded.people)


def closed_trial(split: SiteSplit) -> Trial:
    """The site's training images against its held-out images of the same people."""
    return load_trial(split.train, split.closed_probe, split.classes)


def open_trial(splits: Sequence[SiteSplit]) -> Trial:
    """The open identities of all sites, pooled."""
    return load_trial(
        [record for split in splits for record in split.open_gallery],
        [record for split in splits for record in split.open_probe],
        [name for split in splits for name in split.open_classes],
    )


def write_open_lists(splits: Sequence[SiteSplit], gallery: Path, probe: Path) -> None:
    """The pooled open set as two lists, for a site that scores it."""
    write_list([record for split in splits for record in split.open_gallery], gallery)
    write_list([record for split in splits for record in split.open_probe], probe)
