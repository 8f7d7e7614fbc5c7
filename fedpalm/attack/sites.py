"""Direct tests on a method as sites run it: the real model, loss and round.

The auditor makes up three people, has a round trained from the method's own start, and looks at the
gradients behind the noise and at what the site keeps and gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..methods import single
from ..methods.base import RoundContext, SiteImages, SiteUpdate
from ..plan import BackboneName, MethodName, PrivacySettings, TrainingSettings
from ..privacy.randomness import Randomness, SeededRandom
from .findings import Finding, certain
from .probe import Recorder, TrainingPath

_PEOPLE, _EACH = 3, 2
_SILENT = 1e-9
_ROUNDING, _SAME = 1e-6, 1e-3
"""Relative to C: of the bound; of two contributions that are the same but for the order of float32 sums."""
_NOTHING = 1e-60
"""A clip norm so small that neither people nor noise are left in float32: the mechanism releases zeros."""
_ROUNDS = 3

Templates = npt.NDArray[np.float32]


def site_findings(
    path: TrainingPath, method: MethodName = "fedpalm", backbone: BackboneName = "compnet"
) -> list[Finding]:
    """All tests of one method."""
    probe = SiteProbe(path, method, backbone)
    return [*probe.influence(), probe.nothing_beside(), probe.public()]


class SiteProbe:
    """The tests of one method on one backbone."""

    def __init__(self, path: TrainingPath, method: MethodName, backbone: BackboneName) -> None:
        self._path, self._method, self._backbone = path, method, backbone
        self._name = f"{method}, {backbone}"

    def influence(self) -> list[Finding]:
        """One person's contribution with the method's own loss, alone and beside others."""
        privacy = self._privacy(_SILENT, clip_norm=1.0)
        alone = self._sum(privacy, [0])
        beside = self._sum(privacy, [0, 1, 2]) - self._sum(privacy, [1, 2])
        norm = float(np.linalg.norm(alone))
        apart = float(np.linalg.norm(beside - alone))
        return [
            certain(
                "direct",
                f"influence of a person ({self._name})",
                0 < norm <= 1 + _ROUNDING,
                f"{norm:.7g} C",
                "above 0, 1 C at most",
            ),
            certain(
                "direct",
                f"influence on others ({self._name})",
                apart <= _SAME,
                f"{apart:.2g} C",
                "0",
            ),
        ]

    def nothing_beside(self) -> Finding:
        """Where the mechanism releases zeros, a round moves nothing that is kept, given or exchanged."""
        moved: dict[str, float] = {}
        for number in (1, _ROUNDS):
            site = self._site(self._privacy(1.0, clip_norm=_NOTHING), self._images(1))
            shared = site.initial_vector()
            before = _kept(site)
            update = self._round(site, number)
            after = _kept(site)
            moved["update"] = max(moved.get("update", 0.0), float(np.abs(update.delta).max()))
            for name, tensor in after.items():
                was = before.get(name, shared if tensor.shape == shared.shape else None)
                change = np.inf if was is None else float(np.abs(tensor - was).max(initial=0.0))
                moved[name] = max(moved.get(name, 0.0), change)
        worst = max(moved, key=lambda name: moved[name])
        return certain(
            "direct",
            f"nothing moves beside the mechanism ({self._name})",
            moved[worst] == 0.0,
            f"{worst} by {moved[worst]:.2g}" if moved[worst] else "nothing moved",
            "nothing moved",
        )

    def public(self) -> Finding:
        """Weight, statistics and prototypes of two sites with other people are the same."""
        privacy = self._privacy(1.0, clip_norm=_NOTHING)
        sites = [
            self._site(privacy, self._images(seed, people), name)
            for seed, people, name in ((1, _PEOPLE, "a"), (2, _PEOPLE + 1, "b"))
        ]
        updates = [self._round(site, 1) for site in sites]
        one, other = updates
        differing = ["weights"] if one.weight != other.weight else []
        differing += ["statistics"] if dict(one.stats) != dict(other.stats) else []
        heads = [_prototypes(site) for site in sites]
        differing += [
            f"prototypes of head {at}"
            for at, pair in enumerate(zip(*heads, strict=True))
            if not np.array_equal(*pair)
        ]
        return certain(
            "direct",
            f"public head and weight ({self._name})",
            not differing,
            ", ".join(differing) + " differ" if differing else "alike at two sites",
            "alike at two sites",
        )

    def _sum(self, privacy: PrivacySettings, drawn: Sequence[int]) -> npt.NDArray[np.float64]:
        """(P,): the released gradient of one step, times q N, when exactly these people are drawn."""
        recorders: list[Recorder] = []

        def recording(*groups: dict[str, Any]) -> Recorder:
            recorders.append(Recorder(list(groups)))
            return recorders[-1]

        site = self._site(privacy, self._images(1), randomness=_Drawn(drawn))
        with patch.object(single, "optimiser", recording):
            self._round(site, _ROUNDS)
        given: Tensor = recorders[0].given[0]
        found: npt.NDArray[np.float64] = given.double().numpy()
        return found * privacy.sampling_rate * privacy.population

    def _round(self, site: Any, number: int) -> SiteUpdate:
        with (
            self._path.in_place(),
            patch.object(single, "train_privately", self._path.train),
        ):
            update: SiteUpdate = site.train_round(
                RoundContext(number, _ROUNDS), site.initial_vector()
            )
        return update

    def _site(
        self,
        privacy: PrivacySettings,
        images: SiteImages,
        name: str = "a",
        randomness: Randomness | None = None,
    ) -> Any:
        training = TrainingSettings(backbone=self._backbone, dropout=0.0, privacy=privacy)
        randomness = randomness or self._path.randomness()
        return self._path.build(self._method, training, 1, name, images, randomness=randomness)

    def _privacy(self, noise_multiplier: float, clip_norm: float) -> PrivacySettings:
        return PrivacySettings(
            unit="subject",
            noise_multiplier=noise_multiplier,
            clip_norm=clip_norm,
            sampling_rate=1.0,
            population=10,
            steps=1,
            records=_EACH,
            head_slots=16,
        )

    def _images(self, seed: int, people: int = _PEOPLE) -> SiteImages:
        """Coarse random textures, one a person, with noise of each image."""
        rng = np.random.default_rng(seed)
        coarse = rng.standard_normal((people, 1, 16, 16)).repeat(8, axis=2).repeat(8, axis=3)
        images = coarse.repeat(_EACH, axis=0)
        images = images + 0.3 * rng.standard_normal(images.shape)
        labels = np.arange(people, dtype=np.int64).repeat(_EACH)
        return SiteImages(images.astype(np.float32), labels, people)


class _Drawn(SeededRandom):
    """The auditor says who is drawn; all else is the same in every run."""

    def __init__(self, drawn: Sequence[int]) -> None:
        super().__init__(1)
        self._chosen = list(drawn)

    def chosen(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        return np.isin(np.arange(count), self._chosen)


def _kept(site: Any) -> dict[str, npt.NDArray[np.float64]]:
    """What a site keeps and what it would exchange, without flags and places."""
    every = {**site.state(), **{f"exchanged {name}": one for name, one in site.expert().items()}}
    return {
        name: np.array(tensor, dtype=np.float64)
        for name, tensor in every.items()
        if np.issubdtype(tensor.dtype, np.floating)
    }


def _prototypes(site: Any) -> list[Templates]:
    """Of every head that the site trains with."""
    learners = [site.learner, *([site.own] if hasattr(site, "own") else [])]
    return [learner.head.prototypes.detach().numpy() for learner in learners]
