"""A round of training with differential privacy: the steps that take the place of epochs.

A step draws every person with probability q, takes at most k of each one's images in a random choice,
runs the method's own loss on both views of these images and of nobody else's, and gives it to
:class:`~fedpalm.privacy.optimizer.PersonOptimizer`. Under ``unit = "record"`` every image is a person of
its own. Views and dropout come from :class:`~fedpalm.privacy.randomness.Randomness` too: drawn from a
public seed they would be a public function of a person's position, which depends on who else is there.

What else a method lets into its update is public or was noised: the shared vector, the own model and
MOON's previous one (both moved by these steps alone), experts that were released, the truncation of FedKD
(of the noised update), the pull of FedProx (added behind the noise). Counts, losses and metrics stay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ConfigError, StateError
from ..models.public_head import PublicHead, public_prototypes
from ..plan import PrivacySettings, TrainingSettings
from ..privacy.randomness import Randomness
from .base import SiteImages, Tensors
from .training import Batch, RoundViews

Positions = npt.NDArray[np.int64]


def is_private(training: TrainingSettings) -> bool:
    """Whether a plan asks for differential privacy."""
    return training.privacy.unit != "none"


def units(images: SiteImages, privacy: PrivacySettings) -> list[Positions]:
    """The positions of each person's images, of all their labels, or each image's for itself."""
    if privacy.unit == "record":
        return list(np.arange(len(images.labels))[:, None])
    people = images.labels if images.people is None else images.people
    return [np.flatnonzero(people == person) for person in np.unique(people)]


def train_privately(
    people: list[Positions],
    views: RoundViews,
    privacy: PrivacySettings,
    randomness: Randomness,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Batch], Tensor],
    adjust: Callable[[], None],
) -> dict[str, float]:
    """All steps of a round.

    Args:
        people: positions of the images of each (:func:`units`).
        optimizer: moves what the round trains.
        loss: of one person's batch.
        adjust: called when the gradients are noised, before they are used.

    Returns:
        Metrics, which are data: how many gradients were clipped to nothing, being not finite.
    """
    from ..privacy.optimizer import PersonOptimizer

    noisy = PersonOptimizer(optimizer, privacy, randomness)
    noisy.attach_step_hook(lambda _: adjust())
    for step in range(privacy.steps):
        for person in np.flatnonzero(randomness.chosen(len(people), privacy.sampling_rate)):
            images = people[person]
            some = images[randomness.subset(len(images), privacy.records)]
            noisy.add(int(person), loss(views.batch(torch.from_numpy(some), step)))
        noisy.step()
    return {"privacy.left_out": float(noisy.left_out)}


def public_head(
    training: TrainingSettings, length: int, seed: int, classes: int, randomness: Randomness
) -> PublicHead:
    """The plan's head with ``classes`` identities in random places.

    Raises:
        ConfigError: there are more identities than places.
    """
    slots = training.privacy.head_slots
    if classes > slots:
        raise ConfigError(
            f"this site has more identities than the {slots} places of the plan's public head",
            safe="nothing was trained, and no budget spent",
            next_step="set training.privacy.head_slots higher in the plan",
        )
    places = torch.from_numpy(randomness.subset(slots, classes))
    prototypes = public_prototypes(slots, length, seed)
    return PublicHead(prototypes, places, training.arcface_scale, training.arcface_margin)


def check_state(training: TrainingSettings, places: str, tensors: Tensors) -> None:
    """Refuse a private state that was trained without noise, or with a larger head.

    Args:
        places: the name that the head's places have in ``tensors``.
    Raises:
        StateError: going on from it would let what no noise covers into the update.
    """
    found = tensors.get(places)
    if found is None:
        what = "what this site keeps was trained without differential privacy"
    elif found.size and int(found.max()) >= training.privacy.head_slots:
        what = (
            "the plan's public head is smaller than the one that this site's people have places in"
        )
    else:
        return
    raise StateError(
        f"{what}, and this plan goes on from it",
        safe="nothing was trained",
        next_step="start a new run from the global model: it is public",
    )
