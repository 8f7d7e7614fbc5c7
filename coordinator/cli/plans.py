"""``plan submit`` and ``plan show``; ``plan amend`` is in ``amend.py``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import click
import numpy as np
from safetensors import SafetensorError, safe_open

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import ConfigError, NotFoundError
from fedpalm.layout import FloatVector, Layout
from fedpalm.methods.contribution import codec_for, masking_terms
from fedpalm.plan import Plan, PlanDraft
from fedpalm.settings import load_toml, parse_settings
from fedpalm.transport.channel import Connection
from fedpalm.transport.chunks import send_buffer
from fedpalm.wire.v1 import operator_pb2 as pb

from ..aggregate import next_value
from ..status import warnings
from .link import UNARY_DEADLINE_S, coordinator_option, with_operator
from .runs import follow_run

SUBMIT_DEADLINE_S = 600.0


@click.group()
def plan() -> None:
    """Bind a plan.toml to a roster and a model, and submit it."""


@plan.command()
@click.argument("draft", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--model",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Initial model, from `fedpalm model init`.",
)
@click.option(
    "--site",
    "chosen",
    multiple=True,
    help="On the roster; left out, those of [backbones] in DRAFT, or every admitted site.",
)
@click.option(
    "--changed",
    is_flag=True,
    help="Move one value of the model to its neighbour: for a model that a masked run has spent.",
)
@click.option(
    "--start", is_flag=True, help="Start the run at once: its rounds begin when sites approve."
)
@click.option("--watch", is_flag=True, help="Then follow the run until it ends.")
@home_option("the coordinator")
@coordinator_option
@json_option
@command_errors
def submit(
    draft: Path,
    model: Path,
    chosen: tuple[str, ...],
    changed: bool,
    start: bool,
    watch: bool,
    home: Path,
    address: str | None,
    as_json: bool,
) -> None:
    """Submit DRAFT with its initial model; its sites are asked to approve at once.

    The run waits for `start`, or begins with --start. A round waits for sites that have not approved
    until the plan's join deadline; `status` shows who has.
    """
    settings = load_toml(PlanDraft, draft)
    layout, expert_layout, vector = read_model(model)
    if changed:
        moved = next_value(vector)
        at = int(np.argmax(moved != vector))
        vector[at] = moved[at]

    async def work(connection: Connection) -> tuple[Plan, pb.SubmitPlanReply]:
        federation, admitted = await admitted_sites(connection)
        wanted = chosen or tuple(settings.backbones)
        check_admitted(wanted, admitted)
        bound = parse_settings(
            Plan,
            {
                "federation": federation,
                "draft": settings,
                "roster": sorted(set(wanted or admitted)),
                "layout": layout.to_json(),
                "expert_layout": expert_layout.to_json(),
                "initial_model": hashlib.sha256(vector.tobytes()).hexdigest(),
            },
            str(draft),
        )
        reply = await send_plan(connection, bound, vector)
        if start:
            await connection.unary(
                connection.operator.StartRun,
                pb.RunRef(run_id=reply.run_id),
                deadline_s=UNARY_DEADLINE_S,
            )
        return bound, reply

    bound, reply = with_operator(home, address, work)
    then = "watch" if start else "start"
    emit(
        {
            "run_id": reply.run_id,
            "plan_hash": reply.plan_hash.hex(),
            "roster": list(bound.roster),
            "parameters": layout.size,
            **({"warning": " ".join(found)} if (found := warnings(bound)) else {}),
            "next": f"fedpalm-coordinator {then} --run {reply.run_id}",
        },
        as_json,
    )
    if watch:
        follow_run(home, address, reply.run_id, until_exchange=False, as_json=as_json)


@plan.command()
@click.argument("draft", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@command_errors
def show(draft: Path, as_json: bool) -> None:
    """Check DRAFT and show every setting, defaults included."""
    settings = load_toml(PlanDraft, draft)
    emit(json.loads(settings.model_dump_json()), as_json)


async def admitted_sites(connection: Connection) -> tuple[str, list[str]]:
    """The federation's name, and the sites that may be on a roster."""
    known = await connection.unary(
        connection.operator.ListSites, pb.ListSitesRequest(), deadline_s=UNARY_DEADLINE_S
    )
    return known.federation_id, [site.site_id for site in known.sites if site.state == "active"]


def check_admitted(wanted: Iterable[str], admitted: Iterable[str]) -> None:
    """Raises NotFoundError for a site that cannot be on a roster."""
    if unknown := sorted(set(wanted) - set(admitted)):
        raise NotFoundError(
            f"not admitted: {', '.join(unknown)}",
            safe="nothing was submitted",
            next_step="fedpalm-coordinator invite, then sites approve",
        )


def check_sums(bound: Plan) -> None:
    """Raises for a plan whose rounds could not be summed, before anybody is asked about it.

    Raises:
        CodecOverflowError: its sums do not fit.
        ConfigError: its roster or quorum is not one that masking works with.
    """
    codec_for(bound)
    masking_terms(bound)


async def send_plan(connection: Connection, bound: Plan, vector: FloatVector) -> pb.SubmitPlanReply:
    """Submit a plan with its (P,) initial model.

    Raises:
        CodecOverflowError, ConfigError: as :func:`check_sums`.
        FedPalmError: whatever the coordinator answers.
    """
    check_sums(bound)

    async def parts() -> AsyncIterator[pb.SubmitPlanRequest]:
        yield pb.SubmitPlanRequest(plan=bound.to_bytes())
        async for chunk in send_buffer(vector.tobytes()):
            yield pb.SubmitPlanRequest(chunk=chunk)

    reply: pb.SubmitPlanReply = await connection.upload(
        connection.operator.SubmitPlan, parts(), deadline_s=SUBMIT_DEADLINE_S
    )
    return reply


def read_model(path: Path) -> tuple[Layout, Layout, FloatVector]:
    """Layout, expert layout and (P,) vector of an initial model file.

    Raises:
        ConfigError: not such a file.
        LayoutMismatchError, NonFiniteUpdateError: its tensors are not those it declares.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        layout = Layout.from_json(json.loads(metadata["layout"]))
        expert_layout = Layout.from_json(json.loads(metadata["expert_layout"]))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", next_step="fedpalm model init") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path}: not an initial model: {error}", next_step="fedpalm model init"
        ) from error
    return layout, expert_layout, layout.flatten(tensors).astype("<f4")
