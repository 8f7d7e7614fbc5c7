"""``policy.toml``: the limits that a site will never exceed, whatever a plan or a person says."""

from __future__ import annotations

import os
import threading
from typing import Literal, get_args

from pydantic import Field

from fedpalm.errors import ConfigError, PolicyError
from fedpalm.exchange.sealing import max_sealed_bytes
from fedpalm.methods.contribution import codec_for, masking_terms
from fedpalm.plan import MAX_SITES, MethodName, Plan
from fedpalm.secagg.terms import group_survivors
from fedpalm.settings import Settings, parse_toml

from .config import Home

BYTES_PER_MB = 10**6
MAX_BYTES = 64 * 1024
"""Of ``policy.toml``."""

Stamp = tuple[int, int, int]


class Policy(Settings):
    """The keys of ``policy.toml``; a key that is left out has the value here. One MB is 10^6 bytes."""

    auto_approve: bool = False
    """Answer yes without a person if a plan keeps within all the other limits."""
    methods: tuple[MethodName, ...] = get_args(MethodName)
    masking: Literal["optional", "required"] = "optional"
    min_colluders: int = Field(1, ge=0, le=MAX_SITES - 2)
    """Of a plan with masking: the least number of colluding sites that it must withstand."""
    peers: Literal["first-use", "confirmed"] = "first-use"
    """Whose keys are masked with: as they were seen first, or only once a person here has compared them."""
    privacy: Literal["optional", "required"] = "optional"
    privacy_unit: Literal["subject", "record"] = "subject"
    """The least that a plan with differential privacy protects: a person, or one image of them."""
    max_epsilon: float = Field(8.0, gt=0, le=1e6)
    """This site's budget for everything that it ever trains with differential privacy, for each unit."""
    delta: float | None = Field(None, gt=0, lt=1)
    """At which epsilon is counted; there is no default, and without it no such plan is allowed."""
    people: int | None = Field(None, ge=1, le=10**9)
    """How many people this site has, as declared here (where ``privacy_unit`` is record: images)."""
    min_cohort: int = Field(2, ge=2, le=MAX_SITES)
    max_rounds: int = Field(10_000, ge=1, le=1_000_000)
    """Of a plan, together with the rounds of the run that it continues."""
    expert_exchange: bool = True
    max_payload_mb: float = Field(1024, gt=0, le=1e9)
    max_mb_per_day: float = Field(102_400, gt=0, le=1e12)

    @property
    def max_payload_bytes(self) -> int:
        """The largest update or sealed expert that may leave."""
        return int(self.max_payload_mb * BYTES_PER_MB)

    @property
    def max_bytes_per_day(self) -> int:
        """What may leave within any 24 hours, everything together."""
        return int(self.max_mb_per_day * BYTES_PER_MB)


def load_policy(home: Home) -> Policy:
    """The policy of a home; the defaults if there is no file.

    Raises:
        ConfigError: the file cannot be read, or names file and every wrong key.
    """
    try:
        data = home.policy.read_bytes()
    except FileNotFoundError:
        return Policy()
    except OSError as error:
        raise ConfigError(f"{home.policy}: {error}") from error
    return parse_toml(Policy, data, str(home.policy))


def violations(policy: Policy, plan: Plan) -> list[str]:
    """What the policy forbids about a plan, a sentence each; empty if it may be approved."""
    draft = plan.draft
    found = []
    if draft.method not in policy.methods:
        allowed = ", ".join(policy.methods) or "no method at all"
        found.append(f"methods: the plan uses {draft.method}; this policy allows {allowed}")
    if policy.masking == "required" and draft.masking == "none":
        found.append(
            "masking: this policy requires it; the plan has none, so that the coordinator would see "
            "this site's updates"
        )
    if draft.masking != "none":
        found += _masking_violations(policy, plan)
    if policy.privacy == "required" and draft.privacy.unit == "none":
        found.append("privacy: this policy requires differential privacy; the plan has none")
    if draft.privacy.unit != "none":
        found += _privacy_violations(policy, plan)
    if plan.quorum < policy.min_cohort:
        found.append(
            f"min_cohort: the plan lets {plan.quorum} sites make a round; this policy asks for "
            f"{policy.min_cohort}"
        )
    found += _group_violations(policy, plan)
    rounds = total_rounds(plan)
    if rounds > policy.max_rounds:
        found.append(
            f"max_rounds: {rounds} rounds"
            + (" with those of the run that it continues" if plan.continues else "")
            + f"; this policy allows {policy.max_rounds}"
        )
    if plan.expert_layout and not policy.expert_exchange:
        found.append(
            "expert_exchange: the plan may release this site's textural expert; this policy forbids it"
        )
    largest = max(payload_sizes(plan).values())
    if largest > policy.max_payload_bytes:
        found.append(
            f"max_payload_mb: one payload of {largest:,} bytes; this policy allows "
            f"{policy.max_payload_bytes:,}"
        )
    if largest > policy.max_bytes_per_day:
        found.append(
            f"max_mb_per_day: one payload of {largest:,} bytes; this policy allows "
            f"{policy.max_bytes_per_day:,} in 24 hours"
        )
    return found


def _masking_violations(policy: Policy, plan: Plan) -> list[str]:
    found = []
    if plan.draft.colluders < policy.min_colluders:
        found.append(
            f"min_colluders: masking in the plan withstands {plan.draft.colluders} colluding sites; this "
            f"policy asks for {policy.min_colluders}"
        )
    try:
        masking_terms(plan)
    except ConfigError as error:
        found.append(f"masking: {error.what}")
    return found


def _group_violations(policy: Policy, plan: Plan) -> list[str]:
    """Of groups of parameters: the fewest sites that one may be averaged over, of any group."""
    masked = plan.draft.masking != "none"
    least = {
        name: group_survivors(plan.draft.colluders) if masked else len(members)
        for name, members in plan.groups.items()
        if members != plan.roster
    }
    return [
        f"min_cohort: group {name} may be averaged over {count} sites; this policy asks for "
        f"{policy.min_cohort}"
        for name, count in least.items()
        if count < policy.min_cohort
    ]


def _privacy_violations(policy: Policy, plan: Plan) -> list[str]:
    """What the budget needs to know before it can say how much is left (``budget.py``)."""
    found = []
    if plan.draft.privacy.unit == "record" and policy.privacy_unit == "subject":
        found.append(
            "privacy_unit: the plan protects one image, this policy asks for whole people: ask for a plan "
            "with unit = 'subject', or set privacy_unit = 'record'"
        )
    if policy.delta is None:
        found.append(
            "delta: the plan has differential privacy, and this policy names no delta: set it below "
            "1 / people"
        )
    if policy.people is None:
        found.append(
            "people: the plan has differential privacy, and this policy does not say how many people "
            "the site has: set people to a number that may be known"
        )
    elif policy.delta is not None and policy.delta * policy.people >= 1:
        found.append(
            f"delta: {policy.delta:g} is not below 1 / people = {1 / policy.people:g}, so that it would "
            "allow to give somebody away: set a smaller delta"
        )
    population = plan.draft.privacy.population
    if policy.delta is not None and policy.delta * population >= 1:
        found.append(
            f"delta: {policy.delta:g} is not below 1 / {population:,}, the people that the plan declares, "
            "and an auditor would not accept it: set a smaller delta"
        )
    return found


def require_allowed(policy: Policy, plan: Plan) -> None:
    """Raises PolicyError, which lists every violation, if the policy forbids the plan."""
    found = violations(policy, plan)
    if found:
        raise PolicyError(
            "this site's policy forbids the plan\n" + "\n".join(found),
            safe="it is not approved; nothing is trained or sent for it",
            next_step="ask the operator for another plan, or have the policy changed by whoever owns it",
        )


def total_rounds(plan: Plan) -> int:
    """Rounds of the plan and of the run that it continues."""
    return plan.draft.rounds + plan.rounds_before


def payload_sizes(plan: Plan) -> dict[str, int]:
    """Bytes of each kind of payload that carries weights, by the name that the site's log shows."""
    sizes = {"update": codec_for(plan).payload_bytes}
    if plan.expert_layout:
        sizes["sealed_expert"] = max_sealed_bytes(plan.released_layout, len(plan.roster))
    return sizes


def in_words(policy: Policy) -> list[str]:
    """The limits in force, a sentence each."""
    masked = policy.masking == "required"
    private = policy.privacy == "required"
    return [
        "A plan within these limits is approved without asking anybody."
        if policy.auto_approve
        else "Every plan waits for a person: fedpalm-participant review, then approve or refuse.",
        f"Methods: {', '.join(policy.methods) or 'none at all'}.",
        "Masking is required: the coordinator must not see this site's own updates."
        if masked
        else "Masking is not required: the coordinator may see this site's own updates.",
        f"Where a plan has masking, it withstands {policy.min_colluders} or more sites that work together "
        "with the coordinator.",
        "Nothing is masked with a site whose signing key nobody here has confirmed (peers confirm)."
        if policy.peers == "confirmed"
        else "The signing keys of other sites are masked with as they were seen first.",
        f"Differential privacy is {'required' if private else 'not required'}. Where a plan has it, it "
        + (
            "protects whole people"
            if policy.privacy_unit == "subject"
            else "protects people or single images"
        )
        + f", and everything that is ever trained so costs at most epsilon {policy.max_epsilon:g}"
        + (
            f" at delta {policy.delta:g}, for {policy.people:,} people."
            if policy.delta is not None and policy.people is not None
            else "; none is allowed before delta and people are set."
        ),
        f"A round has at least {policy.min_cohort} sites.",
        f"A run has at most {policy.max_rounds:,} rounds, with those of the run that it continues.",
        "The exchange of experts is allowed in a plan; each one needs a person's yes of its own."
        if policy.expert_exchange
        else "The exchange of experts is forbidden.",
        f"One payload has at most {policy.max_payload_mb:,g} MB; within 24 hours at most "
        f"{policy.max_mb_per_day:,g} MB leave.",
    ]


class PolicyFile:
    """The policy of a home as its file says now. Safe to use from several threads.

    Fails closed: while the file is wrong, and from when it disappears or is emptied under a running
    process, there is no policy, and so nothing is approved, trained or sent.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._seen: Stamp | None = None
        self._policy: Policy | None = None
        self._was_there = self._had_text = False

    @property
    def current(self) -> Policy:
        """The policy, read anew if the file has changed.

        Raises:
            PolicyError: the file cannot be read, is wrong (it names file and keys), or is gone.
        """
        with self._lock:
            try:
                # What is looked at and what is read is one file, whatever the name means meanwhile.
                with self._home.policy.open("rb") as file:
                    self._was_there = True
                    stamp = _stamp(os.fstat(file.fileno()))
                    if self._policy is None or stamp != self._seen:
                        self._policy = None
                        self._policy, self._seen = self._parsed(file.read(MAX_BYTES + 1)), stamp
            except FileNotFoundError:
                if self._was_there:
                    raise self._unusable("the policy is gone") from None
                self._policy = Policy()
            except OSError as error:
                raise self._unusable(error.strerror or "cannot be read") from error
            return self._policy

    @property
    def stamp(self) -> Stamp | None:
        """Changes whenever the file does; None while there is none that can be looked at."""
        try:
            return _stamp(os.stat(self._home.policy))  # noqa: PTH116
        except OSError:
            return None

    def _parsed(self, data: bytes) -> Policy:
        if len(data) > MAX_BYTES:
            raise self._unusable(f"more than {MAX_BYTES} bytes")
        if self._had_text and not data.strip():
            # So a file looks for a moment while somebody writes it.
            raise self._unusable("the policy is empty")
        self._had_text = bool(data.strip())
        try:
            return parse_toml(Policy, data, str(self._home.policy))
        except ConfigError as error:
            raise PolicyError(error.what, safe=_SAFE, next_step=error.next_step) from error

    def _unusable(self, why: str) -> PolicyError:
        return PolicyError(
            f"{self._home.policy}: {why}",
            safe=_SAFE,
            next_step="put the file back as it was, or start the agent again to go on with the defaults",
        )


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_ino, status.st_mtime_ns, status.st_size)


_SAFE = "nothing is approved, trained or sent"
