"""Looking at images: whether they will do, what the model makes of them, and whom they resemble."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedpalm.data.roi import Grey
from fedpalm.errors import DataError, NotFoundError
from fedpalm.protection import score

from ..config import ParticipantConfig
from ..store import SiteStore
from .attempts import Attempts
from .gallery import Gallery, Mode, Reference, fuse
from .model import ModelId, StoredModel, Templates, VerificationModel, find_model
from .quality import Quality
from .thresholds import Threshold

ImageSource = Path | str | bytes | npt.NDArray[Any]
"""A file, the bytes of one, or (H, W[, 3]) uint8 pixels."""

FAILURES_TO_ACQUIRE = "failures_to_acquire"


class Candidate(NamedTuple):
    """A comparison: its score, and how far that lies above the threshold of the reference's mode."""

    above: float
    score: float
    reference: Reference


def require_files(images: Sequence[ImageSource], *, safe: str) -> None:
    """Refuse paths without an image behind them, before anything is counted: a slip of the keyboard.

    Raises:
        NotFoundError: there is no such file.
        DataError: a folder, not a file.
    """
    for path in images:
        if not isinstance(path, Path | str):
            continue
        if os.path.isdir(path):  # noqa: PTH112 - False, not an error, for a name that no file can have
            raise DataError(
                f"{path}: a folder, not an image", safe=safe, next_step="name the files in it"
            )
        if not os.path.exists(path):  # noqa: PTH110 - as above
            raise NotFoundError(
                f"{path}: no such file", safe=safe, next_step="look at the path: is it spelt right?"
            )


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

    def acquire(
        self, images: Sequence[ImageSource], *, safe: str
    ) -> tuple[Grey, tuple[Quality, ...]]:
        """(k, 128, 128) and what each is worth; a failure to acquire is counted.

        Args:
            safe: what an error says of that for which the images were.
        Raises:
            DataError, QualityError: an image cannot be used.
        """
        sensor = self.stored.sensor
        greys, qualities = [], []
        for number, source in enumerate(images, 1):
            name = str(source) if isinstance(source, Path | str) else f"image {number}"
            try:
                grey, quality = sensor.look(
                    Path(source) if isinstance(source, str) else source, name
                )
            except DataError as error:
                self._attempts.tell(FAILURES_TO_ACQUIRE)
                raise type(error)(error.what, safe=safe, next_step=sensor.next_step) from error
            greys.append(grey)
            qualities.append(quality)
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
