"""How all three commands speak: text for people, one JSON object for programs, numbered exits.

Without ``--json`` a result goes to stdout as text and an error to stderr. With it stdout carries
exactly one JSON object, the result or ``{"error": {code, what, safe, next_step}}``; progress and
logs never go to stdout. Exit codes: 0 done, 2 usage, 130 Ctrl-C, else the error family's
(:mod:`fedpalm.errors`). Imports neither torch nor grpc.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TextIO, TypeVar

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ..errors import FedPalmError, InterruptedError_
from ..text import clean_text

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of text."
)


def home_option(what: str) -> Callable[[F], F]:
    """``--home DIR`` (or ``FEDPALM_HOME``), the folder of ``what``, passed as ``home: Path``."""
    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="FEDPALM_HOME",
        required=True,
        show_envvar=True,
        help=f"Folder of {what}.",
    )


def out() -> Console:
    """Console on the present stdout: results."""
    return _console(sys.stdout)


def err() -> Console:
    """Console on the present stderr: errors, progress, remarks."""
    return _console(sys.stderr)


class _PlainConsole(Console):
    """Styles and controls are its own; in what it shows, which others may have written, there are none."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control else Segment(clean_text(one.text), one.style)


def _console(stream: TextIO) -> Console:
    terminal = stream.isatty()
    return _PlainConsole(
        file=stream, highlight=False, soft_wrap=not terminal, width=None if terminal else 120
    )


def emit(obj: Mapping[str, Any], as_json: bool, human: RenderableType | None = None) -> None:
    """Print a command's result.

    Args:
        obj: what ``--json`` prints; must be JSON-serialisable (no bytes, no NaN).
        as_json: the value of ``json_option``.
        human: what a person sees instead; left out, the object as aligned ``key  value`` lines.
    """
    if as_json:
        sys.stdout.write(json.dumps(obj, allow_nan=False) + "\n")
        sys.stdout.flush()
        return
    out().print(human if human is not None else _lines(obj))


def _lines(obj: Mapping[str, Any]) -> Text:
    width = max((len(key) for key in obj), default=0)
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in obj.items()
    }
    return Text(
        "\n".join(f"{key.replace('_', ' '):<{width}}  {text}" for key, text in values.items())
    )


def error_json(error: FedPalmError) -> dict[str, Any]:
    """The JSON form of an error, on stdout with ``--json``."""
    return {
        "error": {
            "code": error.code,
            "what": error.what,
            "safe": error.safe,
            "next_step": error.next_step,
        }
    }


def report_error(error: FedPalmError, as_json: bool) -> None:
    """Print an error the way every command does; the caller exits with ``error.exit_code``."""
    if as_json:
        sys.stdout.write(json.dumps(error_json(error)) + "\n")
        sys.stdout.flush()
        return
    console = err()
    first, *rest = error.what.split("\n")
    console.print("[bold red]error[/]", end=" ")
    console.print(first, markup=False)
    for line in rest:
        console.print("      " + line, markup=False)
    for title, text in (("safe", error.safe), ("next", error.next_step)):
        if text:
            console.print(f"[bold]{title}[/]  ", end="")
            console.print(text, markup=False)


def command_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a click command: a :class:`FedPalmError` is printed, and sets the exit code.

    Sits below the click decorators. Reads the ``as_json`` argument if the command has one. An error
    inside an exception group (``asyncio.TaskGroup``) counts as the error. Ctrl-C ends it with 130.
    Anything else is a defect and shows its traceback.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json", False))
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            failure: FedPalmError = InterruptedError_("interrupted")
        except FedPalmError as error:
            failure = error
        except BaseExceptionGroup as group:
            inner = _first_known(group)
            if inner is None:
                raise
            failure = inner
        report_error(failure, as_json)
        raise SystemExit(failure.exit_code)

    return guarded


def _first_known(group: BaseExceptionGroup[BaseException]) -> FedPalmError | None:
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            found = _first_known(inner)
            if found is not None:
                return found
        elif isinstance(inner, FedPalmError):
            return inner
        elif isinstance(inner, KeyboardInterrupt):
            return InterruptedError_("interrupted")
    return None


def run_cli(command: click.Command, name: str) -> None:
    """Run a command group as the program ``name``; click's own Ctrl-C exits with 130 like ours."""
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Abort:
        raise SystemExit(InterruptedError_.exit_code) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    raise SystemExit(code if isinstance(code, int) else 0)
