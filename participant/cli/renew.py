"""``renew``: a fresh certificate now, whatever is left of the present one; or somebody's reference."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.clock import SystemClock
from fedpalm.errors import IdentityError
from fedpalm.pki.bundle import TLS_CHAIN, TlsIdentity, read_certificates
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.validity import end_of

from ..config import Home
from .site import open_site, reporter_for, require_member
from .verification import renew_references, run_option


@click.command()
@click.argument("subject", required=False)
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--all", "everybody", is_flag=True, help="References of everybody who is enrolled.")
@run_option
@home_option("the site")
@json_option
@command_errors
def renew(
    subject: str | None,
    images: tuple[Path, ...],
    everybody: bool,
    run_id: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Renew this site's certificate, or the reference that SUBJECT is verified against.

    Without SUBJECT: take a certificate for a fresh TLS key from the coordinator. The running agent does
    so by itself in time, and takes up what this command installs. The signing key stays. A certificate
    that has ended cannot renew itself.

    With SUBJECT, or --all: make a new key and a new protected template, with the model in use, from the
    sealed enrolment images, or from IMAGES where none are kept. The old ones are erased.
    """
    if subject is None and not everybody:
        if run_id is not None:
            raise click.UsageError("--run belongs to a SUBJECT or --all")
        _renew_certificate(home, as_json)
    elif subject is not None and everybody:
        raise click.UsageError("SUBJECT and --all exclude each other")
    else:
        renew_references(home, subject, images, run_id, as_json)


def _renew_certificate(home: Path, as_json: bool) -> None:
    # These bring grpc, which most commands do without.
    from fedpalm.transport.channel import Connection

    from ..egress import EgressGate
    from ..link import Link
    from ..renewal import Renewal, expiry_words, seconds_left

    place, clock = Home(home), SystemClock()
    require_member(place)
    leaf = read_certificates(place.tls / TLS_CHAIN)[0]
    if seconds_left(leaf, clock.now()) <= 0:
        raise IdentityError(
            expiry_words(leaf, clock.now()),
            safe="keys, log and models are as they were",
            next_step=f"fedpalm-participant join INVITATION --home {home}, with a new invitation; or "
            "request and install, by files",
        )
    with open_site(home) as (config, desk):
        reporter = reporter_for(as_json)
        gate = EgressGate(desk.store, desk.log, desk.live, desk.policy)
        renewal = Renewal(place, desk.live, clock, reporter)

        async def take() -> TlsIdentity:
            async with Connection(config.coordinator, desk.identity) as connection:
                link = Link(connection, gate)
                await link.hello()
                return await renewal.renew(link)

        try:
            renewed = asyncio.run(take())
        finally:
            reporter.close()
    emit(
        {
            "site": config.site,
            "certificate_fingerprint": fingerprint(renewed.leaf),
            "valid_until": end_of(renewed.leaf),
            "anchors": [fingerprint(anchor) for anchor in renewed.anchors],
        },
        as_json,
    )
