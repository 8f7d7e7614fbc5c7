"""What long work says while it goes on: bars on a terminal, plain lines anywhere else. Only on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Narrator:
    """Use as a context manager; a track is a thing that advances, a note a sentence that stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._tracks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("[dim]{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    @property
    def is_terminal(self) -> bool:
        """Whether bars are shown."""
        return self._console.is_terminal

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """A line of plain text that stays."""
        stamp = duration(time.monotonic() - self._began)
        self._console.print(f"[dim]{stamp:>10}[/]  ", end="")
        self._console.print(text, markup=False)

    def track(self, name: str, total: int, completed: int = 0, detail: str = "") -> None:
        """Show or move a track; on a plain stream a line whenever its count changes."""
        if self._console.is_terminal:
            if name not in self._tracks:
                self._tracks[name] = self._progress.add_task(name, total=total, detail=detail)
            self._progress.update(self._tracks[name], completed=completed, detail=detail)
            return
        said = f"{name} {completed}/{total}"
        if completed and self._said.get(name) != said:
            self._said[name] = said
            self.note(f"{said}  {detail}".rstrip())


def ticker(narrator: Narrator, before: str = "") -> Callable[[str, int, int], None]:
    """Progress of a measurement, told (what, done, total); on a plain stream a line for each whole."""

    def tick(what: str, done: int, total: int) -> None:
        if narrator.is_terminal or done == total:
            narrator.track(before + what, total, done)

    return tick


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
