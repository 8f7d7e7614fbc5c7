"""``request``: ask to become a member by files, where no network leads to the coordinator."""

from __future__ import annotations

from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import StateError
from fedpalm.pki.fingerprint import fingerprint

from ..config import Home
from ..enrolment import prepare_request
from .site import data_option_values, data_options, look_at, settings_of


@click.command()
@click.argument("site")
@click.option(
    "--federation", required=True, help="Name of the federation, as its operator gave it."
)
@click.option("--coordinator", required=True, metavar="HOST:PORT", help="What this site will dial.")
@data_options
@home_option("the site")
@json_option
@command_errors
def request(
    site: str,
    federation: str,
    coordinator: str,
    data: Path | None,
    modality: str,
    kind: str,
    cap: int | None,
    split_seed: int,
    backbone: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Make the keys of SITE and the request that goes to the operator as a file.

    Run again it shows the same request. A site whose certificate has ended asks anew this way, too.
    """
    place = Home(home)
    known = place.load() if place.config.exists() else None
    if known is not None and (known.federation, known.site) != (federation, site):
        raise StateError(
            f"{home} is the home of {known.site} in {known.federation}",
            safe="nothing was changed",
            next_step="use another --home",
        )
    images = data_option_values(data, modality, kind, cap, split_seed)
    config = settings_of(
        federation, site, coordinator, images, backbone, origin="request", known=known
    )
    if images is not None:
        look_at(images, site)
    place.make()
    place.save(config)
    made = prepare_request(place, config)
    emit(
        {
            "site": config.site,
            "federation": config.federation,
            "request": str(place.request),
            "fingerprint": fingerprint(made),
            "next": f"send the request to the operator (fedpalm-coordinator sites sign "
            f"{place.request.name} --out BUNDLE), read the fingerprint over another channel, then: "
            f"fedpalm-participant install BUNDLE --home {home}",
        },
        as_json,
    )
