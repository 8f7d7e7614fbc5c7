"""FedKD: a private teacher and a shared student that learn from each other; updates of low rank.

Source: Wu et al. 2022, Nature Communications 13:2032 (arXiv:2108.13415). With L_t, L_s the
task losses (here eq 10 of FedPalm), p the class probabilities and z the embeddings, a step minimises

    L_t + L_s + (KL(p_s | p_t) + KL(p_t | p_s) + MSE(z_t, z_s)) / (L_t + L_s)

The student's update is cut, tensor by tensor, to the fewest singular values that keep T of its energy
(sum of squares), T rising linearly from ``fedkd_energy_start`` to ``fedkd_energy_end`` over the rounds.

Shared: the student, with weights n_i as in FedAvg. Stays at the site: the teacher and both heads. Our
readings: each learns from the other's p as from a constant, and the denominator is a constant; both
have one shape, so z needs no projection; tensors of other than two dimensions are not cut (1/220 of the
model); closed-set templates are the teacher's, open-set ones the student's. The sum of low-rank
updates has no low rank, and masked factors do not add: what travels is the dense update, always. What its
factors would have been is a metric, ``svd.floats``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import FloatVector
from .base import RoundContext, SiteUpdate
from .pair import PairSite
from .training import Batch, Outputs, RoundViews


def mutual_distillation(one: Outputs, other: Outputs) -> Tensor:
    """KL(p_2 | p_1) + KL(p_1 | p_2), targets held constant, batch means; and MSE of the embeddings."""
    logs = [F.log_softmax(outputs.logits, dim=1) for outputs in (one, other)]
    divergence = sum(
        F.kl_div(learns, teaches.detach(), reduction="batchmean", log_target=True)
        for learns, teaches in (logs, reversed(logs))
    )
    return divergence + F.mse_loss(one.embedding, other.embedding)


def truncate(matrix: FloatVector, energy: float) -> tuple[FloatVector, int]:
    """The matrix of least rank with at least ``energy`` of a matrix's squared singular values.

    From the eigenvectors U of the Gram matrix of the shorter side, U_k U_k^T M: as the SVD gives it, at
    the cost of two products and one small eigenproblem.

    Args:
        matrix: (m, n) float32.
        energy: in (0, 1].

    Returns:
        (m, n) float32 and its rank k.
    """
    if matrix.shape[0] > matrix.shape[1]:
        lying, rank = truncate(matrix.T, energy)
        return lying.T, rank
    exact = torch.from_numpy(np.ascontiguousarray(matrix)).double()
    values, vectors = torch.linalg.eigh(exact @ exact.T)
    kept = values.clamp(min=0).flip(0).cumsum(0)
    rank = int((kept < energy * kept[-1]).sum()) + 1 if kept[-1] > 0 else 0
    basis = vectors[:, len(values) - rank :]
    found: FloatVector = (basis @ (basis.T @ exact)).float().numpy()
    return found, rank


class FedKDSite(PairSite):
    """One site's half; the shared model is the student."""

    method = "fedkd"

    def begin_round(self, context: RoundContext, shared: FloatVector, views: RoundViews) -> None:
        super().begin_round(context, shared, views)
        begin, end = self.training.fedkd_energy_start, self.training.fedkd_energy_end
        self._energy = begin + (end - begin) * (context.round - 1) / max(context.rounds - 1, 1)

    def loss(self, batch: Batch, dropout: torch.Generator) -> Tensor:
        student = self.outputs(batch, dropout)
        feature = self.own.model.expert(batch.inputs)
        teacher = self.own.outputs(feature, batch.labels, self.own_dropout)
        tasks = self.learner.loss(student, batch.labels) + self.own.loss(teacher, batch.labels)
        return tasks + mutual_distillation(student, teacher) / tasks.detach()

    def update(self, delta: FloatVector, steps: int, metrics: dict[str, float]) -> SiteUpdate:
        tensors, floats = self.layout.unflatten(delta), 0
        for name, tensor in tensors.items():
            as_factors = tensor.size
            if tensor.ndim == 2:
                tensors[name], rank = truncate(tensor, self._energy)
                as_factors = min(as_factors, rank * (sum(tensor.shape) + 1))
                metrics[f"svd.rank.{name}"] = float(rank)
            floats += as_factors
        metrics["svd.floats"] = float(floats)
        return super().update(self.layout.flatten(tensors), steps, metrics)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.templates(images, shared, self.own_embed)
