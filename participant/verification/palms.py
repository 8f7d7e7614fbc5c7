"""Palms: regions of interest, as every method but FedMH takes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpalm.data.records import ImageRecord
from fedpalm.data.roi import read_roi, standardise
from fedpalm.data.signatures import ForgeryKind
from fedpalm.data.trained_signatures import TrainedSignatures
from fedpalm.plan import Plan

from ..config import DataSettings
from ..images import split_records
from .gallery import Mode
from .quality import PALM_NEXT_STEP, Quality, assess_palm
from .sensor import DevelopmentImages, Grey, Sample, Source


class PalmSensor:
    """The :class:`.sensor.Sensor` for palms."""

    noun = "palm"
    stranger = "another palm"
    next_step = PALM_NEXT_STEP
    forgeries: tuple[ForgeryKind, ...] = ("random",)

    def look(self, source: Source, name: str) -> tuple[Grey, Quality]:
        roi = read_roi(source)
        return roi.grey, assess_palm(roi, name)

    def read(self, path: Path) -> Grey:
        return read_roi(path).grey

    def standardise(self, grey: Grey) -> npt.NDArray[np.float32]:
        return standardise(grey)

    def people(self, data: DataSettings, site: str, plan: Plan) -> tuple[str, ...]:
        return split_records(data, site, plan.draft.privacy.unit).classes

    def development(
        self,
        data: DataSettings,
        site: str,
        plan: Plan,
        mode: Mode,
        trained: TrainedSignatures | None = None,
    ) -> DevelopmentImages:
        """Closed: the images that trained against the closed probes. Open: the open identities' halves."""
        split = split_records(data, site, plan.draft.privacy.unit)
        if mode == "closed":
            return DevelopmentImages(_samples(split.train), _samples(split.closed_probe))
        return DevelopmentImages(_samples(split.open_gallery), _samples(split.open_probe))


def _samples(records: Iterable[ImageRecord]) -> tuple[Sample, ...]:
    return tuple(Sample(one.path, one.identity) for one in records)
