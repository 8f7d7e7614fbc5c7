"""``exchange``: the operator's half of the one release of experts."""

from __future__ import annotations

import re
from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.wire.v1 import operator_pb2 as pb

from .link import call, coordinator_option, newest_run_option
from .runs import named
from .view import exchange_json, exchange_text

_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def _span_ms(ctx: click.Context, param: click.Parameter, text: str) -> int:
    """Milliseconds of a time span in one unit: 90s, 30m, 12h, 7d."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is no time span such as 90s, 30m, 12h or 7d")
    return int(found[1]) * _UNIT_MS[found[2]]


@click.group()
def exchange() -> None:
    """The exchange of experts: the operator proposes it, and the sites must say yes."""


def _show(status: pb.RunStatus, as_json: bool) -> None:
    said = {
        "run_id": status.run_id,
        "run_state": status.state,
        "exchange": exchange_json(status.exchange),
        "warnings": list(status.warnings),
    }
    emit(said, as_json, exchange_text(status))


@exchange.command()
@home_option("the coordinator")
@newest_run_option
@click.option(
    "--purpose",
    required=True,
    metavar="TEXT",
    help="What the experts will be used for, in one line that every site reads before it answers.",
)
@click.option(
    "--valid",
    "valid_ms",
    metavar="TIME",
    callback=_span_ms,
    default="7d",
    show_default=True,
    help="How long the exchange may take; what is not opened by then never is. 90s, 30m, 12h, 7d.",
)
@coordinator_option
@json_option
@command_errors
def propose(
    home: Path, run_id: str, purpose: str, valid_ms: int, address: str | None, as_json: bool
) -> None:
    """Ask the sites of a run to exchange their experts.

    After the last round, or where the plan says `freeze` while the run is paused for it. Every site must
    say yes, unless the plan goes on without those who refuse.
    """
    request = pb.ProposeExchangeRequest(run_id=run_id, purpose=purpose, valid_ms=valid_ms)
    _show(call(home, address, "ProposeExchange", request), as_json)


@exchange.command()
@home_option("the coordinator")
@newest_run_option
@coordinator_option
@json_option
@command_errors
def status(home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    """Show a run's newest exchange: who has answered, sealed, sent its keys and opened."""
    runs = list(call(home, address, "ListRuns", pb.ListRunsRequest()).runs)
    _show(named(runs, run_id), as_json)


@exchange.command("close-answers")
@home_option("the coordinator")
@newest_run_option
@coordinator_option
@json_option
@command_errors
def close_answers(home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    """Wait for no more answers: sites that gave none count as those that refuse.

    Only where the plan goes on without those (exchange_without_refusers), once two have said yes.
    """
    _show(call(home, address, "CloseAnswers", pb.RunRef(run_id=run_id)), as_json)


@exchange.command()
@home_option("the coordinator")
@newest_run_option
@coordinator_option
@json_option
@command_errors
def cancel(home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    """End an exchange before the keys are given out; nothing of it is ever opened.

    Another one can be proposed as long as no site has sealed its expert. Once sites can have the keys, an
    exchange ends by itself.
    """
    _show(call(home, address, "CancelExchange", pb.RunRef(run_id=run_id)), as_json)
