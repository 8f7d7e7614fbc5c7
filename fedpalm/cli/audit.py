"""``fedpalm audit``: what an auditor does offline with one file, and where a site gets that file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Group
from rich.text import Text

from ..audit.charges import EXACT_FIGURES
from ..audit.findings import Exit
from ..audit.trust import read_trust
from ..audit.verify import Audit, verify_bundle
from ..errors import ConfigError
from .audit_attack import attack_command
from .console import command_errors, emit, home_option, json_option

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, path_type=Path)

_AUDIT_OPTIONS = (
    click.option(
        "--trust",
        type=_FILE,
        required=True,
        help="Your pinned trust: the federation's ca.pem, or TOML with anchors and signing keys.",
    ),
    click.option(
        "--checkpoint",
        "checkpoints",
        type=_FILE,
        multiple=True,
        help="A signed checkpoint of the site from somebody else, or another site's bundle; repeatable.",
    ),
    click.option(
        "--faulty",
        type=click.IntRange(0, 200),
        default=1,
        show_default=True,
        help="How many witnesses may lie or work together with the site.",
    ),
    click.option(
        "--figures",
        type=click.IntRange(2),
        default=EXACT_FIGURES,
        show_default=True,
        help="How many figures of epsilon are recomputed exactly; the others are held in between.",
    ),
)


def audit_options(command: F) -> F:
    """What an audit takes besides the bundle."""
    for option in reversed(_AUDIT_OPTIONS):
        command = option(command)
    return command


@click.group()
def commands() -> None:
    """Audit a site offline: one file, nobody trusted but those that you pin."""


@commands.command("export")
@click.option("--out", type=_FILE, required=True, help="The bundle; must not exist.")
@home_option("the site")
@json_option
@command_errors
def export_command(out: Path, home: Path, as_json: bool) -> None:
    """Write a site's bundle: its log and what others signed about it. Runs at the site."""
    command = [sys.executable, "-m", "participant", "audit", "export"]
    command += ["--home", str(home), "--out", str(out), *(["--json"] if as_json else [])]
    raise SystemExit(subprocess.run(command, check=False).returncode)  # noqa: S603 - our own program


@commands.command("verify")
@click.argument("bundle", type=_FILE)
@audit_options
@json_option
@command_errors
def verify_command(
    bundle: Path,
    trust: Path,
    checkpoints: tuple[Path, ...],
    faulty: int,
    figures: int,
    as_json: bool,
) -> None:
    """Verify a bundle, offline.

    Exit codes: 0 it holds; 20 tampered, 21 truncated or forked, 22 uncharged release, 23 over budget,
    24 epsilon mismatch, 25 unwitnessed, 26 malformed. Of several findings the code is that of the first
    in the order 26, 20, 21, 22, 23, 24, 25.
    """
    audit = verify_bundle(
        bundle, read_trust(trust), faulty=faulty, outside=checkpoints, exact=figures
    )
    emit(audit.to_json(), as_json, verdict(audit))
    raise SystemExit(int(audit.exit))


def verdict(audit: Audit) -> Group:
    """What an audit found, for a person."""
    said = audit.to_json()
    lines = _contents(audit, said) if audit.site else []
    holds = audit.exit is Exit.OK
    result = Text(
        "holds" if holds else audit.exit.name.lower().replace("_", " "),
        style="bold green" if holds else "bold red",
    )
    return Group(
        result,
        *(Text(line) for line in lines),
        *(Text(f"note: {note}") for note in audit.notes),
        *(Text(f"{one.exit.name.lower()}: {one}", style="red") for one in audit.findings[:50]),
    )


def _contents(audit: Audit, said: dict[str, Any]) -> list[str]:
    """What a bundle holds; a file that is none has no site, and nothing to tell."""
    lines = [
        f"site {audit.site} of {audit.federation}, signing key {audit.key_id[:16]}",
        f"log: {said['entries']} entries, root {said['root'][:16]}, "
        f"{audit.vouched} of them vouched for by others",
    ]
    lines += [
        f"epsilon {one['epsilon']:.4f} at delta {one['delta']:g} by {one['unit']}, of a budget of "
        f"{one['budget']:g}; {one['charges']} charges, {one['recomputed_exactly']} recomputed exactly"
        for one in said["accounts"]
    ]
    released = said["released"]
    lines.append(f"left: {released['update']} updates, {released['sealed_expert']} sealed experts")
    return lines


@commands.command("report")
@click.argument("bundle", type=_FILE)
@audit_options
@click.option("--out", type=_FILE, required=True, help="The page; must not exist.")
@click.option(
    "--attack",
    type=_FILE,
    help="JSON of `fedpalm audit attack`: its figures stand in the report beside epsilon.",
)
@json_option
@command_errors
def report_command(
    bundle: Path,
    trust: Path,
    checkpoints: tuple[Path, ...],
    faulty: int,
    figures: int,
    out: Path,
    attack: Path | None,
    as_json: bool,
) -> None:
    """Verify a bundle, and write the result as one page to read, print and sign.

    The exit code is that of `verify`; the page is written whatever it is.
    """
    from ..audit.report import read_attack, report_page

    audit = verify_bundle(
        bundle, read_trust(trust), faulty=faulty, outside=checkpoints, exact=figures
    )
    page = report_page(audit, bundle, read_attack(attack, audit) if attack else None)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}", next_step="choose another --out") from error
    emit({**audit.to_json(), "report": str(out)}, as_json, Group(verdict(audit), Text(str(out))))
    raise SystemExit(int(audit.exit))


commands.add_command(attack_command)
