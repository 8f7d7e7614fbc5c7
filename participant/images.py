"""The site's own images, found, split and read in one way by whoever needs them. None is ever sent."""

from __future__ import annotations

from fedpalm.data.readers import open_source
from fedpalm.data.records import ImageRecord
from fedpalm.data.splits import SiteSplit, split_site
from fedpalm.methods.base import SiteImages

from .config import DataSettings


def list_records(data: DataSettings) -> list[ImageRecord]:
    """What the configured source holds. Raises DataError: it cannot be used; says what to do."""
    return open_source(data.source, data.kind, data.cap_per_identity, data.split_seed)


def split_records(data: DataSettings, site: str) -> SiteSplit:
    """The same split in training and evaluation. Raises DataError, as :func:`list_records`."""
    return split_site(list_records(data), data.split_seed, site)


def training_images(data: DataSettings, site: str) -> SiteImages:
    """The training half of a site's closed identities, as network input.

    Raises:
        DataError: the images cannot be used; says why and what to do.
    """
    # Reading pixels brings an imaging library, which listing files does without.
    from fedpalm.data.loading import load_images

    split = split_records(data, site)
    loaded = load_images(split.train, split.classes)
    return SiteImages(loaded.images, loaded.labels, len(loaded.classes))
