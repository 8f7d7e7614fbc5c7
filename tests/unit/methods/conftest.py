from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedpalm.methods.base import SiteImages
from fedpalm.methods.template import model_template
from fedpalm.plan import Plan, PlanDraft, TrainingSettings

TRAINING = TrainingSettings(local_epochs=1, batch_size=3)


def tiny_images(seed, people=2, each=3):
    """Smooth random textures, one per person, with noise per image."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((people, 1, 16, 16)).repeat(8, axis=2).repeat(8, axis=3)
    images = coarse.repeat(each, axis=0)
    images = images + 0.3 * rng.standard_normal(images.shape)
    labels = np.arange(people, dtype=np.int64).repeat(each)
    return SiteImages(images.astype(np.float32), labels, people)


def make_plan(method="fedpalm", rounds=3, sites=("a", "b"), training=TRAINING, seed=11):
    template = model_template(method, training, seed)
    exchange = "deployment" if method == "fedpalm" else "never"
    return Plan(
        federation="unit",
        draft=PlanDraft(
            name="tiny",
            method=method,
            rounds=rounds,
            seed=seed,
            reproducible=True,
            expert_exchange=exchange,
            training=training,
        ),
        roster=tuple(sites),
        layout=tuple(template.layout.to_json()),
        expert_layout=tuple(template.expert_layout.to_json()),
        initial_model=hashlib.sha256(template.initial.tobytes()).hexdigest(),
    )


@pytest.fixture
def images():
    return tiny_images(0)
