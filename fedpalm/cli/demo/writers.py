"""Whose signatures are at which site of a demo: chosen once, written as a list a site, read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.palms import cache_root
from ...data.records import by_identity, order_key, seeded_order
from ...data.signature_image import load_signatures, preflight_signatures
from ...data.signature_sets import EXPECTED, open_signatures, signature_layout
from ...data.signature_splits import SignatureSplit, require_aside, split_signatures
from ...data.signatures import Claimed, SignatureImages, SignatureRecord, by_claim
from ...data.splits import partition_sites, write_signature_list
from ...data.synthetic_signatures import synthetic_signatures
from ...errors import DataError
from .settings import DemoSettings
from .workspace import Workspace

SPLIT_SEED = 0
"""The sites' own default; who is at which site depends on the demo's seed."""
MOST_REFERENCES = 3


def choose_writers(settings: DemoSettings) -> list[list[SignatureRecord]]:
    """Records of every site, a writer at one site only; every image has been looked at.

    Raises:
        DataError: the source cannot be used, or is too small.
    """
    per_site = 2 * settings.identities
    if settings.drawn:
        return synthetic_signatures(
            cache_root(), settings.sites, per_site, settings.images, settings.images, settings.seed
        )
    records = capped(_signatures(settings.data), settings.images, settings.seed)
    writers = partition_sites(records, settings.sites, per_site, settings.seed)
    for site, own in zip(settings.site_names, writers, strict=True):
        split = split_signatures(own, SPLIT_SEED, site)
        require_aside(split.train, site)
        if not (split.closed.random and split.open.random):
            raise DataError(
                f"{settings.data}: with {settings.images} signatures a writer, those who train at {site}, "
                "or those who do not, all write the same name: nobody's own signature can be given as "
                "somebody else's",
                safe="nothing was trained or sent",
                next_step="use more --images, so that each writer has several names, or a set in which "
                "writers have names of their own",
            )
    preflight_signatures([record for site in writers for record in site])
    return writers


def capped(records: Sequence[SignatureRecord], most: int, seed: int) -> list[SignatureRecord]:
    """At most ``most`` genuine signatures of every writer, and as many forgeries.

    Of a writer with several names those of one name after the other, in one order for all writers: a name
    is enrolled with some of its signatures and claimed with others, and the same name by another writer is
    a forgery.
    """

    def name_order(claimed: Claimed) -> bytes:
        return order_key("demo-name", seed, claimed.text)

    kept: list[SignatureRecord] = []
    for group in by_identity(records).values():
        named = by_claim(seeded_order("demo-cap", seed, group))
        room = most
        for claimed in sorted(named, key=name_order):
            genuine = [record for record in named[claimed] if record.genuine]
            if room < min(len(genuine), most):
                break
            kept += genuine[:room]
            kept += [record for record in named[claimed] if not record.genuine][:room]
            room -= len(genuine[:room])
    return kept


def largest_fit(source: str, sites: int) -> int:
    """How many training writers a site a real source allows (as many again are kept open).

    Raises:
        DataError: fewer than two, or no set of signatures.
    """
    writers = len(by_identity(_signatures(source)))
    fit = writers // sites // 2
    if fit < 2:
        raise DataError(
            f"{writers} writers are too few for {sites} sites: a site needs four or more",
            next_step="use fewer --sites or a larger folder",
        )
    return fit


def _signatures(source: str) -> list[SignatureRecord]:
    path = Path(source)
    if path.exists() and signature_layout(path) is None:
        raise DataError(
            f"{source} is not laid out as a set of signatures, which --method fedmh trains on",
            next_step="for palms use --method fedpalm; signatures are expected as one of: "
            + "; ".join(EXPECTED.values()),
        )
    return open_signatures(path)


def write_writers(
    workspace: Workspace, settings: DemoSettings, writers: list[list[SignatureRecord]]
) -> list[str]:
    """One ``signature-list`` a site; returns the files."""
    for site, records in zip(settings.site_names, writers, strict=True):
        write_signature_list(records, workspace.images(site))
    return [str(workspace.images(site)) for site in settings.site_names]


def writers_split(workspace: Workspace, site: str) -> SignatureSplit:
    """The site's split, by the rule that the site itself applies."""
    records = open_signatures(workspace.images(site), "signature-list")
    return split_signatures(records, SPLIT_SEED, site)


def training_signatures(split: SignatureSplit) -> SignatureImages:
    return load_signatures(split.train)


def references_of(splits: Sequence[SignatureSplit]) -> int:
    """With how many references everybody at every site can be enrolled: a few."""
    every = [half.fewest_references for split in splits for half in (split.open, split.closed)]
    return min(MOST_REFERENCES, *every)
