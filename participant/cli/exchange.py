"""``exchange``: this site's own yes or no to the one release of its expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import NotFoundError
from fedpalm.exchange.site import SiteExchange

from ..desk import Desk
from .site import open_site


@click.group()
def exchange() -> None:
    """The deployment exchange: nothing is sealed before this site's person has approved.

    Works while the agent runs: it sends the answer within a second.
    """


@exchange.command()
@click.argument("name", required=False, metavar="[EXCHANGE|RUN]")
@home_option("the site")
@json_option
@command_errors
def review(name: str | None, home: Path, as_json: bool) -> None:
    """Show what would be released, to whom, under which plan."""
    with open_site(home) as (_, desk):
        emit(_describe(desk, _find(desk, name)), as_json)


@exchange.command()
@click.argument("name", required=False, metavar="[EXCHANGE|RUN]")
@home_option("the site")
@json_option
@command_errors
def approve(name: str | None, home: Path, as_json: bool) -> None:
    """Say yes: make the key to receive with, and sign the consent."""
    with open_site(home) as (_, desk):
        emit(_describe(desk, desk.approve(_find(desk, name))), as_json)


@exchange.command()
@click.argument("name", required=False, metavar="[EXCHANGE|RUN]")
@click.option("--reason", default="", help="Shown to the operator; leaves the site.")
@home_option("the site")
@json_option
@command_errors
def refuse(name: str | None, reason: str, home: Path, as_json: bool) -> None:
    """Say no, or take a yes back while the exchange goes on; cancels it for everybody."""
    with open_site(home) as (_, desk):
        emit(_describe(desk, desk.refuse(_find(desk, name), reason)), as_json)


def _find(desk: Desk, name: str | None) -> SiteExchange:
    """By exchange, by run, or the one that waits."""
    if name is not None:
        of_run = [one for one in desk.book.all() if one.terms.run == name]
        if of_run:
            return of_run[-1]
        if desk.store.run(name) is not None:
            raise NotFoundError(
                f"no exchange of run {name} has been proposed here",
                next_step="the operator starts one with: fedpalm-coordinator exchange start",
            )
    return desk.open_exchange(name)


def _describe(desk: Desk, one: SiteExchange) -> dict[str, Any]:
    run = desk.store.run(one.terms.run)
    assert run is not None
    layout = run.plan.released_layout
    return {
        "exchange_id": one.terms.exchange_id,
        "run_id": one.terms.run,
        "state": one.state.value,
        "plan_hash": one.terms.plan_hash.hex(),
        "releases": f"{len(layout.tensors)} tensors, {layout.size} parameters, "
        f"{4 * layout.size} bytes: the closed-set textural expert",
        "layout_hash": one.terms.layout_hash.hex(),
        "sealed_to": list(one.terms.others(one.site)),
        "reason": one.reason,
    }
