"""One audit: what refutes, what does not, and what the command makes of it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from fedpalm.attack import probe, runner
from fedpalm.attack.bugs import faulty_paths
from fedpalm.attack.canaries import CanaryAudit
from fedpalm.attack.findings import certain
from fedpalm.attack.probe import TrainingPath
from fedpalm.attack.runner import REFUTED_EXIT, Extent, audit, standard, thorough
from fedpalm.cli.app import commands

SMALL = Extent(CanaryAudit(canaries=400, each=20), (), ())
LEVEL = 1e-4


def test_an_honest_path_passes():
    report = audit(TrainingPath(), SMALL, 1, false_alarm=LEVEL)
    assert report.passed
    assert report.to_json()["exit_code"] == 0
    assert report.to_json()["ledger_checked"] is False


def test_a_wrong_account_refutes_whatever_the_path_does():
    wrong = certain("ledger", "claimed epsilon", False, "1 claimed, 8 recomputed", "8")
    report = audit(TrainingPath(), SMALL, 1, ledger=[wrong], false_alarm=LEVEL)
    assert report.refuted == (wrong,)
    assert report.to_json()["exit_code"] == REFUTED_EXIT


def test_a_thorough_audit_looks_at_every_method_that_may_be_private():
    everything = thorough()
    assert ("fedavg", "ccnet") in everything.sites
    assert {"fedavg", "fedkd", "moon", "hyperfed"} <= {method for method, _ in everything.sites}
    assert everything.canaries.canaries > standard().canaries.canaries >= 5000


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(runner, "standard", lambda: SMALL)
    monkeypatch.setattr(runner, "FALSE_ALARM", LEVEL)
    monkeypatch.setattr(
        runner.audit, "__kwdefaults__", {**audit.__kwdefaults__, "false_alarm": LEVEL}
    )


def _attack(*words):
    return CliRunner().invoke(commands, ["audit", "attack", *words])


def test_the_command_says_in_json_what_it_found(small):
    done = _attack("--json", "--seed", "3")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["result"], said["seed"], said["thorough"]) == ("passed", 3, False)
    assert {one["detector"] for one in said["findings"]} == {"canaries", "direct"}
    assert said["canaries"]["claimed_epsilon"] <= 2


def test_a_refuted_claim_has_an_exit_code_of_its_own(small, monkeypatch):
    monkeypatch.setattr(probe, "TrainingPath", lambda: faulty_paths()["no clipping"])
    done = _attack()
    assert done.exit_code == REFUTED_EXIT
    assert "influence of a person" in done.stdout


def test_a_bundle_is_not_looked_at_without_trust(small, tmp_path):
    done = _attack("--bundle", str(tmp_path / "bundle"))
    assert done.exit_code == 3
    assert "--trust" in done.output
