"""``peers``: the other sites' signing keys as remembered here; ``peers accept``: a new one is true."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option

from ..peers import Peer, PeerBook
from .site import open_site


@click.group(invoke_without_command=True)
@home_option("the site")
@json_option
@click.pass_context
@command_errors
def peers(context: click.Context, home: Path, as_json: bool) -> None:
    """List the signing keys of the other sites, for comparing by telephone.

    Masking uses a site's key as it was seen first; another one is refused until somebody here accepts it.
    """
    if context.invoked_subcommand is not None:
        return
    with open_site(home) as (config, desk):
        known = PeerBook(desk.store).all()
        words = "\n\n".join(_words(peer) for peer in known)
        emit(
            {"site": config.site, "peers": [_data(peer) for peer in known]},
            as_json,
            Text(words or "no key of another site has been seen yet"),
        )


@peers.command()
@click.argument("site")
@click.argument("key_id")
@home_option("the site")
@json_option
@command_errors
def accept(site: str, key_id: str, home: Path, as_json: bool) -> None:
    """Say that SITE's other key, with the id KEY_ID, is its own: that site reads the id by telephone."""
    with open_site(home) as (_, desk):
        book = PeerBook(desk.store)
        before = book.get(site)
        accepted = book.accept(site, key_id)
        old = before.key_id if before is not None else ""
        emit(
            {"site": site, "old_key_id": old, "key_id": accepted.key_id},
            as_json,
            Text(f"{site}\n  no longer  {old}\n  from now   {accepted.key_id}"),
        )


def _data(peer: Peer) -> dict[str, str | int]:
    return {
        "site": peer.site,
        "key_id": peer.key_id,
        "since_ms": peer.since_ms,
        "other_key_id": peer.other_key_id,
    }


def _words(peer: Peer) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(peer.since_ms / 1000))
    lines = [f"{peer.site}, since {since}", f"  known    {peer.key_id}"]
    if peer.other is not None:
        lines += [
            f"  REFUSED  {peer.other_key_id}",
            f"  if {peer.site} says that this is its own: fedpalm-participant peers accept {peer.site} "
            "KEY_ID",
        ]
    return "\n".join(lines)
