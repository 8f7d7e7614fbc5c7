"""``fedpalm-participant`` and ``python -m participant``."""

from __future__ import annotations

from fedpalm.cli.console import run_cli

from .cli import main as commands


def main() -> None:
    """Run the participant's commands."""
    run_cli(commands, "fedpalm-participant")


if __name__ == "__main__":
    main()
