"""``peers``: the other sites' signing keys; ``peers confirm`` and ``accept``: a person compared them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option

from ..desk import Desk
from ..peers import Member, Peer, PeerBook, roster_code
from .site import open_site


@click.group(invoke_without_command=True)
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), envvar="FEDPALM_HOME")
@json_option
@click.pass_context
@command_errors
def peers(context: click.Context, home: Path | None, as_json: bool) -> None:
    """List the signing keys of the other sites, and one code over all of them, for comparing by telephone.

    Masking uses a site's key as it was seen first; another one is refused until somebody here accepts it.
    Sites that know each other by the same keys have the same roster code.
    """
    if context.invoked_subcommand is not None:
        return
    if home is None:
        raise click.UsageError("Missing option '--home' (env var: 'FEDPALM_HOME').")
    with open_site(home) as (config, desk):
        known = PeerBook(desk.store).all()
        code = roster_code(_own(desk), known) if known else ""
        words = [_words(peer) for peer in known]
        if known:
            words.append(_code_words(code, known))
        emit(
            {"site": config.site, "peers": [_data(peer) for peer in known], "roster_code": code},
            as_json,
            Text("\n\n".join(words) or "no key of another site has been seen yet"),
        )


@peers.command()
@click.argument("site", required=False)
@click.argument("key_id", required=False)
@click.option("--all", "code", metavar="CODE", help="Confirm all peers by the roster code.")
@home_option("the site")
@json_option
@command_errors
def confirm(
    site: str | None, key_id: str | None, code: str | None, home: Path, as_json: bool
) -> None:
    """Say that SITE reads out KEY_ID as its own key; or, with --all, that all sites read out CODE."""
    if (site is not None and key_id is not None) == (code is not None) or (site and code):
        raise click.UsageError("say SITE and KEY_ID, or --all CODE")
    with open_site(home) as (_, desk):
        book = PeerBook(desk.store)
        if code is not None:
            confirmed = [one.site for one in book.confirm_all(desk.log, _own(desk), code)]
        else:
            assert site is not None and key_id is not None
            confirmed = [book.confirm(desk.log, site, key_id).site]
        waiting = [peer.site for peer in book.all() if peer.confirmed_ms is None]
        emit(
            {"confirmed": confirmed, "unconfirmed": waiting},
            as_json,
            Text(
                f"confirmed: {', '.join(confirmed) or 'no further one; all were before'}"
                + (f"\nnot yet: {', '.join(waiting)}" if waiting else "")
            ),
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
        accepted = book.accept(desk.log, site, key_id)
        old = before.key_id if before is not None else ""
        emit(
            {"site": site, "old_key_id": old, "key_id": accepted.key_id},
            as_json,
            Text(f"{site}\n  no longer  {old}\n  from now   {accepted.key_id}"),
        )


def _own(desk: Desk) -> Member:
    own = desk.live.current
    return own.identity.name, own.signing_key.public_key()


def _data(peer: Peer) -> dict[str, Any]:
    return {
        "site": peer.site,
        "key_id": peer.key_id,
        "since_ms": peer.since_ms,
        "confirmed_ms": peer.confirmed_ms,
        "other_key_id": peer.other_key_id,
    }


def _words(peer: Peer) -> str:
    confirmed = (
        "not confirmed" if peer.confirmed_ms is None else f"confirmed {_date(peer.confirmed_ms)}"
    )
    lines = [
        f"{peer.site}, since {_date(peer.since_ms)}, {confirmed}",
        f"  known    {peer.key_id}",
    ]
    if peer.other is not None:
        lines += [
            f"  REFUSED  {peer.other_key_id}",
            f"  if {peer.site} says that this is its own: fedpalm-participant peers accept {peer.site} "
            "KEY_ID",
        ]
    return "\n".join(lines)


def _code_words(code: str, known: list[Peer]) -> str:
    lines = [f"roster code of these {len(known) + 1} sites, this one included: {code}"]
    if any(peer.confirmed_ms is None for peer in known):
        lines.append(
            "if all of them read out the same: fedpalm-participant peers confirm --all CODE"
        )
    return "\n".join(lines)


def _date(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))
