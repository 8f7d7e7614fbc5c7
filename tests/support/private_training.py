"""A round of private training, looked at before the noise: what neighbouring sites would differ in."""

from __future__ import annotations

import numpy as np
import torch

from fedpalm.methods.base import RoundContext, SiteImages
from fedpalm.methods.site import build_site
from fedpalm.plan import PrivacySettings, TrainingSettings
from fedpalm.privacy.randomness import SeededRandom

ROUNDING = 1 + 1e-6


class Noiseless(SeededRandom):
    """Seeded, without noise; ``only`` these people are drawn, or all of them."""

    def __init__(self, seed=1, only=None):
        super().__init__(seed)
        self.only = only

    def normal(self, shape, std):
        return torch.zeros(tuple(shape), dtype=torch.float64)

    def chosen(self, count, rate):
        if self.only is None:
            return np.ones(count, bool)
        return np.isin(np.arange(count), self.only)


def private(training=None, **privacy):
    """Training settings for one step that draws everybody and divides by 1."""
    one_step = {"unit": "subject", "steps": 1, "sampling_rate": 1.0, "population": 1} | privacy
    return TrainingSettings(**(training or {}), privacy=PrivacySettings(**one_step))


def people(images, keep):
    """The same site with some of its people, who keep their labels' order."""
    some = np.isin(images.labels, keep)
    _, labels = np.unique(images.labels[some], return_inverse=True)
    return SiteImages(images.images[some], labels, len(keep))


def sums(site, *rounds, shared=None, of=3):
    """By round the clipped sum of its last step, a float64 vector by name of the parameter's group."""
    shared = site.initial_vector() if shared is None else shared
    found, adjust = [], site.adjust_gradients

    def look():
        every = [p for group in site.parameter_groups() for p in group["params"]]
        found.append(torch.cat([p.grad.double().flatten() for p in every]))
        adjust()

    site.adjust_gradients = look
    for number in rounds:
        site.train_round(RoundContext(number, of), shared)
    return found


def built(method, training, images, randomness, site="a"):
    return build_site(method, training, 11, site, images, randomness=randomness)


def unaugmented(monkeypatch):
    """Views are the images: those of one person do not depend on how many others there are."""
    monkeypatch.setattr("fedpalm.methods.training.augment", lambda images, _: images.copy())
