"""Signatures: ink on paper, as FedMH takes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpalm.data.signature_image import read_signature, standardise_ink
from fedpalm.data.signatures import FORGERY_KINDS, ForgeryKind, SignatureRecord
from fedpalm.data.trained_signatures import TrainedSignatures
from fedpalm.plan import Plan

from ..config import DataSettings
from ..images import split_signature_records
from .gallery import Mode
from .quality import Quality
from .sensor import DevelopmentImages, Grey, Sample, Source
from .signature_quality import SIGNATURE_NEXT_STEP, assess_signature


class SignatureSensor:
    """The :class:`.sensor.Sensor` for signatures."""

    noun = "signature"
    stranger = "another writer"
    next_step = SIGNATURE_NEXT_STEP
    forgeries: tuple[ForgeryKind, ...] = FORGERY_KINDS

    def look(self, source: Source, name: str) -> tuple[Grey, Quality]:
        signature = read_signature(source)
        return signature.ink, assess_signature(signature, name)

    def read(self, path: Path) -> Grey:
        return read_signature(path).ink

    def standardise(self, grey: Grey) -> npt.NDArray[np.float32]:
        return standardise_ink(grey)[None]

    def people(self, data: DataSettings, site: str, plan: Plan) -> tuple[str, ...]:
        return split_signature_records(data, site).writers

    def development(
        self,
        data: DataSettings,
        site: str,
        plan: Plan,
        mode: Mode,
        trained: TrainedSignatures | None = None,
    ) -> DevelopmentImages:
        """References against the genuine and the practised signatures that are kept for trials.

        Forgeries that nobody made are not listed: they are genuine probes that claim to be somebody else.
        """
        split = split_signature_records(data, site, trained)
        trial = split.closed if mode == "closed" else split.open
        return DevelopmentImages(
            _samples(trial.references), _samples((*trial.genuine, *trial.skilled))
        )


def _samples(records: Iterable[SignatureRecord]) -> tuple[Sample, ...]:
    return tuple(Sample(one.path, one.writer, one.text, skilled=not one.genuine) for one in records)
