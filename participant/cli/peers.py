"""``peers``: the other sites' signing keys; ``peers confirm`` and ``accept``: a person compared them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.text import local_time

from ..desk import Desk
from ..peers import Member, Peer, PeerBook, roster_code
from .site import open_site

_NO_RUN = "to compare all sites of a run by one code: fedpalm-participant peers --run RUN"


@click.group(invoke_without_command=True)
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), envvar="FEDPALM_HOME")
@click.option(
    "--run", "run_id", metavar="RUN", help="The sites of this run's plan, and their code."
)
@json_option
@click.pass_context
@command_errors
def peers(context: click.Context, home: Path | None, run_id: str | None, as_json: bool) -> None:
    """List the signing keys of the other sites; with --run also one code over a run's, for comparing.

    Masking uses a site's key as it was seen first; another one is refused until somebody here accepts it.
    All sites of a run print the same roster code if they know each other by the same keys.
    """
    if context.invoked_subcommand is not None:
        return
    if home is None:
        raise click.UsageError("Missing option '--home' (env var: 'FEDPALM_HOME').")
    with open_site(home) as (config, desk):
        known = PeerBook(desk.store).all()
        found: dict[str, Any] = {"site": config.site}
        last = _NO_RUN
        if run_id is not None:
            others = _others(desk, run_id)
            known = [peer for peer in known if peer.site in others]
            unseen = sorted(others - {peer.site for peer in known})
            code = "" if unseen else roster_code(_own(desk), known)
            found |= {"run": run_id, "roster_code": code, "unseen": unseen}
            last = _code_words(run_id, code, known, unseen)
        words = [_words(peer) for peer in known]
        emit(
            {**found, "peers": [_data(peer) for peer in known]},
            as_json,
            Text("\n\n".join([*(words or ["no key of another site has been seen yet"]), last])),
        )


@peers.command()
@click.argument("site", required=False)
@click.argument("key_id", required=False)
@click.option(
    "--all", "code", metavar="CODE", help="Confirm all peers of --run by its roster code."
)
@click.option("--run", "run_id", metavar="RUN", help="The run whose code it is.")
@home_option("the site")
@json_option
@command_errors
def confirm(
    site: str | None,
    key_id: str | None,
    code: str | None,
    run_id: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Say that SITE reads out KEY_ID as its own key; or that all sites of a run read out its CODE."""
    by_code = code is not None and run_id is not None and site is None
    by_key = key_id is not None and code is None and run_id is None
    if not by_code and not by_key:
        raise click.UsageError("say SITE and KEY_ID, or --all CODE --run RUN")
    with open_site(home) as (_, desk):
        book = PeerBook(desk.store)
        if code is not None and run_id is not None:
            others = sorted(_others(desk, run_id))
            done = book.confirm_all(desk.log, _own(desk), others, code)
            confirmed = [one.site for one in done]
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


def _others(desk: Desk, run_id: str) -> set[str]:
    """The other sites of a run's plan. Raises NotFoundError: no such plan was offered here."""
    return set(desk.plans.plan(run_id).plan.roster) - {_own(desk)[0]}


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
        "not confirmed"
        if peer.confirmed_ms is None
        else f"confirmed {local_time(peer.confirmed_ms)}"
    )
    lines = [
        f"{peer.site}, since {local_time(peer.since_ms)}, {confirmed}",
        f"  known    {peer.key_id}",
    ]
    if peer.other is not None:
        lines += [
            f"  REFUSED  {peer.other_key_id}",
            f"  if {peer.site} says that this is its own: fedpalm-participant peers accept {peer.site} "
            "KEY_ID",
        ]
    return "\n".join(lines)


def _code_words(run_id: str, code: str, known: list[Peer], unseen: list[str]) -> str:
    if unseen:
        return (
            f"no roster code of {run_id} yet: no key has been seen of {', '.join(unseen)}. A key is known "
            "from the first manifest that its site has countersigned"
        )
    lines = [f"roster code of the {len(known) + 1} sites of {run_id}, this one included: {code}"]
    if any(peer.confirmed_ms is None for peer in known):
        lines.append(
            "if all of them read out the same: fedpalm-participant peers confirm --all CODE --run "
            f"{run_id}"
        )
    return "\n".join(lines)
