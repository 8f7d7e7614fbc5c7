"""kill -9 on either side, restarts by the same commands, and the same model bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .harness import RealFederation

ROUNDS = 6


def _ended(federation: RealFederation) -> Callable[[], Any]:
    def check() -> Any:
        status = federation.status_or_none()
        assert not status or status["state"] not in ("aborted", "paused"), status
        return status and status["state"] == "completed" and status

    return check


def _under_way(federation: RealFederation, number: int) -> Callable[[], bool]:
    """In round ``number`` or a later one, but not in the last: there is something left to disturb."""

    def check() -> bool:
        status = federation.status_or_none()
        assert not status or status["round"] < ROUNDS, f"too late to disturb: {status}"
        return bool(status and status["round"] >= number)

    return check


def _start(federation: RealFederation, lists: list[Path], plan: Path, model: Path) -> None:
    federation.found()
    federation.serve()
    for site, images in zip(federation.sites, lists, strict=True):
        federation.enrol(site, images)
    federation.submit(plan, model)
    for site in federation.sites:
        federation.run_site(site)
    federation.operator("start")


def test_kill_9_of_the_coordinator_and_a_site_changes_no_bit_of_the_model(
    federation: Callable[..., RealFederation],
    plan_and_model: Callable[..., tuple[Path, Path]],
    palm_lists: list[Path],
) -> None:
    plan, model = plan_and_model("fedpalm", ROUNDS)

    calm = federation("calm", "site-1", "site-2")
    _start(calm, palm_lists, plan, model)
    undisturbed = calm.wait_for(_ended(calm), "the undisturbed run")
    calm.stop()

    stormy = federation("stormy", "site-1", "site-2")
    _start(stormy, palm_lists, plan, model)
    stormy.wait_for(_under_way(stormy, 2), "round 2")
    stormy.kill("site-2")  # the quorum is both sites: from here on the run waits for this one
    stormy.kill("coordinator")
    stormy.serve()
    stormy.wait_for(_under_way(stormy, 2), "the round it was in")
    stormy.run_site("site-2")
    disturbed = stormy.wait_for(_ended(stormy), "the disturbed run")

    assert disturbed["round"] == ROUNDS
    assert disturbed["model_hash"] == undisturbed["model_hash"]
