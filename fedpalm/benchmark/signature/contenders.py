"""What is compared: FedMH, FedMH with one part otherwise, and the baselines, by name.

Every contender has the same sites, backbones, split, seed, rounds, local epochs, heads and initial
values. All keep the same signatures aside that FedMH judges a receipt by, and train on the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...fedmh_settings import FedMHSettings

REFERENCE = "fedmh"
"""The contender that every other is paired with."""

Sharing = Literal["groups", "common", "families", "prototypes", "meme", "nothing"]
"""Groups of parameters as FedMH has them; those of everybody alone; each family's model in a federation
of its own; prototypes of writers; one small model beside the site's own; or nothing, untrained."""


@dataclass(frozen=True)
class Contender:
    """``fedmh``: keys of a plan's ``[fedmh]`` table that are set for it."""

    label: str
    about: str
    sharing: Sharing = "groups"
    fedmh: Mapping[str, Any] = field(default_factory=dict)
    part: bool = False
    """No method of its own: FedMH with a part otherwise, or no training at all."""

    @property
    def settings(self) -> FedMHSettings:
        return FedMHSettings.model_validate(dict(self.fedmh))


_PARTS = ("augmentation", "guidance", "receipt")
_PLAIN = {"augmentation": "off", "guidance": "off"}


def _ablations() -> dict[str, Contender]:
    """Every other value of every part; what the defaults are is read, not repeated."""
    found = {}
    for part in _PARTS:
        key = FedMHSettings.model_fields[part]
        for value in get_args(key.annotation):
            if value != key.default:
                found[f"{REFERENCE}-{part}-{value}"] = Contender(
                    f"FedMH, {part} {value}",
                    f"FedMH with {part} = {value!r} in place of {key.default!r}",
                    fedmh={part: value},
                    part=True,
                )
    return found


CONTENDERS: dict[str, Contender] = {
    REFERENCE: Contender("FedMH", "as a plan with method = 'fedmh' runs it, at its defaults"),
    **_ablations(),
    "untrained": Contender(
        "untrained",
        "the initial model of each site as the seed draws it: what training has to beat",
        "nothing",
        _PLAIN | {"receipt": "keep"},
        part=True,
    ),
    "local": Contender(
        "local", "each site alone, both tasks, nothing shared", fedmh=_PLAIN | {"receipt": "keep"}
    ),
    "fedavg-family": Contender(
        "FedAvg by family",
        "the sites of a backbone are a federation of their own and average the whole model; nothing "
        "passes between families (McMahan et al. 2017)",
        "families",
        _PLAIN | {"receipt": "replace"},
    ),
    "lg-fedavg": Contender(
        "LG-FedAvg",
        "projection and detection head are averaged over all sites, trunks stay (Liang et al. 2020)",
        "common",
        _PLAIN | {"receipt": "replace"},
    ),
    "fedproto": Contender(
        "FedProto",
        "prototypes of writers are shared, and embeddings drawn to them (Tan et al. 2022); every "
        "writer is at one site here, so nothing passes between sites",
        "prototypes",
        _PLAIN | {"receipt": "keep"},
    ),
    "fml": Contender(
        "FML",
        "mutual distillation of the site's own model with a small shared one, which is averaged "
        "(Shen et al. 2020)",
        "meme",
        _PLAIN | {"receipt": "replace"},
    ),
}
HETEROGENEOUS = tuple(name for name, one in CONTENDERS.items() if not one.part)
