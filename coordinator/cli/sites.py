"""``sites``: who belongs to the federation, who asks to, and who does not any more."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import FedPalmError, IdentityError
from fedpalm.pki.authority import load_authority
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.files import read_public, write_public
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Role
from fedpalm.pki.request import parse_request, verify_request
from fedpalm.pki.validity import end_ms
from fedpalm.text import one_line
from fedpalm.wire.v1 import operator_pb2 as pb

from ..config import Home
from ..invitations import InvitationRow, Invitations
from ..registry import Registry, SiteRow
from .link import call, coordinator_option
from .local import confirm_fingerprint, now_ms, operator_name, require_fingerprint, store_of
from .view import when

WARNING_MS = 14 * 24 * 60 * 60 * 1000
"""A certificate with less left is marked."""


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), envvar="FEDPALM_HOME")
@coordinator_option
@json_option
@command_errors
def sites(context: click.Context, home: Path | None, address: str | None, as_json: bool) -> None:
    """List the sites, and the requests that wait for a decision.

    Works without a running coordinator, too; who is connected is unknown then.
    """
    if context.invoked_subcommand is not None:
        return
    if home is None:
        raise click.UsageError("Missing option '--home' (env var: 'FEDPALM_HOME').")
    place, now = Home(home), now_ms()
    with store_of(place) as store:
        members, waiting = Registry(store).sites(), Invitations(store).waiting(now)
    connected, remark = _connected(home, address)
    rows = [_site_json(row, connected, now) for row in members]
    requests = [_request_json(row) for row in waiting]
    emit(
        {
            "federation": place.settings().federation,
            "sites": rows,
            "waiting": requests,
            "remark": remark,
        },
        as_json,
        _shown(rows, requests, remark),
    )


@sites.command()
@click.argument("names", nargs=-1, required=True, metavar="SITE...")
@click.option(
    "--fingerprint",
    "fingerprints",
    multiple=True,
    metavar="FP",
    help="Fingerprint that the site shows, one for each SITE, in order; left out, it is asked.",
)
@home_option("the coordinator")
@json_option
@command_errors
def approve(
    names: tuple[str, ...], fingerprints: tuple[str, ...], home: Path, as_json: bool
) -> None:
    """Let each SITE in whose request waits, after its fingerprint was compared.

    Compare it with the one that the site was shown, over another channel: whoever made the request
    will be that site from now on. A site that is a member already gets a new certificate, and its
    earlier ones are over at once; a revoked one is a member again.
    """
    if fingerprints and len(fingerprints) != len(names):
        raise click.UsageError("Give one --fingerprint for each SITE, or none.")
    place = Home(home)
    place.settings()
    authority, operator = load_authority(place.authority), operator_name(place)
    approved = []
    with store_of(place) as store:
        invitations = Invitations(store)
        seen = [invitations.waiting_for(name, now_ms()) for name in names]
        for position, row in enumerate(seen):
            mark = _fingerprint(row)
            if fingerprints:
                require_fingerprint(row.site, fingerprints[position], mark)
            else:
                confirm_fingerprint(row.site, mark)
        for row in seen:
            csr, now = _request(row), time.time()
            leaf = authority.issue(csr, verify_request(csr).identity, now=now)
            invitations.approve(
                row,
                leaf,
                pem_of(authority.chain(leaf)),
                at_ms=round(now * 1000),
                operator=operator,
            )
            approved.append(
                {
                    "site": row.site,
                    "request_fingerprint": fingerprint(csr),
                    "certificate_fingerprint": fingerprint(leaf),
                    "certificate_expires_ms": end_ms(leaf),
                }
            )
    emit({"approved": approved}, as_json, Text(f"let in: {', '.join(row.site for row in seen)}"))


@sites.command()
@click.argument("site")
@click.option("--reason", required=True, help="Said to whoever asked.")
@home_option("the coordinator")
@json_option
@command_errors
def reject(site: str, reason: str, home: Path, as_json: bool) -> None:
    """Refuse the request that waits for SITE; its invitation is used up."""
    place = Home(home)
    with store_of(place) as store:
        invitations, now = Invitations(store), now_ms()
        row = invitations.waiting_for(site, now)
        # The contract counts bytes.
        said = one_line(reason).encode()[:500].decode(errors="ignore")
        invitations.reject(row, said, at_ms=now, operator=operator_name(place))
    emit({"site": site, "state": "rejected", "request_fingerprint": _fingerprint(row)}, as_json)


@sites.command()
@click.argument("request", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option(
    "--fingerprint", "given", metavar="FP", help="What the site shows; left out, it is asked."
)
@home_option("the coordinator")
@json_option
@command_errors
def sign(request: Path, out: Path, given: str | None, home: Path, as_json: bool) -> None:
    """Sign a site's REQUEST that came as a file, and write the BUNDLE that goes back to it.

    Compare the fingerprint as for `sites approve`. For a member that keeps its signing key this is a
    renewal: its certificate goes on for an hour after the new one is used first.
    """
    place = Home(home)
    place.settings()
    authority, operator = load_authority(place.authority), operator_name(place)
    csr = parse_request(read_public(request))
    asked = verify_request(csr).identity
    if asked.role is not Role.PARTICIPANT:
        raise IdentityError(f"{asked}: only participants are admitted this way")
    with store_of(place) as store:
        registry = Registry(store)
        breaks = registry.breaks(asked.name)
        if given is None:
            confirm_fingerprint(asked.name, fingerprint(csr))
        else:
            require_fingerprint(asked.name, given, fingerprint(csr))
        now = time.time()
        leaf = authority.issue(csr, asked, now=now)
        registry.admit(
            leaf,
            breaks=breaks,
            at_ms=round(now * 1000),
            operator=operator,
            action="sign",
            detail=fingerprint(csr),
        )
    # Under an institution the issuing CA is an anchor itself, and people compare each anchor once.
    between = () if authority.external else (authority.issuing,)
    write_public(out, pem_of((leaf, *between, *authority.anchors)))
    emit(
        {
            "site": asked.name,
            "request_fingerprint": fingerprint(csr),
            "certificate_fingerprint": fingerprint(leaf),
            "certificate_expires_ms": end_ms(leaf),
            "root_fingerprints": [fingerprint(anchor) for anchor in authority.anchors],
            "bundle": str(out),
            "next": f"at the site: fedpalm-participant install {out.name} --home DIR",
        },
        as_json,
    )


@sites.command()
@click.argument("site")
@click.option("--reason", required=True, help="For the record; the site is not told.")
@home_option("the coordinator")
@json_option
@command_errors
def revoke(site: str, reason: str, home: Path, as_json: bool) -> None:
    """Shut SITE out: a running coordinator ends its calls within 2 seconds, and goes on without it.

    It comes back by another invitation.
    """
    place, reason = Home(home), one_line(reason)
    with store_of(place) as store:
        Registry(store).revoke(site, reason, at_ms=now_ms(), operator=operator_name(place))
    emit({"site": site, "state": "revoked", "reason": reason}, as_json)


# --- inside ---------------------------------------------------------------------------------------


def _connected(home: Path, address: str | None) -> tuple[frozenset[str] | None, str]:
    """Sites whose stream of instructions is open; None and why, if that cannot be known."""
    try:
        reply = call(home, address, "ListSites", pb.ListSitesRequest())
    except FedPalmError as error:
        return None, f"who is connected is unknown: {error.what}"
    return frozenset(site.site_id for site in reply.sites if site.connected), ""


def _request(row: InvitationRow) -> Any:
    return parse_request(row.request or b"")


def _fingerprint(row: InvitationRow) -> str:
    return fingerprint(_request(row))


def _site_json(row: SiteRow, connected: frozenset[str] | None, now: int) -> dict[str, Any]:
    return {
        "site": row.site,
        "state": row.state,
        "connected": None if connected is None else row.site in connected,
        "last_seen_ms": row.last_seen_ms,
        "admitted_ms": row.admitted_ms,
        "revoked_ms": row.revoked_ms,
        "reason": row.reason,
        "certificate_expires_ms": row.expires_ms,
        "expires_soon": row.active and row.expires_ms - now < WARNING_MS,
        "fingerprint": row.fingerprint,
        "software_version": row.software_version,
    }


def _request_json(row: InvitationRow) -> dict[str, Any]:
    return {
        "site": row.site,
        "request_fingerprint": _fingerprint(row),
        "claimed_ms": row.claimed_ms,
        "expires_ms": row.expires_ms,
        "invitation": row.invitation_id,
    }


def _shown(rows: list[dict[str, Any]], requests: list[dict[str, Any]], remark: str) -> Group:
    table = Table("site", "state", "connected", "last seen", "certificate until", "fingerprint")
    for row in rows:
        until = Text(when(row["certificate_expires_ms"]))
        if row["expires_soon"]:
            until = Text(f"{until} (soon!)", style="bold red")
        table.add_row(
            row["site"],
            row["state"],
            {None: "unknown", True: "yes", False: "no"}[row["connected"]],
            when(row["last_seen_ms"]),
            until,
            row["fingerprint"],
        )
    parts: list[Any] = [table]
    for row in requests:
        # Not in a table: a fingerprint that is to be compared stands on one line.
        parts.append(
            Text(
                f"\n{row['site']} waits for approval since {when(row['claimed_ms'])}, until "
                f"{when(row['expires_ms'])}; its request:\n{row['request_fingerprint']}"
            )
        )
    if remark:
        parts.append(Text(remark, style="dim"))
    return Group(*parts)
