"""``fedpalm demo``: options in, exit code out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ...errors import InterruptedError_
from ...plan import MAX_SITES
from ...settings import parse_settings
from ..console import command_errors, emit, err, json_option
from ..narrator import Narrator
from .settings import (
    DRAWN,
    MOST_SIGNATURES,
    PRIVATE_SIZES,
    SIGNATURE_SIZES,
    SYNTHETIC,
    SYNTHETIC_SIGNATURES,
    DemoSettings,
)
from .supervisor import ends_are_interrupts
from .workspace import Workspace

_DEFAULT = DemoSettings()


@click.command("demo")
@click.option(
    "--data",
    metavar=f"{SYNTHETIC}|{SYNTHETIC_SIGNATURES}|PATH",
    help="Palms: a folder with a sub-folder an identity, or a `path label` list. Signatures, with --method "
    "fedmh: a folder or list of any layout that `fedpalm data signatures` reads.  "
    "[default: made-up ones]",
)
@click.option(
    "--sites",
    type=click.IntRange(2, min(32, MAX_SITES)),
    help="With fedmh six or more have three kinds of backbones, fewer have one.  "
    f"[default: {_DEFAULT.sites}; with fedmh {SIGNATURE_SIZES['sites']}]",
)
@click.option(
    "--identities",
    type=click.IntRange(2, 1000),
    help="Identities that train at each site; as many again are kept for the open-set test.  "
    f"[default: {_DEFAULT.identities}, or what a folder allows; with --privacy "
    f"{PRIVATE_SIZES['identities']}; with fedmh {SIGNATURE_SIZES['identities']}]",
)
@click.option(
    "--images",
    type=click.IntRange(4, 1000),
    help="Images of each identity; larger folders are capped at this. With fedmh signatures of a writer, "
    "and as many forgeries.  "
    f"[default: {_DEFAULT.images}; with --privacy {PRIVATE_SIZES['images']}; with fedmh "
    f"{SIGNATURE_SIZES['images']}, {MOST_SIGNATURES} of a folder]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    help=f"[default: {_DEFAULT.rounds}; with --privacy {PRIVATE_SIZES['rounds']}; with fedmh "
    f"{SIGNATURE_SIZES['rounds']}]",
)
@click.option(
    "--method",
    type=click.Choice(["fedpalm", "fedavg", "fedmh"]),
    default="fedpalm",
    show_default=True,
    help="fedmh: signatures, and sites with backbones of their own.",
)
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), default=0, show_default=True)
@click.option(
    "--masking",
    type=click.Choice(["secagg", "none"]),
    default="secagg",
    show_default=True,
    help="secagg: the coordinator opens sums over the sites, and no site's update.",
)
@click.option(
    "--privacy",
    type=click.Choice(["none", "subject"]),
    default="none",
    show_default=True,
    help="subject: differential privacy for every person, from a warm start on drawn palms.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run; the same command continues a run that was cut off.  "
    "[default: runs/NAME]",
)
@json_option
@command_errors
def commands(
    data: str | None,
    sites: int | None,
    identities: int | None,
    images: int | None,
    rounds: int | None,
    method: str,
    seed: int,
    masking: str,
    privacy: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run a whole federation on this machine and compare it.

    A coordinator and several sites run as processes with certificates of their own, train a shared
    model over mutual TLS from masked updates, exchange experts, and evaluate; FedAvg and training
    alone run beside them on the same split and seed. With --method fedmh they verify signatures, and
    share what others have of their models, too. Leaves report.html, report.json, plots and all logs in
    --out.
    """
    from .story import tell

    settings = resolve(data, sites, identities, images, rounds, method, seed, masking, privacy)
    workspace = Workspace(out or default_folder(settings))
    console = err()
    try:
        with ends_are_interrupts(), Narrator(console) as narrator:
            report = tell(settings, workspace, narrator, command_line())
    except KeyboardInterrupt:
        raise InterruptedError_(
            "interrupted",
            safe="no process is left, and every finished step is kept",
            next_step=f"the same command goes on where it stood: {command_line()}",
        ) from None
    from .terminal import summary

    shown = {
        "out": str(workspace.root),
        "report": str(workspace.page),
        **report.model_dump(mode="json"),
    }
    emit(shown, as_json, summary(report, workspace))


def resolve(
    data: str | None,
    sites: int | None,
    identities: int | None,
    images: int | None,
    rounds: int | None,
    method: str,
    seed: int,
    masking: str,
    privacy: str = "none",
) -> DemoSettings:
    """Settings from options; a folder's own size decides what was left out."""
    usual = _usual(method, privacy)
    if data is None:
        data = str(usual["data"])
    elif data not in DRAWN:
        data = str(Path(data).expanduser().absolute())
        usual["images"] = MOST_SIGNATURES if method == "fedmh" else usual["images"]
    said = {"sites": sites, "identities": identities, "images": images, "rounds": rounds}
    values = usual | {key: value for key, value in said.items() if value is not None}
    asked = {"data": data, "method": method, "seed": seed, "masking": masking, "privacy": privacy}
    settings = parse_settings(DemoSettings, {**values, **asked}, "demo options")
    if settings.drawn or identities is not None:
        return settings
    from .subject import subject_of

    fit = subject_of(settings).largest_fit(data, settings.sites)
    return settings.model_copy(update={"identities": min(settings.identities, fit)})


def _usual(method: str, privacy: str) -> dict[str, Any]:
    """What a demo has where nothing is said."""
    usual: dict[str, Any] = {key: getattr(_DEFAULT, key) for key in ("data", *SIGNATURE_SIZES)}
    if method == "fedmh":
        return usual | {"data": SYNTHETIC_SIGNATURES, **SIGNATURE_SIZES}
    return usual if privacy == "none" else usual | PRIVATE_SIZES


def default_folder(settings: DemoSettings) -> Path:
    """``runs/<name>``: settings that are not the default give the name its parts."""
    usual = _usual(settings.method, settings.privacy)
    source = "synthetic" if settings.drawn else Path(settings.data).stem.lower()
    parts: list[str] = [settings.method, source]
    for key, unit in (("sites", "sites"), ("identities", "ids"), ("images", "images"),
                      ("rounds", "rounds")):  # fmt: skip
        value = getattr(settings, key)
        if value != usual[key]:
            parts.append(f"{value}{unit}")
    parts.append(f"seed{settings.seed}")
    if not settings.masked:
        parts.append("unmasked")
    if settings.private:
        parts.append("private")
    return Path("runs") / "-".join(parts)


def command_line() -> str:
    """What was typed, as it can be typed again."""
    return shlex.join(["fedpalm", *sys.argv[1:]])
