"""What a demo is told, and the plan that follows from it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import Field, model_validator

from ...data.modality import Modality, modality_of
from ...fedmh_settings import SIGNATURE_TRAINING, FedMHSettings
from ...plan import MAX_SITES, FamilyName, PlanDraft, PrivacySettings, TrainingSettings
from ...secagg.terms import MIN_MASKED_SITES, group_survivors
from ...settings import Settings

Method = Literal["fedpalm", "fedavg", "fedmh"]
Masking = Literal["secagg", "none"]
Privacy = Literal["none", "subject"]
SYNTHETIC = "synthetic-palm"
SYNTHETIC_SIGNATURES = "synthetic-signature"
DRAWN: dict[str, Modality] = {SYNTHETIC: "palm", SYNTHETIC_SIGNATURES: "signature"}
"""Sources that are drawn, and what they show."""
FEDERATION = "demo"
SIGNATURE_SIZES = {"sites": 6, "identities": 16, "images": 8, "rounds": 6}
"""What a demo of signatures has where nothing is said; ``images`` of each kind, genuine and forged."""
MOST_SIGNATURES = 20
"""``images`` of a folder of signatures, where nothing is said."""
BLOCK: tuple[FamilyName, ...] = ("signet", "signet", "signet", "resnet", "resnet", "compnet")
"""Backbones of six sites of a demo of signatures."""
PRIVATE_SIZES = {"identities": 40, "images": 4, "rounds": 6}
"""What a demo with differential privacy has where nothing is said: noise needs people to hide in."""
WARM_START = {"sensors": 8, "people": 12, "images": 4, "rounds": 4}
"""Of `fedpalm model pretrain`, for a demo that takes minutes."""
MAX_EPSILON, DELTA = 8.0, 1e-3
"""Of every site's policy: its budget, and the delta that it is counted at."""
_SPARE_ROUNDS = 1
"""That the budget leaves room for: a training that is cut off is charged again."""


class DemoSettings(Settings):
    """One demo. The same values and the same folder continue it; other values are refused there.

    ``identities`` train at each site and as many are kept for the open-set test (about so many where
    ``privacy`` lets everybody's own hash decide); ``images`` is how many of each identity are used, half
    of them for training and gallery. For signatures ``images`` counts genuine ones and forgeries apart.
    """

    data: str = SYNTHETIC
    sites: int = Field(4, ge=2, le=min(32, MAX_SITES))
    identities: int = Field(10, ge=2, le=1000)
    images: int = Field(10, ge=4, le=1000)
    rounds: int = Field(12, ge=1, le=1000)
    method: Method = "fedpalm"
    seed: int = Field(0, ge=0, lt=2**53)
    masking: Masking = "secagg"
    privacy: Privacy = "none"

    @model_validator(mode="after")
    def _enough_to_mask(self) -> DemoSettings:
        if self.masked and self.sites < MIN_MASKED_SITES:
            raise ValueError(
                f"masking needs {MIN_MASKED_SITES} sites or more, and this demo has {self.sites}: "
                "take more --sites, or --masking none"
            )
        return self

    @model_validator(mode="after")
    def _few_enough_for_delta(self) -> DemoSettings:
        if self.private and 2 * self.identities * DELTA >= 1:
            raise ValueError(
                f"with {self.identities} identities a site, delta {DELTA:g} could give one away: "
                f"take fewer than {0.5 / DELTA:.0f} --identities"
            )
        return self

    @model_validator(mode="after")
    def _what_the_method_trains_on(self) -> DemoSettings:
        if (shows := DRAWN.get(self.data)) not in (None, self.modality):
            raise ValueError(
                f"{self.data} are {shows}s, and --method {self.method} trains on {self.modality}s: take "
                "another --data or --method"
            )
        if self.private and self.method == "fedmh":
            raise ValueError(
                "a plan of FedMH promises no differential privacy: how far a site goes towards a received "
                "model follows from its own signatures, and that is not noised. Take --privacy none, or "
                "--method fedpalm"
            )
        return self

    @property
    def modality(self) -> Modality:
        """What the method trains on."""
        found = modality_of(self.method)
        if found is None:
            raise ValueError(f"method {self.method} trains on nothing")
        return found

    @property
    def drawn(self) -> bool:
        """No image is of a person."""
        return self.data in DRAWN

    @property
    def private(self) -> bool:
        """Trained with differential privacy, from a warm start."""
        return self.privacy != "none"

    @property
    def masked(self) -> bool:
        """The coordinator opens sums and no site's update."""
        return self.masking != "none"

    @property
    def site_names(self) -> tuple[str, ...]:
        width = len(str(self.sites))
        return tuple(f"site-{number:0{width}d}" for number in range(1, self.sites + 1))

    @property
    def contenders(self) -> tuple[str, ...]:
        """What is compared, the federation itself first."""
        return tuple(dict.fromkeys((self.method, "fedavg", "local")))

    @property
    def backbones(self) -> dict[str, FamilyName]:
        """By site, where each has one of its own.

        Each six have those of ``BLOCK``; whoever is left over has the commonest. A sum over the sites
        without a shared trunk must hide each of them, too: of twelve, six sites have each of the others.
        """
        if self.modality != "signature":
            return {}
        blocks, left = divmod(self.sites, len(BLOCK))
        families = [name for name in BLOCK for _ in range(blocks)]
        if 0 < families.count(BLOCK[-1]) < group_survivors(1) <= families.count("resnet"):
            families[families.index(BLOCK[-1]) - 1] = BLOCK[-1]
        dealt = [BLOCK[0]] * left + families
        return dict(zip(self.site_names, dealt, strict=True))

    def draft(self, fedmh: FedMHSettings | None = None) -> PlanDraft:
        """The plan: reproducible unless it is private, and nobody may be missing from a round.

        Args:
            fedmh: other settings than the default, of a plan for signatures.
        """
        own = {} if not self.backbones else {"fedmh": fedmh or FedMHSettings()}
        return PlanDraft(
            name="demo",
            method=self.method,
            backbones=self.backbones,
            **own,
            rounds=self.rounds,
            seed=self.seed,
            reproducible=not self.private,
            quorum=self.sites,
            masking=self.masking,
            training=self._training(),
            join_deadline_s=600,
            round_deadline_s=1800,
        )

    def _training(self) -> TrainingSettings:
        if self.modality == "signature":
            return TrainingSettings.model_validate(SIGNATURE_TRAINING)
        if not self.private:
            return TrainingSettings()
        privacy = PrivacySettings(
            unit="subject",
            sampling_rate=0.5,
            steps=3,
            records=2,
            population=self.identities,
            trains="expert",
        )
        steps = (self.rounds + _SPARE_ROUNDS) * privacy.steps
        noise = _noise(privacy.sampling_rate, steps)
        return TrainingSettings(
            dropout=0.0, privacy=privacy.model_copy(update={"noise_multiplier": noise})
        )

    def policy_toml(self) -> str:
        """What every site of a private demo never goes beyond."""
        return (
            f'privacy = "required"\nmax_epsilon = {MAX_EPSILON}\ndelta = {DELTA}\n'
            f"people = {2 * self.identities}\n"
        )


@cache
def _noise(sampling_rate: float, steps: int) -> float:
    from ...privacy.accounting import noise_for  # it imports torch

    return noise_for(MAX_EPSILON, DELTA, sampling_rate, steps)


def plan_toml(draft: PlanDraft) -> str:
    """A draft as the ``plan.toml`` a person would write: every key, defaults included."""
    values = draft.model_dump(mode="json")
    return "\n".join(_table(values, "")) + "\n"


def _table(values: dict[str, Any], name: str) -> list[str]:
    """Lines of a table, and of those in it behind it."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        whole = f"{name}.{key}".lstrip(".")
        lines += ["", f"[{whole}]", *_table(table, whole)]
    return lines


def _toml(value: str | bool | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
