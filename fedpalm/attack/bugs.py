"""Faults of a private training, put in the place of parts of the real path: what an audit has to catch.

None of them is a switch of the product: each is a part of its own, and the rest of the path stays real.
Faults of the account are in a log, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..losses.supcon import supervised_contrast
from ..methods.base import SiteImages
from ..methods.fedpalm import FedPalmSite
from ..methods.private import train_privately
from ..methods.training import Outputs, derive_seed, drawn_head
from ..plan import TrainingSettings
from ..privacy.optimizer import PersonOptimizer
from ..privacy.randomness import Randomness, SecretRandom, SeededRandom
from .probe import TrainingPath

_RATE = 0.1
"""Learning rate of what a faulty site trains beside the mechanism."""


def faulty_paths() -> dict[str, TrainingPath]:
    """By name, every injected fault of the training path."""
    return {
        "no noise": TrainingPath(optimizer=_NoNoise),
        "half sigma": TrainingPath(optimizer=_HalfSigma),
        "no clipping": TrainingPath(optimizer=_NoClipping),
        "noise before clipping": TrainingPath(optimizer=_NoiseBeforeClipping),
        "person split across batches": TrainingPath(train=_split),
        "noise reused after a restart": TrainingPath(randomness=lambda: SeededRandom(7)),
        "noise reused in every step": TrainingPath(randomness=_OneNoise),
        "batches of fixed size": TrainingPath(randomness=_FixedSize),
        "shuffled epochs": TrainingPath(randomness=_Epochs),
        "drawn at twice q": TrainingPath(randomness=_TwiceTheRate),
        "divided by the people drawn": TrainingPath(optimizer=_ActualCount),
        "contrast between people": TrainingPath(build=_built(_CoupledSite)),
        "private head": TrainingPath(build=_built(_PrivateHeadSite)),
        "expert beside the mechanism": TrainingPath(build=_built(_ExpertBesideSite)),
    }


# --- clipping and noise ---------------------------------------------------------------------------


class _NoNoise(PersonOptimizer):
    def add_noise(self) -> None:
        self.noise_multiplier = 0.0
        super().add_noise()


class _HalfSigma(PersonOptimizer):
    noise_multiplier: float

    def add_noise(self) -> None:
        declared = self.noise_multiplier
        self.noise_multiplier = declared / 2
        super().add_noise()
        self.noise_multiplier = declared


class _NoClipping(PersonOptimizer):
    max_grad_norm: float

    def clip_and_accumulate(self) -> None:
        declared = self.max_grad_norm
        self.max_grad_norm = float("inf")
        super().clip_and_accumulate()
        self.max_grad_norm = declared


class _NoiseBeforeClipping(PersonOptimizer):
    """Each person's gradient is noised, then clipped with its noise; the sum gets none."""

    def clip_and_accumulate(self) -> None:
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            if parameter.grad is not None:
                parameter.grad += self._randomness.normal(parameter.shape, std)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        for parameter in self.params:
            parameter.grad = self._sum(parameter).to(parameter.dtype)


class _ActualCount(PersonOptimizer):
    def scale_grad(self) -> None:
        for parameter in self.params:
            if parameter.grad is not None:
                parameter.grad /= max(1, len(self._added))


# --- draws and randomness -------------------------------------------------------------------------


class _OneNoise(SecretRandom):
    """Secret, but drawn once for each shape."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        key = tuple(shape)
        if key not in self._drawn:
            self._drawn[key] = super().normal(shape, 1.0)
        return self._drawn[key] * std


class _FixedSize(SecretRandom):
    """As many people in every step."""

    def chosen(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(count), self.subset(count, round(count * rate)))


class _Epochs(SecretRandom):
    """Everybody once, in random order, before anybody comes again."""

    def __init__(self) -> None:
        self._left = np.empty(0, dtype=np.int64)

    def chosen(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        size = max(1, round(count * rate))
        if len(self._left) < size:
            self._left = self.subset(count, count)
        taken, self._left = self._left[:size], self._left[size:]
        return np.isin(np.arange(count), taken)


class _TwiceTheRate(SecretRandom):
    def chosen(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        return super().chosen(count, min(1.0, 2 * rate))


class _Halves:
    """Draws people, and says of each half of a person what was drawn for the whole."""

    def __init__(self, randomness: Randomness, owner: npt.NDArray[np.int64]) -> None:
        self._randomness, self._owner = randomness, owner

    def chosen(self, _count: int, rate: float) -> npt.NDArray[np.bool_]:
        people = int(self._owner.max(initial=-1)) + 1
        return self._randomness.chosen(people, rate)[self._owner]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._randomness, name)


def _split(
    people: list[npt.NDArray[np.int64]],
    views: Any,
    privacy: Any,
    randomness: Randomness,
    *rest: Any,
) -> dict[str, float]:
    """A person's records go into two batches, as a manager of memory would cut them."""
    halves = [
        (owner, half)
        for owner, records in enumerate(people)
        for half in np.array_split(records, 2)
        if len(half)
    ]
    owners = np.array([owner for owner, _ in halves], dtype=np.int64)
    drawn: Any = _Halves(randomness, owners)
    return train_privately([half for _, half in halves], views, privacy, drawn, *rest)


# --- what learns beside the mechanism -------------------------------------------------------------


def _built(kind: type[FedPalmSite]) -> Callable[..., FedPalmSite]:
    """In the place of ``build_site``: this site, whatever method is asked for."""

    def build(
        _method: str,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        *,
        randomness: Randomness,
    ) -> FedPalmSite:
        return kind(training, seed, site, images, randomness)

    return build


class _BesideSite(FedPalmSite):
    """Some parameters are trained with the people's gradients as they are, beside the mechanism."""

    def beside(self) -> list[torch.nn.Parameter]:
        """These."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        own = {id(parameter) for parameter in self.beside()}
        return [
            {**group, "params": [p for p in group["params"] if id(p) not in own]}
            for group in super().parameter_groups()
        ]

    def adjust_gradients(self) -> None:
        with torch.no_grad():
            for parameter in self.beside():
                if parameter.grad is not None:
                    parameter.sub_(_RATE * parameter.grad)
                    parameter.grad = None


class _PrivateHeadSite(_BesideSite):
    """The head of the open-set model is the site's own."""

    def __init__(
        self,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(training, seed, site, images, randomness)
        length = self.learner.model.template_length
        own = derive_seed(seed, site, 0, "head")
        self.learner.head = drawn_head(images.classes, length, training, own)

    def beside(self) -> list[torch.nn.Parameter]:
        return list(self.learner.head.parameters())


class _ExpertBesideSite(_BesideSite):
    """The expert that the exchange will release is trained as if nobody charged for it."""

    def beside(self) -> list[torch.nn.Parameter]:
        return list(self.own.model.expert.parameters())


class _CoupledSite(FedPalmSite):
    """The contrast of the hybrid loss, with everybody who was drawn before in the step."""

    def __init__(
        self,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(training, seed, site, images, randomness)
        self._before: list[tuple[Tensor, Tensor]] = []
        alone = self.learner.loss

        def coupled(outputs: Outputs, labels: Tensor) -> Tensor:
            embeddings = torch.cat([outputs.embedding, *(one for one, _ in self._before)])
            of_whom = torch.cat([labels, *(who for _, who in self._before)])
            self._before.append((outputs.embedding.detach(), labels))
            contrast = supervised_contrast(embeddings, of_whom, training.contrast_temperature)
            return alone(outputs, labels) + contrast

        self.learner.loss = coupled  # type: ignore[method-assign]

    def adjust_gradients(self) -> None:
        self._before.clear()
