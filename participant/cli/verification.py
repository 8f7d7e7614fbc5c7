"""``enrol``, ``verify``, ``identify``, ``renew SUBJECT`` and ``calibrate``: what needs the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, err, home_option, json_option
from fedpalm.cli.narrator import Narrator, ticker
from fedpalm.data.signatures import FORGERY_KINDS

from .site import open_site

if TYPE_CHECKING:
    from ..verification.results import Identification, Verification
    from ..verification.thresholds import Threshold
    from ..verification.verifier import Verifier

NO_MATCH = 17
"""Exit code of ``verify`` and ``identify`` that worked, and found no match: no error has it."""

_IMAGE = click.Path(path_type=Path)
run_option = click.option(
    "--run", "run_id", help="Whose model to use; left out, the run completed last."
)
_LIVENESS = (
    "Whether a living hand was before the sensor is not looked at: a good picture of a palm may pass "
    "for the palm, and a printed signature for a written one."
)


@click.command()
@click.argument("subject")
@click.argument("images", nargs=-1, required=True, type=_IMAGE)
@click.option(
    "--mode",
    type=click.Choice(["auto", "closed", "open"]),
    default="auto",
    show_default=True,
    help="closed: somebody whom this site trained on; auto goes by the name.",
)
@click.option("--replace", is_flag=True, help="Enrol somebody anew who is enrolled already.")
@run_option
@home_option("the site")
@json_option
@command_errors
def enrol(
    subject: str,
    images: tuple[Path, ...],
    mode: Any,
    replace: bool,
    run_id: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Enrol SUBJECT from one or several IMAGES (PNG, JPEG, BMP, TIFF).

    Images are what the run trained on: palms as regions of interest, or signatures, one to an image.
    A protected template is kept, under a random key of SUBJECT's own, and the images sealed, so that
    `renew` can make another one. Give as many as `images_per_reference` in participant.toml.
    """
    with _verifier(home, run_id) as verifier:
        done = verifier.enrol(subject, images, mode=mode, replace=replace)
        wanted = verifier.settings.images_per_reference
    _warn(done.warnings)
    if len(images) < wanted:
        _warn((f"{len(images)} of {wanted} images: thresholds are set for references of {wanted}",))
    emit(done.to_json(), as_json, f"{done.subject} is enrolled, {done.mode} mode")


@click.command(epilog=_LIVENESS)
@click.argument("subject")
@click.argument("image", type=_IMAGE)
@run_option
@home_option("the site")
@json_option
@command_errors
def verify(subject: str, image: Path, run_id: str | None, home: Path, as_json: bool) -> None:
    """Tell whether IMAGE is of SUBJECT, who claims it.

    Exit code 0: it matches; 17: it does not; any other: nothing could be decided.
    """
    with _verifier(home, run_id) as verifier:
        found = verifier.verify(subject, image)
    _warn(found.warnings)
    emit(found.to_json(), as_json, _verdict(found))
    raise SystemExit(0 if found.match else NO_MATCH)


@click.command(epilog=_LIVENESS)
@click.argument("image", type=_IMAGE)
@run_option
@home_option("the site")
@json_option
@command_errors
def identify(image: Path, run_id: str | None, home: Path, as_json: bool) -> None:
    """Tell who of those enrolled IMAGE is of, if of anybody.

    The best comparison has to reach the threshold for one comparison, so a stranger is the likelier to
    match the more people are enrolled: the answer says how likely at most. Exit code 0: somebody; 17:
    nobody; any other: nothing could be decided.
    """
    with _verifier(home, run_id) as verifier:
        found = verifier.identify(image)
    _warn(found.warnings)
    emit(found.to_json(), as_json, _found(found))
    raise SystemExit(0 if found.subject is not None else NO_MATCH)


def renew_references(
    home: Path, subject: str | None, images: tuple[Path, ...], run_id: str | None, as_json: bool
) -> None:
    """What ``renew SUBJECT`` and ``renew --all`` (``subject`` None) do."""
    with _verifier(home, run_id) as verifier:
        done = verifier.renew(None if subject is None else [subject], images or None)
    _warn(tuple(f"{name}: no images are kept, enrol them again" for name in done.without_images))
    emit(done.to_json(), as_json, f"renewed: {', '.join(done.renewed) or 'nobody'}")


@click.command()
@click.option("--fmr", type=float, default=1e-3, show_default=True, help="Target false match rate.")
@click.option(
    "--against",
    type=click.Choice(FORGERY_KINDS),
    default="random",
    show_default=True,
    help="Of signatures: whose claims the rate is of. random: another writer with what is theirs; simple: "
    "the same name by another writer; skilled: a practised forgery.",
)
@click.option("--accept-weak", is_flag=True, help="Allow a rate above 0.1.")
@click.option(
    "--mode",
    type=click.Choice(["both", "closed", "open"]),
    default="both",
    show_default=True,
    help="Whose threshold: of people this site trained on, or of all others.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of keys and intervals.")
@run_option
@home_option("the site")
@json_option
@command_errors
def calibrate(
    fmr: float,
    against: Any,
    accept_weak: bool,
    mode: Any,
    seed: int,
    run_id: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Set the thresholds, at a false match rate, on the site's own images.

    They stay until the next calibration. A rate that the images cannot show is refused. Of signatures it
    says, too, what part of each kind of forgery would pass.
    """
    modes: tuple[Any, ...] = ("closed", "open") if mode == "both" else (mode,)
    with _verifier(home, run_id) as verifier, Narrator(err()) as narrator:
        replaced = [one for one in verifier.thresholds.all() if one.mode in modes]
        found = verifier.calibrate(
            fmr,
            against=against,
            modes=modes,
            accept_weak=accept_weak,
            seed=seed,
            tick=ticker(narrator),
        )
    said = {
        "thresholds": [one.to_json() for one in found],
        "replaced": [one.to_json() for one in replaced],
    }
    lines = [
        f"{one.mode}: replaces the threshold {one.value:.4f} at FMR {one.target_fmr:g}, now {fmr:g}"
        for one in replaced
    ]
    tables = [_table(found), *([_forgeries(found)] if any(one.passing for one in found) else [])]
    emit(said, as_json, Group(*tables, *lines))


@contextmanager
def _verifier(home: Path, run_id: str | None) -> Iterator[Verifier]:
    from ..verification.verifier import Verifier

    with open_site(home) as (config, desk):
        yield Verifier(config, desk.store, run_id)


def _warn(warnings: tuple[str, ...]) -> None:
    for one in warnings:
        err().print(f"warning  {one}", markup=False)
    sys.stderr.flush()


def _verdict(found: Verification) -> str:
    word = "match" if found.match else "NO MATCH"
    return (
        f"{word}: score {found.score:.3f}, threshold {found.threshold:.3f} (false match rate "
        f"{found.target_fmr:g} of {found.against} claims), {found.mode} mode, run {found.model.run_id}"
    )


def _found(found: Identification) -> str:
    who = found.subject if found.subject is not None else "nobody"
    left_out = (
        f", {found.left_out} left out (stale, locked, or no threshold)" if found.left_out else ""
    )
    return (
        f"{who}: {found.comparisons} comparisons{left_out}; a stranger would match one of them with a "
        f"probability of at most {found.fpir_bound:.2g}"
    )


def _table(found: list[Threshold]) -> Table:
    table = Table("mode", "threshold", "FMR", "95 % interval", "FNMR", "95 % interval", "pairs")
    for one in found:
        table.add_row(
            one.mode,
            f"{one.value:.4f}",
            f"{one.fmr:.2g}",
            _interval(one.fmr_interval),
            f"{one.fnmr:.2g}",
            _interval(one.fnmr_interval),
            f"{one.genuine_pairs:,} genuine, {one.impostor_pairs:,} impostor",
        )
    return table


def _forgeries(found: list[Threshold]) -> Table:
    table = Table("mode", "forgeries", "would pass", "95 % interval", "claims")
    for one in found:
        for kind in one.passing:
            of = (
                f"{kind.kind} (set for {one.target_fmr:g})"
                if kind.kind == one.against
                else kind.kind
            )
            table.add_row(
                one.mode, of, f"{kind.rate:.2g}", _interval(kind.interval), f"{kind.claims:,}"
            )
    return table


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2g} to {interval[1]:.2g}"
