"""JSON lines as they are appended to a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """Reads what is added to ``path`` from now on; lines that are no JSON object are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def objects(self) -> list[dict[str, Any]]:
        """Whole lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # a log line for people
            if isinstance(value, dict):
                found.append(value)
        return found
