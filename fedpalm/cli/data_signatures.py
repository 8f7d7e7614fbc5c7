"""``fedpalm data signatures``: look at signatures, and at what augmentation makes of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import click
import numpy as np
from rich.text import Text

from ..data.adaptive_augmentation import AugmentationMode, Target, growth
from ..data.palms import cache_root
from ..data.records import by_identity
from ..data.signature_image import load_signatures, preflight_signatures
from ..data.signature_sets import SignatureSet, open_signatures
from ..data.signature_sheet import page_of_copies, page_of_records
from ..data.signature_splits import found_forgeries
from ..data.signatures import SignatureRecord
from ..data.splits import partition_sites
from ..data.synthetic_signatures import synthetic_signatures
from ..fedmh_settings import FedMHSettings
from .console import command_errors, emit, json_option

SYNTHETIC = "synthetic-signature"
MOST = 50
_FEDMH = FedMHSettings()

_out_option = click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
_seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
_kind_option = click.option(
    "--kind",
    type=click.Choice(["auto", *get_args(SignatureSet)]),
    default="auto",
    show_default=True,
    help="Layout of the source.",
)


@click.group("signatures")
def commands() -> None:
    """Look at signatures before anything is trained on them."""


@commands.command("preflight")
@click.argument("source", type=click.Path(path_type=Path))
@_kind_option
@json_option
@command_errors
def preflight_command(source: Path, kind: SignatureSet | Literal["auto"], as_json: bool) -> None:
    """Find the ink in every image of SOURCE once and report counts, sizes and contrast.

    SOURCE is a folder of writers with genuine/ and forged/ in each, a signature list, the CEDAR or
    BHSig260 set, or a cross-media signature set.
    """
    records = open_signatures(source, kind)
    report = preflight_signatures(records)
    forged = sum(not record.genuine for record in records)
    human = Text.from_markup(
        f"[bold]{report.images}[/] signatures of [bold]{report.identities}[/] writers, "
        f"{forged} of them forged\n"
        f"width {report.width_px[0]} to {report.width_px[1]} px, "
        f"height {report.height_px[0]} to {report.height_px[1]} px, "
        f"ink darker than paper by {report.contrast[0]:.0f} to {report.contrast[1]:.0f} grey levels\n"
        "[green]every image can be used[/]"
    )
    found = {"source": str(source), **report.to_json(), "forged": forged}
    emit(found, as_json, human)


@commands.command("sample")
@click.argument("source", default=SYNTHETIC)
@_out_option
@click.option("--sites", type=click.IntRange(1, MOST), default=3, show_default=True)
@click.option("--writers", type=click.IntRange(1, MOST), default=3, show_default=True)
@click.option("--genuine", type=click.IntRange(2, MOST), default=4, show_default=True)
@click.option("--forged", type=click.IntRange(0, MOST), default=2, show_default=True)
@click.option("--difficulty", type=click.FloatRange(0, 3), default=1.0, show_default=True)
@click.option("--site-spread", type=click.FloatRange(0, 3), default=1.0, show_default=True)
@click.option("--tile-px", type=click.IntRange(16, 320), default=160, show_default=True)
@_seed_option
@_kind_option
@json_option
@command_errors
def sample_command(
    source: str,
    out: Path,
    sites: int,
    writers: int,
    genuine: int,
    forged: int,
    difficulty: float,
    site_spread: float,
    tile_px: int,
    seed: int,
    kind: SignatureSet | Literal["auto"],
    as_json: bool,
) -> None:
    """Write one PNG page: a writer a row, site by site; genuine ones, then forgeries.

    SOURCE is synthetic-signature, or a folder or data set that is dealt to the sites. Forgeries are skilled
    ones or, where a set has none, the same name by others. Difficulty and spread are those of synthetic
    signatures. A page of real signatures holds biometric images: it belongs where the images belong.
    """
    if source == SYNTHETIC:
        dealt = synthetic_signatures(
            cache_root(), sites, writers, genuine, forged, seed, difficulty, site_spread
        )
    else:
        dealt = partition_sites(open_signatures(source, kind), sites, max(4, writers), seed)
    rows: list[list[SignatureRecord | None]] = []
    for site in dealt:
        found = by_identity(found_forgeries(site, "simple", forged, seed))
        for writer, group in list(by_identity(site).items())[:writers]:
            own = [record for record in group if record.genuine][:genuine]
            false = [record for record in group if not record.genuine] or found.get(writer, [])
            gap = [None] * (genuine - len(own) + 1)
            rows.append([*own, *gap, *false[:forged]] if forged else [*own])
    page_of_records(rows, out, (tile_px, tile_px // 2))
    images = sum(record is not None for row in rows for record in row)
    emit({"out": str(out), "sites": sites, "images": images}, as_json)


@commands.command("augmented")
@click.argument("source", default=SYNTHETIC)
@_out_option
@click.option("--writers", type=click.IntRange(1, MOST), default=4, show_default=True)
@click.option("--copies", type=click.IntRange(1, MOST), default=6, show_default=True)
@click.option(
    "--mode",
    type=click.Choice([m for m in get_args(AugmentationMode) if m != "off"]),
    default="adaptive",
    show_default=True,
)
@click.option(
    "--quantile",
    type=click.FloatRange(0, 1),
    default=_FEDMH.augmentation_quantile,
    show_default=True,
    help="Of the subsets' sizes; 1 is the largest.",
)
@click.option(
    "--times",
    type=click.FloatRange(0, 10),
    default=_FEDMH.augmentation_times,
    show_default=True,
    help="All subsets are filled up to this many times that size.",
)
@click.option(
    "--strength-max",
    type=click.FloatRange(0, 1),
    default=_FEDMH.augmentation_strength,
    show_default=True,
)
@_seed_option
@_kind_option
@json_option
@command_errors
def augmented_command(
    source: str,
    out: Path,
    writers: int,
    copies: int,
    mode: AugmentationMode,
    quantile: float,
    times: float,
    strength_max: float,
    seed: int,
    kind: SignatureSet | Literal["auto"],
    as_json: bool,
) -> None:
    """Write one PNG page: a subset a row, its first signature and behind it copies of its strength.

    Of the second writer's signatures half are kept, of the third's a quarter, and so on, so that the page
    shows several strengths. At most as many copies are shown as the subset is given.
    """
    if source == SYNTHETIC:
        records = synthetic_signatures(cache_root(), 1, writers, 16, 8, seed)[0]
    else:
        records = open_signatures(source, kind)
    kept: list[SignatureRecord] = []
    for at, group in enumerate(list(by_identity(records).values())[:writers]):
        for genuine in (True, False):
            subset = [record for record in group if record.genuine == genuine]
            kept += subset[: max(1, len(subset) >> at)]
    images = load_signatures(kept)
    subsets = growth(images, mode, Target(quantile, times), strength_max)
    page_of_copies(images, subsets, copies, out, np.random.default_rng(seed))
    emit({"out": str(out), "subsets": [asdict(subset) for subset in subsets]}, as_json)
