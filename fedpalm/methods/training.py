"""What the training of every method has in common: seeds, batches of two views, one learner.

Everything random is drawn from generators seeded by (plan seed, site, round, purpose); no global
generator is read, and nothing random outlives a round. So a round trained again from the same state
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..canonical import domain_hash
from ..data.augment import augment
from ..errors import LayoutMismatchError
from ..losses.hybrid import HybridLoss, hybrid_loss
from ..models.arcface import ArcFace
from ..models.compnet import PalmModel
from ..models.compnet_spec import TEMPLATE_LENGTH
from ..models.phase_conv import phase_spectrum
from ..plan import TrainingSettings
from .base import SiteImages, Tensors

TEMPLATE_BATCH = 64


def derive_seed(seed: int, site: str, round_number: int, purpose: str) -> int:
    """63 bits for one purpose in one round at one site."""
    parts = (seed.to_bytes(8, "big"), site.encode(), round_number.to_bytes(4, "big"))
    digest = domain_hash("training/v1", *parts, purpose.encode())
    return int.from_bytes(digest[:8], "big") >> 1


class Batch(NamedTuple):
    """``spectrum`` (F, 2B, 9) of two augmented views of B images, ``labels`` (2B,)."""

    spectrum: Tensor
    labels: Tensor


def batches(images: SiteImages, training: TrainingSettings, seed: int) -> Iterator[Batch]:
    """All local epochs of a round; an epoch is cut into batches of nearly equal size."""
    rng = np.random.Generator(np.random.PCG64(seed))
    count = len(images.labels)
    for _ in range(training.local_epochs):
        order = rng.permutation(count)
        for chosen in np.array_split(order, -(-count // training.batch_size)):
            picked = images.images[chosen]
            views = np.concatenate([augment(picked, rng), augment(picked, rng)])
            labels = np.concatenate([images.labels[chosen]] * 2)
            yield Batch(phase_spectrum(torch.tensor(views)), torch.tensor(labels))


class Learner:
    """A model with its head; a new optimiser every round (its moments are not carried over)."""

    def __init__(self, model: PalmModel, training: TrainingSettings, classes: int) -> None:
        self.model = model
        self.head = ArcFace(
            classes, TEMPLATE_LENGTH, training.arcface_scale, training.arcface_margin
        )
        self.training = training
        self._losses: list[tuple[float, float, float]] = []

    def draw_head(self, seed: int) -> None:
        """Random prototypes, from this site's seed."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.prototypes.normal_(0.0, TEMPLATE_LENGTH**-0.5, generator=generator)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters; alpha and beta of the TEIM at their own learning rate."""
        fusion = list(self.model.teim.parameters()) if self.model.teim else []
        rest = [
            parameter
            for module in (self.model.expert, self.model.embedding, self.head)
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": self.training.learning_rate}]
        if fusion:
            groups.append({"params": fusion, "lr": self.training.fusion_learning_rate})
        return groups

    def loss(self, feature: Tensor, labels: Tensor, dropout: torch.Generator) -> HybridLoss:
        """Hybrid loss of (2B, 9708) textural features; dropout acts before the head only."""
        embedding = self.model.embed(feature)
        keep = 1 - self.training.dropout
        mask = torch.empty_like(embedding).bernoulli_(keep, generator=dropout) / keep
        loss = hybrid_loss(self.head(embedding * mask, labels), embedding, labels, self.training)
        self._losses.append((loss.total.item(), loss.cross_entropy.item(), loss.contrast.item()))
        return loss

    def take_losses(self, prefix: str) -> dict[str, float]:
        """Mean losses since the last call, as metrics."""
        means = np.mean(self._losses, axis=0)
        self._losses.clear()
        names = ("loss", "cross_entropy", "contrast")
        return {f"{prefix}.{name}": float(mean) for name, mean in zip(names, means, strict=True)}


def fit(
    learner: Learner, images: SiteImages, seed: int, site: str, round_number: int
) -> dict[str, float]:
    """Train one model alone for a round, in place; returns metrics."""
    training = learner.training
    torch.set_num_threads(training.threads)
    adam = optimiser(learner)
    dropout = torch.Generator().manual_seed(derive_seed(seed, site, round_number, "dropout"))
    for batch in batches(images, training, derive_seed(seed, site, round_number, "batches")):
        adam.zero_grad()
        feature = learner.model.expert(batch.spectrum)
        learner.loss(feature, batch.labels, dropout).total.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return learner.take_losses("open")


def optimiser(*learners: Learner) -> torch.optim.Optimizer:
    """One Adam over all trainable parameters of the learners."""
    groups = [group for learner in learners for group in learner.parameter_groups()]
    return torch.optim.Adam(groups, fused=True)


def unit(embeddings: Tensor) -> npt.NDArray[np.float32]:
    """L2-normalised (N, 512) templates as an array."""
    normalised: npt.NDArray[np.float32] = F.normalize(embeddings).numpy()
    return normalised


def plain_templates(
    model: PalmModel, images: npt.NDArray[np.float32], threads: int
) -> npt.NDArray[np.float32]:
    """(N, 512) templates of a model without TEIM."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        parts = [unit(model.embed(model.expert(spectrum))) for spectrum in spectra(images)]
    return stack(parts, TEMPLATE_LENGTH)


def spectra(images: npt.NDArray[np.float32]) -> Iterator[Tensor]:
    """Phase spectra of (N, 1, 128, 128) images, TEMPLATE_BATCH at a time."""
    for begin in range(0, len(images), TEMPLATE_BATCH):
        yield phase_spectrum(torch.tensor(images[begin : begin + TEMPLATE_BATCH]))


def stack(parts: list[npt.NDArray[np.float32]], length: int) -> npt.NDArray[np.float32]:
    """Concatenate batches of templates; of no images it is (0, length)."""
    return np.concatenate([np.empty((0, length), np.float32), *parts])


def check_names(tensors: Mapping[str, object], prefixes: Iterable[str]) -> None:
    """Raise LayoutMismatchError for a tensor that begins with none of the prefixes."""
    known = tuple(prefixes)
    foreign = sorted(name for name in tensors if not name.startswith(known))
    if foreign:
        raise LayoutMismatchError(f"foreign tensors in a site's state: {', '.join(foreign[:5])}")


def export_tensors(module: nn.Module, prefix: str) -> Tensors:
    """Copies of a module's parameters by prefixed name."""
    return {
        prefix + name: parameter.detach().numpy().copy()
        for name, parameter in module.named_parameters()
    }


def import_tensors(module: nn.Module, prefix: str, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copy tensors into a module; names beyond the prefix are not looked at.

    Raises:
        LayoutMismatchError: a parameter is missing, foreign, or of another shape or dtype.
    """
    parameters = dict(module.named_parameters())
    given = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if given != set(parameters):
        odd = sorted(given ^ set(parameters))
        raise LayoutMismatchError(f"{prefix}* tensors differ from the model: {', '.join(odd[:5])}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            array = tensors[prefix + name]
            if array.dtype != np.float32 or array.shape != tuple(parameter.shape):
                raise LayoutMismatchError(
                    f"{prefix}{name}: got {array.dtype} {array.shape}, "
                    f"model float32 {tuple(parameter.shape)}"
                )
            parameter.copy_(torch.tensor(array))
