"""``review``, ``approve``, ``refuse``: this site's own yes or no to a plan; ``policy``: its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option

from ..config import Home
from ..plan_book import PlanState, StoredPlan
from ..plan_desk import MAX_REASON, PlanDesk
from ..policy import in_words, load_policy
from .run import agent_runs
from .site import open_site


@click.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@home_option("the site")
@json_option
@command_errors
def review(run_id: str | None, home: Path, as_json: bool) -> None:
    """Show in words what a plan means for this site: the one that waits, or the newest.

    Who takes part, what would leave and who could see it, what changed since the last approved plan,
    and what this site's policy says.
    """
    from ..review import Section, review_plan

    with open_site(home) as (_, desk):
        stored = _to_show(desk.plans, run_id)
        described = review_plan(desk.plans, stored)

    def paragraph(section: Section) -> str:
        return "\n".join((section.title, *(f"  {line}" for line in section.lines)))

    text = Text("\n\n".join(paragraph(section) for section in described.sections))
    text.highlight_words([section.title for section in described.sections], "bold")
    if stored.state is PlanState.PROPOSED:
        text.append(
            f"\n\nDecide with: fedpalm-participant approve {stored.run_id}\n"
            f"         or: fedpalm-participant refuse {stored.run_id} --reason TEXT"
        )
    emit(described.data, as_json, text)


@click.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@home_option("the site")
@json_option
@command_errors
def approve(run_id: str | None, home: Path, as_json: bool) -> None:
    """Say yes to a plan: this site signs it and takes part in its run.

    The policy goes first: what it forbids cannot be approved.
    """
    with open_site(home) as (_, desk):
        stored = desk.plans.approve(_to_decide(desk.plans, run_id))
        emit(_answer(stored, Home(home)), as_json)


@click.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("--reason", default="", help="Kept here, for whoever asks later; not sent.")
@home_option("the site")
@json_option
@command_errors
def refuse(run_id: str | None, reason: str, home: Path, as_json: bool) -> None:
    """Say no to a plan, or take a yes back while its run goes on: nothing more is sent."""
    if len(reason.encode()) > MAX_REASON:
        raise click.BadParameter(f"at most {MAX_REASON} bytes", param_hint="--reason")
    with open_site(home) as (_, desk):
        stored = desk.plans.refuse(_to_decide(desk.plans, run_id), reason)
        emit(_answer(stored, Home(home)), as_json)


@click.command()
@home_option("the site")
@json_option
@command_errors
def policy(home: Path, as_json: bool) -> None:
    """Show the limits in force, whatever a plan or a person says: those of policy.toml, in words."""
    place = Home(home)
    place.load()
    limits = load_policy(place)
    there = place.policy.exists()
    words = in_words(limits)
    origin = str(place.policy) if there else f"the defaults; there is no {place.policy}"
    emit(
        {
            "file": str(place.policy) if there else None,
            "limits": limits.model_dump(mode="json"),
            "words": words,
        },
        as_json,
        Text("\n".join([f"Limits of this site ({origin}):", *(f"  {line}" for line in words)])),
    )


def _to_show(desk: PlanDesk, run_id: str | None) -> StoredPlan:
    """The named plan, the one that waits, or the newest."""
    known = desk.book.all()
    if run_id is None and known and not any(one.state is PlanState.PROPOSED for one in known):
        return known[-1]
    return desk.plan(run_id)


def _to_decide(desk: PlanDesk, run_id: str | None) -> str:
    return desk.plan(run_id).run_id


def _answer(stored: StoredPlan, home: Home) -> dict[str, Any]:
    if stored.answered:
        sent = "the coordinator has it"
    elif agent_runs(home):
        sent = "the agent sends it within a second"
    else:
        sent = "it is sent when the agent runs: fedpalm-participant run"
    return {
        "run_id": stored.run_id,
        "state": stored.state.value,
        "plan_hash": stored.plan.hash.hex(),
        "decided_by": stored.decided_by,
        "answer": stored.number,
        "sent": sent,
    }
