"""From where a run may start: not from a spent model, and an amended plan from where its run ended."""

from __future__ import annotations

from collections.abc import Iterable

from fedpalm.errors import StateError
from fedpalm.plan import Continues, Plan

from .conducted import ConductedRun


def check_continues(
    plan: Plan,
    named: Continues,
    ended: ConductedRun | None,
    rounds_done: int,
    runs: Iterable[ConductedRun],
) -> None:
    """An amended plan goes on from the end of exactly one run, and is the only one that does.

    Args:
        named: ``plan.continues``.
        ended: the run of that name, if there is one.
        rounds_done: how many rounds it committed.
        runs: all runs.
    Raises:
        StateError: that run is not there, not over, or not as named; the plan has another method or
            layout; another run continues it.
    """
    if ended is None:
        raise _refused(f"there is no run {named.run!r} to continue")
    if not ended.run.over:
        raise _refused(f"run {named.run} is {ended.run.state.value}")
    before, model = ended.plan, ended.run.model_hash
    rounds_done += before.rounds_before
    if (named.plan_hash, named.rounds_done, named.model) != (before.hash.hex(), rounds_done, model):
        raise _refused(
            f"run {named.run} ended after round {rounds_done} with model {model[:16]} under plan "
            f"{before.hash.hex()[:16]}, and not as the amended plan says"
        )
    kept = (before.draft.method, before.layout, before.expert_layout)
    if (plan.draft.method, plan.layout, plan.expert_layout) != kept:
        raise _refused("an amendment keeps the method and the layouts of its run")
    for other in runs:
        if other.plan.continues is not None and other.plan.continues.run == named.run:
            raise _refused(f"run {named.run} is continued by {other.run_id} already")


def check_unspent(plan: Plan, spent: tuple[str, int] | None) -> None:
    """Sites give shares for a model once: no masked run starts from one that was summed from before.

    Args:
        spent: run and round that asked for shares for the plan's initial model, if one did.
    Raises:
        StateError: the plan is masked, and one did.
    """
    if spent is None or plan.draft.masking == "none":
        return
    run_id, number = spent
    raise StateError(
        f"sites have given shares for model {plan.initial_model[:16]} in round {number} of run {run_id}, "
        "and they give shares for a model once: no masked sum can start from it again",
        safe="nothing was submitted",
        next_step=_OTHER_MODEL,
    )


_OTHER_MODEL = (
    "`fedpalm-coordinator plan submit --changed` moves one value of it first; or start from another one: "
    "`fedpalm model init` with another seed, or the model of a later round (fedpalm-coordinator export)"
)


def _refused(what: str) -> StateError:
    return StateError(
        what,
        safe="nothing was submitted",
        next_step="let `fedpalm-coordinator plan amend RUN` make a plan that fits",
    )
