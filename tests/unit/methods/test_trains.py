"""``privacy.trains``: what the steps of a private round move."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.errors import EgressRefusedError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.site import build_site
from fedpalm.plan import TrainingSettings
from fedpalm.privacy.randomness import SeededRandom
from participant.private_content import refuse_private_content

from .conftest import tiny_images


def moved(method: str, trains: str, number: int) -> set[str]:
    """Shared tensors that a round moves."""
    privacy = {"unit": "subject", "sampling_rate": 1.0, "steps": 2, "trains": trains}
    training = TrainingSettings(dropout=0.0, privacy=privacy)
    site = build_site(method, training, 5, "a", tiny_images(0), randomness=SeededRandom(1))
    shared = site.initial_vector()
    if number > 1:
        shared = shared + site.train_round(RoundContext(1, 3), shared).delta
    delta = site.train_round(RoundContext(number, 3), shared).delta
    return {name for name, one in site.layout.unflatten(delta).items() if np.any(one)}


@pytest.mark.parametrize(("method", "number"), [("fedavg", 1), ("fedpalm", 1), ("fedpalm", 2)])
def test_the_expert_alone(method: str, number: int):
    names = moved(method, "expert", number)
    assert "open_set.expert.large.mix.weight" in names
    assert not any(name.startswith("open_set.embedding.") for name in names)


def test_everything():
    assert {"open_set.expert.large.mix.weight", "open_set.embedding.weight"} <= moved(
        "fedavg", "all", 1
    )


def test_an_embedding_that_nothing_moved_is_no_private_tensor_in_an_update():
    privacy = {"unit": "subject", "sampling_rate": 1.0, "steps": 1, "trains": "expert"}
    training = TrainingSettings(dropout=0.0, privacy=privacy)
    site = build_site("fedpalm", training, 5, "a", tiny_images(0), randomness=SeededRandom(1))
    shared = site.initial_vector()
    delta = site.train_round(RoundContext(1, 3), shared).delta
    own = site.state()
    assert np.array_equal(
        own["closed_set.embedding.weight"],
        site.layout.unflatten(shared)["open_set.embedding.weight"],
    )
    refuse_private_content(site.layout, delta, shared, own)
    moved_there = site.layout.unflatten(delta)
    moved_there["open_set.embedding.weight"] = own["closed_set.embedding.weight"]
    with pytest.raises(EgressRefusedError, match="embedding"):
        refuse_private_content(site.layout, site.layout.flatten(moved_there), shared, own)
