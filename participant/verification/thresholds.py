"""Thresholds that stay fixed till the next calibration, with what is known about their error rates."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedpalm.data.signatures import ForgeryKind
from fedpalm.errors import NotCalibratedError

from ..store import SiteStore
from .gallery import MODES, Mode

THRESHOLD = "verification-threshold"


@dataclass(frozen=True)
class Passing:
    """What part of the claims of a kind would pass a threshold, 0..1, with its 95 % interval."""

    kind: ForgeryKind
    rate: float
    interval: tuple[float, float]
    claims: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "interval": list(self.interval)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Passing:
        low, high = values["interval"]
        return cls(**{**values, "interval": (float(low), float(high))})


@dataclass(frozen=True)
class Threshold:
    """A comparison of this mode and model matches if its score is at or above ``value``.

    Rates 0..1, measured on the site's own development pairs; intervals are 95 % over identities. ``fmr``
    is the rate of claims of the kind ``against``, which the target is for. ``passing`` has the rate of each
    kind that the site has claims of; it is empty where there is one kind alone. ``images`` is how many
    images a reference was made from.
    """

    mode: Mode
    model: str
    run_id: str
    value: float
    target_fmr: float
    fmr: float
    fmr_interval: tuple[float, float]
    fnmr: float
    fnmr_interval: tuple[float, float]
    identities: int
    genuine_pairs: int
    impostor_pairs: int
    images: int
    calibrated_ms: int
    against: ForgeryKind = "random"
    passing: tuple[Passing, ...] = ()

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "value"}
        intervals = {name: list(getattr(self, name)) for name in ("fmr_interval", "fnmr_interval")}
        passing = [one.to_json() for one in self.passing]
        return {"threshold": self.value, **values, **intervals, "passing": passing}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Threshold:
        """Inverse of :meth:`to_json`, of what the vault has found to be what was put into it."""
        rest = dict(values)
        # Those that were stored before there were kinds of claims have none.
        passing = tuple(Passing.from_json(one) for one in rest.pop("passing", ()))
        low_high = {
            name: (float(rest[name][0]), float(rest[name][1]))
            for name in ("fmr_interval", "fnmr_interval")
        }
        return cls(value=rest.pop("threshold"), passing=passing, **(rest | low_high))

    def fpir_bound(self, comparisons: int) -> float:
        """Most that somebody who is not enrolled is likely to match one of so many references, 0..1.

        The union bound over comparisons, which need not be independent, with the upper end of the interval
        of strangers who claim a name with what is their own.
        """
        of_strangers = [one.interval for one in self.passing if one.kind == "random"]
        _, upper = of_strangers[0] if of_strangers else self.fmr_interval
        return min(1.0, comparisons * upper)


class Thresholds:
    """One for each mode, sealed."""

    def __init__(self, store: SiteStore) -> None:
        self._store = store

    def find(self, mode: Mode) -> Threshold | None:
        """The threshold of the last calibration, of whatever model."""
        data = self._store.items.get(THRESHOLD, mode)
        return None if data is None else Threshold.from_json(json.loads(data))

    def all(self) -> list[Threshold]:
        found = (self.find(mode) for mode in MODES)
        return [one for one in found if one is not None]

    def current(self, mode: Mode, model: str) -> Threshold | None:
        """The same, if it is of this model."""
        found = self.find(mode)
        return found if found is not None and found.model == model else None

    def require(self, mode: Mode, model: str) -> Threshold:
        """Raises NotCalibratedError: there is none of this model."""
        found = self.current(mode, model)
        if found is None:
            why = "was set for another model" if self.find(mode) else "has not been set"
            raise NotCalibratedError(
                f"the threshold of {mode} comparisons {why}",
                safe="nothing was decided",
                next_step=f"fedpalm-participant calibrate --mode {mode}",
            )
        return found

    def put(self, db: sqlite3.Connection, found: Iterable[Threshold]) -> None:
        """Replace those of these modes, in the caller's transaction."""
        for one in found:
            self._store.items.put(db, THRESHOLD, one.mode, json.dumps(one.to_json()).encode())
