"""Every site's signatures for a job, a set that nobody trained on, and what names their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...canonical import canonical_json, domain_hash
from ...data.palms import cache_root
from ...data.records import by_identity, seeded_order
from ...data.signature_image import load_signatures
from ...data.signature_sets import open_signatures, signature_layout
from ...data.signature_splits import (
    CLAIMS_PER_WRITER,
    SignatureSplit,
    SignatureTrial,
    found_forgeries,
    split_signatures,
)
from ...data.signatures import SignatureImages, SignatureRecord, by_claim
from ...data.splits import partition_sites
from ...data.synthetic_signatures import GENERATOR_VERSION, synthetic_signatures
from ...errors import DataError
from ...evaluation.signatures import records_of
from .config import BenchConfig, DataName, Job

PROBES = 5
"""Genuine signatures, and skilled forgeries, of each writer that are tried on a whole set at most."""
RANDOM_FROM = 4
"""Of these, from how many random claims are drawn: all would be hundreds of thousands."""


@dataclass(frozen=True)
class Claims:
    """A trial with its images, read once, and the numbers of references that it is scored with."""

    trial: SignatureTrial
    images: dict[Path, npt.NDArray[np.float32]]
    references: tuple[int, ...]


@dataclass(frozen=True)
class SiteData:
    """What a site trains on, its own writers' claims and those of writers that nobody trained on."""

    train: SignatureImages
    closed: Claims
    open: Claims


@dataclass(frozen=True)
class JobData:
    """By site, and everybody of the sets that nobody trained on, by name."""

    sites: dict[str, SiteData]
    foreign: dict[DataName, Claims]


def fingerprints(config: BenchConfig) -> dict[DataName, str]:
    """Hex name of what every set holds, whatever it is called where it lies.

    Raises:
        DataError: the source cannot be used.
    """
    facts = {"generator": GENERATOR_VERSION}
    found: dict[DataName, str] = {
        "synthetic": domain_hash("bench-synthetic/v1", canonical_json(facts)).hex()
    }
    if config.real.source is not None:
        images = [
            [one.writer, one.path.name, one.kind, hashlib.sha256(one.path.read_bytes()).hexdigest()]
            for one in open_signatures(config.real.source)
        ]
        found["real"] = domain_hash("bench-images/v1", canonical_json(images)).hex()
    return found


def name_of(config: BenchConfig, data: DataName) -> str:
    """What tables call a set."""
    if data == "synthetic" or config.real.source is None:
        return "synthetic"
    return signature_layout(Path(config.real.source).expanduser()) or "signatures"


def site_splits(config: BenchConfig, data: DataName, seed: int) -> dict[str, SignatureSplit]:
    """Every site's signatures by use, writers at one site only; synthetic ones are made if missing.

    Raises:
        DataError: the source cannot be used, or is too small.
    """
    if data == "synthetic":
        drawn = config.synthetic
        people = synthetic_signatures(
            cache_root(), config.sites, drawn.writers, drawn.genuine, drawn.forged, seed,
        )  # fmt: skip
    else:
        real = config.real
        if real.source is None:
            raise DataError("no folder of signatures is named", next_step="name one with --data")
        records = open_signatures(real.source)
        people = partition_sites(records, config.sites, real.writers, seed)
    return {
        name: split_signatures(records, seed, name)
        for name, records in zip(config.backbones, people, strict=True)
    }


def job_data(job: Job) -> JobData:
    """Every image is read once, however often it is used.

    Raises:
        DataError: the images cannot be used.
    """
    config, reader = job.config, _Reader()
    splits = site_splits(config, job.data, job.seed)
    counts = references_of(config, [half for one in splits.values() for half in _halves(one)])
    sites = {
        name: SiteData(
            reader.training(split),
            reader.claims(split.closed, counts),
            reader.claims(split.open, counts),
        )
        for name, split in splits.items()
    }
    foreign = {}
    for other in job.fingerprints:
        if other != job.data:
            every = everybody(site_splits(config, other, job.seed).values(), job.seed)
            foreign[other] = reader.claims(every, references_of(config, [every]))
    return JobData(sites, foreign)


def references_of(config: BenchConfig, trials: Iterable[SignatureTrial]) -> tuple[int, ...]:
    """The numbers of references that are asked for, none above what there is of every signature."""
    fewest = min(one.fewest_references for one in trials)
    return tuple(sorted({min(count, fewest) for count in config.references}))


def everybody(splits: Iterable[SignatureSplit], seed: int) -> SignatureTrial:
    """All writers of all sites in one trial.

    Simple and random forgeries are found among all of them, and so between sites.
    """
    halves = [half for split in splits for half in _halves(split)]
    genuine = _some([one for half in halves for one in half.genuine], PROBES, seed)
    claimants = _some(genuine, RANDOM_FROM, seed)
    return SignatureTrial(
        tuple(one for half in halves for one in half.references),
        tuple(genuine),
        tuple(_some([one for half in halves for one in half.skilled], PROBES, seed)),
        found_forgeries(genuine, "simple", CLAIMS_PER_WRITER, seed),
        found_forgeries(claimants, "random", CLAIMS_PER_WRITER, seed),
    )


def prepare_images(jobs: Sequence[Job]) -> None:
    """Make what the jobs need, so that their processes find it ready. Raises DataError."""
    seen = {(data, job.seed): job for job in jobs for data in job.fingerprints}
    for (data, seed), job in seen.items():
        site_splits(job.config, data, seed)


def _halves(split: SignatureSplit) -> tuple[SignatureTrial, SignatureTrial]:
    return split.closed, split.open


def _some(records: Sequence[SignatureRecord], count: int, seed: int) -> list[SignatureRecord]:
    """Of each writer at most ``count``, by a keyed hash."""
    groups = by_identity(records).values()
    return [one for group in groups for one in seeded_order("bench-probe", seed, group)[:count]]


class _Reader:
    """Images by path, each read once."""

    def __init__(self) -> None:
        self._read: dict[Path, npt.NDArray[np.float32]] = {}

    def images(self, records: Iterable[SignatureRecord]) -> dict[Path, npt.NDArray[np.float32]]:
        wanted = {record.path: record for record in records}
        if new := {path: one for path, one in wanted.items() if path not in self._read}:
            self._read |= zip(new, load_signatures(list(new.values())).images, strict=True)
        return {path: self._read[path] for path in wanted}

    def training(self, split: SignatureSplit) -> SignatureImages:
        """As :func:`~fedpalm.data.signature_image.load_signatures` of what a site trains on."""
        images, number = (
            self.images(split.train),
            {n: at for at, n in enumerate(by_claim(split.train))},
        )
        return SignatureImages(
            np.stack([images[one.path] for one in split.train]),
            np.array([number[one.claimed] for one in split.train], dtype=np.int64),
            np.array([one.genuine for one in split.train], dtype=np.bool_),
            len(number),
        )

    def claims(self, trial: SignatureTrial, counts: tuple[int, ...]) -> Claims:
        """With no more references than are asked for: the others need not be read."""
        trial = replace(trial, references=trial.first_references(max(counts)))
        return Claims(trial, self.images(records_of(trial)), counts)
