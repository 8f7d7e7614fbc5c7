"""What is compared: every variant by name, and the row of the paper's tables that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..simulate import Exchange

BASELINE = "fedavg"
"""The variant that every other is paired with."""


@dataclass(frozen=True)
class Variant:
    """A method with what is set differently for it.

    ``row`` is its name in tables I to X of the paper, ``ablation`` in table XI, empty where it has
    none. ``personal``: each site has a model of its own, so its open set stands in tables II, V, VIII.
    """

    method: str
    label: str
    about: str
    row: str = ""
    ablation: str = ""
    personal: bool = False
    exchange: Exchange = "never"
    training: Mapping[str, Any] = field(default_factory=dict)


def _fedpalm(label: str, about: str, exchange: Exchange = "deployment", **more: Any) -> Variant:
    return Variant("fedpalm", label, about, exchange=exchange, **more)


_NORM = {"expert_norm": "site"}
_NORMALISER = {"template_normaliser": "federation"}

VARIANTS: dict[str, Variant] = {
    "local": Variant("local", "w/o FL", "each site alone", row="w/o FL", personal=True),
    "fedavg": Variant("fedavg", "FedAvg", "one averaged model", row="FedAvg", ablation="Baseline"),
    "fedprox": Variant("fedprox", "FedProx", "FedAvg, held near the global model", row="FedProx"),
    "fednova": Variant("fednova", "FedNova", "FedAvg of normalised updates", row="FedNova"),
    "moon": Variant("moon", "MOON", "FedAvg with a model contrast", row="MOON"),
    "fedkd": Variant("fedkd", "FedKD", "a shared student, a private teacher", row="FedKD"),
    "fedper": Variant("fedper", "FedPer", "the embedding layer stays", row="FedPer", personal=True),
    "fedbn": Variant("fedbn", "FedBN", "batch norm stays", row="FedBN", personal=True),
    "hyperfed": Variant(
        "hyperfed",
        "HyperFed",
        "a private hypernetwork scales channels",
        row="HyperFed",
        personal=True,
    ),
    "fedpalm": _fedpalm(
        "FedPalm", "experts travel after the last round", row="FedPalm", ablation="FedPalm-3"
    ),
    "fedpalm-freeze": _fedpalm("FedPalm, freeze", "experts travel when frozen", "freeze"),
    "fedpalm-k1": _fedpalm(
        "FedPalm-1", "K = 1", ablation="FedPalm-1", training={"teim_neighbours": 1}
    ),
    "fedpalm-k8": _fedpalm(
        "FedPalm-8", "K = 8", ablation="FedPalm-8", training={"teim_neighbours": 8}
    ),
    "fedpalm-start": _fedpalm(
        "FedPalm*",
        "TEIM from the start",
        ablation="FedPalm* (TEIM from the start)",
        training={"teim_from_start": True},
    ),
    "fedpalm-release": Variant(
        "fedpalm-release", "FedPalm, release", "as the authors' code does it"
    ),
    "fedpalm+": _fedpalm(
        "FedPalm+",
        "ours: maps normalised by site, templates over all sites; no expert travels",
        "never",
        personal=True,
        training=_NORM | _NORMALISER,
    ),
    "fedpalm-norm": _fedpalm(
        "FedPalm, norm", "FedPalm with FedBN's maps", "never", personal=True, training=_NORM
    ),
    "fedbn-normaliser": Variant(
        "fedbn",
        "FedBN, normaliser",
        "what of FedPalm+ is not FedPalm's",
        personal=True,
        training=_NORMALISER,
    ),
    "fedavg-normaliser": Variant(
        "fedavg", "FedAvg, normaliser", "FedAvg with the normaliser", training=_NORMALISER
    ),
    "local-norm": Variant(
        "local", "w/o FL, norm", "each site alone, with FedBN's maps", personal=True, training=_NORM
    ),
}
"""``fedpalm+`` goes beyond the paper."""

PARTS = ("fedpalm-norm", "fedbn-normaliser", "fedavg-normaliser", "local-norm")
"""What the settings of ``fedpalm+`` do alone, and on others; run by name."""

METHODS = tuple(name for name in VARIANTS if name not in PARTS)
