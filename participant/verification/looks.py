"""Looking at images: whether they will do, what the model makes of them, and whom they resemble."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpalm.data.roi import Grey, read_roi
from fedpalm.errors import DataError
from fedpalm.protection import score

from ..config import ParticipantConfig
from ..store import SiteStore
from .attempts import Attempts
from .gallery import Gallery, Mode, Reference, fuse
from .model import ModelId, StoredModel, Templates, VerificationModel, find_model
from .quality import Quality, assess
from .thresholds import Threshold

ImageSource = Path | str | bytes | npt.NDArray[Any]
"""A file, the bytes of one, or (H, W[, 3]) uint8 pixels."""

FAILURES_TO_ACQUIRE = "failures_to_acquire"


class Candidate(NamedTuple):
    """A comparison: its score, and how far that lies above the threshold of the reference's mode."""

    above: float
    score: float
    reference: Reference


class Looks:
    """One model for everything that looks at images, loaded at the first. Safe for several threads.

    Args:
        run_id: whose model to use; None takes the run that was completed last.
    """

    def __init__(
        self,
        config: ParticipantConfig,
        store: SiteStore,
        attempts: Attempts,
        run_id: str | None,
    ) -> None:
        self._config, self._store, self._run_id = config, store, run_id
        self._attempts, self._gallery = attempts, Gallery(store)
        self._busy = threading.RLock()
        self._stored: StoredModel | None = None
        self._built: VerificationModel | None = None

    @property
    def stored(self) -> StoredModel:
        """Which model is in use, from the first look on. Raises as :func:`.model.find_model`."""
        with self._busy:
            if self._stored is None:
                self._stored = find_model(self._config, self._store, self._run_id)
            return self._stored

    @property
    def model_id(self) -> ModelId:
        return self.stored.id

    def model(self) -> VerificationModel:
        """The networks, built if they are not. Raises as :meth:`StoredModel.build`."""
        with self._busy:
            if self._built is None:
                self._built = self.stored.build(self._store)
            return self._built

    def acquire(self, images: Sequence[ImageSource]) -> tuple[Grey, tuple[Quality, ...]]:
        """(k, 128, 128) and what each is worth; a failure to acquire is counted.

        Raises:
            DataError, QualityError: an image cannot be used.
        """
        greys, qualities = [], []
        for number, source in enumerate(images, 1):
            name = str(source) if isinstance(source, Path | str) else f"image {number}"
            try:
                roi = read_roi(Path(source) if isinstance(source, str) else source)
                qualities.append(assess(roi, name))
            except DataError:
                self._attempts.tell(FAILURES_TO_ACQUIRE)
                raise
            greys.append(roi.grey)
        return np.stack(greys), tuple(qualities)

    def templates(self, mode: Mode, greys: Grey) -> Templates:
        """(N, 128, 128) grey levels -> (N, D) unit templates."""
        return self.model().templates(mode, greys)

    def ranked(
        self,
        greys: Grey,
        references: Sequence[Reference],
        thresholds: Mapping[Mode, Threshold],
    ) -> list[Candidate]:
        """One person's images against each reference under its own key; what is most above comes first."""
        modes = {one.mode for one in references}
        probes = {mode: fuse(self.templates(mode, greys)) for mode in modes}
        found = []
        for one in references:
            protected = self._gallery.transform(one).apply(probes[one.mode])
            value = score(protected[0], one.protected)
            found.append(Candidate(value - thresholds[one.mode].value, value, one))
        return sorted(found, key=lambda candidate: -candidate.above)
