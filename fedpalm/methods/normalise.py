"""Within-class covariance normalisation of open-set templates.

Source: Hatch, Kajarekar, Stolcke 2006, "Within-class covariance normalization for SVM-based speaker
recognition", Interspeech. For unit templates z of a site's training people, with mean m and covariance W
of z around its own person's mean,

    z' = L^T (z - m) / |L^T (z - m)|,   L L^T = ((1 - s) V + s tr(V)/D I)^-1

so that directions in which two images of one person differ count less. ``site``: V = W. ``federation``:
W is averaged over the sites with the model, W <- sum_i n_i W_i / sum_i n_i, each W_i of the model as it
came, and V is the mean of that and the site's own: ten people tell little about how images of a person
differ, the people of all sites tell more. m stays at the site, and so does everything with ``site``.
Closed-set templates are left as they are: the model was trained to tell just these people apart.

Ours, and named so: the shrinkage s (a site has fewer images than dimensions), the mean with the own W, and
the averaging over sites. W_i says how images of its site's people differ, not who they are; it is a
statistic of their images all the same, and no noise of DP training covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.augment import augment
from ..plan import BackboneName
from .base import SiteImages
from .training import prepared_batches, unit

SHRINKAGE = 0.3
UNIT = 1 / 64
"""What a shared covariance is counted in, so that its values are of the order of a model's."""

_VIEWS = 4

Templates = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


class WithinClass(NamedTuple):
    """``mean`` (D,) and ``projection`` (D, D), the L above, float32."""

    mean: Templates
    projection: Templates

    def __call__(self, templates: Templates) -> Templates:
        """(N, D) unit templates -> (N, D) normalised unit templates."""
        moved = (templates - self.mean) @ self.projection
        normalised: Templates = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return normalised


def covariance_within(templates: Templates, labels: npt.NDArray[np.int64]) -> Matrix:
    """W, (D, D), of (N, D) templates of the people in ``labels`` (N,)."""
    exact = templates.astype(np.float64)
    people, index = np.unique(labels, return_inverse=True)
    centres = np.stack([exact[index == person].mean(axis=0) for person in range(len(people))])
    residuals = exact - centres[index]
    covariance: Matrix = residuals.T @ residuals / len(residuals)
    return covariance


def normaliser(mean: Templates, covariance: Matrix) -> WithinClass:
    """From m (D,) and V (D, D)."""
    scale = np.trace(covariance) / len(covariance)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(len(covariance))
    return WithinClass(mean, np.linalg.cholesky(np.linalg.inv(shrunk)).astype(np.float32))


class OwnPeople(NamedTuple):
    """What a model makes of a site's training people: ``mean`` (D,), ``within`` (D, D) their W."""

    mean: Templates
    within: Matrix

    @classmethod
    def of(
        cls,
        prepared: Iterable[Tensor],
        labels: npt.NDArray[np.int64],
        embed: Callable[[Tensor], Tensor],
    ) -> OwnPeople:
        """Of prepared images in batches, ``labels`` (N,) of all; ``embed`` gives (B, D) embeddings."""
        with torch.no_grad():
            templates = np.concatenate([unit(embed(inputs)) for inputs in prepared])
        return cls(templates.mean(axis=0), covariance_within(templates, labels))

    @classmethod
    def of_views(
        cls,
        images: SiteImages,
        backbone: BackboneName,
        seed: int,
        embed: Callable[[Tensor], Tensor],
    ) -> OwnPeople:
        """Of four random views of each training image: a new touch differs more than one day's images."""
        rng = np.random.Generator(np.random.PCG64(seed))
        views = (augment(images.images, rng) for _ in range(_VIEWS))
        prepared = (inputs for view in views for inputs in prepared_batches(backbone, view))
        return cls.of(prepared, np.tile(images.labels, _VIEWS), embed)

    def normaliser(self, shared: Tensor | None = None) -> WithinClass:
        """V from the own W alone, or with the ``shared`` one, (D, D) in :data:`UNIT`."""
        if shared is None or not shared.any():
            return normaliser(self.mean, self.within)
        theirs = shared.double().numpy() * UNIT
        return normaliser(self.mean, (self.within + theirs) / 2)

    def to_share(self) -> Tensor:
        """W as it rides with the model, (D, D) float32 in :data:`UNIT`."""
        return torch.from_numpy(self.within / UNIT).float()
