"""``fedpalm``: the commands that are no single role's. Each is imported when it is called."""

from __future__ import annotations

import importlib

import click

from .. import __version__

_COMMANDS = {
    "demo": ("demo.command", "A whole federation on this machine, with a report at the end."),
    "model": ("model", "Make the initial model of a plan, cold or warm."),
    "audit": ("audit", "Verify what a site says about itself, offline, from one file."),
    "bench": ("bench", "Measure this build on this machine."),
    "data": ("data", "Look at image folders before they are trained on."),
}


class _LazyGroup(click.Group):
    """Commands by name; ``fedpalm --help`` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f".{_COMMANDS[cmd_name][0]}", __package__)
        command: click.Command = module.commands
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


@click.group(cls=_LazyGroup)
@click.version_option(__version__, prog_name="fedpalm")
def commands() -> None:
    """Federated training of biometric verification between institutions that keep their data."""
