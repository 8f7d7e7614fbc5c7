"""What a FedMH plan says beside its training settings; every value is public.

Each component has a value that takes it out, so that a run shows what it is worth.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .settings import Settings

SIGNATURE_TRAINING: dict[str, float] = {
    "learning_rate": 3e-4,
    "arcface_scale": 16.0,
    "arcface_margin": 0.2,
}
"""What a plan of signatures trains with where it says nothing. The defaults of palms make templates of
writers whom nobody trained on worse than those of an untrained model: docs/FEDMH.md has the figures."""


class FedMHSettings(Settings):
    """The keys of a plan's ``[fedmh]`` table (docs/FEDMH.md)."""

    detection_weight: float = Field(0.5, gt=0, lt=1)
    """Of the loss of telling forgeries; what is left is that of telling writers."""
    guidance: Literal["off", "minimum-norm"] = "minimum-norm"
    """Where the two tasks' gradients oppose each other: their plain sum, or the shortest of their means."""
    receipt: Literal["keep", "replace", "pareto"] = "pareto"
    """What a site does with the averaged model: nothing, as if it were alone; take it; or take what of it
    improves a probe loss and harms neither."""
    probe_tolerance: float = Field(0.01, ge=0, le=10)
    """eps: how much higher a probe loss may be after a receipt, in nats."""
    probe_share: float = Field(0.25, gt=0, le=0.5)
    """Of a site's signatures of each (writer, name): kept from training, to judge what is received."""
    augmentation: Literal["off", "uniform", "adaptive"] = "adaptive"
    augmentation_quantile: float = Field(1.0, ge=0, le=1)
    """Of the sizes of a site's subsets, the genuine or the forged ones of a (writer, name)."""
    augmentation_times: float = Field(2.0, ge=0, le=10)
    """All subsets are filled up to this many times that size. Above 1 no subset is without copies."""
    augmentation_strength: float = Field(1.0, ge=0, le=1)
    """Of the copies that a subset without any sample would get."""
