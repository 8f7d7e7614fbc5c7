"""The training path with a model whose gradients the auditor chooses.

The model is one vector w. A record (j, v) has the loss v w_j, so its gradient is v e_j, and a person's is
the mean of its records'. Draws, records, clipping, sum, noise and division are the real ones
(:func:`~fedpalm.methods.private.train_privately`); the optimiser behind them writes down what it is given
and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..methods.private import train_privately
from ..methods.site import build_site
from ..methods.training import Batch, RoundViews
from ..plan import PrivacySettings
from ..privacy import optimizer as optimizer_module
from ..privacy.randomness import Randomness, SecretRandom

Person = Sequence[tuple[int, float]]
"""Records of one person: the coordinate that each one's gradient has, and its value there."""

Released = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TrainingPath:
    """What is audited: the product's own parts, unless an injected bug takes the place of one."""

    train: Callable[..., dict[str, float]] = train_privately
    randomness: Callable[[], Randomness] = SecretRandom
    optimizer: type[optimizer_module.PersonOptimizer] = optimizer_module.PersonOptimizer
    build: Callable[..., Any] = build_site

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Every training uses this optimiser."""
        with patch.object(optimizer_module, "PersonOptimizer", self.optimizer):
            yield

    def released(self, people: Sequence[Person], length: int, privacy: PrivacySettings) -> Released:
        """(steps, length): the noised gradients of a round, times q N, as sums over people."""
        weights = torch.nn.Parameter(torch.zeros(length))
        recorder = Recorder([weights])
        records = _Records(people)
        with self.in_place():
            self.train(
                records.positions,
                cast(RoundViews, records),
                privacy,
                self.randomness(),
                recorder,
                lambda batch: records.loss(batch, weights),
                lambda: None,
            )
        expected = privacy.sampling_rate * privacy.population
        return expected * np.stack([one.double().numpy() for one in recorder.given])


class Recorder(torch.optim.Optimizer):
    """Keeps every gradient that it is given, all parameters as one vector, and moves nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.given: list[Tensor] = []

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.given.append(
            torch.cat(
                [
                    torch.zeros(p.numel())
                    if p.grad is None
                    else p.grad.detach().reshape(-1).clone()
                    for group in self.param_groups
                    for p in group["params"]
                ]
            )
        )


class _Records:
    """In the place of a round's views: a batch is the positions of its records."""

    def __init__(self, people: Sequence[Person]) -> None:
        sizes = [len(person) for person in people]
        ends = np.cumsum(sizes)
        self.positions = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        rows = [record for person in people for record in person]
        self._coordinates = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        self._values = torch.tensor([row[1] for row in rows], dtype=torch.float32)

    def batch(self, chosen: Tensor, _turn: int) -> Batch:
        return Batch(chosen, chosen, chosen)

    def loss(self, batch: Batch, weights: Tensor) -> Tensor:
        return (self._values[batch.views] * weights[self._coordinates[batch.views]]).mean()
