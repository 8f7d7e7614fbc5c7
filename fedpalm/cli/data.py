"""``fedpalm data``: look at images before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.text import Text

from ..data.palms import PRESETS, PalmPreset, cache_root, contact_sheet, synthetic_palms
from ..data.readers import SourceKind, open_source
from ..data.records import ImageRecord, by_identity
from ..data.roi import preflight
from ..data.splits import partition_sites
from ..errors import DataError
from .console import command_errors, emit, json_option
from .data_signatures import commands as signatures

SYNTHETIC = "synthetic-palm"

_kind_option = click.option(
    "--kind",
    type=click.Choice(get_args(SourceKind)),
    default="auto",
    show_default=True,
    help="Layout of the source.",
)


@click.group()
def commands() -> None:
    """Look at image folders before they are trained on."""


commands.add_command(signatures)


@commands.command("preflight")
@click.argument("source", type=click.Path(path_type=Path))
@_kind_option
@json_option
@command_errors
def preflight_command(source: Path, kind: SourceKind, as_json: bool) -> None:
    """Read every image of SOURCE once and report sizes and contrast.

    SOURCE is a folder with one sub-folder an identity, a list of `path label` lines, the IITD,
    Tongji or PolyU palmprint set, or a cross-media signature set. Images must be cropped to the
    region of interest.
    """
    report = preflight(open_source(source, kind))
    few, many = report.images_per_identity
    human = Text.from_markup(
        f"[bold]{report.images}[/] images of [bold]{report.identities}[/] identities, "
        f"{few} to {many} each\n"
        f"width {report.width_px[0]} to {report.width_px[1]} px, "
        f"height {report.height_px[0]} to {report.height_px[1]} px, "
        f"contrast {report.contrast[0]:.0f} to {report.contrast[1]:.0f} grey levels\n"
        "[green]every image can be used[/]"
    )
    emit({"source": str(source), **report.to_json()}, as_json, human)


@commands.command("sheet")
@click.argument("source")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--identities", type=click.IntRange(1, 200), default=8, show_default=True)
@click.option("--images", type=click.IntRange(1, 50), default=8, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_kind_option
@json_option
@command_errors
def sheet_command(
    source: str, out: Path, identities: int, images: int, seed: int, kind: SourceKind, as_json: bool
) -> None:
    """Write a contact sheet, an identity a row.

    SOURCE is a folder or list, or the word synthetic-palm. A sheet of real palms holds biometric
    images: it belongs where the images belong.
    """
    records = _first(_records(source, identities, images, seed, kind), identities, images)
    contact_sheet(records, out, columns=images)
    emit({"out": str(out), "images": len(records)}, as_json)


@commands.command("sample")
@click.argument("source", default=SYNTHETIC)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--sites", type=click.IntRange(1, 50), default=4, show_default=True)
@click.option("--identities", type=click.IntRange(1, 50), default=4, show_default=True)
@click.option("--images", type=click.IntRange(2, 20), default=3, show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="benchmark", show_default=True)
@click.option("--difficulty", type=click.FloatRange(0, 3), help="Instead of the preset's.")
@click.option("--site-spread", type=click.FloatRange(0, 3), help="Instead of the preset's.")
@click.option("--tile-px", type=click.IntRange(16, 128), default=72, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_kind_option
@json_option
@command_errors
def sample_command(
    source: str,
    out: Path,
    sites: int,
    identities: int,
    images: int,
    preset: str,
    difficulty: float | None,
    site_spread: float | None,
    tile_px: int,
    seed: int,
    kind: SourceKind,
    as_json: bool,
) -> None:
    """Write one PNG page: a site a row, its identities side by side.

    SOURCE is synthetic-palm, or a folder, list or data set that is dealt to the sites. The preset,
    difficulty and spread are those of synthetic palms. A page of real palms holds biometric images:
    it belongs where the images belong.
    """
    if source == SYNTHETIC:
        hard, apart = PRESETS[preset]
        hardness = PalmPreset(
            hard if difficulty is None else difficulty,
            apart if site_spread is None else site_spread,
        )
        people = synthetic_palms(cache_root(), sites, identities, images, seed, *hardness)
    else:
        records = open_source(Path(source), kind, cap_per_identity=images, seed=seed)
        people = partition_sites(records, sites, max(4, identities), seed)
    rows = [_page_row(records, identities, images) for records in people]
    contact_sheet(
        [record for row in rows for record in row], out, identities * images, tile_px, group=images
    )
    emit({"out": str(out), "sites": sites, "images": sum(map(len, rows))}, as_json)


def _page_row(records: list[ImageRecord], identities: int, images: int) -> list[ImageRecord]:
    """One site's first identities, each with as many images as asked for.

    Raises:
        DataError: an identity has fewer, so that the columns would not stand for identities.
    """
    groups = list(by_identity(records).values())[:identities]
    for group in groups:
        if len(group) < images:
            raise DataError(
                f"{group[0].identity} has {len(group)} images, {images} were asked for",
                next_step=f"use --images {len(group)}",
            )
    return [record for group in groups for record in group[:images]]


def _records(
    source: str, identities: int, images: int, seed: int, kind: SourceKind
) -> list[ImageRecord]:
    if source == SYNTHETIC:
        return synthetic_palms(cache_root(), 1, identities, images, seed)[0]
    return open_source(Path(source), kind, cap_per_identity=max(2, images), seed=seed)


def _first(records: list[ImageRecord], identities: int, images: int) -> list[ImageRecord]:
    groups = list(by_identity(records).values())[:identities]
    return [record for group in groups for record in group[:images]]
