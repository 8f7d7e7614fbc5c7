"""May an exchange be proposed? Once for a plan, where the plan wants it, to sites that can come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedpalm.errors import ConfigError, StateError
from fedpalm.exchange.machine import ExchangeMachine, ExchangeState
from fedpalm.plan import Plan
from fedpalm.rounds.run import Run, RunState
from fedpalm.text import one_line

MAX_PURPOSE_BYTES = 200
DAY_MS = 24 * 60 * 60 * 1000
MAX_VALID_MS = 90 * DAY_MS


def check_words(purpose: str, valid_ms: int) -> None:
    """Raises ConfigError: no purpose in one line of text, or no time to answer, or too much of it."""
    if (
        not purpose.strip()
        or one_line(purpose) != purpose
        or len(purpose.encode()) > MAX_PURPOSE_BYTES
    ):
        raise ConfigError(
            f"the purpose is one line of 1 to {MAX_PURPOSE_BYTES} bytes of text",
            safe="nothing was proposed",
            next_step="say to the sites what the experts will be used for: --purpose TEXT",
        )
    if not 0 < valid_ms <= MAX_VALID_MS:
        raise ConfigError(
            f"an exchange is valid for a time of at most {MAX_VALID_MS // DAY_MS} days",
            safe="nothing was proposed",
            next_step="choose another one: --valid 7d",
        )


def check_moment(run_id: str, run: Run, plan: Plan) -> None:
    """Raises StateError: the plan has no exchange for this run, or the run is not where it takes place."""
    if not plan.expert_layout:
        raise StateError(
            f"the plan of run {run_id} releases no experts", safe="nothing was proposed"
        )
    after = plan.exchange_round
    if after is None:
        raise StateError(
            f"run {run_id} goes on after the round at which its experts were to be exchanged",
            safe="nothing was proposed",
        )
    if run.waits_for_exchange or (run.state is RunState.COMPLETED and after == plan.draft.rounds):
        return
    when = "its last round" if after == plan.draft.rounds else f"round {after}, while it is paused"
    raise StateError(
        f"run {run_id} is {run.state.value}; its experts are exchanged after {when}",
        safe="nothing was proposed",
    )


def check_first(earlier: Iterable[ExchangeMachine]) -> None:
    """Raises StateError: one of these, all of the plan, goes on or is completed."""
    for other in earlier:
        if other.state is not ExchangeState.CANCELLED:
            raise StateError(
                f"this plan has exchange {other.terms.exchange_id} of run {other.terms.run} "
                f"({other.state.value}), and releases its experts once",
                safe="that one is as it was",
                next_step="fedpalm-coordinator exchange status; another exchange needs another plan",
            )


def check_sites(run_id: str, plan: Plan, absent: Iterable[str], sealed: Iterable[str]) -> None:
    """Are there enough sites that can say yes?

    Args:
        absent: those that were revoked or left the run.
        sealed: those that sealed their expert in an earlier exchange of the plan.
    Raises:
        StateError: no.
    """
    gone, spent = sorted(set(plan.roster) & {*absent}), sorted({*sealed})
    if spent and (why := stuck(plan, spent)):
        raise StateError(why, safe="nothing was proposed", next_step=other_plan(plan))
    left = len(set(plan.roster) - {*gone, *spent})
    if gone and not (plan.draft.exchange_without_refusers and left >= 2):
        raise StateError(
            f"run {run_id}: {_wanted(plan)} must say yes, and these cannot, since they were revoked or "
            f"left the run: {', '.join(gone[:5])}",
            safe="nothing was proposed",
            next_step="let a revoked site in again (fedpalm-coordinator invite), or exchange after "
            "a run without them: fedpalm-coordinator plan amend RUN --remove SITE before the last "
            "round, or plan submit with another roster",
        )


def stuck(plan: Plan, sealed: Sequence[str]) -> str:
    """Why no further exchange of a plan can be completed after these sites have sealed; empty: it can."""
    if not sealed:
        return ""
    left = len(set(plan.roster) - set(sealed))
    if plan.draft.exchange_without_refusers and left >= 2:
        return ""
    return (
        f"{', '.join(sealed[:5])} sealed an expert in an exchange that was cancelled, and a site seals "
        f"once under a plan: {_wanted(plan)} must say yes to another exchange, and these will not"
    )


def other_plan(plan: Plan) -> str:
    """What an operator can do once a plan is :func:`stuck`: another plan has an exchange of its own."""
    if plan.draft.expert_exchange == "freeze":
        return "abort the run, and train again under another plan: fedpalm-coordinator plan submit"
    return (
        "exchange after more rounds (fedpalm-coordinator plan amend RUN) or after a new run "
        "(fedpalm-coordinator plan submit)"
    )


def _wanted(plan: Plan) -> str:
    if plan.draft.exchange_without_refusers:
        return "two sites of its roster at least"
    return "every site of its roster"
