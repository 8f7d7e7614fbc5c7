"""The folder of a demo: where everything lies, and which steps are done.

A step is done when the journal says so; its line is written (durably) after its effect. So every step
must bear being taken twice, and a demo that was cut off anywhere goes on at the first open step.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ConfigError, IntegrityError, StateError
from ...settings import parse_settings
from .settings import DemoSettings

_JOURNAL = "demo.json"
_TIMINGS = "timings"


class Workspace:
    """Paths below ``root``, and the journal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: dict[str, Any] = {}

    @property
    def coordinator(self) -> Path:
        return self.root / "coordinator"

    @property
    def plan(self) -> Path:
        return self.root / "plan.toml"

    @property
    def initial_model(self) -> Path:
        return self.root / "models" / "initial.safetensors"

    @property
    def policy(self) -> Path:
        """Of every site, where the demo is private."""
        return self.root / "policy.toml"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def report(self) -> Path:
        return self.root / "report.json"

    @property
    def page(self) -> Path:
        return self.root / "report.html"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def sample(self) -> Path:
        return self.root / "plots" / "sample.png"

    def site(self, name: str) -> Path:
        return self.root / "sites" / name

    @property
    def invitations(self) -> Path:
        return self.root / "invitations"

    def invitation(self, name: str) -> Path:
        return self.invitations / f"{name}.invitation"

    def images(self, name: str) -> Path:
        """The site's list of images."""
        return self.root / "data" / f"{name}.txt"

    def claims(self, site: str) -> Path:
        """Scores of a site's own claims, of signatures; written by the site."""
        return self.root / "results" / f"claims-{site}.json"

    def model(self, round_number: int) -> Path:
        return self.root / "models" / self.model_name(round_number)

    @staticmethod
    def model_name(round_number: int) -> str:
        return f"round-{round_number:04d}.safetensors"

    def result(self, name: str) -> Path:
        return self.root / "results" / f"{name}.json"

    @property
    def begun(self) -> bool:
        """Whether a demo lies in the folder."""
        return (self.root / _JOURNAL).exists()

    def open(self, settings: DemoSettings) -> bool:
        """Make the folder, or take up the demo that is in it. True if there was one.

        Raises:
            ConfigError: it holds other things, or a demo with other settings.
        """
        if self.begun:
            self._take_up(settings)
            return True
        if self.root.exists() and any(self.root.iterdir()):
            raise ConfigError(
                f"{self.root} is not empty and holds no demo",
                safe="nothing in it was touched",
                next_step="choose another --out",
            )
        self.root.mkdir(parents=True, exist_ok=True)
        self._settings = settings
        self._save()
        return False

    def load(self) -> DemoSettings:
        """The settings of the demo that is in the folder. Raises IntegrityError, ConfigError."""
        journal = self.root / _JOURNAL
        try:
            stored = json.loads(journal.read_text(encoding="utf-8"))
            steps, values = dict(stored["steps"]), dict(stored["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{journal} cannot be read: {error!r}", next_step="choose another --out"
            ) from error
        self.steps = steps
        self._settings = parse_settings(DemoSettings, values, str(journal))
        return self._settings

    def _take_up(self, settings: DemoSettings) -> None:
        ours, theirs = settings.model_dump(), self.load().model_dump()
        odd = [
            f"{key} {theirs[key]!r}, now {ours[key]!r}" for key in ours if ours[key] != theirs[key]
        ]
        if odd:
            raise ConfigError(
                f"{self.root} holds a demo with other settings: {'; '.join(odd)}",
                safe="it was not touched",
                next_step="repeat its settings to continue it, or choose another --out",
            )

    def done(self, step: str) -> bool:
        return step in self.steps

    def record(self, step: str, result: Any = True) -> Any:
        """Mark a step as done, with what it yielded (JSON)."""
        self.steps[step] = result
        self._save()
        return result

    def once(self, step: str, act: Callable[[], Any]) -> Any:
        """The step's recorded result, or that of ``act``, recorded."""
        return self.steps[step] if self.done(step) else self.record(step, act())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder: one demo at a time. Raises StateError if another one is at it."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StateError(
                f"another demo is at work in {self.root}",
                safe="it goes on undisturbed",
                next_step="wait for it, or choose another --out",
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to ``name``, over all the times the demo was taken up."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = dict(self.steps.get(_TIMINGS, {}))
            spent[name] = round(spent.get(name, 0.0) + time.monotonic() - began, 1)
            self.record(_TIMINGS, spent)

    @property
    def timings_s(self) -> dict[str, float]:
        return dict(self.steps.get(_TIMINGS, {}))

    def write_json(self, path: Path, value: Any) -> None:
        write_durably(path, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")

    def _save(self) -> None:
        value = {"settings": self._settings.model_dump(mode="json"), "steps": self.steps}
        self.write_json(self.root / _JOURNAL, value)


def write_durably(path: Path, data: bytes) -> None:
    """Whole or not at all, and there after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
