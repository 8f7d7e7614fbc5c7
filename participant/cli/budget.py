"""``budget``: what differential privacy has cost this site, what is left, and what a plan would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option

from ..desk import Desk
from ..plan_book import PlanState, StoredPlan
from .site import open_site


@click.group(invoke_without_command=True)
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), envvar="FEDPALM_HOME")
@click.option("--plan", "run_id", metavar="RUN", help="The run whose plan is looked at.")
@json_option
@click.pass_context
@command_errors
def budget(context: click.Context, home: Path | None, run_id: str | None, as_json: bool) -> None:
    """Tell what this site has spent of its privacy budget, what is left, and how many rounds fit.

    Without --plan the plan that waits for an answer, or of the run that goes on. Accountants compute
    every figure anew from the log, which takes seconds.
    """
    if context.invoked_subcommand is not None:
        return
    if home is None:
        raise click.UsageError("Missing option '--home' (env var: 'FEDPALM_HOME').")
    with open_site(home) as (config, desk):
        found = {"site": config.site, **_accounts(desk), "plan": _plan(desk, run_id)}
    emit(found, as_json, Text("\n".join(_words(found))))


@budget.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@home_option("the site")
@json_option
@command_errors
def export(file: Path, home: Path, as_json: bool) -> None:
    """Write this home's log to FILE, for the home that takes its place under another key."""
    from ..inheritance import write_copy

    with open_site(home) as (_, desk):
        desk.log.verify()
        emit({"file": str(file), "entries": write_copy(desk.log, file)}, as_json)


@budget.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@home_option("the site")
@json_option
@command_errors
def inherit(file: Path, home: Path, as_json: bool) -> None:
    """Charge this home for what FILE, the log of the home before it, says was spent.

    Do it in a new home before its first round: people are the same under a new key.
    """
    from ..budget import BudgetBook
    from ..inheritance import read_copy, take_over

    with open_site(home) as (_, desk):
        copy = read_copy(file)
        book = BudgetBook(desk.store, desk.log, desk.policy)
        added = take_over(book, desk.log.public_key, copy)
        emit(
            {
                "key_id": copy.key_id.hex(),
                "entries_read": len(copy.entries),
                "charges_taken_over": len(added),
                "accounts": _accounts(desk)["accounts"],
            },
            as_json,
        )


def _accounts(desk: Desk) -> dict[str, Any]:
    from fedpalm.privacy.accounting import UNITS

    from ..budget import BudgetBook

    book = BudgetBook(desk.store, desk.log, desk.policy)
    accounts = [book.account(unit) for unit in UNITS]
    return {
        "people": desk.policy.current.people,
        "accounts": [
            {
                "unit": one.unit,
                "epsilon_spent": one.epsilon,
                "epsilon_left": one.left,
                "epsilon_budget": one.budget,
                "delta": one.delta,
                "steps": sum(charge.steps for charge in one.charges),
            }
            for one in accounts
            if one.charges or one.unit == desk.policy.current.privacy_unit
        ],
        "rounds_without": book.rounds_without(),
    }


def _plan(desk: Desk, run_id: str | None) -> dict[str, Any] | None:
    from ..budget import BudgetBook
    from ..review import forecast

    stored = desk.plans.plan(run_id) if run_id is not None else _current(desk)
    if stored is None:
        return None
    data: dict[str, Any] = {"run_id": stored.run_id, "unit": stored.plan.draft.privacy.unit}
    if data["unit"] != "none":
        book = BudgetBook(desk.store, desk.log, desk.policy)
        data |= forecast(book, stored.run_id, stored.plan)
    return data


def _current(desk: Desk) -> StoredPlan | None:
    """The plan that waits, or the one of the run that goes on."""
    waiting = [one for one in desk.plans.book.all() if one.state is PlanState.PROPOSED]
    run = desk.store.active_run()
    return waiting[-1] if waiting else desk.plans.book.get(run.run_id) if run else None


def _words(found: dict[str, Any]) -> list[str]:
    lines = [
        f"By {one['unit']}: epsilon {one['epsilon_spent']:.3f} spent of {one['epsilon_budget']:g}, "
        f"{one['epsilon_left']:.3f} left, at delta {one['delta']:g}; {one['steps']:,} steps charged."
        for one in found["accounts"]
    ]
    if found["rounds_without"]:
        lines.append(
            f"WARNING: {found['rounds_without']:,} rounds were trained without differential privacy. No "
            "epsilon bounds what their updates told."
        )
    if len(found["accounts"]) > 1:
        lines.append("The two accounts are apart: neither bounds what the other's rounds told.")
    plan = found["plan"]
    if plan is None:
        lines.append("No plan waits for an answer, and no run goes on; name one with --plan RUN.")
    elif plan["unit"] == "none":
        lines.append(
            f"Run {plan['run_id']}: its plan has no differential privacy and costs nothing."
        )
    else:
        lines.append(
            f"Run {plan['run_id']}: {plan['rounds_that_fit']} of its {plan['rounds']} rounds fit."
        )
        lines += [f"  {line}" for line in plan["words"]]
    return lines
