"""``sites``: who belongs to the federation; ``sites admit`` lets a newcomer in."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import IdentityError
from fedpalm.pki.authority import load_authority
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.files import read_public, write_public
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Role
from fedpalm.pki.request import parse_request, verify_request
from fedpalm.wire.v1 import operator_pb2 as pb

from ..config import Home
from ..store import Store
from .link import call, coordinator_option
from .view import when


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), envvar="FEDPALM_HOME")
@coordinator_option
@json_option
@command_errors
def sites(context: click.Context, home: Path | None, address: str | None, as_json: bool) -> None:
    """List the admitted sites, and which of them are connected."""
    if context.invoked_subcommand is not None:
        return
    if home is None:
        raise click.UsageError("Missing option '--home' (env var: 'FEDPALM_HOME').")
    reply = call(home, address, "ListSites", pb.ListSitesRequest())
    rows = [
        {
            "site": site.site_id,
            "connected": site.connected,
            "last_seen_ms": site.last_seen_ms,
            "admitted_ms": site.admitted_ms,
            "certificate_expires_ms": site.certificate_expires_ms,
            "fingerprint": site.certificate_fingerprint,
            "software_version": site.software_version,
        }
        for site in reply.sites
    ]
    table = Table("site", "connected", "last seen", "certificate until", "fingerprint")
    for row in rows:
        table.add_row(
            row["site"],
            "yes" if row["connected"] else "no",
            when(row["last_seen_ms"]),
            when(row["certificate_expires_ms"]),
            row["fingerprint"],
        )
    emit({"federation": reply.federation_id, "sites": rows}, as_json, table)


@sites.command()
@click.argument("request", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@home_option("the coordinator")
@json_option
@command_errors
def admit(request: Path, out: Path, home: Path, as_json: bool) -> None:
    """Sign a site's REQUEST and write the BUNDLE that goes back to it.

    Compare the fingerprint with the one the site was shown, over another channel, first: whoever
    made the request will be that site from now on.
    """
    place = Home(home)
    place.settings()
    authority = load_authority(place.authority)
    csr = parse_request(read_public(request))
    asked = verify_request(csr)
    if asked.identity.role is not Role.PARTICIPANT:
        raise IdentityError(f"{asked.identity}: only participants are admitted this way")
    now = time.time()
    leaf = authority.issue(csr, asked.identity, now=now)
    with Store.open(place.store) as store:
        store.admit_site(
            asked.identity.name,
            fingerprint(leaf),
            admitted_ms=round(now * 1000),
            expires_ms=round(leaf.not_valid_after_utc.timestamp() * 1000),
        )
    write_public(out, pem_of((leaf, authority.issuing, authority.root)))
    emit(
        {
            "site": asked.identity.name,
            "request_fingerprint": fingerprint(csr),
            "certificate_fingerprint": fingerprint(leaf),
            "bundle": str(out),
            "next": f"at the site: fedpalm-participant join --install {out.name} --home DIR",
        },
        as_json,
    )
