"""Result files: ``<job>.json`` and ``<job>.scores.npz``, whole or not at all, and found out if damaged."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...canonical import canonical_json, domain_hash
from ...errors import DataError, IntegrityError

FORMAT = "fedpalm-bench/1"
Result = dict[str, Any]


class Store:
    """A folder of results and of the checkpoints of jobs that are not done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def result_file(self, job: str) -> Path:
        return self.folder / f"{job}.json"

    def scores_file(self, job: str) -> Path:
        return self.folder / f"{job}.scores.npz"

    def checkpoint_file(self, job: str) -> Path:
        return self.folder / f"{job}.checkpoint"

    def log_file(self, job: str) -> Path:
        return self.folder / f"{job}.log"

    def write(self, job: str, result: Result, scores: Mapping[str, npt.NDArray[Any]]) -> None:
        """Scores first: a result file that is there has them."""
        target = self.scores_file(job)
        with whole(target) as partial:
            with partial.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **scores)
            digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        full = {"format": FORMAT, "job": job, **result, "scores_sha256": digest}
        full["digest"] = _digest(full)
        with whole(self.result_file(job)) as partial:
            partial.write_text(json.dumps(full, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def read(self, job: str) -> Result:
        """A result that is what was written. Raises DataError (missing), IntegrityError (damaged)."""
        return read_result(self.result_file(job))

    def is_done(self, job: str) -> bool:
        """The result and its scores are there and undamaged."""
        try:
            scores = self.scores_file(job).read_bytes()
            wanted = self.read(job)["scores_sha256"]
        except (OSError, DataError, IntegrityError):
            return False
        return bool(hashlib.sha256(scores).hexdigest() == wanted)

    def scores(self, job: str) -> dict[str, npt.NDArray[Any]] | None:
        """Arrays of what a benchmark packed; None where the file is not there.

        Raises:
            IntegrityError: the file is damaged.
        """
        path = self.scores_file(job)
        if not path.exists():
            return None
        if not self.is_done(job):
            raise IntegrityError(f"{path.name} is damaged", next_step=_AGAIN)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def everything(self) -> list[Result]:
        """All results of the folder, by name of the file. Raises IntegrityError: one is damaged."""
        return [
            read_result(path)
            for path in sorted(self.folder.glob("*.json"))
            if len(path.stem) == 24 and set(path.stem) <= set("0123456789abcdef")
        ]


_AGAIN = "run the benchmark again: it makes what is damaged anew, and nothing else"


def read_result(path: Path) -> Result:
    """Raises DataError (not there), IntegrityError (not what was written)."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        digest = result.pop("digest")
        if digest == _digest(result) and result["job"] == path.stem:
            return dict(result)
    except FileNotFoundError:
        raise DataError(f"{path}: no such result") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    raise IntegrityError(f"{path.name} is damaged", next_step=_AGAIN)


class whole:
    """``with whole(target) as partial``: what is written to ``partial`` takes the target's place.

    Synced before; a writer that fails or is killed leaves the target as it was.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")

    def __enter__(self) -> Path:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self._partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with self._partial.open("rb") as stream:
                    os.fsync(stream.fileno())
                self._partial.replace(self._target)
        finally:
            self._partial.unlink(missing_ok=True)


def _digest(result: Mapping[str, Any]) -> str:
    return domain_hash("bench-result/v1", canonical_json(result)).hex()
