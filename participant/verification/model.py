"""The model that people are verified with: which one it is (torch-free), and what it makes of images.

It is a run's last global model together with this site's private state of that run, received experts
included; of signatures, what the site's last receipt made of the two (:mod:`.settled`). Templates of one
:class:`ModelId` compare with each other and with no others.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fedpalm.canonical import domain_hash
from fedpalm.data.modality import modality_of
from fedpalm.data.roi import SIDE_PX, Grey
from fedpalm.data.signatures import SignatureImages
from fedpalm.data.trained_signatures import TrainedSignatures
from fedpalm.errors import ConfigError, DataError, NotFoundError, StateError
from fedpalm.layout import FloatVector
from fedpalm.methods.base import (
    SettlingMethod,
    SiteImages,
    SiteMethod,
    TemplateMaker,
    Tensors,
)

from ..config import ParticipantConfig
from ..images import split_records, training_images, training_signatures
from ..store import SiteStore, StoredRun
from ..trained_on import trained_on
from .gallery import Mode
from .sensor import Sensor, sensor_of
from .settled import keep_settled, load_settled

_HEADS = ("head.open.prototypes", "head.open.places")
"""One row a training identity, in the state of every method for palms."""
_WRITERS = "head.user.prototypes"
"""The same of FedMH."""

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
    trained: TrainedSignatures | None = None
    """The signatures that the run trained on here, where that is kept."""

    def build(self, store: SiteStore) -> VerificationModel:
        """Load torch and the networks; takes a second or so.

        Raises:
            IntegrityError, LayoutMismatchError: what is stored is damaged, or of another version.
            ConfigError, DataError: templates, or the first use of a model of signatures, need the training
                images, and they are not there.
        """
        plan = self.run.plan
        shared = store.load_model(self.shared_hash, plan.model_layout)
        if modality_of(plan.draft.method) == "signature":
            from fedpalm.methods.fedmh_settled import SettledModel

            backbone = plan.draft.backbones[self.config.site]
            tensors = load_settled(store, self.id.hash) or self.settle(store, self._trained())
            method: TemplateMaker = SettledModel(backbone, tensors, plan.draft.training.threads)
        else:
            method = self._loaded(_images(self.config, self.run, self.state))
        return VerificationModel(self.id, method, shared, self.sensor)

    def settle(self, store: SiteStore, method: SettlingMethod) -> Tensors:
        """Have ``method``, with this state, receive the last global model, and keep what comes of it.

        Of several processes that do so at once all go on with what was kept first.
        """
        shared = store.load_model(self.shared_hash, self.run.plan.model_layout)
        keep_settled(store, self.id.hash, method.settled(shared))
        kept = load_settled(store, self.id.hash)
        assert kept is not None  # nothing deletes them
        return kept

    @property
    def sensor(self) -> Sensor:
        """What its images are, and how they are looked at."""
        return sensor_of(self.run.plan)

    def _trained(self) -> SettlingMethod:
        """The method as it trained, images included."""
        try:
            return cast(SettlingMethod, self._loaded(self._trained_on()))
        except (ConfigError, DataError) as error:
            raise type(error)(
                f"what this site takes of the last model of run {self.run.run_id} is not settled yet, and "
                f"the signatures that it trained on judge that: {error.what}",
                safe="nothing was settled, and nothing is lost",
                next_step=error.next_step,
            ) from error

    def _trained_on(self) -> SignatureImages:
        if self.config.data is None:
            raise ConfigError(
                "participant.toml has no [data]",
                next_step='name them there: [data] modality = "signature", source = "PATH"',
            )
        images = training_signatures(self.config.data, self.config.site, self.trained)
        trained = len(self.state[_WRITERS])
        if images.classes != trained:
            raise DataError(
                f"{images.classes} writers train in the site's data, {trained} did in the run",
                next_step="put the writers of that run back into the data folder, once",
            )
        return images

    def _loaded(self, images: SiteImages | SignatureImages) -> SiteMethod:
        from fedpalm.methods.site import build_site_method

        method = build_site_method(self.run.plan, self.config.site, images)
        method.load_state(self.state)
        return method


class VerificationModel:
    """A method with its state, that only looks at images; one caller at a time, others wait."""

    def __init__(
        self, model_id: ModelId, method: TemplateMaker, shared: FloatVector, sensor: Sensor
    ) -> None:
        self.id, self.sensor = model_id, sensor
        self._method, self._shared = method, shared
        self._busy = threading.Lock()

    def templates(self, mode: Mode, greys: Grey) -> Templates:
        """(N, 128, 128) grey levels -> (N, D) unit templates."""
        images = np.stack([self.sensor.standardise(grey) for grey in greys])
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
    trained = trained_on(store, run.run_id, run.plan)
    return StoredModel(model_id, run, models[round_number], state, config, trained)


def settle_model(
    config: ParticipantConfig, store: SiteStore, run_id: str, method: SiteMethod
) -> None:
    """At the end of a run: have the method that trained receive its last model, if that needs its images.

    Raises:
        NotFoundError, StateError: as :func:`find_model`.
    """
    if isinstance(method, SettlingMethod):
        find_model(config, store, run_id).settle(store, method)


def training_identities(
    config: ParticipantConfig, store: SiteStore, run: StoredRun
) -> tuple[str, ...]:
    """Whom this site trained on in a run: as was kept of it, else by its data; nobody, where it names none.

    Raises:
        ConfigError, DataError: the data are none of the run's, or cannot be listed, so it cannot be told.
        VaultError: what was kept cannot be read.
    """
    if (kept := trained_on(store, run.run_id, run.plan)) is not None:
        return kept.writers
    if config.data is None:
        return ()
    return sensor_of(run.plan).people(config.data, config.site, run.plan)


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
