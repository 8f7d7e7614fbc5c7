"""What the training of every method has in common: seeds, views of a round, one learner.

Everything random is drawn from generators seeded by (plan seed, site, round, purpose); no global
generator is read, and nothing random outlives a round. So a round trained again from the same state
gives the same bytes, unless its plan asks for differential privacy (:mod:`.private`).
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
from ..losses.hybrid import hybrid_loss
from ..models.arcface import ArcFace
from ..models.build import PalmModel, prepare, take
from ..models.public_head import PublicHead
from ..plan import BackboneName, TrainingSettings
from .base import SiteImages, Tensors

TEMPLATE_BATCH = 64

Head = ArcFace | PublicHead


def derive_seed(seed: int, site: str, round_number: int, purpose: str) -> int:
    """63 bits for one purpose in one round at one site."""
    parts = (seed.to_bytes(8, "big"), site.encode(), round_number.to_bytes(4, "big"))
    digest = domain_hash("training/v1", *parts, purpose.encode())
    return int.from_bytes(digest[:8], "big") >> 1


class Batch(NamedTuple):
    """Two views of B images: ``inputs`` as the expert takes them, ``labels`` (2B,), ``views`` (2B,).

    ``views`` are the positions in :attr:`RoundViews.prepared`.
    """

    inputs: Tensor
    labels: Tensor
    views: Tensor


class RoundViews:
    """The augmented views of a round: ``training.views`` pairs of every image, made once.

    ``prepared`` holds all of them as the expert takes them, so that what does not change in the round
    (the input's spectrum, features of frozen experts) is computed once a view, not once an epoch.
    """

    def __init__(self, images: SiteImages, training: TrainingSettings, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._training = training
        self._count = len(images.labels)
        self._labels = torch.tensor(images.labels)
        private = training.privacy.unit != "none"
        turns = training.privacy.steps if private else training.local_epochs
        pairs = self._pairs = min(training.views, turns)
        views = [augment(images.images, self._rng) for _ in range(2 * pairs)]
        self.prepared = prepare(training.backbone, torch.tensor(np.concatenate(views)))
        self.size = 2 * pairs * self._count

    def take(self, views: Tensor) -> Tensor:
        """The prepared views at (n,) positions."""
        return take(self._training.backbone, self.prepared, views)

    def all(self) -> Iterator[Tensor]:
        """Every prepared view once, TEMPLATE_BATCH at a time, in the order of :attr:`labels`."""
        for part in torch.split(torch.arange(self.size), TEMPLATE_BATCH):
            yield self.take(part)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(size,) of all views."""
        return np.tile(self._labels.numpy(), self.size // self._count)

    def batches(self) -> Iterator[Batch]:
        """All local epochs of a round; an epoch is cut into batches of nearly equal size."""
        count, training = self._count, self._training
        for epoch in range(training.local_epochs):
            order = torch.from_numpy(self._rng.permutation(count))
            for chosen in order.tensor_split(-(-count // training.batch_size)):
                yield self.batch(chosen, epoch)

    def batch(self, chosen: Tensor, turn: int) -> Batch:
        """Both views of the (n,) images ``chosen``, of the pair whose turn it is."""
        first = 2 * self._count * (turn % self._pairs)
        views = torch.cat([first + chosen, first + self._count + chosen])
        return Batch(self.take(views), self._labels[chosen].repeat(2), views)


class Outputs(NamedTuple):
    """``embedding`` (2B, D), not normalised; ``logits`` (2B, C) of the head, behind dropout."""

    embedding: Tensor
    logits: Tensor


class Learner:
    """A model with its head; a new optimiser every round (its moments are not carried over)."""

    def __init__(self, model: PalmModel, head: Head, training: TrainingSettings) -> None:
        self.model, self.head, self.training = model, head, training
        self._losses: list[tuple[float, ...]] = []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters; alpha and beta of the TEIM at their own learning rate."""
        scalars = self.model.teim.parameters() if self.model.teim else ()
        fusion = [parameter for parameter in scalars if parameter.requires_grad]
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

    def outputs(self, feature: Tensor, labels: Tensor, dropout: torch.Generator) -> Outputs:
        """Of (2B, feature_length) textural features."""
        return self.judge(self.model.embed(feature), labels, dropout)

    def judge(self, embedding: Tensor, labels: Tensor, dropout: torch.Generator) -> Outputs:
        """Of (2B, D) embeddings; dropout acts before the head only."""
        keep = 1 - self.training.dropout
        mask = torch.empty_like(embedding).bernoulli_(keep, generator=dropout) / keep
        return Outputs(embedding, self.head(embedding * mask, labels))

    def loss(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """The hybrid loss (eq 10)."""
        columns = self.head.columns(labels)
        loss = hybrid_loss(outputs.logits, outputs.embedding, columns, self.training)
        self._losses.append((loss.total.item(), loss.cross_entropy.item(), loss.contrast.item()))
        return loss.total

    def take_losses(self, prefix: str) -> dict[str, float]:
        """Mean losses since the last call, as metrics; none if there were none."""
        if not self._losses:
            return {}
        means = np.mean(self._losses, axis=0)
        self._losses.clear()
        names = ("loss", "cross_entropy", "contrast")
        return {f"{prefix}.{name}": float(mean) for name, mean in zip(names, means, strict=True)}


def drawn_head(classes: int, length: int, training: TrainingSettings, seed: int) -> ArcFace:
    """Random prototypes, from a site's seed."""
    head = ArcFace(classes, length, training.arcface_scale, training.arcface_margin)
    with torch.no_grad():
        head.prototypes.normal_(0.0, length**-0.5, generator=torch.Generator().manual_seed(seed))
    return head


def optimiser(*groups: dict[str, Any]) -> torch.optim.Optimizer:
    """One Adam over all groups."""
    return torch.optim.Adam(list(groups), fused=True)


def generator(seed: int, site: str, round_number: int, purpose: str) -> torch.Generator:
    """Of a round, for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, site, round_number, purpose))


def unit(embeddings: Tensor) -> npt.NDArray[np.float32]:
    """L2-normalised (N, D) templates as an array."""
    normalised: npt.NDArray[np.float32] = F.normalize(embeddings).numpy()
    return normalised


def prepared_batches(backbone: BackboneName, images: npt.NDArray[np.float32]) -> Iterator[Tensor]:
    """(N, 1, 128, 128) images as experts take them, TEMPLATE_BATCH at a time."""
    for begin in range(0, len(images), TEMPLATE_BATCH):
        yield prepare(backbone, torch.tensor(images[begin : begin + TEMPLATE_BATCH]))


def stack(parts: list[npt.NDArray[np.float32]], length: int) -> npt.NDArray[np.float32]:
    """Concatenate batches of templates; of no images it is (0, length)."""
    return np.concatenate([np.empty((0, length), np.float32), *parts])


def check_names(tensors: Mapping[str, object], prefixes: Iterable[str]) -> None:
    """Raise LayoutMismatchError for a tensor that begins with none of the prefixes."""
    known = tuple(prefixes)
    foreign = sorted(name for name in tensors if not name.startswith(known))
    if foreign:
        raise LayoutMismatchError(f"foreign tensors in a site's state: {', '.join(foreign[:5])}")


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, running statistics and places of a module by name."""
    return dict(module.named_parameters()) | {
        name: buffer
        for name, buffer in module.named_buffers()
        if not name.endswith("num_batches_tracked")
    }


def export_tensors(module: nn.Module, prefix: str) -> Tensors:
    """Copies of a module's tensors by prefixed name."""
    return {
        prefix + name: tensor.detach().numpy().copy()
        for name, tensor in named_tensors(module).items()
    }


def import_tensors(module: nn.Module, prefix: str, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copy tensors into a module; names beyond the prefix are not looked at.

    Raises:
        LayoutMismatchError: a tensor is missing, foreign, or of another shape or dtype.
    """
    import_into(named_tensors(module), prefix, tensors)


def import_into(
    targets: Mapping[str, Tensor], prefix: str, tensors: Mapping[str, npt.NDArray[Any]]
) -> None:
    """As :func:`import_tensors`, into exactly these tensors."""
    given = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if given != set(targets):
        odd = sorted(given ^ set(targets))
        raise LayoutMismatchError(f"{prefix}* tensors differ from the model: {', '.join(odd[:5])}")
    with torch.no_grad():
        for name, target in targets.items():
            array, own = tensors[prefix + name], target.detach().numpy()
            if array.dtype != own.dtype or array.shape != own.shape:
                raise LayoutMismatchError(
                    f"{prefix}{name}: got {array.dtype} {array.shape}, "
                    f"model {own.dtype} {own.shape}"
                )
            target.copy_(torch.tensor(array))
