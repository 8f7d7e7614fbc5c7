"""What an amended plan must be, to go on where another run ended."""

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


def _refused(what: str) -> StateError:
    return StateError(
        what,
        safe="nothing was submitted",
        next_step="let `fedpalm-coordinator plan amend RUN` make a plan that fits",
    )
