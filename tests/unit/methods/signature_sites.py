"""Six sites with three backbones and a few small signatures each: what the tests of FedMH share."""

from __future__ import annotations

import hashlib

import numpy as np

from fedpalm.data.signatures import SignatureImages
from fedpalm.methods.fedmh_template import fedmh_template
from fedpalm.plan import Plan

BACKBONES = {
    "amber": "signet",
    "birch": "resnet",
    "cedar": "compnet",
    "delta": "signet",
    "ebony": "resnet",
    "fjord": "compnet",
}


def tiny_signatures(seed, writers=3, genuine=6, forged=4):
    """Closed curves of few harmonics, drawn with a round pen; a forgery misses some of them."""
    rng = np.random.default_rng(seed)
    images, owners, kinds = [], [], []
    for writer in range(writers):
        own = rng.standard_normal((2, 2, 4)) / np.arange(1, 5)
        for kind, count, spread in ((True, genuine, 0.03), (False, forged, 0.25)):
            for _ in range(count):
                images.append(_drawn(own + spread * rng.standard_normal(own.shape)))
                owners.append(writer)
                kinds.append(kind)
    return SignatureImages(
        np.stack(images)[:, None], np.array(owners), np.array(kinds), classes=writers
    )


def _drawn(harmonics):
    at = np.linspace(0, 2 * np.pi, 600)[:, None] * np.arange(1, 5)
    path = np.sin(at) @ harmonics[:, 0].T + np.cos(at) @ harmonics[:, 1].T
    path = np.rint((path - path.min(axis=0)) / np.ptp(path) * 100 + 12).astype(int)
    image = np.zeros((128, 128), np.float32)
    for down in range(-1, 2):
        for right in range(-1, 2):
            image[path[:, 1] + down, path[:, 0] + right] = 1.0
    return image


def fedmh_plan(rounds=2, backbones=BACKBONES, shared=None, training=None, seed=11, **fedmh):
    """Of all trunks, unless ``shared`` names fewer."""
    template = fedmh_template(backbones.values() if shared is None else shared, seed)
    return Plan(
        federation="unit",
        draft={
            "name": "tiny",
            "method": "fedmh",
            "rounds": rounds,
            "seed": seed,
            "reproducible": True,
            "backbones": backbones,
            "training": {"local_epochs": 1, "batch_size": 16, **(training or {})},
            "fedmh": fedmh,
        },
        roster=tuple(backbones),
        layout=tuple(template.layout.to_json()),
        initial_model=hashlib.sha256(template.initial.tobytes()).hexdigest(),
    )
