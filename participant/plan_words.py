"""The sentences about a plan that are the same for every plan of a kind, and how two plans differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedpalm.groups import TRUNK
from fedpalm.layout import Layout
from fedpalm.methods.contribution import masking_terms
from fedpalm.plan import Plan
from fedpalm.secagg.terms import group_survivors

_SHARED = "It trains the shared open-set model on its own images"

METHODS = {
    "fedavg": f"{_SHARED} (fedavg), and nothing else.",
    "fedbn": f"{_SHARED} (fedbn). Normalisation layers of the model stay here.",
    "fedkd": f"{_SHARED}, and a teacher model of its own (fedkd). Only the first is shared in rounds, "
    "its update cut to low rank.",
    "fedmh": f"{_SHARED} (fedmh), its trunk with the sites that have the same backbone, if with any, the "
    "rest with all. It goes towards a received model only as far as its own held-out signatures allow.",
    "fednova": f"{_SHARED} (fednova), and nothing else. Updates are divided by the number of steps.",
    "fedpalm": f"{_SHARED}, and a closed-set model of its own (fedpalm). Only the first is shared in "
    "rounds.",
    "fedpalm-release": f"{_SHARED}, and a closed-set model of its own (fedpalm-release). Only the first "
    "is shared in rounds.",
    "fedper": f"{_SHARED} (fedper). The model's embedding layer stays here.",
    "fedprox": f"{_SHARED} (fedprox), held near the model that it received, and nothing else.",
    "hyperfed": f"{_SHARED}, and a small network of its own that adapts it (hyperfed). Only the first is "
    "shared in rounds.",
    "moon": f"{_SHARED} (moon), drawn towards the model that it received. A copy of "
    "its last model stays here.",
    "rehearsal": "It draws random numbers of a model's size (rehearsal). No image is read: what is "
    "sent says nothing about anybody.",
}

_IMAGES = "one number more, the weight of the update: how many training images are behind it"

_BEHIND = dict.fromkeys(METHODS, _IMAGES) | {
    "fednova": "two numbers more: how many training images are behind it, and that times the number of "
    "training steps",
    "fedpalm-release": "one number more, the weight of the update: 1 at every site",
    "rehearsal": "one number more, the weight of the update: a random one",
}


def behind(plan: Plan) -> str:
    """What rides behind the parameters of an update; a count of images never does where it is private."""
    private = plan.draft.privacy.unit != "none" and plan.draft.method != "rehearsal"
    fixed = (
        "numbers that the plan fixes, alike at every site: the weight 1, and of fednova the steps"
    )
    said = fixed if private else _BEHIND[plan.draft.method]
    if not plan.draft.backbones:
        return said
    weight = said.partition("the weight of the update")[2]
    return (
        f"{len(plan.groups)} numbers more, one for each group: the weight of the update{weight}, and zero "
        "for a group that this site is not of"
    )


STATISTIC = (
    "Among these tensors is a statistic of this site's images: how the templates of one person differ, "
    "over all of its people (normaliser.within). It names nobody, and no noise hides it."
)
"""Said of a plan whose ``template_normaliser`` is shared."""

_NOT_MASKED = (
    "Masking is none: the coordinator sees this site's own update and the numbers behind it, in every "
    "round.",
    "The other sites see the new global model, which is the weighted mean of all updates. In a cohort of "
    "two, each of them can work out most of the other's update from it.",
    "On the way everything is encrypted between this site and the coordinator (TLS 1.3).",
)


def masking_words(plan: Plan) -> tuple[str, ...]:
    """Who sees the updates of a plan, and what masking does not give.

    Raises:
        ConfigError: masking cannot work with this roster or quorum.
    """
    terms = masking_terms(plan)
    if terms is None:
        return _NOT_MASKED
    away = terms.to_spare
    return (
        "Masking is on: the update leaves as numbers that look random. The coordinator sees only the sum "
        f"of at least {terms.min_survivors} sites' updates, the weights inside it included, even if it "
        f"lies and {times(terms.colluders, 'site')} of the roster works together with it.",
        f"{times(terms.threshold, 'site')} of {terms.sites} must confirm the same sum before anything is "
        f"opened. {times(away, 'site')} may drop out of a round"
        + ("." if away else ": WARNING: the round fails as soon as one site is away."),
        "Masking does not hide the sum: whoever sees the new global model sees the mean of all updates. "
        "It does not check that other sites' updates are honest or that the coordinator publishes the "
        "right model, and sums of different rounds over different sites can be compared.",
    )


def peer_words(run_id: str, others: int, unconfirmed: Sequence[str]) -> tuple[str, ...]:
    """How many of the other sites' signing keys a person at this site has compared, and what it means."""
    said = (
        f"Somebody at this site has confirmed the signing keys of {others - len(unconfirmed)} of "
        f"{times(others, 'other site')}."
    )
    if not unconfirmed:
        return (said,)
    return (
        said,
        f"WARNING: not those of {listed(unconfirmed, 5, '--json lists all')}. A coordinator that also runs "
        "the federation's CA could put keys of its own in their place, and subtract from a sum whatever "
        "it sent in their names. Compare by telephone, as soon as the first round has been asked for: "
        f"fedpalm-participant peers --run {run_id}, then peers confirm --all CODE --run {run_id}.",
    )


_PRIVACY = {
    "none": (
        "None: no noise is added, and there is no epsilon and no delta that would bound what an update "
        "tells.",
        "Whoever sees an update may learn something about the images behind it: for example whether "
        "a certain image was among them, or in bad cases what some of them look like.",
    ),
    "subject": (
        "By person: every step clips what a whole person adds and puts noise over it; epsilon and delta "
        "bound what the updates tell about anybody here, however many images there are of them.",
    ),
    "record": (
        "By image: epsilon and delta bound what the updates tell about one image. A person of whom "
        "there are many images is protected less.",
    ),
}


def privacy_words(plan: Plan) -> tuple[str, ...]:
    """What a plan's differential privacy protects, and by which mechanism; not what it costs."""
    privacy, said = plan.draft.privacy, _PRIVACY[plan.draft.privacy.unit]
    if privacy.unit == "none":
        return said
    one = "person" if privacy.unit == "subject" else "image"
    return (
        *said,
        f"In a round {times(privacy.steps, 'step')}: each draws every {one} with probability "
        f"{privacy.sampling_rate:g}, clips to {privacy.clip_norm:g} and adds noise of "
        f"{privacy.noise_multiplier:g} times that.",
    )


def budget_words(
    spent: float, budget: float, delta: float, whole: float, rounds: int, fit: int
) -> tuple[str, ...]:
    """What the rest of a plan would cost this site.

    Args:
        spent: epsilon so far; ``whole``: after the ``rounds`` that are still to be charged, of which
            ``fit`` are within ``budget``.
    """
    lines = (
        f"This site has spent epsilon {spent:.3f} of its budget {budget:g}, at delta {delta:g}.",
        f"{times(rounds, 'further round')} of this plan would bring it to {whole:.3f}.",
    )
    if fit == rounds:
        return lines
    return (
        *lines,
        f"WARNING: the budget allows {fit:,} of them. The site refuses the others before it trains them: "
        "ask for a plan with fewer rounds or more noise, or have max_epsilon raised in policy.toml.",
    )


_HOW_FAR = (
    "How far it goes towards each model that it receives follows from its held-out signatures. It is sent "
    "nowhere by itself, but it is in the update"
)
_OWN_UPDATE = ": masking is none, so the coordinator can work some of it out from this site's own."
_IN_SUMS = ", of which the coordinator sees sums over several sites only."


def group_words(plan: Plan, site: str) -> tuple[str, ...]:
    """Which parts of the shared vector a site contributes to, where sites have backbones of their own."""
    own = plan.draft.backbones[site]
    lines = [f"This site's backbone is {own}. Everybody can read in the plan who has which."]
    for group in plan.parameter_groups:
        said = f"{group.name}: {group.end - group.begin:,} parameters, averaged over "
        everybody = group.members == plan.roster
        said += "all sites." if everybody else f"{', '.join(group.members)}."
        lines.append(said + ("" if site in group.members else " This site sends zeros there."))
    lines += [f"{what} stays here." for what in kept_words(plan, site)]
    if plan.draft.fedmh is not None and plan.draft.fedmh.receipt == "pareto":
        lines.append(_HOW_FAR + (_OWN_UPDATE if plan.draft.masking == "none" else _IN_SUMS))
    if plan.draft.masking == "none":
        lines.append(
            "How much this site's update weighs in each of its groups: the coordinator sees it."
        )
    else:
        lines.append(
            "How much this site's update weighs in each of its groups is inside the mask: the coordinator "
            "sees the sum of all weights of a group."
        )
        lines.append(
            f"No group is unmasked with fewer than {group_survivors(plan.draft.colluders)} of its sites "
            "in the sum: the attempt fails, and nothing is opened."
        )
    return tuple(lines)


def kept_words(plan: Plan, site: str) -> tuple[str, ...]:
    """What such a plan trains and leaves at the site."""
    own, kept = plan.draft.backbones[site], []
    if f"{TRUNK}{own}" not in plan.groups:
        kept.append(f"The trunk of {own}, which the plan does not share,")
    if plan.draft.method == "fedmh":
        kept.append("The head that tells this site's writers apart")
    return tuple(kept)


NEVER_LEAVES = (
    "Never: images, labels, names, templates, classification heads, the closed-set model and its "
    "embedding, training metrics, or how many people there are. The egress gate can encode none of it.",
)


def changes(old: Plan, new: Plan) -> dict[str, Any]:
    """How two plans differ: every key of the draft that does, model, layouts, and the roster by name.

    Returns:
        ``changed`` (a list of key, old, new), ``joined`` and ``left`` (names of sites).
    """
    before, after = _flat(old), _flat(new)
    return {
        "changed": [
            {"key": key, "old": before.get(key), "new": after.get(key)}
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ],
        "joined": sorted(set(new.roster) - set(old.roster)),
        "left": sorted(set(old.roster) - set(new.roster)),
    }


def listed(names: Sequence[str], most: int, rest: str) -> str:
    """At most so many names, then how many there are more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, and {len(names) - most} more ({rest})"


def times(count: int, noun: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def span(seconds: float) -> str:
    """A duration in the largest unit that it fills, such as ``1.5 hours``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = seconds / length
            return f"{count:.4g} {unit}" + ("" if count == 1 else "s")
    return f"{seconds:.4g} s"


def _flat(plan: Plan) -> dict[str, Any]:
    draft = plan.draft.model_dump(mode="json")
    return {
        **_dotted(draft, ""),
        "version": plan.version,
        "federation": plan.federation,
        "initial_model": plan.initial_model,
        "layout": _layout(plan.model_layout),
        "expert_layout": _layout(plan.released_layout),
        "continues": (
            json.dumps(plan.continues.model_dump(), sort_keys=True) if plan.continues else None
        ),
    }


def _layout(layout: Layout) -> str:
    if not layout.tensors:
        return "none"
    return f"{len(layout.tensors)} tensors, {layout.size:,} parameters ({layout.hash.hex()[:12]})"


def _dotted(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
