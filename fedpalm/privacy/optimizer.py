"""DP-SGD with a person for a sample: Opacus's optimiser, fed by one backward pass a person.

    g = sum_i min(1, C / |g_i|) g_i + N(0, (sigma C)^2),   each g_i of one person alone, over all parameters

and the step is that of g / (q N). Source: Abadi et al. 2016, arXiv:1607.00133; Opacus keeps the sums
(``summed_grad``), divides, and makes the step. Norms and sums are float64: in float32 a sum would depend
on the order of its terms by more than one person may move it (Casacuberta et al. 2022,
arXiv:2207.10635).

Importing this imports Opacus, which takes seconds: only what trains privately does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from ..errors import StateError
from ..plan import PrivacySettings
from .randomness import Randomness

_BLOCK = 1 << 15
"""Values that are turned to float64 at a time: they stay inside the cache."""


class PersonOptimizer(DPOptimizer):  # type: ignore[misc]
    """Of one round: for each step :meth:`add` everybody who was drawn, then :meth:`step`.

    What a step moves is noised, whether anybody was drawn or not, and nothing else is moved. A step leaves
    no gradient, sum or noise behind.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, privacy: PrivacySettings, randomness: Randomness
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.clip_norm,
            expected_batch_size=privacy.sampling_rate * privacy.population,
        )
        self._randomness = randomness
        self._added: set[int] = set()
        self.left_out = 0
        """Gradients that were not finite, in all steps; stays at the site."""

    def add(self, person: int, loss: Tensor) -> None:
        """The backward pass of one person's ``loss``; what it gives is clipped and added.

        A gradient that is not finite counts as zero: to stop here would tell everybody that this person is
        there.

        Raises:
            StateError: the person was added in this step already, or there are gradients of others.
        """
        if person in self._added:
            raise StateError(
                "a person's images came in two batches of one step: each would be clipped alone, and "
                "the person would count twice",
                safe="the step was not made",
                next_step="give all images of a person in one batch",
            )
        self._refuse_stray_gradients()
        self._added.add(person)
        loss.backward()  # type: ignore[no-untyped-call]
        self.clip_and_accumulate()

    def clip_and_accumulate(self) -> None:
        """Take the gradients that one person's backward pass left as one vector, and clip it."""
        taken = [(p, p.grad) for p in self.params if p.grad is not None]
        norm = math.sqrt(sum(_squared_norm(gradient) for _, gradient in taken))
        scale = min(1.0, self.max_grad_norm / norm) if norm > 0 else 1.0
        if not math.isfinite(norm):
            self.left_out += 1
            taken = []
        for parameter, gradient in taken:
            _add_scaled(self._sum(parameter), gradient, scale)
        self.original_optimizer.zero_grad(set_to_none=True)

    def add_noise(self) -> None:
        """The sums with noise become the gradients."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noised = self._randomness.normal(parameter.shape, std).add_(self._sum(parameter))
            parameter.grad = noised.to(parameter.dtype)

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Noise and division; Opacus would clip here, which is done."""
        self._refuse_stray_gradients()
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Move the parameters by what was added since the last step, noised."""
        if closure is not None:
            raise TypeError("a closure's gradient is nobody's: give it to add()")
        super().step()
        self.zero_grad(set_to_none=True)
        self._added.clear()

    @property
    def accumulated_iterations(self) -> int:
        """Always 1: a step is divided by the declared q N, however many were drawn."""
        return 1

    def signal_skip_step(self, do_skip: bool = True) -> NoReturn:
        """Raise StateError: Opacus's ``BatchMemoryManager`` cuts batches anywhere."""
        raise StateError(
            "a batch cannot be cut for memory: a person in two parts would count twice",
            safe="nothing was added",
            next_step="set training.privacy.records lower in the plan",
        )

    def _sum(self, parameter: Tensor) -> Tensor:
        """Of what was added in this step, float64."""
        found: Tensor | None = parameter.summed_grad  # type: ignore[attr-defined]
        if found is None:
            found = torch.zeros_like(parameter, dtype=torch.float64, requires_grad=False)
            parameter.summed_grad = found  # type: ignore[attr-defined]
        return found

    def _refuse_stray_gradients(self) -> None:
        if any(parameter.grad is not None for parameter in self.params):
            raise StateError(
                "a gradient is there that add() did not clip",
                safe="the step was not made",
                next_step="give every loss to add(), and call no backward pass elsewhere",
            )


def _squared_norm(gradient: Tensor) -> float:
    """In float64."""
    total = 0.0
    for part in torch.split(gradient.reshape(-1), _BLOCK):
        exact = part.double()
        total += torch.dot(exact, exact).item()
    return total


def _add_scaled(total: Tensor, gradient: Tensor, scale: float) -> None:
    """total += scale * gradient, in float64."""
    parts = (torch.split(tensor.reshape(-1), _BLOCK) for tensor in (total, gradient))
    for into, part in zip(*parts, strict=True):
        into.add_(part.double(), alpha=scale)
