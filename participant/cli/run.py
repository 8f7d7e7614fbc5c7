"""``run``: the site's agent as a process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import InterruptedError_, RoundAbortedError, StateError

from ..config import Home
from ..ending import ExitAfter, Outcome
from .site import open_site, reporter_for

_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.05


@click.command()
@click.option("--exit-after-run", is_flag=True, help="End when the run has ended.")
@click.option(
    "--exit-after-exchange",
    is_flag=True,
    help="End when the run's exchange has closed (or the run, if its plan has no exchange).",
)
@home_option("the site")
@json_option
@command_errors
def run(exit_after_run: bool, exit_after_exchange: bool, home: Path, as_json: bool) -> None:
    """Connect to the coordinator and take part in its runs, until stopped.

    Only dials out. A lost connection is tried again for ever; SIGTERM or Ctrl-C ends it between two
    steps (a second one at once), and the same command goes on where it stood.
    """
    if exit_after_run and exit_after_exchange:
        raise click.UsageError("--exit-after-run and --exit-after-exchange exclude each other")
    exit_after = (
        ExitAfter.RUN
        if exit_after_run
        else ExitAfter.EXCHANGE
        if exit_after_exchange
        else ExitAfter.NEVER
    )
    raise SystemExit(run_agent(Home(home), exit_after, as_json))


def run_agent(home: Home, exit_after: ExitAfter, as_json: bool) -> int:
    """The agent until its end, as ``run`` and ``join --run`` do it; the exit code.

    The process ends here and now if a training thread is left that cannot be interrupted.

    Raises:
        FedPalmError: what no new try can mend.
    """
    # The agent brings grpc, which the other commands do without.
    from ..agent import Agent

    with only_agent(home), open_site(home.path) as (config, desk):
        from fedpalm.transport.channel import Connection

        from ..egress import EgressGate
        from ..enrolment import record_certificate
        from ..renewal import Renewal
        from ..trainer import Trainer

        store, live = desk.store, desk.live
        # Before anything is erased as an orphan, or a person has gone who could type the passphrase.
        _ = store.vault
        record_certificate(store, desk.log, live.current)
        reporter = reporter_for(as_json)
        signals: list[int] = []

        async def serve() -> tuple[Outcome, bool]:
            agent = Agent(
                config,
                store,
                desk,
                EgressGate(store, desk.log, live, desk.policy),
                Trainer(config, store),
                lambda: Connection(config.coordinator, live.current),
                reporter,
                Renewal(home, live, store.clock, reporter),
                exit_after=exit_after,
            )

            def on_signal(number: int) -> None:
                if signals:
                    reporter.close()
                    os._exit(InterruptedError_.exit_code)
                signals.append(number)
                agent.stop()

            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, on_signal, number)
            return await agent.run(), agent.abandoned_training

        runner = asyncio.Runner()
        try:
            outcome, abandoned = runner.run(serve())
        finally:
            reporter.close()
        code = _report(outcome, signals, as_json)
        if abandoned:
            # A training thread cannot be interrupted; what it had not stored is trained again.
            store.close()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        runner.close()
    return code


def _report(outcome: Outcome, signals: list[int], as_json: bool) -> int:
    """Print how it ended; the exit code."""
    ended = outcome.completed is not None
    if as_json or ended:
        emit(
            {
                "stopped": not ended,
                "run_id": outcome.run_id,
                "completed": outcome.completed,
                "reason": outcome.reason,
            },
            as_json,
            f"run {outcome.run_id}: {'completed' if outcome.completed else 'aborted'}",
        )
    if ended:
        return 0 if outcome.completed else RoundAbortedError.exit_code
    return InterruptedError_.exit_code if signal.SIGINT in signals else 0


@contextmanager
def only_agent(home: Home) -> Iterator[None]:
    """Hold the home's agent lock.

    Raises:
        StateError: an agent runs on this home already.
    """
    home.load()
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(descriptor, fcntl.LOCK_EX):
            raise StateError(
                f"an agent runs on {home.path} already",
                next_step="fedpalm-participant status tells what it does",
            )
        yield
    finally:
        os.close(descriptor)


def agent_runs(home: Home) -> bool:
    """Whether an agent holds the lock of this home."""
    try:
        descriptor = os.open(home.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    """Take a lock; a ``status`` that looks at it just now is waited for."""
    for _ in range(_LOCK_TRIES if kind == fcntl.LOCK_EX else 1):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False
