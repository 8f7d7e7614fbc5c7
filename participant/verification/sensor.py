"""What a run's images are, palms or signatures: how one is read and judged, and which compare with which.

What is verified follows from the plan's method. Everything else of verification is alike for both: an
image is (128, 128) grey levels, a template is protected, a threshold is set on a site's own people.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedpalm.data.modality import modality_of
from fedpalm.data.signatures import ForgeryKind
from fedpalm.data.trained_signatures import TrainedSignatures
from fedpalm.plan import Plan

from ..config import DataSettings
from .gallery import Mode
from .quality import Quality

Grey = npt.NDArray[np.uint8]
Source = Path | bytes | npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """An image of the site's own: whose it is or claims to be, and which of their names, if known."""

    path: Path
    identity: str
    name: str | None = None
    skilled: bool = False


class DevelopmentImages(NamedTuple):
    """Which images make references, and which are compared with them."""

    gallery: tuple[Sample, ...]
    probes: tuple[Sample, ...]


class Sensor(Protocol):
    """How one modality is looked at."""

    noun: str
    """One of them, in words."""

    stranger: str
    """Whose an image may be that does not match the others of a person."""

    next_step: str
    """What to do about an image that cannot be used."""

    forgeries: tuple[ForgeryKind, ...]
    """Of which kinds a site may have claims to set a threshold against."""

    def look(self, source: Source, name: str) -> tuple[Grey, Quality]:
        """One image as (128, 128) grey levels, and what it is worth.

        Raises:
            DataError, QualityError: it cannot be used.
        """

    def read(self, path: Path) -> Grey:
        """The same, not judged: as training took it. Raises DataError."""

    def standardise(self, grey: Grey) -> npt.NDArray[np.float32]:
        """(128, 128) -> (1, 128, 128), as the network takes it."""

    def people(self, data: DataSettings, site: str, plan: Plan) -> tuple[str, ...]:
        """Whom this site trains on. Raises ConfigError, DataError: the images cannot be listed."""

    def development(
        self,
        data: DataSettings,
        site: str,
        plan: Plan,
        mode: Mode,
        trained: TrainedSignatures | None = None,
    ) -> DevelopmentImages:
        """What a threshold of this mode is set on; ``trained``: on which signatures the run did, if kept.

        Raises ConfigError, DataError: as :meth:`people`.
        """


def sensor_of(plan: Plan) -> Sensor:
    """What the models of a plan look through."""
    # Late: they bring what reads images, which many commands do without.
    if modality_of(plan.draft.method) == "signature":
        from .signatures import SignatureSensor

        return SignatureSensor()
    from .palms import PalmSensor

    return PalmSensor()
