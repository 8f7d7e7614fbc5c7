"""``serve``: the verifier as a service for applications of the site, and which of them may call it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, err, home_option, json_option
from fedpalm.errors import InterruptedError_

from ..config import VerificationSettings
from .site import open_site
from .verification import run_option


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--listen", metavar="HOST:PORT", help="Instead of participant.toml's.")
@run_option
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="FEDPALM_HOME",
    show_envvar=True,
    help="Folder of the site.",
)
@json_option
@command_errors
def serve(
    context: click.Context,
    listen: str | None,
    run_id: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Serve Verify, Identify and, where the site allows it, Enrol over mutual TLS, until stopped.

    On 127.0.0.1:7445 unless another address is named. With a model for all calls: start it again
    after `renew --all`. Whether a living hand was before the sensor, or ink on the paper, is not looked at.
    """
    if context.invoked_subcommand is not None:
        return
    if home is None:
        raise click.UsageError("Missing option '--home' (env var: 'FEDPALM_HOME').")
    # They bring grpc, and the second one torch, which the other commands do without.
    from ..verification.service import serve as serve_calls
    from ..verification.verifier import Verifier

    with open_site(home) as (config, desk):
        settings = config.verification or VerificationSettings()
        address = listen or settings.listen
        verifier = Verifier(config, desk.store, run_id)

        def ready(port: int) -> None:
            host = address.rpartition(":")[0]
            emit(
                {"listening": f"{host}:{port}", "run_id": verifier.model_id.run_id},
                as_json,
                f"verification of {config.site} at {host}:{port}, run {verifier.model_id.run_id}",
            )
            if host not in ("127.0.0.1", "[::1]", "localhost"):
                err().print(f"warning  other machines can dial {host}:{port}", markup=False)

        signals: list[int] = []

        async def run() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()

            def on_signal(number: int) -> None:
                signals.append(number)
                stop.set()

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, on_signal, number)
            await serve_calls(config, desk.store, verifier, address, stop, ready)

        asyncio.run(run())
    raise SystemExit(InterruptedError_.exit_code if signal.SIGINT in signals else 0)


@serve.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--days", type=click.IntRange(1, 398), default=365, show_default=True)
@home_option("the site")
@json_option
@command_errors
def allow(name: str, out: Path, days: int, home: Path, as_json: bool) -> None:
    """Make the keys and certificate of application NAME in the folder --out, which is a secret.

    tls.key, tls.pem and ca.pem are what a gRPC client needs, and the server's name.
    """
    from ..verification.applications import Applications

    with open_site(home) as (config, desk):
        callers = Applications(config, desk.store)
        made, name_there = callers.allow(name, out, days=days), callers.server_name
    emit(
        {**made.to_json(), "folder": str(out), "server_name": name_there},
        as_json,
        f"{name} may call: give it {out}, and the server's name {name_there}",
    )


@serve.command()
@click.argument("name")
@home_option("the site")
@json_option
@command_errors
def revoke(name: str, home: Path, as_json: bool) -> None:
    """Let application NAME call no more; a running service ends its open calls within a second or two."""
    from ..verification.applications import Applications

    with open_site(home) as (config, desk):
        certificates = Applications(config, desk.store).revoke(name)
    emit({"name": name, "revoked": certificates}, as_json, f"{name} may not call any more")


@serve.command()
@home_option("the site")
@json_option
@command_errors
def applications(home: Path, as_json: bool) -> None:
    """List which applications may call, and which might."""
    from ..verification.applications import Applications

    with open_site(home) as (config, desk):
        found, now = Applications(config, desk.store).all(), desk.store.now_ms()
    table = Table("application", "state", "certificate")
    for one in found:
        state = "revoked" if one.revoked_ms else "ended" if one.expires_ms <= now else "may call"
        table.add_row(one.name, state, one.fingerprint)
    emit({"applications": [one.to_json() for one in found]}, as_json, table)
