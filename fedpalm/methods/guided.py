"""Optimiser steps on two losses of one representation, and what is logged of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..fedmh_settings import FedMHSettings
from ..losses.guidance import Guidance, guide
from ..models.signature import SignatureModel
from .training import optimiser
from .two_tasks import TaskLosses


class GuidedSteps:
    """One Adam over representation, detection head and head of writers, new every round.

    Each head follows its own task's gradient; trunk and projection follow both, combined by
    :func:`~fedpalm.losses.guidance.guide`. Adam then scales every value by itself: what guidance
    promises is of the gradient that Adam is given, not of Adam's step.
    """

    def __init__(
        self, model: SignatureModel, head: nn.Module, learning_rate: float, settings: FedMHSettings
    ) -> None:
        self._settings = settings
        self._representation = model.representation()
        self._heads = {"user": list(head.parameters()), "forged": list(model.task.parameters())}
        weight = settings.detection_weight
        self._weights = {"user": 1 - weight, "forged": weight}
        everything = [*self._representation, *self._heads["user"], *self._heads["forged"]]
        self._adam = optimiser({"params": everything, "lr": learning_rate})
        self._guided: list[Guidance] = []
        self._losses: dict[str, list[float]] = {"user": [], "forged": []}

    def take(self, losses: TaskLosses) -> None:
        """One step; a task whose loss is None has no part in it, and without both there is none."""
        self._adam.zero_grad()
        gradients = {
            name: gradient
            for name, loss in losses._asdict().items()
            if (gradient := self._gradient(name, loss)) is not None
        }
        if not gradients:
            return
        for parameter, found in zip(self._representation, self._combined(gradients), strict=True):
            parameter.grad = found
        self._adam.step()

    def metrics(self) -> dict[str, float]:
        """Mean losses, cosine and weight of the steps, and how many of them were opposed."""
        found = {f"loss.{name}": float(np.mean(one)) for name, one in self._losses.items() if one}
        if self._guided:
            cosines = [one.cosine for one in self._guided]
            found |= {
                "guidance.cosine": float(np.mean(cosines)),
                "guidance.cosine_min": min(cosines),
                "guidance.opposed": float(np.mean([one.opposed for one in self._guided])),
                "guidance.user_weight": float(np.mean([one.user_weight for one in self._guided])),
            }
        return found

    def _gradient(self, name: str, loss: Tensor | None) -> list[Tensor] | None:
        """Of the representation; the head of the task gets its own here."""
        if loss is None:
            return None
        self._losses[name].append(loss.item())
        head, count = self._heads[name], len(self._representation)
        # The other task's gradient runs through the same graph.
        found = torch.autograd.grad(loss, [*self._representation, *head], retain_graph=True)
        for parameter, gradient in zip(head, found[count:], strict=True):
            parameter.grad = self._weights[name] * gradient
        return list(found[:count])

    def _combined(self, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
        if len(gradients) == 1:
            ((name, alone),) = gradients.items()
            return [self._weights[name] * gradient for gradient in alone]
        both = gradients["user"], gradients["forged"]
        opposed = self._settings.guidance == "minimum-norm"
        guidance = guide(*both, self._settings.detection_weight, opposed=opposed)
        self._guided.append(guidance)
        return guidance.combined(*both)
