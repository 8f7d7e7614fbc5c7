"""How well this site verifies palms: of its own people, and of people nobody trained on. Nothing leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fedpalm.data.modality import modality_of
from fedpalm.errors import ConfigError, DataError, IntegrityError, NotFoundError
from fedpalm.layout import FloatVector

from .config import DataSettings, ParticipantConfig
from .images import require_data, split_records
from .store import SiteStore, StoredRun
from .trainer import Trainer

if TYPE_CHECKING:
    from fedpalm.data.records import ImageRecord
    from fedpalm.evaluation.report import VerificationReport

Templates = Callable[[npt.NDArray[np.float32], FloatVector], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ModelChoice:
    """Which global model: an exported file, a round that is kept here, or (neither) the newest."""

    file: Path | None = None
    round: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Two reports of one model: closed set (people trained on here) and open set (people nobody did)."""

    run_id: str
    method: str
    model: dict[str, Any]
    state_round: int
    closed_set: VerificationReport
    open_set: VerificationReport

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "method": self.method,
            "model": self.model,
            "state_round": self.state_round,
            "closed_set": self.closed_set.to_json(),
            "open_set": self.open_set.to_json(),
        }


def evaluate_site(
    config: ParticipantConfig,
    store: SiteStore,
    *,
    run_id: str | None,
    choice: ModelChoice,
    open_set: tuple[Path, Path] | None,
    seed: int,
) -> Evaluation:
    """Evaluate the stored state of a run with a global model.

    Args:
        run_id: None takes the run joined last.
        open_set: lists of gallery and probe images that replace the site's own open identities.
        seed: of the bootstrap intervals.
    Raises:
        NotFoundError, ConfigError: as :func:`find_trained` and :func:`shared_vector`.
        DataError: images cannot be used.
    """
    from fedpalm.data.readers import open_source
    from fedpalm.evaluation.report import evaluate_templates

    run, data = find_trained(config, store, run_id)
    shared, about = shared_vector(store, run, choice)
    method = Trainer(config, store).resume(run.run_id, run.plan)
    split = split_records(data, config.site, run.plan.draft.privacy.unit)

    def report(
        gallery: Sequence[ImageRecord],
        probe: Sequence[ImageRecord],
        classes: Sequence[str],
        templates: Templates,
    ) -> VerificationReport:
        from fedpalm.data.loading import load_images

        rows, columns = load_images(gallery, classes), load_images(probe, classes)
        return evaluate_templates(
            templates(rows.images, shared),
            rows.labels,
            templates(columns.images, shared),
            columns.labels,
            seed=seed,
        )

    if open_set is None:
        open_gallery, open_probe = list(split.open_gallery), list(split.open_probe)
        open_classes = list(split.open_classes)
    else:
        open_gallery, open_probe = (open_source(path, "list") for path in open_set)
        open_classes = sorted({record.identity for record in (*open_gallery, *open_probe)})
        trained_on = set(open_classes) & set(split.classes)
        if trained_on:
            raise DataError(
                f"the open set holds people that this site trained on: "
                f"{', '.join(sorted(trained_on)[:5])}",
                next_step="take them out of the lists, or name them differently if they are others",
            )
    return Evaluation(
        run_id=run.run_id,
        method=run.plan.draft.method,
        model=about,
        state_round=store.state_round(run.run_id),
        closed_set=report(split.train, split.closed_probe, split.classes, method.closed_templates),
        open_set=report(open_gallery, open_probe, open_classes, method.open_templates),
    )


def find_trained(
    config: ParticipantConfig, store: SiteStore, run_id: str | None
) -> tuple[StoredRun, DataSettings]:
    """A run that trains (None: the one joined last), and the images that it trains on here.

    Raises:
        NotFoundError: there is no such run at this site.
        ConfigError: it trains nothing, or not on the images of participant.toml.
    """
    run = _find_run(store, run_id)
    if modality_of(run.plan.draft.method) is None:
        raise ConfigError(f"there is nothing to evaluate: run {run.run_id} trains nothing")
    return run, require_data(config.data, run.plan)


def _find_run(store: SiteStore, run_id: str | None) -> StoredRun:
    run = store.run(run_id) if run_id else store.latest_run()
    if run is None:
        raise NotFoundError(
            f"this site has not joined run {run_id!r}" if run_id else "this site has joined no run",
            next_step="fedpalm-participant run",
        )
    return run


def shared_vector(
    store: SiteStore, run: StoredRun, choice: ModelChoice
) -> tuple[FloatVector, dict[str, Any]]:
    """The chosen global vector, (P,) float32, and what it is.

    Raises:
        NotFoundError: no model of that round is kept here.
        IntegrityError, LayoutMismatchError: it cannot be read, or is of another layout.
    """
    layout = run.plan.model_layout
    if choice.file is not None:
        try:
            tensors = safetensors.numpy.load_file(choice.file)
        except (OSError, safetensors.SafetensorError) as error:
            raise IntegrityError(f"{choice.file}: cannot be read: {error}") from error
        vector = layout.flatten(tensors)
        digest = hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
        return vector, {"file": str(choice.file), "hash": digest}
    models = store.models(run.run_id)
    if not models:
        raise NotFoundError("no global model has been downloaded yet", next_step="wait for round 1")
    round_number = max(models) if choice.round is None else choice.round
    if round_number not in models:
        kept = ", ".join(map(str, models))
        raise NotFoundError(
            f"the model of round {round_number} is not kept here; kept: {kept}",
            next_step="raise keep_models in participant.toml, or evaluate an exported --model",
        )
    model_hash = models[round_number]
    vector = store.load_model(model_hash, layout)
    return vector, {"round": round_number, "hash": model_hash.hex()}
