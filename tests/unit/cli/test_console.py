"""One voice for all commands: text or one JSON object, and numbered exits."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from fedpalm.cli.app import commands
from fedpalm.cli.console import command_errors, emit, json_option
from fedpalm.errors import DataError, FedPalmError, error_codes


def command(error: BaseException | None) -> click.Command:
    @click.command()
    @json_option
    @command_errors
    def run(as_json: bool) -> None:
        if error is not None:
            raise error
        emit({"run_id": "r-1", "sites": ["a"]}, as_json)

    return run


def test_a_result_is_text_for_people_and_one_json_object_for_programs():
    text = CliRunner().invoke(command(None), [])
    assert text.exit_code == 0 and "r-1" in text.stdout and "run id" in text.stdout
    value = CliRunner().invoke(command(None), ["--json"])
    assert json.loads(value.stdout) == {"run_id": "r-1", "sites": ["a"]}


EVIL = "x\x1b]0;title\x07\x1b[2J\u202eend"


@pytest.mark.parametrize(
    "shown",
    [EVIL, Text(EVIL), Group(Text(EVIL)), Table(Column(EVIL), title=EVIL)],
    ids=["str", "text", "group", "table"],
)
def test_what_others_have_written_moves_no_terminal(shown, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    emit({"said": EVIL}, False, shown)
    emit({"said": EVIL}, False)
    written = capsys.readouterr().out
    assert "end" in written
    assert [one for one in ("\x1b]", "\x1b[2J", "\x07", "\u202e") if one in written] == []


def test_styles_are_still_styles_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    emit({}, False, Text("bold", style="bold"))
    assert "\x1b[1mbold\x1b[0m" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [DataError, *error_codes().values()])
def test_every_error_ends_a_command_with_its_own_exit_code(kind: type[FedPalmError]):
    error = kind("it broke", safe="all is kept", next_step="mend it")
    done = CliRunner().invoke(command(error), [])
    assert done.exit_code == kind.exit_code != 0
    assert done.stdout == ""
    assert all(part in done.stderr for part in ("it broke", "all is kept", "mend it"))


def test_an_error_with_json_is_one_object_on_stdout():
    done = CliRunner().invoke(command(DataError("[b]bad[/b]", next_step="mend it")), ["--json"])
    assert json.loads(done.stdout) == {
        "error": {"code": "data", "what": "[b]bad[/b]", "safe": "", "next_step": "mend it"}
    }
    assert done.exit_code == DataError.exit_code


def test_square_brackets_in_an_error_are_shown_as_they_are():
    done = CliRunner().invoke(command(DataError("data.images[3] is [red]")), [])
    assert "data.images[3] is [red]" in done.stderr


def test_an_error_out_of_a_task_group_counts_as_the_error():
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [DataError("no image")])])
    done = CliRunner().invoke(command(group), [])
    assert done.exit_code == DataError.exit_code and "no image" in done.stderr


def test_ctrl_c_ends_a_command_with_130():
    assert CliRunner().invoke(command(KeyboardInterrupt()), []).exit_code == 130


def test_a_defect_is_not_dressed_up_as_an_error():
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(command(ZeroDivisionError()), [], catch_exceptions=False)


def test_wrong_usage_ends_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "fedpalm", "demo", "--rounds", "none"], capture_output=True
    )
    assert done.returncode == 2


def test_help_lists_the_commands_and_imports_none_of_them():
    code = (
        "import sys; from fedpalm.cli.app import commands; from click.testing import CliRunner;"
        "print(CliRunner().invoke(commands, ['--help']).output);"
        "print([m for m in ('torch', 'grpc', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout and done.stdout.rstrip().endswith("[]")


def test_an_unknown_command_is_wrong_usage():
    assert CliRunner().invoke(commands, ["nonsense"]).exit_code == 2
