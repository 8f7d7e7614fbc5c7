"""Encode and mask one vector, here and with Flower's released SecAgg+ functions, in turn, in one run.

Both sides are processes that stay up and time themselves with the same clock; the vector, the number of
peers and numpy's version are the same. They take turns, who begins changes with every repetition, and a
ratio is formed inside each repetition, so that a machine whose speed drifts favours neither. The ratio of
the CPU seconds holds also where other work crowds the cores; it counts all threads of a side.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ChildFailedError
from .environment import ensure_environment

FLOWER = "flwr==1.41.0"
OURS = ("core", "core_one_thread", "step")
"""See :mod:`.own_secagg`."""
_SCRIPT = Path(__file__).with_name("flower_secagg.py")


@dataclass(frozen=True)
class Comparison:
    """P parameters, ``peers`` masks beside the own one, and counted ``repeats`` after a warm-up."""

    parameters: int
    peers: int
    repeats: int
    seed: int

    def measure(
        self, environment: Path, say: Callable[[str], None], tick: Callable[[str, int, int], None]
    ) -> dict[str, Any]:
        """Seconds of both sides and the ratios.

        Raises:
            UnavailableError: Flower cannot be installed.
            ChildFailedError: one of the two processes failed.
        """
        pinned = (FLOWER, f"numpy=={np.__version__}")
        python = ensure_environment(environment, pinned, say)
        with tempfile.TemporaryDirectory(prefix="fedpalm-peers-") as folder:
            vector = Path(folder) / "vector.npy"
            random = np.random.default_rng(self.seed)
            np.save(vector, random.standard_normal(self.parameters, np.float32) * np.float32(0.02))
            load = [str(vector), str(self.peers)]
            here = [sys.executable, "-m", "fedpalm.benchmark.peers.own_secagg", *load]
            with _worker([str(python), str(_SCRIPT), *load]) as flower, _worker(here) as own:
                rounds = [
                    self._turn(number, own, flower, tick) for number in range(1 + self.repeats)
                ]
        tick("turns", 1 + self.repeats, 1 + self.repeats)
        return self._figures(rounds[1:], pinned)

    def _turn(
        self,
        number: int,
        own: subprocess.Popen[str],
        flower: subprocess.Popen[str],
        tick: Callable[[str, int, int], None],
    ) -> tuple[dict[str, Any], dict[str, float]]:
        tick("turns", number, 1 + self.repeats)
        if number % 2:
            theirs = _ask(flower)
            return _ask(own), theirs
        return _ask(own), _ask(flower)

    def _figures(
        self, rounds: list[tuple[dict[str, Any], dict[str, float]]], pinned: tuple[str, ...]
    ) -> dict[str, Any]:
        theirs = [flower["encode_s"] + flower["mask_s"] for _, flower in rounds]
        figures: dict[str, Any] = {
            "parameters": self.parameters,
            "peers": self.peers,
            "repeats": self.repeats,
            "cores": rounds[0][0]["cores"],
            "against": list(pinned),
            "flower": _parts([flower for _, flower in rounds]),
        }
        for name in OURS:
            parts = [own[name] for own, _ in rounds]
            ours = [one["encode_s"] + one["mask_s"] for one in parts]
            ratios = [other / one for other, one in zip(theirs, ours, strict=True)]
            work = [
                flower["cpu_s"] / one["cpu_s"]
                for (_, flower), one in zip(rounds, parts, strict=True)
            ]
            figures[name] = {
                **_parts(parts),
                "times_faster": _spread(ratios),
                "times_less_cpu": _spread(work),
            }
        return figures


def _parts(parts: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "encode_s": _spread([one["encode_s"] for one in parts]),
        "mask_s": _spread([one["mask_s"] for one in parts]),
        "encode_and_mask_s": _spread([one["encode_s"] + one["mask_s"] for one in parts]),
        "cpu_s": _spread([one["cpu_s"] for one in parts]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@contextmanager
def _worker(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(  # noqa: S603  # this package, or the script beside it
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ask(process: subprocess.Popen[str]) -> Any:
    """One repetition of a worker."""
    line = ""
    if process.stdin is not None and process.stdout is not None:
        # A side that has ended reads nothing; the empty answer below tells.
        with suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
    if not line:
        raise ChildFailedError(
            f"a side of the comparison ended with {process.wait()}",
            safe="nothing else was running",
            next_step="its own message stands above",
        )
    return json.loads(line)
