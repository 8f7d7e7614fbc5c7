"""The plan: everything that both sides of a run must agree on, and its hash.

``plan.toml`` is what a person writes (:class:`PlanDraft`); with the roster and the model's layout it
becomes a :class:`Plan`. Its canonical JSON is hashed; whatever is not in there is not part of the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from .canonical import canonical_json, domain_hash
from .errors import ConfigError
from .fedmh_settings import SIGNATURE_TRAINING, FedMHSettings
from .groups import EVERYBODY, Group, groups_of
from .layout import MAX_TENSORS, Layout, TensorSpec
from .settings import Settings, parse_settings

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,52}[a-z0-9])?$")]
MAX_SITES = 200


BackboneName = Literal["compnet", "ccnet"]
FamilyName = Literal["compnet", "resnet", "signet"]
"""What a site's own backbone is, where every site has the one that it chose."""
MethodName = Literal[
    "fedavg",
    "fedbn",
    "fedkd",
    "fedmh",
    "fednova",
    "fedpalm",
    "fedpalm-release",
    "fedper",
    "fedprox",
    "hyperfed",
    "moon",
    "rehearsal",
]


GROUPED: Mapping[str, bool] = {"fedmh": True, "rehearsal": False}
"""Methods of sites with backbones of their own, and whether they cannot do without."""


class PrivacySettings(Settings):
    """DP-SGD at a site (docs/PRIVACY.md); ``unit`` "none" is no differential privacy.

    A step draws every person (or record) with probability ``sampling_rate``, clips what each of them
    adds to ``clip_norm``, adds Gaussian noise of standard deviation ``noise_multiplier * clip_norm``,
    and divides by ``sampling_rate * population``. All values are public constants.
    """

    unit: Literal["none", "subject", "record"] = "none"
    noise_multiplier: float = Field(1.0, gt=0, le=1000)
    clip_norm: float = Field(1.0, gt=0, le=1e6)
    sampling_rate: float = Field(0.1, gt=0, le=1)
    steps: int = Field(20, ge=1, le=100_000)
    """Optimiser steps a round; they take the place of ``local_epochs`` and ``batch_size``."""
    records: int = Field(4, ge=1, le=1000)
    """Of a person at most, in a step."""
    population: int = Field(100, ge=1, le=10**9)
    """People (or records) that a site is taken to have: a declared constant, not a count."""
    head_slots: int = Field(1024, ge=2, le=65_536)
    """Prototypes of the public head that a site's people are given places in."""
    trains: Literal["all", "expert"] = "all"
    """``expert``: the embedding layer stays as it came. Noise grows with the number of values that it is
    put on, and CompNet's expert is 22,899 of 4,993,907: after a warm start it may learn more alone."""


class TrainingSettings(Settings):
    """What a site does in a round; every value is public."""

    backbone: BackboneName = "compnet"
    views: int = Field(1, ge=1, le=100)
    """Pairs of augmented views made of an image in a round; the epochs take turns with them."""
    local_epochs: int = Field(2, ge=1, le=100)
    batch_size: int = Field(16, ge=2, le=4096)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    fusion_learning_rate: float = Field(1e-2, gt=0, le=1)
    dropout: float = Field(0.25, ge=0, lt=1)
    cross_entropy_weight: float = Field(0.8, ge=0, le=1)
    contrast_weight: float = Field(0.2, ge=0, le=1)
    contrast_temperature: float = Field(0.07, gt=0, le=10)
    arcface_scale: float = Field(30.0, gt=0, le=1000)
    arcface_margin: float = Field(0.5, ge=0, lt=1.5)
    teim_neighbours: int = Field(3, ge=1, le=MAX_SITES)
    teim_alpha: float = Field(0.7, ge=-10, le=10)
    teim_beta: float = Field(0.3, ge=-10, le=10)
    teim_from_start: bool = False
    """TEIM acts in the first third too (the paper's FedPalm*)."""
    closed_set_fusion: bool = True
    fedprox_mu: float = Field(0.01, ge=0, le=100)
    moon_mu: float = Field(1.0, ge=0, le=100)
    moon_temperature: float = Field(0.5, gt=0, le=10)
    fedkd_energy_start: float = Field(0.95, gt=0, le=1)
    fedkd_energy_end: float = Field(0.98, gt=0, le=1)
    """Energy that a truncated update keeps in the first and in the last round."""
    hyperfed_width: int = Field(32, ge=1, le=1024)
    """Length of a client's descriptor and of the hypernetwork's hidden layer."""
    expert_norm: Literal["none", "site"] = "none"
    """``site``: batch normalisation of the expert's maps, which each site keeps, as in FedBN."""
    template_normaliser: Literal["none", "site", "federation"] = "none"
    """Weigh directions of open-set templates by how images of one person differ: of the site's people,
    which stays there, or with the average over all sites, which is shared with the model."""
    privacy: PrivacySettings = PrivacySettings()
    threads: int = Field(1, ge=1, le=64)

    @model_validator(mode="before")
    @classmethod
    def _no_contrast_between_people(cls, values: Any) -> Any:
        """Left out under DP: cross-entropy alone."""
        if isinstance(values, dict):
            privacy = values.get("privacy", {})
            if isinstance(privacy, PrivacySettings):
                privacy = privacy.model_dump()
            unit = privacy.get("unit", "none") if isinstance(privacy, dict) else "none"
            if unit != "none":
                return {"contrast_weight": 0.0, "cross_entropy_weight": 1.0, **values}
        return values


class CodecSettings(Settings):
    """Bounds of the fixed-point encoding; together with the roster they fix its scale exactly."""

    clip_abs: float = Field(0.5, gt=0, le=1024)
    max_weight: int = Field(10_000, ge=1, le=1_000_000)


class PlanDraft(Settings):
    """The keys of ``plan.toml``."""

    name: Name
    method: MethodName
    rounds: int = Field(ge=1, le=10_000)
    seed: int = Field(0, ge=0, lt=2**53)
    reproducible: bool = False
    quorum: int = Field(2, ge=2, le=MAX_SITES)
    join_deadline_s: float = Field(600, gt=0, le=7 * 86400)
    round_deadline_s: float = Field(3600, gt=0, le=7 * 86400)
    max_attempts: int = Field(3, ge=1, le=100)
    masking: Literal["none", "secagg"] = "none"
    """``none``: the coordinator sees every site's update and weight; ``secagg``: sums only."""
    colluders: int = Field(1, ge=0, le=MAX_SITES - 2)
    """Under ``secagg``: sites that may work together with a lying coordinator (n_c)."""
    masking_step_deadline_s: float = Field(120, gt=0, le=86400)
    """Under ``secagg``: how long each step after the keys waits for a site before it counts as dropped."""
    expert_exchange: Literal["deployment", "freeze", "never"] = "never"
    """``deployment``: after the last round; ``freeze``: once they are frozen, after the first third, so
    that TEIM trains with all of them. Left out: ``deployment`` if there are experts, else ``never``."""
    exchange_without_refusers: bool = False
    """A site's no ends the exchange for everybody, or (true) it goes on among those who say yes."""
    backbones: dict[Name, FamilyName] = Field(default_factory=dict, max_length=MAX_SITES)
    """By site, where sites have backbones of their own: which parameters a site contributes to."""
    fedmh: FedMHSettings | None = None
    """Of method ``fedmh``, which has them if they are left out, and of no other."""
    training: TrainingSettings = TrainingSettings()
    codec: CodecSettings = CodecSettings()

    @model_validator(mode="before")
    @classmethod
    def _settings_of_fedmh(cls, values: Any) -> Any:
        """Defaults of a plan of FedMH: its table, and what it trains with."""
        if isinstance(values, dict) and values.get("method") == "fedmh":
            values = {"fedmh": {}, "training": {}, **values}
            if isinstance(values["training"], dict):
                values["training"] = SIGNATURE_TRAINING | values["training"]
        return values

    @model_validator(mode="before")
    @classmethod
    def _exchange_if_there_are_experts(cls, values: Any) -> Any:
        if isinstance(values, dict) and "expert_exchange" not in values:
            exchange = "deployment" if values.get("method") == "fedpalm" else "never"
            training = values.get("training")
            norm = training.get("expert_norm") if isinstance(training, dict) else None
            if norm == "site" or getattr(training, "expert_norm", None) == "site":
                exchange = "never"
            return {**values, "expert_exchange": exchange}
        return values

    @model_validator(mode="after")
    def _no_exchange_without_experts(self) -> PlanDraft:
        if self.method != "fedpalm" and self.expert_exchange != "never":
            raise ValueError(
                f"method {self.method!r} has no experts: set expert_exchange = 'never'"
            )
        if self.training.expert_norm == "site" and self.expert_exchange != "never":
            raise ValueError(
                "an expert that its site normalises fits nowhere else: set expert_exchange = 'never', "
                "or training.expert_norm = 'none'"
            )
        return self

    @model_validator(mode="after")
    def _backbones_where_they_matter(self) -> PlanDraft:
        if self.backbones and self.method not in GROUPED:
            raise ValueError(f"method {self.method!r} has one model for all: leave backbones out")
        if GROUPED.get(self.method) and not self.backbones:
            raise ValueError(
                f"method {self.method!r} needs the backbone of every site: [backbones] SITE = NAME"
            )
        if (self.fedmh is None) == (self.method == "fedmh"):
            raise ValueError("a [fedmh] table goes with method 'fedmh', and with no other")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_backbones(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without backbones says nothing of them or of FedMH: its bytes are as they always were."""
        values: dict[str, Any] = handler(self)
        if not self.backbones:
            values.pop("backbones", None)
        if self.fedmh is None:
            values.pop("fedmh", None)
        return values

    @model_validator(mode="after")
    def _keeps_the_boundary(self) -> PlanDraft:
        if found := refusals(self):
            raise ValueError("differential privacy would not hold:\n" + "\n".join(found))
        return self

    @property
    def privacy(self) -> PrivacySettings:
        """``training.privacy``."""
        return self.training.privacy


def refusals(draft: PlanDraft) -> list[str]:
    """What of a plan with DP would release something that no noise covers; empty if nothing does.

    A round releases what comes out of the clipped, noised gradients of a site's people and public
    constants. Whatever else would reach the update, or would make one person's gradient depend on another
    person, is named with the reason and the way out.
    """
    training = draft.training
    if training.privacy.unit == "none":
        return []
    found = []
    if draft.reproducible:
        found.append(
            "reproducible: noise that anybody can draw again is no noise. Set reproducible = false"
        )
    if draft.method == "fedmh":
        found.append(
            "method fedmh: how far a site goes towards a received model follows from its own signatures, "
            "and that is not noised. Use another method"
        )
    if training.contrast_weight > 0:
        found.append(
            "training.contrast_weight: a contrast between people makes one person's gradient depend on "
            "the others', and clipping bounds nobody's influence. Set it to 0 and cross_entropy_weight "
            "to 1"
        )
    if draft.method == "fedbn" or training.expert_norm == "site":
        found.append(
            "batch normalisation: statistics of a batch make every person's gradient depend on the "
            "others', and running statistics are not noised. Use a method without it and "
            "training.expert_norm = 'none'"
        )
    if training.template_normaliser == "federation":
        found.append(
            "training.template_normaliser: the averaged statistic is of a site's people and is not "
            "noised. Set 'site' (it stays there) or 'none'"
        )
    return found


def warm_up_rounds(rounds: int) -> int:
    """FedPalm's first third: TEIM is off and closed-set experts learn. One round at least."""
    return max(1, rounds // 3)


class Continues(Settings):
    """The run that an amended plan goes on from: its sites keep their private state.

    ``rounds_done`` counts the rounds that it committed and those of the runs that it continued itself;
    ``model`` is the hex SHA-256 of the newest global model that it committed.
    """

    run: Name
    plan_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    rounds_done: int = Field(ge=0, lt=10_000)
    model: str = Field(pattern=r"^[0-9a-f]{64}$")


class TensorEntry(Settings):
    """A tensor of a layout, in the form of :meth:`fedpalm.layout.Layout.to_json` and in no other."""

    name: str = Field(strict=True, max_length=600)
    shape: tuple[Annotated[int, Field(strict=True, ge=0, lt=2**31)], ...] = Field(max_length=8)


Entries = Annotated[tuple[TensorEntry, ...], Field(max_length=MAX_TENSORS)]


class Plan(Settings):
    """A draft bound to its roster, layouts and initial model: the unit of agreement.

    ``initial_model`` is the hex SHA-256 of the (P,) little-endian float32 vector of round 0.
    """

    version: Literal[1] = 1
    federation: Name
    draft: PlanDraft
    roster: tuple[Name, ...]
    layout: Entries
    expert_layout: Entries = ()
    initial_model: str = Field(pattern=r"^[0-9a-f]{64}$")
    continues: Continues | None = None

    @field_validator("roster")
    @classmethod
    def _sorted_roster(cls, roster: tuple[str, ...]) -> tuple[str, ...]:
        if list(roster) != sorted(set(roster)):
            raise ValueError("the roster must be sorted and name each site once")
        if not 2 <= len(roster) <= MAX_SITES:
            raise ValueError(f"{len(roster)} sites; a roster has 2 to {MAX_SITES}")
        return roster

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.draft.quorum > len(self.roster):
            raise ValueError(
                f"quorum {self.draft.quorum} of {len(self.roster)} sites cannot be met"
            )
        if self.quorum > len(self.roster):
            raise ValueError(
                f"colluders {self.draft.colluders} of {len(self.roster)} sites: with differential privacy "
                "nobody could vouch for a log; set fewer"
            )
        if not self.model_layout.only("open_set."):
            raise ValueError("a round shares open_set.* tensors and nothing else")
        if self.draft.backbones:
            if odd := sorted(set(self.draft.backbones) ^ set(self.roster)):
                raise ValueError(
                    f"backbones and roster differ in {', '.join(odd[:5])}: [backbones] names the one "
                    "backbone of every site of the roster, and of no other"
                )
            groups_of(self.model_layout, self.draft.backbones)
        experts = bool(self.expert_layout)
        if experts != (self.draft.expert_exchange != "never"):
            raise ValueError("an expert layout goes with an expert_exchange that is not 'never'")
        if experts and not self.released_layout.only("closed_set.expert."):
            raise ValueError("an exchange releases closed_set.expert.* tensors and nothing else")
        if self.continues is not None and self.continues.model != self.initial_model:
            raise ValueError("an amended plan starts from the model of the run that it continues")
        return self

    @cached_property
    def model_layout(self) -> Layout:
        """Layout of the shared (P,) vector."""
        return _layout(self.layout)

    @cached_property
    def released_layout(self) -> Layout:
        """Layout of the expert that the exchange releases (empty if none)."""
        return _layout(self.expert_layout)

    @cached_property
    def parameter_groups(self) -> tuple[Group, ...]:
        """Which sites contribute to which values of the shared vector, in its order; together all of it."""
        if self.draft.backbones:
            return groups_of(self.model_layout, self.draft.backbones)
        return (Group(EVERYBODY, 0, self.model_layout.size, self.roster),)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Members of each group of parameters, by its name; one of everybody without ``backbones``."""
        return {group.name: group.members for group in self.parameter_groups}

    @property
    def witnessed(self) -> bool:
        """Every site gives a checkpoint of its log for each attempt: under differential privacy."""
        return self.draft.privacy.unit != "none"

    @property
    def quorum(self) -> int:
        """Sites that a cohort has, that countersign it, and whose updates a round needs: so many at least.

        With differential privacy no fewer than what makes two histories of a log impossible: of the n
        witnesses of a site, which are the other n - 1 of the roster and the coordinator, more than
        (n + colluders) / 2 have signed before anything leaves.
        """
        if not self.witnessed:
            return self.draft.quorum
        return max(self.draft.quorum, (len(self.roster) + self.draft.colluders) // 2 + 1)

    @property
    def rounds_before(self) -> int:
        """Rounds that were committed before this plan's first, by the runs that it continues."""
        return self.continues.rounds_done if self.continues is not None else 0

    @property
    def exchange_round(self) -> int | None:
        """After which of this plan's rounds the experts travel; None: not in this run.

        ``freeze``: after the warm-up of all rounds, those of the runs that it continues included.
        """
        match self.draft.expert_exchange:
            case "deployment":
                return self.draft.rounds
            case "freeze":
                due = warm_up_rounds(self.rounds_before + self.draft.rounds) - self.rounds_before
                return due if due >= 1 else None
            case _:
                return None

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name this plan."""
        return domain_hash("plan/v1", self.to_bytes())

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Parse and validate.

        Raises:
            ConfigError: not a plan; names every wrong key.
            LayoutMismatchError: a layout that no model has.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"plan: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError("plan: not a JSON object")
        return parse_settings(cls, values, "plan")


def _layout(entries: tuple[TensorEntry, ...]) -> Layout:
    return Layout(tuple(TensorSpec(entry.name, entry.shape) for entry in entries))
