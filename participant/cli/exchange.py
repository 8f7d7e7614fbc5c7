"""``exchange``: this site's own yes or no to the one release of its expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import NotFoundError, StateError
from fedpalm.exchange.consent import Consent
from fedpalm.exchange.site import SiteExchange, SiteState
from fedpalm.text import local_time

from ..desk import Desk
from .site import open_site

_STANDS = {
    SiteState.ASKED: "waits for this site's yes or no",
    SiteState.APPROVED: "approved here; waits for the other sites",
    SiteState.SEALED: "this site's expert is sealed and sent; its keys are still here",
    SiteState.REVEALED: "this site's keys are sent; waits for those of the others",
    SiteState.COMPLETED: "the experts of the other signers are open and stored here",
    SiteState.DECLINED: "refused here",
    SiteState.CANCELLED: "cancelled",
}


@click.group()
def exchange() -> None:
    """The exchange of experts: nothing is sealed before this site's person has approved.

    Works while the agent runs: it sends the answer within a second.
    """


@exchange.command()
@click.argument("name", required=False, metavar="[EXCHANGE|RUN]")
@home_option("the site")
@json_option
@command_errors
def review(name: str | None, home: Path, as_json: bool) -> None:
    """Show in words what would be released, to whom, what for, and until when."""
    with open_site(home) as (_, desk):
        one = _find(desk, name)
        emit(_describe(desk, one), as_json, _in_words(desk, one))


@exchange.command()
@click.argument("name", required=False, metavar="[EXCHANGE|RUN]")
@home_option("the site")
@json_option
@command_errors
def approve(name: str | None, home: Path, as_json: bool) -> None:
    """Say yes: commit to the expert, make the key to receive with, sign the consent."""
    with open_site(home) as (_, desk):
        one = desk.approve(_find(desk, name))
        emit(_describe(desk, one), as_json, f"{one.terms.exchange_id}: {_STANDS[one.state]}")


@exchange.command()
@click.argument("name", required=False, metavar="[EXCHANGE|RUN]")
@click.option("--reason", default="", help="Shown to the operator; leaves the site.")
@click.option(
    "--give-up",
    is_flag=True,
    help="Refuse although this site's keys are sent: its expert stays out, and it opens none itself.",
)
@home_option("the site")
@json_option
@command_errors
def refuse(name: str | None, reason: str, give_up: bool, home: Path, as_json: bool) -> None:
    """Say no, or take a yes back while the exchange goes on.

    What was sealed stays sealed until this site's keys are sent. After that it cannot be taken back.
    """
    with open_site(home) as (_, desk):
        found = _find(desk, name)
        if found.state is SiteState.REVEALED and not give_up:
            raise StateError(
                f"{found.terms.exchange_id}: this site's keys are sent, and its expert with them",
                safe="the exchange goes on, and this site will open the others' experts",
                next_step="to open none of them: --give-up",
            )
        one = desk.refuse(found, reason)
        emit(_describe(desk, one), as_json, f"{one.terms.exchange_id}: {_STANDS[one.state]}")


@exchange.command()
@home_option("the site")
@json_option
@command_errors
def status(home: Path, as_json: bool) -> None:
    """Show every exchange that this site was ever asked for, and how far it has come."""
    with open_site(home) as (_, desk):
        known = [(one, _describe(desk, one)) for one in desk.book.all()]
        lines = [
            f"{one.terms.exchange_id}  run {one.terms.run}  {one.state.value}: {_STANDS[one.state]}"
            + (f" ({one.reason})" if one.reason else "")
            + f"\n  purpose     {said['purpose']}\n  recipients  {', '.join(said['recipients'])}"
            for one, said in known
        ]
        emit(
            {"exchanges": [said for _, said in known]},
            as_json,
            Text("\n".join(lines) or "this site was asked for no exchange"),
        )


def _find(desk: Desk, name: str | None) -> SiteExchange:
    """By exchange, by run, or the one that waits."""
    if name is not None:
        of_run = [one for one in desk.book.all() if one.terms.run == name]
        if of_run:
            return of_run[-1]
        if desk.store.run(name) is not None:
            raise NotFoundError(
                f"no exchange of run {name} has been proposed here",
                next_step="the operator proposes one: fedpalm-coordinator exchange propose",
            )
    return desk.open_exchange(name)


def _describe(desk: Desk, one: SiteExchange) -> dict[str, Any]:
    run = desk.store.run(one.terms.run)
    assert run is not None
    terms, layout = one.terms, run.plan.released_layout
    signed = desk.book.consent(terms.exchange_id)
    consent = Consent.read(signed) if signed is not None else None
    return {
        "exchange_id": terms.exchange_id,
        "run_id": terms.run,
        "number": terms.number,
        "state": one.state.value,
        "purpose": terms.purpose,
        "expires_ms": terms.expires_ms,
        "plan_hash": terms.plan_hash,
        "releases": {
            "what": "the closed-set textural expert",
            "tensors": len(layout.tensors),
            "parameters": layout.size,
            "bytes": 4 * layout.size,
            "layout_hash": terms.layout_hash,
            "privacy_unit": run.plan.draft.privacy.unit,
        },
        "recipients": [site for site in (one.signers or terms.roster) if site != one.site],
        "goes_on_without_refusers": terms.without_refusers,
        "consent": None
        if consent is None
        else {
            "hash": consent.hash.hex(),
            "commitment": consent.commitment,
            "privacy": consent.privacy.model_dump(mode="json"),
        },
        "sanction": one.sanction.hex() or None,
        "received": dict(one.opened),
        "reason": one.reason,
    }


def _in_words(desk: Desk, one: SiteExchange) -> Text:
    said = _describe(desk, one)
    released, unit = said["releases"], said["releases"]["privacy_unit"]
    covered = (
        "It was trained without differential privacy: no noise covers what it tells of this site's people."
        if unit == "none"
        else f"It was trained with differential privacy by {unit}, which this site's log has charged "
        "(fedpalm-participant budget)."
    )
    lines = [
        f"Exchange {said['exchange_id']}, number {said['number']} of its plan: {_STANDS[one.state]}.",
        f"Purpose, in the operator's words: {said['purpose']}",
        f"Expires: {local_time(said['expires_ms'])}",
        f"Would leave, once and sealed: {released['what']}, {released['parameters']:,} parameters, "
        f"{released['bytes']:,} bytes. {covered}",
        f"Can open and keep it: {', '.join(said['recipients'])}. The coordinator carries it and cannot "
        "open it.",
        "This site receives the expert of each of them in turn, or nothing: who does not release does not "
        "receive.",
        "A site that refuses is left out, and the others go on."
        if one.terms.without_refusers
        else "A site that refuses ends the exchange for all.",
        "Not promised: that the last site to send its keys does send them, or that an expert was trained "
        "well.",
    ]
    if one.state is SiteState.ASKED:
        lines += [
            "",
            f"Decide with: fedpalm-participant exchange approve {said['exchange_id']}",
            f"         or: fedpalm-participant exchange refuse {said['exchange_id']} --reason TEXT",
        ]
    return Text("\n".join(lines))
