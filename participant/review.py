"""A plan in words: what a security officer has to know before this site says yes to it.

Everything here is read from the plan as it was offered and from the site's own store and policy; nothing
is asked of the coordinator.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from fedpalm.data.modality import modality_of
from fedpalm.errors import ConfigError, PolicyError
from fedpalm.layout import Layout
from fedpalm.methods.plan_template import plan_template
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.plan import Plan

from .budget import BudgetBook
from .images import require_data
from .peers import PeerBook
from .plan_book import PlanState, StoredPlan
from .plan_desk import PlanDesk
from .plan_words import (
    METHODS,
    NEVER_LEAVES,
    STATISTIC,
    behind,
    budget_words,
    changes,
    group_words,
    kept_words,
    listed,
    masking_words,
    peer_words,
    privacy_words,
    span,
    times,
)
from .policy import payload_sizes, total_rounds, violations
from .store import SiteStore

SHOWN_TENSORS = 8


@dataclass(frozen=True)
class Section:
    """A question of the reader and its answer, a sentence a line."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """``sections`` for people, ``data`` with the same content for programs."""

    sections: tuple[Section, ...]
    data: dict[str, Any]


def review_plan(desk: PlanDesk, stored: StoredPlan) -> Review:
    """Describe a plan that was offered to this site."""
    site = desk.live.current.identity.name
    parts = [
        _standing(stored),
        _parties(stored.plan, site),
        _work(desk, stored.plan),
        _leaves(stored.plan),
        *_groups(stored.plan, site),
        *_peers(desk, stored, site),
        _exchange(stored.plan, site),
        _privacy(desk, stored),
        _rounds(stored.plan),
        _start(desk.store, stored.plan),
        _changes(desk, stored),
        _verdict(desk, stored.plan),
        _compare(stored.plan),
    ]
    data: dict[str, Any] = {}
    for _, part in parts:
        data |= part
    return Review(tuple(section for section, _ in parts), {**data, "plan": _json(stored.plan)})


_Part = tuple[Section, dict[str, Any]]


def _standing(stored: StoredPlan) -> _Part:
    by = {"person": "a person at this site", "policy": "this site's policy", "": "nobody yet"}
    said = {
        PlanState.PROPOSED: "Nobody has decided on it yet. Nothing runs before this site approves.",
        PlanState.APPROVED: f"Approved by {by[stored.decided_by]}.",
        PlanState.REFUSED: f"Refused by {by[stored.decided_by]}.",
    }[stored.state]
    lines = [said]
    if stored.reason:
        lines.append(f"Reason: {stored.reason}")
    if stored.answer is not None:
        lines.append(
            "The coordinator has this answer."
            if stored.answered
            else "The coordinator does not have this answer yet; the agent sends it."
        )
    return Section(f"Run {stored.run_id}, plan {stored.plan.draft.name!r}", tuple(lines)), {
        "run_id": stored.run_id,
        "name": stored.plan.draft.name,
        "state": stored.state.value,
        "decided_by": stored.decided_by,
        "reason": stored.reason,
        "answers": stored.number,
        "answered": stored.answered,
        "offered_ms": stored.offered_ms,
        "decided_ms": stored.decided_ms,
    }


def _parties(plan: Plan, site: str) -> _Part:
    others = [name for name in plan.roster if name != site]
    lines = (
        f"{len(plan.roster)} sites of federation {plan.federation}: this site ({site}), "
        f"{', '.join(others)}; and the coordinator, which holds no images.",
        f"A round counts with {plan.quorum} or more of them.",
    )
    return Section("Who takes part", lines), {
        "federation": plan.federation,
        "site": site,
        "roster": list(plan.roster),
        "minimum_cohort": plan.quorum,
    }


def _work(desk: PlanDesk, plan: Plan) -> _Part:
    wanted = modality_of(plan.draft.method)
    lines = [METHODS[plan.draft.method]]
    if missing := _missing_images(desk, plan):
        lines.append(f"WARNING: {missing}. Approved or not, it joins no run of this plan as it is.")
    data = {"method": plan.draft.method, "modality": wanted, "images_missing": missing}
    return Section("What this site does", tuple(lines)), data


def _missing_images(desk: PlanDesk, plan: Plan) -> str:
    """Why the images in ``participant.toml`` are none that the plan trains on; empty if they are."""
    if modality_of(plan.draft.method) is None:
        return ""
    try:
        require_data(desk.store.home.load().data, plan)
    except ConfigError as error:
        return error.what
    return ""


def _leaves(plan: Plan) -> _Part:
    layout, size = plan.model_layout, payload_sizes(plan)["update"]
    try:
        seen_by = masking_words(plan)
    except ConfigError as error:
        seen_by = (f"Masking cannot work in this plan: {error.what}.",)
    lines = (
        f"One update: the change of {len(layout.tensors)} tensors of the shared open-set model, "
        f"{layout.size:,} parameters, {size:,} bytes with {behind(plan)}.",
        f"The tensors: {_tensors(layout)}.",
        *((STATISTIC,) if plan.draft.training.template_normaliser == "federation" else ()),
        *seen_by,
        *NEVER_LEAVES,
    )
    return Section("What leaves this site in each round, and who sees it", lines), {
        "leaves": {
            "tensors": len(layout.tensors),
            "parameters": layout.size,
            "bytes": size,
            "layout": layout.to_json(),
        },
        "masking": plan.draft.masking,
        "seen_by": list(seen_by),
        "never_leaves": list(NEVER_LEAVES),
    }


def _groups(plan: Plan, site: str) -> list[_Part]:
    """Where sites have backbones of their own: what this one contributes to."""
    if not plan.draft.backbones:
        return []
    lines = group_words(plan, site)
    groups = {name: list(members) for name, members in plan.groups.items()}
    data = {
        "groups": groups,
        "backbone": plan.draft.backbones[site],
        "shared_with": {
            name: [other for other in members if other != site]
            for name, members in groups.items()
            if site in members
        },
        "kept": list(kept_words(plan, site)),
    }
    return [(Section("Which parameters it contributes to", lines), data)]


def _peers(desk: PlanDesk, stored: StoredPlan, site: str) -> list[_Part]:
    """Under masking: whose keys the masks are made with, and who has looked at them."""
    plan = stored.plan
    if plan.draft.masking == "none":
        return []
    confirmed = {peer.site for peer in PeerBook(desk.store).all() if peer.confirmed_ms is not None}
    others = [name for name in plan.roster if name != site]
    unconfirmed = [name for name in others if name not in confirmed]
    lines = peer_words(stored.run_id, len(others), unconfirmed)
    data = {"others": len(others), "unconfirmed": unconfirmed}
    return [(Section("Whose keys the masks are made with", lines), {"peers": data})]


def _exchange(plan: Plan, site: str) -> _Part:
    layout = plan.released_layout
    if not layout.tensors:
        lines: tuple[str, ...] = ("The plan has none: no expert of this site leaves.",)
        data = None
    else:
        others = [name for name in plan.roster if name != site]
        freeze = plan.draft.expert_exchange == "freeze"
        when = f"After round {plan.exchange_round}" if freeze else "After the run"
        lines = (
            f"{when} the operator may ask for the textural expert of this site's closed-set "
            f"model: {len(layout.tensors)} tensors, {layout.size:,} parameters, "
            f"{4 * layout.size:,} bytes, once.",
            f"It would be sealed to each other site ({', '.join(others)}), which could open and keep it; "
            "the coordinator only carries it and cannot open it.",
            "It was trained on this site's people alone. Every site is asked for a yes of its own, with: "
            "fedpalm-participant exchange review, approve or refuse. Approving this plan is not "
            "that yes."
            + (
                " The exchange goes on without a site that refuses, among the others."
                if plan.draft.exchange_without_refusers
                else " One site that refuses ends it for all."
            ),
        )
        data = {
            "tensors": len(layout.tensors),
            "parameters": layout.size,
            "bytes": payload_sizes(plan)["sealed_expert"],
            "layout": layout.to_json(),
            "sealed_to": others,
        }
    return Section("Exchange of experts", lines), {"exchange": data}


def _privacy(desk: PlanDesk, stored: StoredPlan) -> _Part:
    """What the plan protects, and what it would cost; accountants are asked, which takes seconds."""
    plan, words = stored.plan, privacy_words(stored.plan)
    data: dict[str, Any] = {"mode": plan.draft.privacy.unit, "epsilon": None, "delta": None}
    if plan.draft.privacy.unit != "none":
        try:
            found = forecast(BudgetBook(desk.store, desk.log, desk.policy), stored.run_id, plan)
        except PolicyError as error:
            words = (*words, f"What it would cost is not known: {error.what}.")
        else:
            data |= {"epsilon": found["epsilon_after"], "delta": found["delta"], "budget": found}
            words = (*words, *found["words"])
    return Section("Differential privacy", words), {"privacy": {**data, "words": list(words)}}


def forecast(budget: BudgetBook, run_id: str, plan: Plan) -> dict[str, Any]:
    """What the rounds of a plan that are not charged yet would cost this site.

    Raises:
        PolicyError: the policy cannot be read or names no delta; or no accountant can say.
    """
    account, rounds = budget.account(plan.draft.privacy.unit), budget.rounds_to_charge(run_id, plan)
    after, fit = budget.forecast(plan, rounds), budget.rounds_that_fit(plan, rounds)
    return {
        "unit": account.unit,
        "epsilon_spent": account.epsilon,
        "epsilon_after": after,
        "epsilon_budget": account.budget,
        "delta": account.delta,
        "rounds": rounds,
        "rounds_that_fit": fit,
        "words": list(
            budget_words(account.epsilon, account.budget, account.delta, after, rounds, fit)
        ),
    }


def _rounds(plan: Plan) -> _Part:
    draft, done = plan.draft, plan.continues
    size = payload_sizes(plan)["update"]
    lines = [
        f"{times(draft.rounds, 'round')}; {draft.rounds * size:,} bytes of updates in all.",
        f"Sites have {span(draft.join_deadline_s)} to come to a round and "
        f"{span(draft.round_deadline_s)} to train and send.",
        f"A round that fails is tried up to {times(draft.max_attempts, 'time')}, with the same update; "
        "then the operator decides.",
    ]
    if done is not None:
        lines.insert(
            0,
            f"It goes on from run {done.run} after {times(done.rounds_done, 'round')}, with the "
            "private state that this site has from there.",
        )
    return Section("How long", tuple(lines)), {
        "rounds": draft.rounds,
        "total_rounds": total_rounds(plan),
        "join_deadline_s": draft.join_deadline_s,
        "round_deadline_s": draft.round_deadline_s,
        "max_attempts": draft.max_attempts,
        "continues": done.model_dump() if done is not None else None,
    }


def _start(store: SiteStore, plan: Plan) -> _Part:
    known = _known_model(store, plan)
    said = (
        f"It starts from {known}."
        if known
        else "It starts from a model that this site does not know: not the one that follows from the "
        "plan's seed, nor one that this site remembers. It may be a warm start that was trained before; "
        "ask the operator on what."
    )
    return Section("Starting model", (said, f"SHA-256 {plan.initial_model}")), {
        "initial_model": {
            "hash": plan.initial_model,
            "known": bool(known),
            "what": known,
        }
    }


def _changes(desk: PlanDesk, stored: StoredPlan) -> _Part:
    before = desk.book.last_approved(besides=stored.run_id)
    if before is None:
        lines: tuple[str, ...] = ("This site has approved no other plan before.",)
        data = None
    else:
        found = changes(before.plan, stored.plan)
        data = {"since_run": before.run_id, "since_plan_hash": before.plan.hash.hex(), **found}
        joined, left = found["joined"], found["left"]
        lines = (
            f"Compared with run {before.run_id}, plan {before.plan.hash.hex()[:12]}:",
            *([f"New on the roster: {', '.join(joined)}."] if joined else []),
            *([f"No longer on the roster: {', '.join(left)}."] if left else []),
            *(f"{one['key']}: {one['old']} -> {one['new']}" for one in found["changed"]),
        )
        if len(lines) == 1:
            lines = (*lines, "nothing.")
    return Section("What changed since the last plan that this site approved", lines), {
        "changes": data
    }


def _verdict(desk: PlanDesk, plan: Plan) -> _Part:
    try:
        policy = desk.policy.current
        found = [*violations(policy, plan), *desk.disagreements(plan)]
    except PolicyError as error:
        unusable = ("The policy cannot be used: nothing is approved, trained or sent.", error.what)
        return Section("This site's policy", unusable), {
            "policy": {"verdict": "unreadable", "violations": [], "error": error.what}
        }
    lines = (
        ("The plan breaks it and cannot be approved:", *found)
        if found
        else ("The plan keeps within its limits (fedpalm-participant policy shows them).",)
    )
    return Section("This site's policy", lines), {
        "policy": {
            "verdict": "forbidden" if found else "allowed",
            "violations": found,
            "auto_approve": policy.auto_approve,
        }
    }


def _compare(plan: Plan) -> _Part:
    text = plan.hash.hex()
    groups = " ".join(text[at : at + 4] for at in range(0, len(text), 4))
    return Section(
        "To compare by telephone with the operator or another site: the hash of this plan",
        (groups,),
    ), {"plan_hash": text}


def _known_model(store: SiteStore, plan: Plan) -> str:
    """Where this site knows the starting model from; empty if from nowhere."""
    found = store.known_model(bytes.fromhex(plan.initial_model))
    if found is not None:
        return found
    draft, layout = plan.draft, plan.model_layout
    if draft.method == "rehearsal":
        vector = rehearsal_vector(layout, draft.seed)
    else:
        template = plan_template(draft)
        if template.layout.tensors != layout.tensors:
            return ""
        vector = template.initial
    digest = hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
    if digest == plan.initial_model:
        return (
            f"the untrained model that follows from the plan's seed, {draft.seed}; made anew here"
        )
    return ""


def _tensors(layout: Layout) -> str:
    names = [
        f"{spec.name} ({' x '.join(map(str, spec.shape)) or 'one number'})"
        for spec in layout.tensors
    ]
    return listed(names, SHOWN_TENSORS, "--json lists all")


def _json(plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = plan.model_dump(mode="json")
    return values
