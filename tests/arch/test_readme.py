"""The commands of the README and the guides, and the exit codes, exist as they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import coordinator.cli
import participant.cli
from fedpalm.cli.app import commands
from fedpalm.errors import error_codes

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", ROOT / "certs" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PROGRAMS: dict[str, click.Group] = {
    "fedpalm": commands,
    "fedpalm-coordinator": coordinator.cli.main,
    "fedpalm-participant": participant.cli.main,
}
COMMAND = re.compile(r"^(fedpalm(?:-coordinator|-participant)?) +(.*)$", re.MULTILINE)


def _commands() -> list[tuple[str, ...]]:
    found = {
        (program, *shlex.split(rest, comments=True)): None
        for page in PAGES
        for program, rest in COMMAND.findall(page.read_text(encoding="utf-8").replace("\\\n", " "))
    }
    return list(found)


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_command_line_of_the_pages_is_understood(command: tuple[str, ...]) -> None:
    """Sub-commands must exist and know each option that the pages give them."""
    program, *words = command
    found: click.Command = PROGRAMS[program]
    context = click.Context(found)
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        known = found.get_command(context, name)
        assert known is not None, f"{found.name} has no {name}"
        found = known
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= {name for parameter in found.params for name in parameter.opts}


def test_the_readme_lists_every_exit_code_of_an_error() -> None:
    listed = set(re.search(r"Exit codes: (.*?)\.\n", README, re.DOTALL)[1].split())  # type: ignore[index]
    for kind in error_codes().values():
        assert str(kind.exit_code) in listed or kind.exit_code == 1, kind.code
