"""The commands of the README and the guides, and the exit codes, exist as they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedpalm.errors import error_codes

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", ROOT / "certs" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
MODULES = {
    "fedpalm": "fedpalm",
    "fedpalm-coordinator": "coordinator",
    "fedpalm-participant": "participant",
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
    options = [word for word in words if word.startswith("--")]
    names = []
    for word in words:
        if word.startswith("-") or "." in word or "/" in word:
            break
        names.append(word)
    for depth in range(len(names), 0, -1):
        done = subprocess.run(
            [sys.executable, "-m", MODULES[program], *names[:depth], "--help"],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in options), (command, done.stdout)


def test_the_readme_lists_every_exit_code_of_an_error() -> None:
    listed = set(re.search(r"Exit codes: (.*?)\.\n", README, re.DOTALL)[1].split())  # type: ignore[index]
    for kind in error_codes().values():
        assert str(kind.exit_code) in listed or kind.exit_code == 1, kind.code
