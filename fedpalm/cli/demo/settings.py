"""What a demo is told, and the plan that follows from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...plan import MAX_SITES, PlanDraft
from ...secagg.terms import MIN_MASKED_SITES
from ...settings import Settings

Method = Literal["fedpalm", "fedavg"]
Masking = Literal["secagg", "none"]
SYNTHETIC = "synthetic-palm"
FEDERATION = "demo"


class DemoSettings(Settings):
    """One demo. The same values and the same folder continue it; other values are refused there.

    ``identities`` train at each site and as many are kept for the open-set test; ``images`` is how
    many of each identity are used, half of them for training and gallery.
    """

    data: str = SYNTHETIC
    sites: int = Field(4, ge=2, le=min(32, MAX_SITES))
    identities: int = Field(10, ge=2, le=1000)
    images: int = Field(10, ge=4, le=1000)
    rounds: int = Field(12, ge=1, le=1000)
    method: Method = "fedpalm"
    seed: int = Field(0, ge=0, lt=2**53)
    masking: Masking = "secagg"

    @model_validator(mode="after")
    def _enough_to_mask(self) -> DemoSettings:
        if self.masked and self.sites < MIN_MASKED_SITES:
            raise ValueError(
                f"masking needs {MIN_MASKED_SITES} sites or more, and this demo has {self.sites}: "
                "take more --sites, or --masking none"
            )
        return self

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

    def draft(self) -> PlanDraft:
        """The plan: reproducible, and nobody may be missing from a round."""
        return PlanDraft(
            name="demo",
            method=self.method,
            rounds=self.rounds,
            seed=self.seed,
            reproducible=True,
            quorum=self.sites,
            masking=self.masking,
            join_deadline_s=600,
            round_deadline_s=1800,
        )


def plan_toml(draft: PlanDraft) -> str:
    """A draft as the ``plan.toml`` a person would write: every key, defaults included."""
    values = draft.model_dump(mode="json")
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: str | bool | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
