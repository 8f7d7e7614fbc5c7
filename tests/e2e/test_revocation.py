"""A site is revoked in the middle of a round: cut off at once, out of the sum, and back by invitation only.

Of three sites two are agents; the third is moved by the test, so that the round is still open when the
operator acts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from fedpalm.errors import FedPalmError, RevokedError

from .background import wait_until
from .harness import RealFederation
from .members import enrol_together, rows, submit_rehearsal, wait_for_run
from .puppet import Puppet, Stream
from .rehearsals import expected_model


@dataclass
class Stage:
    federation: RealFederation
    birch: Puppet

    def run(self, name: str, rounds: int, quorum: int) -> str:
        """Submit and start a run of all three sites."""
        run_id = submit_rehearsal(self.federation, name, rounds=rounds, quorum=quorum)
        self.federation.operator("start", "--run", run_id)
        return run_id

    def status(self, run_id: str) -> dict[str, Any]:
        return dict(self.federation.operator("status", "--run", run_id))

    def revoke_cedar(self) -> tuple[int, float]:
        """Exit code of the agent, and when (monotonic) the command had returned."""
        agent = self.federation.processes.pop("cedar")
        self.federation.operator("sites", "revoke", "cedar", "--reason", "laptop stolen")
        returned_at = time.monotonic()
        return agent.wait(timeout=60), returned_at

    def readmit_cedar(self) -> None:
        for old in self.federation.root.glob("cedar.invitation"):
            old.unlink()
        self.federation.enrol("cedar", None)
        self.federation.run_site("cedar")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    federation = RealFederation(tmp_path_factory.mktemp("revoked"), ("amber", "birch", "cedar"))
    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.found()
        federation.serve()
        enrol_together(federation, *federation.sites)
        for site in ("amber", "cedar"):
            federation.run_site(site)
        birch = Puppet(federation.site_home("birch"), federation.address)
        yield Stage(federation, stack.enter_context(birch))


def test_a_revoked_site_is_cut_off_and_the_round_goes_on_without_its_update(stage: Stage) -> None:
    run_id = stage.run("cut", rounds=2, quorum=2)
    plan, stream = stage.birch.take_part(run_id)
    first = stage.birch.told_to_train(stream, 1)
    assert first.cohort == ["amber", "birch", "cedar"]
    wait_for_run(stage.federation, run_id, delivered=["amber", "cedar"])

    with Puppet(stage.federation.site_home("cedar"), stage.federation.address) as cedar:
        cedar.hello()
        idle = [cedar.open_upload() for _ in range(3)]
        time.sleep(0.5)
        assert not any(one.ended_at for one in idle)
        exit_code, returned_at = stage.revoke_cedar()
        wait_until(lambda: all(one.ended_at for one in idle), "the end of the idle streams")
        _say_when(returned_at, idle)
        assert {type(one.error) for one in idle} == {RevokedError}
        for call in (cedar.hello, lambda: cedar.plan(run_id), lambda: cedar.join(run_id, plan)):
            with pytest.raises(FedPalmError) as caught:
                call()
            assert caught.value.code == "revoked"
    assert exit_code == RevokedError.exit_code
    assert "revoked" in _log(stage, "cedar.log")

    status = stage.status(run_id)
    assert (status["state"], status["round"], status["attempt"]) == ("running", 1, 1)
    assert status["delivered"] == ["amber"]
    stage.birch.deliver(plan, first)
    second = stage.birch.told_to_train(stream, 2)
    assert second.cohort == ["amber", "birch"]
    stage.birch.deliver(plan, second)
    wait_for_run(stage.federation, run_id, state="completed")
    ended = stage.status(run_id)
    assert (ended["state"], ended["round"], ended["attempt"]) == ("completed", 2, 1)
    two = ("amber", "birch")
    assert ended["model_hash"] == expected_model(plan, {1: two, 2: two})
    assert ended["model_hash"] != expected_model(plan)

    shown = {one["site"]: one["state"] for one in stage.federation.operator("sites")["sites"]}
    assert shown == {"amber": "active", "birch": "active", "cedar": "revoked"}
    assert "site cedar is revoked" in _log(stage, "coordinator.log")


def test_without_a_quorum_the_attempt_is_aborted_until_the_site_is_let_in_again(
    stage: Stage,
) -> None:
    stage.readmit_cedar()
    run_id = stage.run("all", rounds=1, quorum=3)
    plan, stream = stage.birch.take_part(run_id)
    first = stage.birch.told_to_train(stream, 1)
    stage.birch.countersign(first)
    wait_for_run(stage.federation, run_id, delivered=["amber", "cedar"])
    exit_code, _ = stage.revoke_cedar()
    assert exit_code == RevokedError.exit_code
    wait_for_run(stage.federation, run_id, attempt=2)
    status = stage.status(run_id)
    assert (status["state"], status["round_state"], status["delivered"]) == ("running", "open", [])
    assert "cedar" not in status["approved"]

    stage.readmit_cedar()
    again = stage.birch.told_to_train(stream, 1, attempt=2)
    assert again.cohort == ["amber", "birch", "cedar"]
    stage.birch.deliver(plan, again)
    wait_for_run(stage.federation, run_id, state="completed")
    ended = stage.status(run_id)
    assert (ended["state"], ended["attempt"]) == ("completed", 2)
    assert ended["model_hash"] == expected_model(plan)


def _say_when(returned_at: float, streams: list[Stream]) -> None:
    late = max(one.ended_at or 0.0 for one in streams) - returned_at
    print(f"\nidle streams ended {late:+.2f} s after `sites revoke` had returned")


def _log(stage: Stage, name: str) -> str:
    return (stage.federation.root / name).read_text(errors="replace")


def test_the_operators_log_says_who_was_revoked_and_why(stage: Stage) -> None:
    found = rows(
        stage.federation, "SELECT run_id, detail FROM operator_events WHERE action = 'revoke'"
    )
    assert found and set(found) == {("cedar", "laptop stolen")}
