"""The model of every method: textural expert T, embedding layer Q, and a TEIM between them if it has one.

What an expert sees of an image is computed once an image (``prepare``): it carries no gradient, and all
models and epochs that see the image share it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..plan import BackboneName
from . import ccnet, compnet
from .backbones import BACKBONES
from .phase_conv import phase_spectrum
from .same_conv import same_spectrum
from .teim import Teim

Expert = compnet.TexturalExpert | ccnet.TexturalExpert
"""T of any backbone: prepared images -> (B, feature_length); ``learn(False)`` freezes it."""


class PalmModel(nn.Module):
    """M = (T, Q), with the TEIM between them if the method has one; the head is not part of it.

    ``covariance``: with the matrix of a normaliser of templates that sites average. Built without values:
    whoever builds one loads its tensors.
    """

    def __init__(
        self,
        backbone: BackboneName,
        *,
        teim: Teim | None = None,
        norm: bool = False,
        covariance: bool = False,
    ) -> None:
        super().__init__()
        spec = BACKBONES[backbone]
        self.template_length = spec.template_length
        self.expert = build_expert(backbone, norm=norm)
        self.embedding: nn.Module = (
            nn.Linear(spec.feature_length, spec.template_length)
            if backbone == "compnet"
            else ccnet.embedding_layers()
        )
        self.teim = teim
        self.normaliser = Covariance(spec.template_length) if covariance else None

    def embed(self, feature: Tensor) -> Tensor:
        """(B, feature_length) textural feature -> (B, template_length) embedding, not normalised."""
        embedding: Tensor = self.embedding(feature)
        return embedding


class Covariance(nn.Module):
    """``within`` (D, D), what is averaged of how images of one person differ; nothing trains it."""

    within: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("within", torch.zeros(length, length))


def build_expert(backbone: BackboneName, *, norm: bool = False) -> Expert:
    """A textural expert without values."""
    return compnet.TexturalExpert(norm) if backbone == "compnet" else ccnet.TexturalExpert(norm)


def prepare(backbone: BackboneName, images: Tensor) -> Tensor:
    """What experts take of (B, 1, 128, 128) images: CompNet (F, B, 18), CCNet (F, B, 8) phase spectra."""
    return phase_spectrum(images) if backbone == "compnet" else same_spectrum(images)


def take(backbone: BackboneName, prepared: Tensor, index: Tensor) -> Tensor:
    """Of prepared images those at ``index``, (n,) int64."""
    return torch.index_select(prepared, 1, index)
