"""How well this site verifies signatures, by kind of forgery. Nothing leaves the site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpalm.data.signature_splits import SignatureTrial

from .config import ParticipantConfig
from .evaluate import ModelChoice, Templates, find_trained, shared_vector
from .images import split_signature_records
from .store import SiteStore
from .trained_on import trained_on
from .trainer import Trainer

if TYPE_CHECKING:
    from fedpalm.data.signatures import ForgeryKind
    from fedpalm.evaluation.signatures import ClaimScores, ForgeryReport

USUAL_REFERENCES = 5
"""Of a signature, where nothing else is asked for and there are as many of each."""


@dataclass(frozen=True)
class WritersReport:
    """Half of a site's writers, each signature with ``references`` enrolled; a report by kind of forgery.

    ``scores``: of every claim, which ``to_json`` leaves out.
    """

    writers: int
    references: int
    forgeries: dict[ForgeryKind, ForgeryReport]
    scores: ClaimScores

    def to_json(self) -> dict[str, Any]:
        return {
            "writers": self.writers,
            "references": self.references,
            "forgeries": {kind: report.to_json() for kind, report in self.forgeries.items()},
        }


@dataclass(frozen=True)
class SignatureEvaluation:
    """Two reports of one model: closed (writers trained on here) and open (writers nobody trained on)."""

    run_id: str
    method: str
    backbone: str
    model: dict[str, Any]
    state_round: int
    closed_set: WritersReport
    open_set: WritersReport

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "method": self.method,
            "backbone": self.backbone,
            "model": self.model,
            "state_round": self.state_round,
            "closed_set": self.closed_set.to_json(),
            "open_set": self.open_set.to_json(),
        }


def evaluate_signatures(
    config: ParticipantConfig,
    store: SiteStore,
    *,
    run_id: str | None,
    choice: ModelChoice,
    references: int | None,
    seed: int,
) -> SignatureEvaluation:
    """Evaluate the stored state of a run with a global model.

    Args:
        run_id: None takes the run joined last.
        references: of every signature; None: 5, or what there are of each.
        seed: of the bootstrap intervals.
    Raises:
        NotFoundError, ConfigError: as :func:`find_trained` and :func:`shared_vector`.
        DataError: images cannot be used, or a writer has fewer references.
    """
    from fedpalm.evaluation.signatures import claim_scores, evaluate_claims

    run, data = find_trained(config, store, run_id)
    trained = trained_on(store, run.run_id, run.plan)
    split = split_signature_records(data, config.site, trained)
    shared, about = shared_vector(store, run, choice)
    method = Trainer(config, store).resume(run.run_id, run.plan)

    def report(trial: SignatureTrial, templates: Templates) -> WritersReport:
        count = _usual(trial) if references is None else references
        scores = claim_scores(trial, lambda images: templates(images, shared), count)
        return WritersReport(scores.writers, count, evaluate_claims(scores, seed=seed), scores)

    return SignatureEvaluation(
        run_id=run.run_id,
        method=run.plan.draft.method,
        backbone=run.plan.draft.backbones[config.site],
        model=about,
        state_round=store.state_round(run.run_id),
        closed_set=report(split.closed, method.closed_templates),
        open_set=report(split.open, method.open_templates),
    )


def _usual(trial: SignatureTrial) -> int:
    return min(USUAL_REFERENCES, trial.fewest_references)
