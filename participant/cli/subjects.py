"""``subjects``, ``forget`` and ``unlock``: who is enrolled here. They start without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.text import local_time

from ..config import VerificationSettings
from .site import open_site
from .verification import run_option


@click.command()
@run_option
@home_option("the site")
@json_option
@command_errors
def subjects(run_id: str | None, home: Path, as_json: bool) -> None:
    """List who is enrolled, what is stale or locked out, the thresholds, and what was counted.

    Stale: made by another model than the one in use; renew makes it anew.
    """
    from ..verification.subjects import list_subjects

    with open_site(home) as (config, desk):
        found = list_subjects(config, desk.store, run_id)
    emit(found, as_json, _tables(found))


@click.command()
@click.argument("subject")
@home_option("the site")
@json_option
@command_errors
def forget(subject: str, home: Path, as_json: bool) -> None:
    """Erase reference, key, images, attempts and lock-outs of SUBJECT, and note it in the log.

    Says what still remembers the person: models that were trained with them, backups, the data folder.
    """
    from ..verification.subjects import forget as erase
    from ..verification.subjects import in_words

    with open_site(home) as (config, desk):
        done = erase(config, desk, subject)
    lines = in_words(done)
    emit({**done.to_json(), "in_words": lines}, as_json, "\n".join(lines))


@click.command()
@click.argument("subject")
@home_option("the site")
@json_option
@command_errors
def unlock(subject: str, home: Path, as_json: bool) -> None:
    """Let SUBJECT be verified again who was locked out after failed attempts."""
    from ..verification.attempts import Attempts
    from ..verification.gallery import Gallery, subject_name

    with open_site(home) as (config, desk):
        name = Gallery(desk.store).get(subject_name(subject)).subject
        Attempts(desk.store, config.verification or VerificationSettings()).unlock(name)
    emit({"subject": name, "locked": False}, as_json, f"{name} may be verified again")


def _tables(found: dict[str, Any]) -> Group:
    people = Table("subject", "mode", "images", "state", "renewed")
    for one in found["subjects"]:
        state = "stale: renew" if one["stale"] else "ready"
        if one["locked_until_ms"] is not None:
            state += f", locked until {local_time(one['locked_until_ms'])}"
        kept = "" if one["images_kept"] else ", none kept"
        people.add_row(
            one["subject"],
            one["mode"],
            f"{one['images']}{kept}",
            state,
            local_time(one["renewed_ms"]),
        )
    lines = [f"model  run {found['run_id']}" if found["run_id"] else f"model  {found['problem']}"]
    lines += [
        f"threshold  {one['mode']}: {one['threshold']:.4f} at FMR {one['target_fmr']:g}"
        + "".join(f", {part}" for part in _passing(one))
        + (", of another model: calibrate" if one["stale"] else "")
        for one in found["thresholds"]
    ]
    lines += [f"{n:>7}  {what.replace('_', ' ')}" for what, n in found["counts"].items()]
    return Group(people, *lines)


def _passing(threshold: dict[str, Any]) -> list[str]:
    """What part of each kind of forgery would pass, a phrase each."""
    return [
        f"{one['rate']:.2g} of {one['kind']} forgeries pass ({one['interval'][0]:.2g} to "
        f"{one['interval'][1]:.2g})"
        for one in threshold["passing"]
    ]
