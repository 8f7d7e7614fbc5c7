"""``plan amend``: end a run where it is, and go on from there under another plan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import ConfigError, NotFoundError, StateError
from fedpalm.groups import TRUNK
from fedpalm.layout import FloatVector
from fedpalm.plan import Plan, PlanDraft
from fedpalm.settings import load_toml, parse_settings
from fedpalm.transport.channel import Connection
from fedpalm.wire.v1 import operator_pb2 as pb

from .export import fetch_model
from .link import UNARY_DEADLINE_S, coordinator_option, with_operator
from .plans import admitted_sites, check_admitted, check_sums, send_plan


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("draft", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--add", "added", multiple=True, metavar="SITE", help="Put an admitted site on the roster."
)
@click.option(
    "--remove", "removed", multiple=True, metavar="SITE", help="Take a site off the roster."
)
@click.option("--reason", default="", help="Why; the sites read it.")
@home_option("the coordinator")
@coordinator_option
@json_option
@command_errors
def amend(
    run_id: str,
    draft: Path | None,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    reason: str,
    home: Path,
    address: str | None,
    as_json: bool,
) -> None:
    """End RUN at its newest model and submit a plan that goes on from there.

    The new plan has the remaining rounds of RUN, or of DRAFT, whose `rounds` count from the beginning.
    Every site must approve it anew; sites keep what they have learned. Then: `start`.
    """
    settings = load_toml(PlanDraft, draft) if draft is not None else None

    async def work(connection: Connection) -> tuple[Plan, pb.SubmitPlanReply]:
        _, admitted = await admitted_sites(connection)
        status = await _status(connection, run_id)
        if status.state == "completed":
            raise StateError(
                f"run {run_id} is completed: nothing is left to amend",
                safe="nothing was changed",
                next_step="fedpalm-coordinator plan submit, with the exported model",
            )
        if status.spent and status.masking != "none":
            raise StateError(
                f"sites have been asked for shares of round {status.round} of run {run_id}: its model is "
                "spent until the round is over, and no masked plan can go on from there",
                safe="nothing was changed",
                next_step=_WHEN_SPENT[status.state == "running"],
            )
        # Whatever is wrong with the new plan is found before the run ends; what it commits meanwhile
        # is in the plan that is made after.
        await _amended(connection, run_id, settings, added, removed, admitted)
        if status.state != "aborted":
            await connection.unary(
                connection.operator.AbortRun,
                pb.AbortRunRequest(
                    run_id=run_id, reason=f"amended: {reason}" if reason else "amended"
                ),
                deadline_s=UNARY_DEADLINE_S,
            )
        bound, vector = await _amended(connection, run_id, settings, added, removed, admitted)
        return bound, await send_plan(connection, bound, vector)

    bound, reply = with_operator(home, address, work)
    emit(
        {
            "run_id": reply.run_id,
            "plan_hash": reply.plan_hash.hex(),
            "continues": run_id,
            "rounds": bound.draft.rounds,
            "roster": list(bound.roster),
            "next": f"fedpalm-coordinator start --run {reply.run_id}",
        },
        as_json,
    )


_WHEN_SPENT = {
    True: "try again in a moment, when the round is over",
    False: "of a paused run: fedpalm-coordinator resume, then amend again; of an aborted one: export its "
    "model, then fedpalm-coordinator plan submit --changed",
}


async def _status(connection: Connection, run_id: str) -> pb.RunStatus:
    runs: pb.ListRunsReply = await connection.unary(
        connection.operator.ListRuns, pb.ListRunsRequest(), deadline_s=UNARY_DEADLINE_S
    )
    for status in runs.runs:
        if status.run_id == run_id:
            return status
    raise NotFoundError(f"no run {run_id!r}", next_step="fedpalm-coordinator status --all")


async def _amended(
    connection: Connection,
    run_id: str,
    settings: PlanDraft | None,
    added: Iterable[str],
    removed: Iterable[str],
    admitted: list[str],
) -> tuple[Plan, FloatVector]:
    """The plan that goes on from the newest model of a run, and that (P,) model.

    Raises:
        NotFoundError: a removed site is not on the roster, an added one is not admitted.
        StateError: no round is left.
        ConfigError: the plan that it makes is wrong.
        CodecOverflowError, ConfigError: its rounds could not be summed.
    """
    header, data = await fetch_model(connection, run_id)
    before = Plan.from_bytes(header.plan)
    if strangers := sorted(set(removed) - set(before.roster)):
        raise NotFoundError(
            f"not on the roster of run {run_id}: {', '.join(strangers)}", safe="nothing was changed"
        )
    roster = sorted((set(before.roster) | set(added)) - set(removed))
    check_admitted(roster, admitted)
    if settings is None:
        rounds = before.draft.rounds - header.round
        staying = {
            site: own for site, own in before.draft.backbones.items() if site not in set(removed)
        }
        settings = before.draft.model_copy(update={"backbones": staying})
    else:
        rounds = settings.rounds - header.round - before.rounds_before
    if rounds < 1:
        raise StateError(
            f"run {run_id} has committed round {header.round}: no round is left to do",
            safe="nothing was changed",
            next_step="give a DRAFT with more rounds",
        )
    trunks = {name.removeprefix(TRUNK) for name in before.groups if name.startswith(TRUNK)}
    if gone := sorted(trunks - set(settings.backbones.values())):
        raise ConfigError(
            f"the model of run {run_id} holds a trunk of {', '.join(gone)}, and no site of the new roster "
            "has that backbone",
            safe="nothing was changed",
            next_step="keep such a site, or begin anew without that trunk: fedpalm-coordinator plan submit",
        )
    bound = parse_settings(
        Plan,
        {
            **before.model_dump(),
            "draft": {**settings.model_dump(), "rounds": rounds},
            "roster": roster,
            "initial_model": header.model_hash.hex(),
            "continues": {
                "run": run_id,
                "plan_hash": before.hash.hex(),
                "rounds_done": before.rounds_before + header.round,
                "model": header.model_hash.hex(),
            },
        },
        "the amended plan",
    )
    if bound.draft.method != before.draft.method:
        raise ConfigError(
            f"run {run_id} trains with {before.draft.method}; an amendment keeps the method",
            safe="nothing was changed",
            next_step="fedpalm-coordinator plan submit",
        )
    check_sums(bound)
    return bound, np.frombuffer(data, dtype="<f4")
