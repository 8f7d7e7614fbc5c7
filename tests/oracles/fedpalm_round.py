"""A FedPalm round at a site after the warm-up, written down plainly from the paper.

Direct convolutions with stride 3; every expert sees every batch, once for each of the two models; one
autograd graph, ``torch.optim.Adam`` as it comes. Seeds, augmented views and the order of the images are
those of :mod:`fedpalm.methods.fedpalm`, so that both end at the same model. It is also what
``fedpalm bench train`` measures against.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from fedpalm.data.augment import augment
from fedpalm.methods.training import derive_seed

from .compnet import textural_feature


class PlainRound(NamedTuple):
    """Tensors by name as the site's method names them, and the mean losses of both models."""

    shared: dict[str, np.ndarray]
    private: dict[str, np.ndarray]
    losses: dict[str, float]


def fedpalm_round(training, seed, site, number, images, shared, state, *, share_features=False):
    """Train one round with the TEIM on and the closed-set expert frozen.

    Args:
        training, seed, site, number: settings, the plan's seed, the site's name, the round's number.
        images: the site's ``SiteImages``.
        shared: ``open_set.*`` tensors by name; ``state``: what the site keeps, as ``state()`` gives it.
        share_features: every expert sees a batch once, and both models take its features.
    """
    torch.set_num_threads(training.threads)
    names = [name for name in state if not name.startswith("progress.")]
    tensors = {name: torch.tensor(state[name]) for name in names}
    tensors |= {name: torch.tensor(value) for name, value in shared.items()}
    experts = sorted({name.split(".")[1] for name in names if name.startswith("received.")})
    pool = {other: f"received.{other}.expert." for other in experts}
    pool |= {site: "closed_set.expert.", "_global": "open_set.expert."}

    fusion, rest = [], []
    for name, tensor in tensors.items():
        frozen = name.startswith(("received.", "closed_set.expert.")) or name.endswith(".shift")
        tensor.requires_grad_(not frozen)
        if not frozen:
            (fusion if ".teim." in name else rest).append(tensor)
    adam = torch.optim.Adam(
        [
            {"params": rest, "lr": training.learning_rate},
            {"params": fusion, "lr": training.fusion_learning_rate},
        ]
    )
    dropout = {
        "open": _generator(seed, site, number, "dropout"),
        "closed": _generator(seed, site, number, "dropout-closed"),
    }
    losses = {"open": [], "closed": []}

    for inputs, labels in _batches(training, seed, site, number, images):
        adam.zero_grad()
        features = None
        for model, anchor in (("open", "_global"), ("closed", site)):
            if features is None or not share_features:
                features = {
                    name: textural_feature(tensors, prefix, inputs) for name, prefix in pool.items()
                }
            feature = _teim(
                features[anchor],
                [features[name].detach() for name in sorted(pool) if name != anchor],
                training.teim_neighbours,
                tensors[f"{model}_set.teim.alpha"],
                tensors[f"{model}_set.teim.beta"],
            )
            embedding = F.linear(
                feature,
                tensors[f"{model}_set.embedding.weight"],
                tensors[f"{model}_set.embedding.bias"],
            )
            keep = 1 - training.dropout
            mask = torch.empty_like(embedding).bernoulli_(keep, generator=dropout[model]) / keep
            logits = _arcface(
                embedding * mask, tensors[f"head.{model}.prototypes"], labels, training
            )
            cross_entropy = F.cross_entropy(logits, labels)
            contrast = _contrast(embedding, labels, training.contrast_temperature)
            loss = (
                training.cross_entropy_weight * cross_entropy + training.contrast_weight * contrast
            )
            loss.backward()
            losses[model].append((loss.item(), cross_entropy.item(), contrast.item()))
        adam.step()

    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    means = {
        f"{model}.{name}": float(mean)
        for model, every in losses.items()
        for name, mean in zip(
            ("loss", "cross_entropy", "contrast"), np.mean(every, axis=0), strict=True
        )
    }
    return PlainRound(
        {name: arrays[name] for name in shared}, {name: arrays[name] for name in names}, means
    )


def _generator(seed, site, number, purpose):
    return torch.Generator().manual_seed(derive_seed(seed, site, number, purpose))


def _batches(training, seed, site, number, images):
    """Two views of each image under one label, in batches of nearly equal size."""
    rng = np.random.Generator(np.random.PCG64(derive_seed(seed, site, number, "batches")))
    pairs = min(training.views, training.local_epochs)
    views = [augment(images.images, rng) for _ in range(2 * pairs)]
    count = len(images.labels)
    for epoch in range(training.local_epochs):
        first, second = views[2 * (epoch % pairs)], views[2 * (epoch % pairs) + 1]
        order = rng.permutation(count)
        for chosen in np.array_split(order, -(-count // training.batch_size)):
            inputs = np.concatenate([first[chosen], second[chosen]])
            labels = np.tile(images.labels[chosen], 2)
            yield torch.tensor(inputs), torch.tensor(labels)


def _teim(anchor, others, neighbours, alpha, beta):
    """Equations 2 to 5."""
    every = torch.stack(others)
    similarity = F.cosine_similarity(anchor.detach()[None], every, dim=2)
    nearest = similarity.topk(min(neighbours, len(others)), dim=0).indices
    side = torch.gather(every, 0, nearest[:, :, None].expand(-1, -1, every.shape[2])).mean(dim=0)
    return alpha * anchor + beta * side


def _arcface(embedding, prototypes, labels, training):
    """s cos(theta + m) for the own class, through the angle."""
    cosines = F.normalize(embedding) @ F.normalize(prototypes).T
    own = F.one_hot(labels, len(prototypes)).bool()
    theta = torch.acos(cosines.clamp(-1 + 1e-6, 1 - 1e-6))
    margin = torch.tensor(training.arcface_margin)
    beyond = cosines - margin * torch.sin(margin)
    shifted = torch.where(theta + margin <= torch.pi, torch.cos(theta + margin), beyond)
    return training.arcface_scale * torch.where(own, shifted, cosines)


def _contrast(embedding, labels, temperature):
    """Supervised contrastive loss: mean log-probability of the other rows with one's label."""
    unit = F.normalize(embedding)
    itself = torch.eye(len(labels), dtype=torch.bool)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    log_probability = F.log_softmax(similarity, dim=1).masked_fill(itself, 0)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    return -((log_probability * positive).sum(dim=1) / positive.sum(dim=1)).mean()
