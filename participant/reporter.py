"""What the agent tells the person at the site: one line an event."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.status import Status

from fedpalm.text import one_line


class Reporter(Protocol):
    """Receives events; ``working`` marks a phase that lasts."""

    def line(self, text: str) -> None: ...

    def working(self, text: str) -> None: ...

    def close(self) -> None: ...


class PlainReporter:
    """Time and text, a line each, on stderr or stdout: for logs and pipes."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._to_stderr = to_stderr

    def line(self, text: str) -> None:
        stream = sys.stderr if self._to_stderr else sys.stdout
        stream.write(f"{time.strftime('%H:%M:%S')} {one_line(text)}\n")
        stream.flush()

    def working(self, text: str) -> None:
        """A phase that lasts is shown on terminals only; its end is a line."""

    def close(self) -> None:
        """Nothing is held."""


class LiveReporter:
    """A terminal: finished events scroll by above a line that shows the phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("starting", console=console, spinner="dots")
        self._status.start()

    def line(self, text: str) -> None:
        self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] ", end="")
        self._console.print(one_line(text), markup=False)

    def working(self, text: str) -> None:
        self._status.update(text)

    def close(self) -> None:
        self._status.stop()
