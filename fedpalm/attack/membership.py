"""Membership inference on a released open-set model: does it know the people it was trained on?

Half of a synthetic site's people train it, with the real path; the attacker has the model, the public
values that it began at, and the images of everybody. Two attacks give a person a score: how much closer
to each other the person's templates have come than they were before (similarity), and how close they
have come to a prototype of the public head (prototype).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.palms import cache_root, synthetic_palms
from ..data.records import by_identity
from ..data.roi import load_roi
from ..evaluation.metrics import auc, roc
from ..methods.base import RoundContext, SiteImages
from ..methods.site import build_site
from ..models.public_head import public_prototypes
from ..plan import PrivacySettings, TrainingSettings
from ..privacy.accounting import Charge, charged_epsilon

Vector = npt.NDArray[np.float64]
METHOD, FMR = "fedavg", 0.05
PRIVATE = PrivacySettings(
    unit="subject",
    noise_multiplier=1.0,
    sampling_rate=0.25,
    population=24,
    steps=12,
    head_slots=64,
)
NOT_PRIVATE = PrivacySettings(unit="none")
_SEED = 1


@dataclass(frozen=True)
class MembershipTrial:
    """``people`` members and as many others, ``images`` of each; ``rounds`` of ``privacy``."""

    people: int = 24
    images: int = 4
    rounds: int = 1
    privacy: PrivacySettings = PRIVATE

    def run(self, seed: int) -> dict[str, Any]:
        """Figures of the released model, beside the epsilon that its training is charged."""
        members, others = self._people(seed)
        site = build_site(METHOD, self._training, _SEED, "audited", _as_site(members))
        begin = shared = site.initial_vector()
        for number in range(1, self.rounds + 1):
            shared = shared + site.train_round(RoundContext(number, self.rounds), shared).delta
        scores = {"similarity": [], "prototype": []}  # type: dict[str, list[Vector]]
        prototypes = public_prototypes(self.privacy.head_slots, 512, _SEED).numpy()
        for group in (members, others):
            images = np.concatenate(group).astype(np.float32)
            before, after = (
                site.open_templates(images, vector).astype(np.float64).reshape(len(group), -1, 512)
                for vector in (begin, shared)
            )
            scores["similarity"].append(_likeness(after) - _likeness(before))
            scores["prototype"].append(_nearness(after, prototypes) - _nearness(before, prototypes))
        return {
            "members": len(members),
            "non_members": len(others),
            "images_each": self.images,
            "method": METHOD,
            "unit": self.privacy.unit,
            **self._account(),
            "attacks": {name: _figures(*pair) for name, pair in scores.items()},
        }

    @property
    def _training(self) -> TrainingSettings:
        return TrainingSettings(privacy=self.privacy)

    def _account(self) -> dict[str, float | None]:
        if self.privacy.unit == "none":
            return {"epsilon": None, "delta": None}
        delta = 1e-3
        spent = charged_epsilon([Charge.of(self.privacy, self.rounds)], delta)
        return {"epsilon": spent, "delta": delta}

    def _people(self, seed: int) -> tuple[list[Vector], list[Vector]]:
        """Members and others, dealt at random: each (images, 1, 128, 128)."""
        records = synthetic_palms(cache_root(), 1, 2 * self.people, self.images, _SEED)[0]
        people = [
            np.stack([load_roi(record.path) for record in group])
            for group in by_identity(records).values()
        ]
        order = np.random.default_rng(seed).permutation(len(people))
        dealt = [people[at] for at in order]
        return dealt[: self.people], dealt[self.people :]


@dataclass(frozen=True)
class AttackFigures:
    """``auc`` is 0.5 for guessing; ``auc_error`` its standard error (Hanley and McNeil 1982).

    ``tpr`` is the part of members that is found when ``fpr`` of the others are taken for members.
    """

    auc: float
    auc_error: float
    tpr: float
    fpr: float


def _figures(members: Vector, others: Vector) -> dict[str, float]:
    area = auc(members, others)
    curve = roc(members, others)
    found = float((1 - curve.fnmr[curve.fmr <= FMR]).max())
    return asdict(AttackFigures(area, _error(area, len(members), len(others)), found, FMR))


def _error(area: float, members: int, others: int) -> float:
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (members - 1) * (one - area**2) + (others - 1) * (two - area**2)
    return float(np.sqrt(max(0.0, variance) / (members * others)))


def _likeness(templates: Vector) -> Vector:
    """(people,): mean cosine between two templates of (people, images, D)."""
    cosines = templates @ templates.transpose(0, 2, 1)
    images = templates.shape[1]
    means: Vector = (cosines.sum(axis=(1, 2)) - images) / (images * (images - 1))
    return means


def _nearness(templates: Vector, prototypes: npt.NDArray[np.float32]) -> Vector:
    """(people,): cosine of the mean template with the nearest prototype."""
    means = templates.mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    nearest: Vector = (means @ prototypes.T).max(axis=1)
    return nearest


def _as_site(people: list[Vector]) -> SiteImages:
    labels = np.repeat(np.arange(len(people)), [len(one) for one in people])
    return SiteImages(np.concatenate(people).astype(np.float32), labels, len(people))
