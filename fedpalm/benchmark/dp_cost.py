"""A step by person against Opacus's own step by record: same records, same model, in turns.

Opacus's way: the network in layers that its hooks can see (our own convolutions with the grad samplers
below), one batch of all records, a gradient of each record kept for every layer, its ``DPOptimizer``. A
record is an image in both views. Our way: :func:`~fedpalm.methods.private.train_privately` as sites run it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from opacus import GradSampleModule
from opacus.grad_sample import register_grad_sampler
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import jacfwd
from torch.nn import functional as F

from ..errors import IntegrityError
from ..methods.base import RoundContext, SiteImages
from ..methods.private import train_privately, units
from ..methods.site import build_site
from ..methods.training import RoundViews, optimiser
from ..models.compnet import CompetitiveBlock, LearnableGabor
from ..models.phase_conv import phase_conv
from ..models.public_head import PublicHead
from ..plan import PrivacySettings, TrainingSettings
from ..privacy.randomness import SecretRandom, SeededRandom

GRADIENT_LIMIT = 1e-2
"""Most that a layer's gradient of one record may differ between the two ways, relative.

Rounding may move the maximum of a pooling window, and its gradient with it.
"""

_SEED, _VIEWS = 7, 2

Tick = Callable[[str, int, int], None]
"""Told what is done, how often it was done, and how often it will be."""


class Load(NamedTuple):
    """A step: people, and records of each."""

    people: int
    records: int
    threads: int = 1

    @property
    def training(self) -> TrainingSettings:
        """One step that takes everybody with all records; no dropout, so that gradients can be compared."""
        privacy = PrivacySettings(
            unit="subject", steps=1, sampling_rate=1.0, population=self.people, records=self.records
        )
        return TrainingSettings(privacy=privacy, dropout=0.0, threads=self.threads)


# --- CompNet in layers that Opacus can see ----------------------------------------------------------


class GaborLayer(nn.Module):
    """Views by number -> responses; the views' spectra lie ready, as they do for a site."""

    def __init__(self, gabor: LearnableGabor, spectrum: Tensor) -> None:
        super().__init__()
        self.gamma, self.sigma, self.frequency = gabor.gamma, gabor.sigma, gabor.frequency
        self._bank, self._spectrum = [gabor], spectrum  # in a list: its scalars are registered once

    def forward(self, views: Tensor) -> Tensor:
        """(B,) numbers -> (B, 9, n, n)."""
        return phase_conv(self._spectrum.index_select(1, views), self._bank[0].kernels())

    def kernels_by_scalar(self) -> Tensor:
        """(3, 9, 1, k, k): derivatives of the kernels in gamma, sigma and frequency."""

        def bank(scalars: Tensor) -> Tensor:
            names = ("gamma", "sigma", "frequency")
            values = dict(zip(names, scalars, strict=True))
            return torch.func.functional_call(_Kernels(self._bank[0]), values)  # type: ignore[no-any-return]

        at = torch.stack([self.gamma, self.sigma, self.frequency]).detach()
        derivatives: Tensor = jacfwd(bank)(at)
        return derivatives.movedim(-1, 0)


class _Kernels(nn.Module):
    """:meth:`LearnableGabor.kernels` as a forward pass, for ``functional_call``."""

    def __init__(self, gabor: LearnableGabor) -> None:
        super().__init__()
        self.gamma, self.sigma, self.frequency = gabor.gamma, gabor.sigma, gabor.frequency
        self.side, self.orientations = gabor.side, gabor.orientations

    def forward(self) -> Tensor:
        return LearnableGabor.kernels(self)  # type: ignore[arg-type]


class Scale(nn.Module):
    """Softmax over the orientations of a x."""

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, responses: Tensor) -> Tensor:
        return torch.softmax(self.scale * responses, dim=1)


class SeenBlock(nn.Module):
    """:class:`CompetitiveBlock`, a layer a step.

    Not channels-last, as ours is: of such inputs Opacus 1.6 gives convolutions wrong gradients, its
    ``unfold2d`` reads them by strides of the other layout.
    """

    def __init__(self, block: CompetitiveBlock, spectrum: Tensor) -> None:
        super().__init__()
        self.gabor = GaborLayer(block.gabor, spectrum)
        self.scale = Scale(block.competition.scale)
        self.mix, self.reduce = block.mix, block.reduce

    def forward(self, views: Tensor) -> Tensor:
        mixed = self.mix(self.scale(self.gabor(views)))
        reduced: Tensor = self.reduce(F.max_pool2d(mixed, 2))
        return reduced.flatten(1)


class SeenModel(nn.Module):
    """(n, 2) numbers of views, a row a record -> (n, 2, 512) embeddings; the parameters are ``model``'s."""

    def __init__(self, model: Any, spectrum: Tensor) -> None:
        super().__init__()
        expert = model.expert
        self.blocks = nn.ModuleList(
            SeenBlock(one, spectrum) for one in (expert.large, expert.medium, expert.small)
        )
        self.embedding = model.embedding

    def forward(self, records: Tensor) -> Tensor:
        features = torch.cat([block(records.flatten()) for block in self.blocks], dim=1)
        embedded: Tensor = self.embedding(features.view(*records.shape, -1))
        return embedded


@register_grad_sampler(GaborLayer)  # type: ignore[untyped-decorator]
def gabor_gradients(
    layer: GaborLayer, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """(B,) a scalar: the convolution is linear in its kernels, so a derivative is one with theirs."""
    spectrum = layer._spectrum.index_select(1, activations[0])
    with torch.no_grad():
        moved = phase_conv(spectrum, layer.kernels_by_scalar().flatten(0, 1))
        by_scalar = moved.view(len(moved), 3, -1, *moved.shape[2:])
        found = torch.einsum("bsohw,bohw->sb", by_scalar, backprops)
    return dict(zip((layer.gamma, layer.sigma, layer.frequency), found, strict=True))


@register_grad_sampler(Scale)  # type: ignore[untyped-decorator]
def scale_gradients(
    layer: Scale, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """(B,): of p = softmax(a x), dp/da = p (x - sum p x)."""
    (responses,) = activations
    with torch.no_grad():
        shares = torch.softmax(layer.scale * responses, dim=1)
        mean = (shares * responses).sum(dim=1, keepdim=True)
        return {layer.scale: (backprops * shares * (responses - mean)).sum(dim=(1, 2, 3))}


# --- the two ways -----------------------------------------------------------------------------------


class Bench:
    """One site, and a copy of it in Opacus's layers; both begin at the same values."""

    def __init__(self, load: Load) -> None:
        torch.set_num_threads(load.threads)
        self.load, self.training = load, load.training
        self.images = _images(load)
        self.site = self._site()
        self.views = RoundViews(self.images, self.training, _SEED)
        self.people = units(self.images, self.training.privacy)
        context = RoundContext(1, 3)
        self.site.begin_round(context, self.site.initial_vector(), self.views)
        self.dropout = torch.Generator()
        self.moved = [p for group in self.site.parameter_groups() for p in group["params"]]
        self.adam = optimiser(*self.site.parameter_groups())

        self.theirs = self._site()
        model = SeenModel(self.theirs.learner.model, self.views.prepared)
        self.seen = GradSampleModule(
            model, loss_reduction="sum"
        ).train()  # or its hooks see nothing
        self.theirs_moved = [p for p in model.parameters() if p.requires_grad]
        self.their_adam = DPOptimizer(
            optimiser({"params": self.theirs_moved, "lr": self.training.learning_rate}),
            noise_multiplier=self.training.privacy.noise_multiplier,
            max_grad_norm=self.training.privacy.clip_norm,
            expected_batch_size=load.people * load.records,
        )
        first = torch.arange(len(self.images.labels))
        self.records = torch.stack([first, first + len(first)], dim=1)

    def by_person(self) -> None:
        """One step as a site makes it, with secret noise."""
        train_privately(
            self.people, self.views, self.training.privacy, SecretRandom(), self.adam,
            lambda batch: self.site.loss(batch, self.dropout), self.site.adjust_gradients,
        )  # fmt: skip

    def by_record(self) -> None:
        """One step of Opacus's, with PyTorch's noise."""
        self.their_adam.zero_grad()
        self.backward_by_record(self.records)
        self.their_adam.step()

    def without(self) -> None:
        """One step of the same batch without differential privacy."""
        self.adam.zero_grad()
        everything = torch.arange(len(self.images.labels))
        self.site.loss(self.views.batch(everything, 0), self.dropout).backward()
        self.adam.step()
        self.adam.zero_grad()

    def backward_by_record(self, records: Tensor) -> None:
        """Leave ``grad_sample`` of each row of ``records`` (n, 2); the loss of one is its views' mean."""
        embedded = self.seen(records).flatten(0, 1)
        labels = torch.from_numpy(self.images.labels)[records[:, 0]].repeat_interleave(_VIEWS)
        head: PublicHead = self.site.learner.head
        losses = F.cross_entropy(head(embedded, labels), head.columns(labels), reduction="sum")
        (losses / _VIEWS).backward()  # type: ignore[no-untyped-call]
        for parameter in self.theirs_moved:
            found: Tensor = parameter.grad_sample  # type: ignore[attr-defined]
            if len(found) == _VIEWS * len(records):  # a layer that sees views, not records
                parameter.grad_sample = found.view(-1, _VIEWS, *found.shape[1:]).sum(1)  # type: ignore[attr-defined]

    def difference(self) -> float:
        """Largest relative difference of a layer's gradient of one record between the two ways."""
        self.theirs.load_shared(self.site.shared_vector())
        self.site.loss(self.views.batch(torch.tensor([0]), 0), self.dropout).backward()
        self.backward_by_record(self.records[:1])
        by_name = dict(self.site.learner.model.named_parameters())
        apart = []
        for name, parameter in self.theirs.learner.model.named_parameters():
            if not parameter.requires_grad:
                continue
            ours, given = by_name[name].grad, parameter.grad_sample[0]
            apart.append(float((ours - given).norm() / ours.norm()))
        self.adam.zero_grad()
        self.their_adam.zero_grad()
        return float(np.max(apart))  # NaN if one is

    def _site(self) -> Any:
        places = SeededRandom(_SEED)
        site: Any = build_site(
            "fedavg", self.training, _SEED, "site-0", self.images, randomness=places
        )
        site.load_shared(site.initial_vector())
        return site


WAYS = {"by person (here)": Bench.by_person, "by record (Opacus)": Bench.by_record,
        "no privacy": Bench.without}  # fmt: skip
OURS, OPACUS, PLAIN = WAYS


def measure_cost(load: Load, repeats: int, tick: Tick) -> dict[str, Any]:
    """Figures of ``repeats`` turns after one that does not count, for ``--json``.

    Raises:
        IntegrityError: the two ways do not give one record the same gradient.
    """
    bench = Bench(load)
    check(difference := bench.difference())
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    busy: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(repeats + 1):
        for way, step in WAYS.items():
            begun, begun_cpu = time.perf_counter(), time.process_time()
            step(bench)
            if turn:
                seconds[way].append(time.perf_counter() - begun)
                busy[way].append(time.process_time() - begun_cpu)
        tick("turns", turn, repeats)
    return {
        "people": load.people,
        "records_each": load.records,
        "threads": load.threads,
        "parameters": sum(parameter.numel() for parameter in bench.moved),
        "repeats": repeats,
        "load_average": os.getloadavg()[0],
        "difference": difference,
        "step_s": {way: _spread(found) for way, found in seconds.items()},
        "step_cpu_s": {way: _spread(found) for way, found in busy.items()},
        "over_opacus": _ratio(seconds[OURS], seconds[OPACUS]),
        "over_opacus_cpu": _ratio(busy[OURS], busy[OPACUS]),
    }


def check(difference: float) -> None:
    """Raise IntegrityError if the two ways train different models."""
    if not difference <= GRADIENT_LIMIT:
        raise IntegrityError(
            f"a record's gradient differs by {difference:.2g} between the two ways, at most "
            f"{GRADIENT_LIMIT:g} is rounding: what would be compared is not the same"
        )


def _images(load: Load) -> SiteImages:
    """Noise: what is on the images costs no time."""
    rng = np.random.default_rng(_SEED)
    labels: npt.NDArray[np.int64] = np.arange(load.people, dtype=np.int64).repeat(load.records)
    images = rng.standard_normal((len(labels), 1, 128, 128), dtype=np.float32)
    return SiteImages(images, labels, load.people)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Inside each turn."""
    return _spread([own / other for own, other in zip(ours, theirs, strict=True)])
