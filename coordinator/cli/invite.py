"""``invite``: let newcomers in, one invitation for each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import KeyFileError
from fedpalm.ids import site_id
from fedpalm.pki.authority import load_trust
from fedpalm.pki.invitation import new_invitation, write_invitation
from fedpalm.text import one_line

from ..config import Home
from ..invitations import Invitations
from .local import now_ms, operator_name, store_of
from .view import when

HOUR_MS = 60 * 60 * 1000


@click.command()
@click.argument("sites", nargs=-1, metavar="SITE...")
@home_option("the coordinator")
@click.option(
    "--hours", type=click.FloatRange(0, 720, min_open=True), default=72.0, show_default=True
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path(),
    help="Where SITE.invitation is written; left out, the present folder.",
)
@click.option("--list", "listing", is_flag=True, help="Show the invitations that were made.")
@click.option("--cancel", metavar="SITE", help="End the invitation of a site.")
@json_option
@command_errors
def invite(
    sites: tuple[str, ...],
    home: Path,
    hours: float,
    out: Path,
    listing: bool,
    cancel: str | None,
    as_json: bool,
) -> None:
    """Write SITE.invitation for each SITE: whoever brings it first can ask to become that site.

    It is a secret until then: hand it over where nobody else can read it. What is asked for with it
    still needs `sites approve`. An earlier invitation of the same site ends.
    """
    if (bool(sites), listing, cancel is not None).count(True) != 1:
        raise click.UsageError("Name sites, or give --list or --cancel SITE.")
    place = Home(home)
    if listing:
        _list(place, as_json)
    elif cancel is not None:
        with store_of(place) as store:
            Invitations(store).cancel(cancel, at_ms=now_ms(), operator=operator_name(place))
        emit({"site": cancel, "state": "cancelled"}, as_json)
    else:
        _invite(place, sites, hours, out, as_json)


def _invite(place: Home, sites: tuple[str, ...], hours: float, out: Path, as_json: bool) -> None:
    settings, operator = place.settings(), operator_name(place)
    coordinator_address, enrol_address = place.advertised(settings)
    anchors = load_trust(place.authority).anchors
    files = {site_id(site): out / f"{site}.invitation" for site in sites}
    for path in files.values():
        if path.exists():
            raise KeyFileError(
                f"{path} exists already",
                safe="no invitation was made",
                next_step="remove it if its invitation is not used any more, or name another --out",
            )
    created_ms = round(time.time() * 1000)
    expires_ms = created_ms + round(hours * HOUR_MS)
    with store_of(place) as store:
        invitations = Invitations(store)
        for site, path in files.items():
            made = new_invitation(
                federation=settings.federation,
                site=site,
                enrol_address=enrol_address,
                coordinator_address=coordinator_address,
                anchors=anchors,
                expires_ms=expires_ms,
            )
            invitations.invite(
                made.invitation_id,
                site,
                made.token,
                created_ms=created_ms,
                expires_ms=expires_ms,
                operator=operator,
            )
            try:
                write_invitation(path, made)
            except BaseException:
                invitations.cancel(site, at_ms=now_ms(), operator=operator)
                raise
    rows = [
        {"site": site, "file": str(path), "expires_ms": expires_ms} for site, path in files.items()
    ]
    table = Table(
        "site", "file", "until", caption="secret until used: hand each over on a safe way"
    )
    for site, path in files.items():
        table.add_row(site, str(path), when(expires_ms))
    emit(
        {
            "invitations": rows,
            "coordinator": coordinator_address,
            "enrolment": enrol_address,
            "next": "at each site: fedpalm-participant join SITE.invitation --home DIR",
        },
        as_json,
        table,
    )


def _list(place: Home, as_json: bool) -> None:
    now = now_ms()
    with store_of(place) as store:
        found = Invitations(store).all()
    rows: list[dict[str, Any]] = [
        {
            "invitation": row.invitation_id,
            "site": row.site,
            "state": "expired"
            if row.state in ("open", "claimed") and not row.answerable(now)
            else row.state,
            "created_ms": row.created_ms,
            "expires_ms": row.expires_ms,
            "reason": row.reason,
        }
        for row in found
    ]
    table = Table("site", "state", "made", "until", "invitation", "reason")
    for row in rows:
        table.add_row(
            row["site"],
            row["state"],
            when(row["created_ms"]),
            when(row["expires_ms"]),
            row["invitation"],
            one_line(row["reason"]),
        )
    emit({"invitations": rows}, as_json, table)
