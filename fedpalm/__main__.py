"""``fedpalm`` and ``python -m fedpalm``."""

from __future__ import annotations

from .cli.app import commands
from .cli.console import run_cli


def main() -> None:
    """Run the shared commands."""
    run_cli(commands, "fedpalm")


if __name__ == "__main__":
    main()
