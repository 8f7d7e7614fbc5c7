"""The README's commands and exit codes exist as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedpalm.errors import error_codes

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
MODULES = {
    "fedpalm": "fedpalm",
    "fedpalm-coordinator": "coordinator",
    "fedpalm-participant": "participant",
}
COMMAND = re.compile(r"^(fedpalm(?:-coordinator|-participant)?) +(.*)$", re.MULTILINE)


def _commands() -> list[tuple[str, ...]]:
    found = []
    for program, rest in COMMAND.findall(README.replace("\\\n", " ")):
        found.append((program, *rest.split("#")[0].split()))
    return found


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_command_line_of_the_readme_is_understood(command: tuple[str, ...]) -> None:
    """Sub-commands must exist and know each option that the README gives them."""
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
