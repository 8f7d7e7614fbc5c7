"""``fedpalm data``: look at images before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.text import Text

from ..data.palms import cache_root, contact_sheet, synthetic_palms
from ..data.readers import SourceKind, open_source
from ..data.records import ImageRecord, by_identity
from ..data.roi import preflight
from .console import command_errors, emit, json_option

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


@commands.command("preflight")
@click.argument("source", type=click.Path(path_type=Path))
@_kind_option
@json_option
@command_errors
def preflight_command(source: Path, kind: SourceKind, as_json: bool) -> None:
    """Read every image of SOURCE once and report sizes and contrast.

    SOURCE is a folder with one sub-folder an identity, a list of `path label` lines, or a
    cross-media signature set. Images must be cropped to the region of interest.
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


def _records(
    source: str, identities: int, images: int, seed: int, kind: SourceKind
) -> list[ImageRecord]:
    if source == SYNTHETIC:
        return synthetic_palms(cache_root(), 1, identities, images, seed)[0]
    return open_source(Path(source), kind, cap_per_identity=max(2, images), seed=seed)


def _first(records: list[ImageRecord], identities: int, images: int) -> list[ImageRecord]:
    groups = list(by_identity(records).values())[:identities]
    return [record for group in groups for record in group[:images]]
