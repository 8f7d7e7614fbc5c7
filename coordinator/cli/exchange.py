"""``exchange``: the operator's half of the one release of experts."""

from __future__ import annotations

from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.wire.v1 import operator_pb2 as pb

from .link import call, coordinator_option, run_option
from .view import run_json, run_text


@click.group()
def exchange() -> None:
    """The deployment exchange: the operator starts it, and every site must also say yes."""


def _do(method: str, home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    status = call(home, address, method, pb.RunRef(run_id=run_id))
    emit(run_json(status), as_json, run_text(status))


@exchange.command("start")
@home_option("the coordinator")
@run_option
@coordinator_option
@json_option
@command_errors
def start_exchange(home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    """Propose the exchange of a completed run to its sites."""
    _do("StartExchange", home, run_id, address, as_json)


@exchange.command()
@home_option("the coordinator")
@run_option
@coordinator_option
@json_option
@command_errors
def cancel(home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    """End an exchange that has not completed; what was not delivered never is."""
    _do("CancelExchange", home, run_id, address, as_json)
