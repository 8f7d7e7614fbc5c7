"""A federation in one process: the method objects, codec and server rule of a real run, no network.

What a site would send is encoded, added as integers, decoded and applied as the coordinator does it;
with a reproducible plan the result equals that of real processes bit for bit. What is random in a real run
is seeded here, so a simulation gives the same result again; **its noise protects nobody**.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..canonical import domain_hash
from ..data.signatures import SignatureImages
from ..errors import ConfigError
from ..layout import OPEN_SET, FloatVector
from ..methods.base import RoundContext, SiteImages, SiteMethod, SiteUpdate, Tensors
from ..methods.contribution import codec_for, derived_rounding_key
from ..methods.rules import server_rule, stepped
from ..methods.site import build_site, build_site_method
from ..methods.template import model_template
from ..plan import Plan, warm_up_rounds
from ..secagg.codec import add_into

if TYPE_CHECKING:  # it imports torch
    from ..privacy.randomness import Randomness

LOCAL = "local"
"""The method that no plan can name: every site alone."""

RoundMetrics = dict[str, dict[str, float]]
OnRound = Callable[[int, FloatVector, Mapping[str, SiteMethod], RoundMetrics], None]
"""Called after every round with its number, the new shared vector, the sites and their metrics."""

Combine = Callable[[Plan, int, FloatVector, dict[str, SiteUpdate]], FloatVector]
"""From (plan, round, shared vector, updates by site) to the next shared vector."""

Exchange = Literal["never", "freeze", "deployment"]
"""When experts travel, once: never, as soon as they are frozen (R/3), or after the last round."""


@dataclass(frozen=True)
class Standing:
    """Where an interrupted simulation goes on: ``rounds`` done, ``shared`` (P,), the sites' states."""

    rounds: int
    shared: FloatVector
    states: Mapping[str, Tensors]


@dataclass(frozen=True)
class SimulationResult:
    """``shared`` (P,) float32 (empty for ``local``), the trained ``sites``, metrics of each round."""

    shared: FloatVector
    sites: dict[str, SiteMethod]
    metrics: tuple[RoundMetrics, ...]


def plan_for(plan: Plan, method: str) -> Plan:
    """The same plan for another method: same roster, seed and training, that method's model.

    Raises:
        ConfigError: ``method`` is not one that shares a model.
    """
    if method == plan.draft.method:
        return plan
    template = model_template(method, plan.draft.training, plan.draft.seed)
    exchange = "deployment" if template.expert_layout.tensors else "never"
    draft = plan.draft.model_dump() | {"method": method, "expert_exchange": exchange}
    return Plan.model_validate(
        plan.model_dump()
        | {
            "draft": draft,
            "layout": tuple(template.layout.to_json()),
            "expert_layout": tuple(template.expert_layout.to_json()),
            "initial_model": hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
        }
    )


def simulate(
    plan: Plan,
    method: str,
    sites: Mapping[str, SiteImages] | Mapping[str, SignatureImages],
    on_round: OnRound | None = None,
    *,
    exchange: Exchange | None = None,
    standing: Standing | None = None,
    initial: Tensors | None = None,
) -> SimulationResult:
    """Run all rounds of ``plan`` with ``method``, and the exchange if the method has experts.

    Args:
        method: the plan's own, another one that shares a model, or ``local``.
        sites: training images by site name; all of the roster, every round.
        on_round: sees the state after each round, before an exchange that is due then.
        exchange: left out, what the plan says (``freeze`` is the benchmark's alone).
        standing: what ``on_round`` saw after some round; the result is then that of the whole run,
            its ``metrics`` those of the rounds that were left.
        initial: a warm start by ``open_set.*`` name; left out, the values of the plan's seed.

    Raises:
        ConfigError: the sites are not the roster, or the method is not known.
        LayoutMismatchError: ``standing`` is of another method.
    """
    if sorted(sites) != list(plan.roster):
        raise ConfigError(f"sites {sorted(sites)} are not the plan's roster {list(plan.roster)}")
    from ..privacy.randomness import SeededRandom  # it imports torch

    begin = standing.rounds if standing is not None else 0
    noise = {site: SeededRandom(_noise_seed(plan, site, begin)) for site in plan.roster}
    if method == LOCAL:
        methods = {site: _alone(plan, site, sites[site], noise[site]) for site in plan.roster}
        shared, combine, exchange = np.empty(0, np.float32), _keep, exchange or "never"
        if initial is not None:
            own = {f"private.{name.removeprefix(OPEN_SET)}": one for name, one in initial.items()}
            for site in methods.values():
                site.load_state({name: own.get(name, one) for name, one in site.state().items()})
    else:
        plan = plan_for(plan, method)
        methods = {
            site: build_site_method(plan, site, sites[site], randomness=noise[site])
            for site in plan.roster
        }
        shared, combine = methods[plan.roster[0]].initial_vector(), through_codec
        if initial is not None:
            layout = methods[plan.roster[0]].layout
            shared = layout.flatten({one.name: initial[one.name] for one in layout.tensors})
        exchange = exchange or plan.draft.expert_exchange
    return run_rounds(
        plan, methods, shared, combine, on_round, exchange=exchange, standing=standing
    )


def exchange_experts(sites: Mapping[str, SiteMethod]) -> None:
    """Every site's expert to every other site, as after an exchange of experts."""
    experts = {name: site.expert() for name, site in sites.items()}
    for name, site in sites.items():
        for sender in sorted(experts.keys() - {name}):
            site.receive_expert(sender, experts[sender])


def _alone(
    plan: Plan, site: str, images: SiteImages | SignatureImages, noise: Randomness
) -> SiteMethod:
    if isinstance(images, SignatureImages):
        raise ConfigError(
            "local is a method of palms",
            next_step="for signatures alone set receipt = 'keep' in the plan's [fedmh] table",
        )
    draft = plan.draft
    return build_site(LOCAL, draft.training, draft.seed, site, images, randomness=noise)


def run_rounds(
    plan: Plan,
    sites: dict[str, SiteMethod],
    shared: FloatVector,
    combine: Combine,
    on_round: OnRound | None = None,
    *,
    exchange: Exchange = "never",
    standing: Standing | None = None,
) -> SimulationResult:
    """The rounds of :func:`simulate`, of any sites and whatever it is that they share.

    Args:
        shared: what round 1 begins with.
        combine: what becomes of the sites' updates.
    """
    begin = 0
    if standing is not None:
        begin, shared = standing.rounds, standing.shared
        for name, site in sites.items():
            site.load_state(dict(standing.states[name]))
    rounds = plan.draft.rounds
    due = {"never": None, "freeze": warm_up_rounds(rounds), "deployment": rounds}[exchange]
    history: list[RoundMetrics] = []
    for number in range(begin + 1, rounds + 1):
        # At the start of a round, not at the end of the one before: what on_round saw is enough to go on.
        if due == number - 1:
            exchange_experts(sites)
        context = RoundContext(number, rounds)
        updates = {name: site.train_round(context, shared) for name, site in sites.items()}
        shared = combine(plan, number, shared, updates)
        history.append({name: dict(update.metrics) for name, update in updates.items()})
        if on_round is not None:
            on_round(number, shared, sites, history[-1])
    if due == rounds:
        exchange_experts(sites)
    return SimulationResult(shared, sites, tuple(history))


def _noise_seed(plan: Plan, site: str, begin: int) -> int:
    """Of a site's draws under DP; a run that goes on after round ``begin`` draws none of them twice."""
    parts = (plan.draft.seed.to_bytes(8, "big"), site.encode(), begin.to_bytes(4, "big"))
    return int.from_bytes(domain_hash("simulated-noise/v1", *parts)[:8], "big")


def _keep(
    plan: Plan, number: int, shared: FloatVector, updates: dict[str, SiteUpdate]
) -> FloatVector:
    return shared


def through_codec(
    plan: Plan, number: int, shared: FloatVector, updates: dict[str, SiteUpdate]
) -> FloatVector:
    """The deployed path: encode at each site, add integers, decode once, apply the rule."""
    codec = codec_for(plan)
    total = np.zeros(codec.length, dtype=np.uint32)
    for site, update in updates.items():
        key = derived_rounding_key(plan, site, number)
        encoded = codec.encode(update.delta, update.weight, update.stats, key, site)
        add_into(total, encoded)
    stats = codec.decode_stats(total[codec.parameters :])
    rule = server_rule(plan.draft.method)
    return stepped(codec, rule, shared, total[: codec.parameters], 0, stats)
