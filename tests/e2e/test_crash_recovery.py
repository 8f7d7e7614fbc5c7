"""kill -9 on either side, restarts by the same commands, and the same model bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.run_records import RunRecords
from coordinator.store import Store
from fedpalm.benchmark.simulate import simulate
from participant.config import Home
from participant.images import training_images

from .harness import RealFederation

ROUNDS = 4


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


def _expected(federation: RealFederation) -> str:
    """Hash of the model that the same plan makes of the same images in one process, undisturbed."""
    with Store.open(federation.coordinator_home / "store.sqlite3") as store:
        (stored,) = RunRecords(store).load()
    images = {}
    for site in federation.sites:
        data = Home(federation.site_home(site)).load().data
        assert data is not None
        images[site] = training_images(data, site, "none")
    result = simulate(stored.plan, "fedpalm", images)
    return hashlib.sha256(result.shared.astype("<f4").tobytes()).hexdigest()


def test_kill_9_of_the_coordinator_and_a_site_changes_no_bit_of_the_model(
    federation: Callable[..., RealFederation],
    plan_and_model: Callable[..., tuple[Path, Path]],
    palm_lists: list[Path],
) -> None:
    stormy = federation("stormy", "site-1", "site-2")
    _start(stormy, palm_lists, *plan_and_model("fedpalm", ROUNDS))
    stormy.wait_for(_under_way(stormy, 2), "round 2")
    stormy.kill("site-2")  # the quorum is both sites: from here on the run waits for this one
    stormy.kill("coordinator")
    stormy.serve()
    stormy.wait_for(_under_way(stormy, 2), "the round it was in")
    stormy.run_site("site-2")
    disturbed = stormy.wait_for(_ended(stormy), "the disturbed run")

    assert disturbed["round"] == ROUNDS
    assert disturbed["model_hash"] == _expected(stormy)
