"""The site's own images, found, split and read in one way by whoever needs them. None is ever sent."""

from __future__ import annotations

from fedpalm.data.readers import open_source
from fedpalm.data.records import ImageRecord
from fedpalm.data.splits import SiteSplit, Unit, split_site
from fedpalm.errors import ConfigError
from fedpalm.methods.base import SiteImages

from .config import DataSettings


def list_records(data: DataSettings) -> list[ImageRecord]:
    """What the configured source holds. Raises DataError: it cannot be used; says what to do."""
    return open_source(data.source, data.kind, data.cap_per_identity, data.split_seed)


def split_records(data: DataSettings, site: str, unit: Unit) -> SiteSplit:
    """The same split in training and evaluation.

    Args:
        unit: whom the plan protects.
    Raises:
        ConfigError: a cap, and the plan protects images one by one.
        DataError: as :func:`list_records`.
    """
    if unit == "record" and data.cap_per_identity is not None:
        raise ConfigError(
            f"at most {data.cap_per_identity} images of an identity are used here, and the plan protects "
            "each image alone: one image more or less would change which others train",
            safe="nothing was trained, and no budget spent",
            next_step="take cap_per_identity out of [data] in participant.toml",
        )
    return split_site(list_records(data), data.split_seed, site, unit)


def training_images(data: DataSettings, site: str, unit: Unit) -> SiteImages:
    """The training half of a site's closed identities, as network input.

    Raises:
        ConfigError, DataError: as :func:`split_records`, or images that cannot be read.
    """
    # Reading pixels brings an imaging library, which listing files does without.
    from fedpalm.data.loading import load_images

    split = split_records(data, site, unit)
    loaded = load_images(split.train, split.classes)
    return SiteImages(loaded.images, loaded.labels, len(loaded.classes), loaded.people)
