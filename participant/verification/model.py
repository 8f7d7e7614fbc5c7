"""The model that people are verified with: which one it is (torch-free), and what it makes of images.

It is a run's last global model together with this site's private state of that run, received experts
included. Templates of one :class:`ModelId` compare with each other and with no others.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpalm.canonical import domain_hash
from fedpalm.data.roi import SIDE_PX, Grey, standardise
from fedpalm.errors import ConfigError, DataError, NotFoundError, StateError
from fedpalm.layout import FloatVector
from fedpalm.methods.base import SiteImages, SiteMethod, Tensors

from ..config import ParticipantConfig
from ..images import split_records, training_images
from ..store import SiteStore, StoredRun
from .gallery import Mode

_HEADS = ("head.open.prototypes", "head.open.places")
"""One row a training identity, in every method's state."""

Templates = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelId:
    """``hash`` covers plan, global model, private state and, where templates depend on them, the images."""

    run_id: str
    round: int
    hash: str


@dataclass(frozen=True)
class StoredModel:
    """What is stored of a model; :meth:`build` makes it work."""

    id: ModelId
    run: StoredRun
    shared_hash: bytes
    state: Tensors
    config: ParticipantConfig

    def build(self, store: SiteStore) -> VerificationModel:
        """Load torch and the networks; takes a second or so.

        Raises:
            IntegrityError, LayoutMismatchError: what is stored is damaged, or of another version.
            ConfigError, DataError: templates need the training images, and they are not there.
        """
        from fedpalm.methods.site import build_site_method

        plan = self.run.plan
        shared = store.load_model(self.shared_hash, plan.model_layout)
        method = build_site_method(
            plan, self.config.site, _images(self.config, self.run, self.state)
        )
        method.load_state(self.state)
        return VerificationModel(self.id, method, shared)


class VerificationModel:
    """A method with its state, that only looks at images; one caller at a time, others wait."""

    def __init__(self, model_id: ModelId, method: SiteMethod, shared: FloatVector) -> None:
        self.id, self._method, self._shared = model_id, method, shared
        self._busy = threading.Lock()

    def templates(self, mode: Mode, greys: Grey) -> Templates:
        """(N, 128, 128) grey levels -> (N, D) unit templates."""
        images = np.stack([standardise(grey) for grey in greys])
        make = self._method.closed_templates if mode == "closed" else self._method.open_templates
        with self._busy:
            return make(images, self._shared)


def find_model(config: ParticipantConfig, store: SiteStore, run_id: str | None) -> StoredModel:
    """The model of a run.

    Args:
        run_id: None takes the run that was completed last.
    Raises:
        NotFoundError: there is no such run, or no global model of it here.
        StateError: this site has trained nothing in it.
        ConfigError, DataError: its plan trains nothing; or its templates need the training images, and they
            cannot be read.
    """
    run = _find_run(store, run_id)
    if run.plan.draft.method == "rehearsal":
        raise ConfigError(f"run {run.run_id} was a rehearsal: it trained no model")
    models = store.models(run.run_id)
    if not models or (run.model_hash is not None and run.model_hash not in models.values()):
        raise NotFoundError(
            f"the last global model of run {run.run_id} is not kept here",
            next_step="let the agent fetch it: fedpalm-participant run",
        )
    round_number = max(models)
    state = store.load_state(run.run_id)
    if state is None:
        raise StateError(
            f"this site has trained nothing in run {run.run_id}: it has no half of the model",
            next_step="name a run that it took part in: --run",
        )
    digest = domain_hash(
        "verification-model/v1",
        run.plan.hash,
        models[round_number],
        _state_hash(state),
        _data_hash(config, run),
    )
    model_id = ModelId(run.run_id, round_number, digest.hex())
    return StoredModel(model_id, run, models[round_number], state, config)


def training_identities(config: ParticipantConfig, run: StoredRun) -> tuple[str, ...]:
    """Whom this site trained on in a run: nobody, where it names no data.

    Raises:
        DataError: the data cannot be listed, so it cannot be told.
    """
    if config.data is None:
        return ()
    return split_records(config.data, config.site, run.plan.draft.privacy.unit).classes


def _find_run(store: SiteStore, run_id: str | None) -> StoredRun:
    if run_id is None:
        row = store.row(
            "SELECT run_id FROM runs WHERE state = 'completed' ORDER BY joined_ms DESC, rowid DESC"
        )
        if row is None:
            raise NotFoundError(
                "no run that this site takes part in has been completed",
                next_step="wait for its end, or name one with a model: --run RUN",
            )
        run_id = str(row["run_id"])
    run = store.run(run_id)
    if run is None:
        raise NotFoundError(
            f"this site has not joined run {run_id!r}",
            next_step="fedpalm-participant status lists its runs; without --run the one completed last "
            "is taken",
        )
    return run


def _state_hash(state: Tensors) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = np.ascontiguousarray(state[name])
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.data)
    return digest.digest()


def _needs_images(run: StoredRun) -> bool:
    """A normaliser weighs templates by how images of this site's training people differ."""
    return run.plan.draft.training.template_normaliser != "none"


def _data_hash(config: ParticipantConfig, run: StoredRun) -> bytes:
    if not _needs_images(run):
        return b""
    data = _require_data(config)
    digest = hashlib.sha256()
    for record in split_records(data, config.site, run.plan.draft.privacy.unit).train:
        try:
            content = record.path.read_bytes()
        except OSError as error:
            raise DataError(f"{record.path}: {error.strerror}") from error
        digest.update(hashlib.sha256(content).digest())
        digest.update(f"{record.identity}\n".encode())
    return digest.digest()


def _images(config: ParticipantConfig, run: StoredRun, state: Tensors) -> SiteImages:
    """What a method is built with: the images if its templates need them, else only how many people."""
    if _needs_images(run):
        return training_images(_require_data(config), config.site, run.plan.draft.privacy.unit)
    classes = next((len(state[name]) for name in _HEADS if name in state), 0)
    nothing = np.empty((0, 1, SIDE_PX, SIDE_PX), dtype=np.float32)
    return SiteImages(nothing, np.empty(0, dtype=np.int64), classes)


def _require_data(config: ParticipantConfig) -> Any:
    if config.data is None:
        raise ConfigError(
            "templates of this run are normalised by the training images, and participant.toml has "
            "no [data]",
            next_step='name them there: [data] source = "PATH"',
        )
    return config.data
