"""Losses and TEIM, one pair, one image, one angle at a time."""

from __future__ import annotations

import math

import numpy as np


def supervised_contrast(embeddings, labels, temperature):
    """Khosla et al. 2020, equation 2, by loops."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(unit)):
        others = [a for a in range(len(unit)) if a != i]
        normaliser = sum(math.exp(unit[i] @ unit[a] / temperature) for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        logs = [math.log(math.exp(unit[i] @ unit[p] / temperature) / normaliser) for p in positives]
        total -= sum(logs) / len(positives)
    return total / len(unit)


def arcface_logits(embeddings, prototypes, labels, scale, margin):
    """s cos(theta + m) for the own class, through the angle itself."""
    logits = np.empty((len(embeddings), len(prototypes)))
    for i, embedding in enumerate(embeddings):
        for c, prototype in enumerate(prototypes):
            cosine = embedding @ prototype / np.linalg.norm(embedding) / np.linalg.norm(prototype)
            theta = math.acos(cosine)
            if c == labels[i]:
                if theta + margin <= math.pi:
                    cosine = math.cos(theta + margin)
                else:
                    cosine -= margin * math.sin(margin)
            logits[i, c] = scale * cosine
    return logits


def teim(anchor, others, neighbours, alpha, beta):
    """FedPalm equations 2 to 5, image by image; also how often each other expert was routed."""
    enhanced = np.empty_like(anchor)
    chosen = np.zeros(len(others), dtype=int)
    for b in range(len(anchor)):
        similarity = [
            anchor[b] @ o[b] / np.linalg.norm(anchor[b]) / np.linalg.norm(o[b]) for o in others
        ]
        best = sorted(range(len(others)), key=lambda i: -similarity[i])[:neighbours]
        chosen[best] += 1
        side = sum(others[i][b] for i in best) / len(best)
        enhanced[b] = alpha * anchor[b] + beta * side
    return enhanced, chosen


def model_contrast(z, z_global, z_previous, temperature):
    """MOON, image by image."""
    total = 0.0
    for own, near, far in zip(z, z_global, z_previous, strict=True):
        similar = [
            math.exp(own @ o / np.linalg.norm(own) / np.linalg.norm(o) / temperature)
            for o in (near, far)
        ]
        total -= math.log(similar[0] / sum(similar))
    return total / len(z)


def mutual_distillation(logits, embeddings):
    """FedKD: both divergences, image by image and class by class, and the mean squared difference."""
    p, q = (np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in logits)
    total = 0.0
    for i in range(len(p)):
        for c in range(p.shape[1]):
            total += p[i, c] * math.log(p[i, c] / q[i, c]) + q[i, c] * math.log(q[i, c] / p[i, c])
    return total / len(p) + np.mean((embeddings[0] - embeddings[1]) ** 2)


def truncated(matrix, energy):
    """By the whole SVD: the matrix of the fewest singular values that keep ``energy``, and how many."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    total, rank = (values**2).sum(), 0
    while (values[:rank] ** 2).sum() < energy * total:
        rank += 1
    return (left[:, :rank] * values[:rank]) @ right[:rank], rank
