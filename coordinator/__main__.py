"""``fedpalm-coordinator`` and ``python -m coordinator``."""

from __future__ import annotations

from fedpalm.cli.console import run_cli

from .cli import main as commands


def main() -> None:
    """Run the coordinator's commands."""
    run_cli(commands, "fedpalm-coordinator")


if __name__ == "__main__":
    main()
