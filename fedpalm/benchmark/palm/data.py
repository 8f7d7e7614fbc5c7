"""Every site's images for a benchmark and a seed, and a fingerprint of where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...canonical import canonical_json, domain_hash
from ...data.loading import Trial, load_trial, people_of
from ...data.palms import GENERATOR_VERSION, cache_root, synthetic_palms
from ...data.readers import open_source
from ...data.splits import SiteSplit, partition_sites, split_as_paper, split_site
from ...errors import ConfigError
from ...methods.base import SiteImages
from .config import SYNTHETIC, BenchConfig, DataSettings, Job

PAPER_SETS = ("iitd", "polyu", "tongji")

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SiteData:
    """What a site trains on, its closed set (the same people) and its open set (others)."""

    train: SiteImages
    closed: Trial
    open: Trial


def fingerprint(data: DataSettings) -> str:
    """Hex name of everything about the source that can change a result; where it lies cannot.

    Raises:
        DataError: the source cannot be used.
    """
    if data.source == SYNTHETIC:
        facts = {
            "generator": GENERATOR_VERSION,
            "difficulty": float(data.difficulty),
            "site_spread": float(data.site_spread),
        }
        return domain_hash("bench-synthetic/v1", canonical_json(facts)).hex()
    images = [
        [record.identity, record.path.name, hashlib.sha256(record.path.read_bytes()).hexdigest()]
        for record in open_source(data.source, data.kind)
    ]
    return domain_hash("bench-images/v1", canonical_json(images)).hex()


def site_splits(config: BenchConfig, seed: int) -> list[SiteSplit]:
    """Every site's images by use, identities at one site only; synthetic ones are made if missing.

    The paper's sets are split as in the paper when all of their people take part, but not under
    differential privacy: there the split is the one that sites make.

    Raises:
        ConfigError: synthetic palms without a number of them.
        DataError: the source cannot be used, or is too small.
    """
    data, unit = config.data, config.training.privacy.unit
    if data.source == SYNTHETIC:
        if data.identities is None or data.images is None:
            raise ConfigError("synthetic palms need --identities and --images")
        people = synthetic_palms(
            cache_root(),
            config.sites,
            data.identities,
            data.images,
            seed,
            data.difficulty,
            data.site_spread,
        )
    else:
        records = open_source(data.source, data.kind, cap_per_identity=data.images, seed=seed)
        if unit == "none" and data.kind in PAPER_SETS and data.identities is None:
            return split_as_paper(records, config.sites, seed)
        people = partition_sites(records, config.sites, data.identities, seed)
    return [
        split_site(records, seed, name, unit)
        for name, records in zip(config.site_names, people, strict=True)
    ]


def site_data(config: BenchConfig, seed: int) -> dict[str, SiteData]:
    """Images by site name. Raises as :func:`site_splits`, and DataError for one that cannot be read."""
    splits = site_splits(config, seed)
    return {name: _site(split) for name, split in zip(config.site_names, splits, strict=True)}


def _site(split: SiteSplit) -> SiteData:
    closed = load_trial(split.train, split.closed_probe, split.classes)
    return SiteData(
        SiteImages(
            closed.gallery, closed.gallery_labels, len(split.classes), people_of(split.train)
        ),
        closed,
        load_trial(split.open_gallery, split.open_probe, split.open_classes),
    )


def prepare_images(jobs: Sequence[Job]) -> None:
    """Make what the jobs need, so that their processes find it ready. Raises DataError."""
    for job in {(job.config.data, job.config.sites, job.seed): job for job in jobs}.values():
        site_splits(job.config, job.seed)
