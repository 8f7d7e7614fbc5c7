"""What a site exports of a real run is what an auditor can verify, and nothing that is private."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.checkpoint_records import CheckpointRecords
from coordinator.cli.audit import write_checkpoints
from coordinator.store import Store
from fedpalm.audit.findings import Exit
from fedpalm.audit.report import read_attack
from fedpalm.audit.trust import Trust
from fedpalm.audit.verify import NO_PRIVACY, verify_bundle
from fedpalm.errors import ChainBrokenError, ConfigError
from fedpalm.pki.bundle import pem_of
from fedpalm.privacy.accounting import Charge, epsilon_pld
from participant.audit import export_bundle, record_report
from participant.cli.audit import audit
from tests.support.aio import in_loop
from tests.support.participant import SITES, Site, World, make_plan
from tests.support.rounds import Chain, receipt_for
from tests.support.whole import WholeFederation, private_plan


@pytest.fixture(autouse=True)
def one_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one brings opacus; what this one finds is remembered, before any round has a deadline."""
    for rounds in (1, 2):
        epsilon_pld([Charge.of(private_plan().draft.privacy, rounds)], 1e-5)
    monkeypatch.setattr("participant.budget.charged_epsilon", epsilon_pld)


async def trained(root: Path, **plan: object) -> WholeFederation:
    """A run to its end, every site stopped."""
    whole = WholeFederation(root, private_plan(**plan))
    whole.boot()
    whole.start()
    await whole.ended()
    await whole.stop_all()
    return whole


def bundle_of(whole: WholeFederation, name: str, folder: Path) -> Path:
    site = Site(whole.world.home(name))
    try:
        return export_bundle(site.desk, folder / f"{name}.bundle").path
    finally:
        site.store.close()


@in_loop
async def test_the_bundles_of_a_private_run_hold_each_by_the_others_word(tmp_path: Path):
    whole = await trained(tmp_path / "all", rounds=2)
    trust = Trust(whole.world.authority.anchors)
    bundles = {name: bundle_of(whole, name, tmp_path) for name in SITES}
    for name, path in bundles.items():
        others = [other for site, other in bundles.items() if site != name]
        found = verify_bundle(path, trust, outside=others)
        assert found.exit is Exit.OK, [str(one) for one in found.findings]
        assert found.site == name
        assert found.to_json()["released"]["update"] == 2
        (account,) = found.to_json()["accounts"]
        assert 0 <= account["epsilon"] - account["epsilon_recomputed"] <= 0.02
        assert {len(one.by) for one in found.releases.witnessed.values()} == {len(SITES)}
        given = {one.round: one.size for one in found.checkpoints.own.values()}
        assert found.vouched == given[2] > given[1]
        assert found.outside == 2


@in_loop
async def test_the_coordinators_closing_checkpoint_vouches_for_what_came_after_the_last_round(
    tmp_path: Path,
):
    whole = await trained(tmp_path / "all", rounds=1)
    path, trust = bundle_of(whole, "west", tmp_path), Trust(whole.world.authority.anchors)
    alone = verify_bundle(path, trust)
    with Store.open(whole.home.store) as store:
        write_checkpoints(CheckpointRecords(store), SITES, tmp_path / "held")
    found = verify_bundle(path, trust, outside=[tmp_path / "held" / "west.checkpoint"])
    assert found.exit is Exit.OK
    (closing,) = [one for one in found.checkpoints.own.values() if one.round == 0]
    assert found.vouched == closing.size > alone.vouched
    assert max(one.entry.seq for one in found.releases.released) < closing.size


@in_loop
async def test_the_bundle_of_a_masked_private_run_holds(tmp_path: Path):
    whole = await trained(tmp_path / "all", rounds=1, masking="secagg", quorum=3, colluders=1)
    path = bundle_of(whole, "north", tmp_path)
    found = verify_bundle(path, Trust(whole.world.authority.anchors))
    assert found.exit is Exit.OK, [str(one) for one in found.findings]


def sent_one_round(world: World) -> Site:
    """``north`` has sent one round's update without differential privacy, and has its receipt."""
    site, _ = world.site("north")
    plan = make_plan()
    world.agreed(site, plan)
    Chain(world, plan).ask(site)
    site.trainer.resume("toy-1", plan)
    shared = site.methods[-1].initial_vector()
    update, state = site.trainer.train("toy-1", plan, 1, shared, site.gate.budget)
    encoded = site.gate.encode_update(
        *("toy-1", 1, bytes.fromhex(plan.initial_model), plan.model_layout, update),
        shared=shared,
        private=state,
    )
    site.store.commit_round("toy-1", 1, state, encoded)
    sent = site.gate.release_update("toy-1", 1, 1)
    site.gate.record_receipt(sent, receipt_for(world, sent))
    return site


def test_the_bundle_of_a_run_without_privacy_holds_and_says_so(world: World, tmp_path: Path):
    site = sent_one_round(world)
    path = export_bundle(site.desk, tmp_path / "north.bundle").path
    found = verify_bundle(path, Trust(world.authority.anchors))
    assert found.exit is Exit.OK, [str(one) for one in found.findings]
    assert any(NO_PRIVACY in note for note in found.notes)


def test_nothing_private_is_in_a_bundle(world: World, tmp_path: Path):
    """Reasons, metrics, tensors and counts lie in tables that no bundle is made of."""
    site = sent_one_round(world)
    with site.store.transaction() as db:
        db.execute("UPDATE plans SET reason = 'because of Mrs Palmer'")
        db.execute("UPDATE runs SET reason = 'because of Mrs Palmer'")
    path = export_bundle(site.desk, tmp_path / "north.bundle").path
    content = path.read_bytes()
    assert b"Palmer" not in content
    state = site.store.row("SELECT file, file_hash FROM states")
    update = site.store.row("SELECT file FROM updates")
    assert state["file_hash"].hex().encode() not in content
    for row in (state, update):
        secret = (site.home.state / row["file"]).read_bytes()
        assert secret[-64:] not in content and row["file"].encode() not in content


def test_a_damaged_log_is_not_exported(world: World, tmp_path: Path):
    site = sent_one_round(world)
    site.store.close()
    with sqlite3.connect(site.home.database) as db:
        db.execute("DROP TRIGGER log_is_not_updated")
        db.execute("UPDATE log SET entry = (SELECT entry FROM log WHERE seq = 1) WHERE seq = 2")
    damaged = Site(site.home)
    with pytest.raises(ChainBrokenError, match="entry 2"):
        export_bundle(damaged.desk, tmp_path / "north.bundle")
    assert not (tmp_path / "north.bundle").exists()


def test_a_file_that_is_there_stays_as_it_is(world: World, tmp_path: Path):
    site, _ = world.site("north")
    out = tmp_path / "north.bundle"
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists"):
        export_bundle(site.desk, out)
    assert out.read_bytes() == b"precious"


def test_the_command_writes_a_bundle_that_the_other_command_verifies(world: World, tmp_path: Path):
    site = sent_one_round(world)
    site.store.close()
    out, trust = tmp_path / "north.bundle", tmp_path / "ca.pem"
    trust.write_bytes(pem_of(world.authority.anchors))
    arguments = ["export", "--home", str(site.home.path), "--out", str(out), "--json"]
    done = CliRunner().invoke(audit, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["entries"] == len(list(Site(site.home).log.entries()))
    command = [sys.executable, "-m", "fedpalm", "audit", "verify", str(out), "--trust", str(trust)]
    verified = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["result"] == "ok"


def test_a_recorded_audit_is_known_again_by_its_report(world: World, tmp_path: Path):
    site, _ = world.site("north")
    report = tmp_path / "attack.json"
    report.write_text(json.dumps({"result": "passed", "findings": []}))
    entry = record_report(site.desk, report)
    assert (entry.body["audit"], entry.body["result"]) == ("attack", "passed")
    path = export_bundle(site.desk, tmp_path / "north.bundle").path
    found = verify_bundle(path, Trust(world.authority.anchors))
    assert found.exit is Exit.OK
    assert read_attack(report, found).entry == entry.seq


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_another_file_is_not_recorded(world: World, tmp_path: Path, content: str):
    site, _ = world.site("north")
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ConfigError):
        record_report(site.desk, tmp_path / "other.json")
    assert list(site.log.entries()) == []
