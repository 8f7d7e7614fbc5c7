"""``start``, ``status``, ``watch``, ``abort``, ``resume``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.live import Live

from fedpalm.cli.console import command_errors, emit, home_option, json_option, out
from fedpalm.errors import NotFoundError, RoundAbortedError
from fedpalm.text import one_line
from fedpalm.transport.channel import Connection
from fedpalm.wire.v1 import operator_pb2 as pb

from .link import call, coordinator_option, run_option, with_operator
from .view import run_json, run_line, run_text, runs_text

WATCH_IDLE_S = 60.0
"""The coordinator repeats the status every few seconds; silence this long means it is gone."""


def _show(status: pb.RunStatus, as_json: bool) -> None:
    emit(run_json(status), as_json, run_text(status))


@click.command()
@home_option("the coordinator")
@run_option
@coordinator_option
@json_option
@command_errors
def start(home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    """Start a submitted run; its rounds begin when the sites are there."""
    _show(call(home, address, "StartRun", pb.RunRef(run_id=run_id)), as_json)


@click.command()
@home_option("the coordinator")
@run_option
@coordinator_option
@json_option
@command_errors
def resume(home: Path, run_id: str, address: str | None, as_json: bool) -> None:
    """Let a paused run go on, with a new attempt of its round.

    One that waits for the exchange of experts goes on once that is completed.
    """
    _show(call(home, address, "ResumeRun", pb.RunRef(run_id=run_id)), as_json)


@click.command()
@home_option("the coordinator")
@run_option
@click.option("--reason", default="aborted by the operator", show_default=True)
@coordinator_option
@json_option
@command_errors
def abort(home: Path, run_id: str, reason: str, address: str | None, as_json: bool) -> None:
    """End a run for good; its newest global model stays."""
    request = pb.AbortRunRequest(run_id=run_id, reason=reason)
    _show(call(home, address, "AbortRun", request), as_json)


@click.command()
@home_option("the coordinator")
@click.option("--run", "run_id", default="", metavar="RUN", help="Left out, the newest run.")
@click.option("--all", "everything", is_flag=True, help="All runs, newest first.")
@coordinator_option
@json_option
@command_errors
def status(home: Path, run_id: str, everything: bool, address: str | None, as_json: bool) -> None:
    """Show a run, or with --all every run; without any, say so."""
    runs = list(call(home, address, "ListRuns", pb.ListRunsRequest()).runs)
    if everything or not runs:
        emit({"runs": [run_json(one) for one in runs]}, as_json, runs_text(runs))
        return
    _show(named(runs, run_id), as_json)


def named(runs: list[pb.RunStatus], run_id: str) -> pb.RunStatus:
    """The run of this name; without one, the newest. Raises NotFoundError."""
    for one in runs:
        if not run_id or one.run_id == run_id:
            return one
    raise NotFoundError(
        f"no run {run_id!r}" if run_id else "there is no run yet",
        next_step="fedpalm-coordinator status --all",
    )


@click.command()
@home_option("the coordinator")
@run_option
@click.option("--exchange", "until_exchange", is_flag=True, help="Go on until the exchange ends.")
@coordinator_option
@json_option
@command_errors
def watch(
    home: Path, run_id: str, until_exchange: bool, address: str | None, as_json: bool
) -> None:
    """Follow a run until it ends; with --json one status per line.

    Exits 0 if the run completed, 11 if it was aborted.
    """
    follow_run(home, address, run_id, until_exchange=until_exchange, as_json=as_json)


def follow_run(
    home: Path, address: str | None, run_id: str, *, until_exchange: bool, as_json: bool
) -> None:
    """Show every change of a run until it ends. Raises RoundAbortedError if it was aborted."""

    async def follow(connection: Connection) -> pb.RunStatus:
        last = pb.RunStatus()
        terminal = sys.stdout.isatty() and not as_json
        with (
            Live(console=out(), auto_refresh=False, transient=True)
            if terminal
            else _Lines(as_json) as view
        ):
            request = pb.RunRef(run_id=run_id)
            stream = connection.stream(connection.operator.WatchRun, request, idle_s=WATCH_IDLE_S)
            async for last in stream:
                view.update(run_text(last) if terminal else last, refresh=True)
                if _over(last, until_exchange):
                    break
        return last

    last = with_operator(home, address, follow)
    if not as_json:
        out().print(run_text(last))
    if last.state == "aborted" or (until_exchange and last.exchange.state == "cancelled"):
        reason = one_line(last.reason or last.exchange.reason)
        raise RoundAbortedError(
            f"{last.run_id} ended: {reason}", safe="the newest committed model stays"
        )


def _over(status: pb.RunStatus, until_exchange: bool) -> bool:
    if until_exchange and status.state == "completed":
        return status.exchange.state in ("completed", "cancelled")
    return status.state in ("completed", "aborted")


class _Lines:
    """Where there is no terminal: one line per change."""

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._last = as_json, ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def update(self, status: Any, *, refresh: bool) -> None:
        line = json.dumps(run_json(status)) if self._as_json else run_line(status)
        if line != self._last:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        self._last = line
