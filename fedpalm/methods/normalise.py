"""Within-class covariance normalisation of templates, from what a site has of its own people.

Source: Hatch, Kajarekar, Stolcke 2006, "Within-class covariance normalization for SVM-based speaker
recognition", Interspeech. For unit templates z of a site's training people, with mean m and covariance W
of z around its own person's mean,

    z' = L^T (z - m) / |L^T (z - m)|,   L L^T = ((1 - s) W + s tr(W)/D I)^-1

so that directions in which two images of one person differ count less. m and L describe the site's people
and sensor: they are computed where they are used and never leave. The shrinkage s is ours: a site has fewer
images than dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
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
_VIEWS = 4

Templates = npt.NDArray[np.float32]


class WithinClass(NamedTuple):
    """``mean`` (D,) and ``projection`` (D, D), the L above, float32."""

    mean: Templates
    projection: Templates

    def __call__(self, templates: Templates) -> Templates:
        """(N, D) unit templates -> (N, D) normalised unit templates."""
        moved = (templates - self.mean) @ self.projection
        normalised: Templates = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return normalised


def within_class(templates: Templates, labels: npt.NDArray[np.int64]) -> WithinClass:
    """From (N, D) unit templates of the people in ``labels`` (N,)."""
    exact = templates.astype(np.float64)
    mean = exact.mean(axis=0)
    people, index = np.unique(labels, return_inverse=True)
    centres = np.stack([exact[index == person].mean(axis=0) for person in range(len(people))])
    residuals = exact - centres[index]
    covariance = residuals.T @ residuals / len(residuals)
    scale = np.trace(covariance) / len(covariance)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(len(covariance))
    projection = np.linalg.cholesky(np.linalg.inv(covariance))
    return WithinClass(mean.astype(np.float32), projection.astype(np.float32))


def site_normaliser(
    images: SiteImages, backbone: BackboneName, seed: int, embed: Callable[[Tensor], Tensor]
) -> WithinClass:
    """Of a site's training images under ``embed`` (prepared images -> embeddings).

    From four random views of each: one person's few images differ less than a new touch does.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        parts = [
            unit(embed(inputs))
            for _ in range(_VIEWS)
            for inputs in prepared_batches(backbone, augment(images.images, rng))
        ]
    return within_class(np.concatenate(parts), np.tile(images.labels, _VIEWS))
