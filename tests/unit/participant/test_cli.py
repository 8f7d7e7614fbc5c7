"""The site's commands, as a person types them."""

from __future__ import annotations

import fcntl
import json
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fedpalm.errors import ConfigError, DataError, IdentityError, NotFoundError, StateError
from fedpalm.pki.authority import create_authority
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.request import parse_request
from participant.cli import main
from participant.config import DataSettings, Home, ParticipantConfig, to_toml
from tests.support.aio import in_loop
from tests.support.participant import FEDERATION, FakeCoordinator, Site, World, make_plan


def _call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def _json(*arguments: object, code: int = 0):
    return json.loads(_call(*arguments, "--json", code=code))


@pytest.fixture
def palms(tmp_path: Path) -> Path:
    """Six people, three images each."""
    rng = np.random.default_rng(0)
    for person in range(6):
        folder = tmp_path / "palms" / f"p{person}"
        folder.mkdir(parents=True)
        for number in range(3):
            grey = rng.integers(1, 255, (128, 128), dtype=np.uint8)
            Image.fromarray(grey).save(folder / f"{number}.png")
    return tmp_path / "palms"


def _join(home: Path, *more: object, code: int = 0):
    return _json(
        "join", "north", "--home", home, "--federation", FEDERATION,
        "--coordinator", "127.0.0.1:7443", *more, code=code,
    )  # fmt: skip


def _admit(world: World, home: Path, name: str = "north", authority=None) -> Path:
    """What the operator's command does."""
    authority = authority or world.authority
    csr = parse_request((home / "request.pem").read_bytes())
    identity = Identity(FEDERATION, Role.PARTICIPANT, name)
    leaf = authority.issue(csr, identity, now=time.time())
    bundle = home.parent / f"{home.name}.bundle"
    bundle.write_bytes(pem_of([leaf, authority.issuing, authority.root]))
    return bundle


def test_a_site_joins_by_files_and_its_keys_never_leave_its_home(world, tmp_path, palms):
    home = tmp_path / "north"
    asked = _join(home, "--data", palms, "--cap", 3)
    assert len(asked["fingerprint"].replace(" ", "")) == 64
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for key in ("tls.key", "signing.key"):
        assert stat.S_IMODE((home / "tls" / key).stat().st_mode) == 0o600
    assert b"PRIVATE" not in (home / "request.pem").read_bytes()
    assert Home(home).load().data == DataSettings(source=str(palms), cap_per_identity=3)

    _json("status", "--home", home, code=StateError.exit_code)
    installed = _json("join", "--install", _admit(world, home), "--home", home)
    assert installed["site"] == "north"
    found = _json("status", "--home", home)
    assert (found["site"], found["run"], found["agent_running"]) == ("north", None, False)


def test_joining_twice_keeps_the_first_keys(world, tmp_path):
    home = tmp_path / "north"
    _join(home)
    before = (home / "tls" / "signing.key").read_bytes()
    error = _join(home, code=StateError.exit_code)["error"]
    assert "already" in error["what"]
    assert (home / "tls" / "signing.key").read_bytes() == before


def test_a_join_that_ended_half_way_goes_on(tmp_path):
    home = tmp_path / "north"
    _join(home)
    (home / "request.pem").unlink()
    _join(home)
    (home / "request.pem").unlink()
    (home / "tls" / "signing.key").unlink()
    _join(home)
    assert (home / "request.pem").exists()


def test_a_bundle_for_somebody_else_or_of_another_ca_is_not_installed(world, tmp_path):
    home, other = tmp_path / "north", tmp_path / "west"
    _join(home)
    _call("join", "west", "--home", other, "--federation", FEDERATION, "--coordinator", "h:1")
    _json("join", "--install", _admit(world, other, "west"), "--home", home, code=6)
    foreign, _ = create_authority("elsewhere", time.time())
    mixed = home.parent / "mixed.bundle"
    good = _admit(world, home).read_bytes()
    mixed.write_bytes(good.replace(pem_of([world.authority.root]), pem_of([foreign.root])))
    _json("join", "--install", mixed, "--home", home, code=IdentityError.exit_code)
    assert not (home / "tls" / "tls.pem").exists()


def test_wrong_names_and_missing_images_are_told_before_anything_is_made(tmp_path):
    home = tmp_path / "north"
    bad = _json(
        "join", "North!", "--home", home, "--federation", "x y", "--coordinator", "nowhere",
        code=ConfigError.exit_code,
    )["error"]["what"]  # fmt: skip
    assert all(key in bad for key in ("site", "federation", "coordinator"))
    _join(home, "--data", tmp_path / "absent", code=DataError.exit_code)
    assert not home.exists()
    _call("join", "--home", home, code=2)


def test_the_settings_file_reads_back_whatever_is_in_it(tmp_path):
    home = Home(tmp_path / "home")
    home.make()
    config = ParticipantConfig(
        federation="f",
        site="s",
        coordinator="[::1]:7443",
        data=DataSettings(source='a "quoted"\\ path\n\x7fä', kind="list", split_seed=3),
    )
    home.save(config)
    assert home.load() == config
    assert "cap_per_identity" not in to_toml(config)


@pytest.fixture
def trained(world):
    """The home of a site that completed a run, with an exchange that waits for its answer."""

    @in_loop
    async def train() -> None:
        coordinator = FakeCoordinator(make_plan(2), expected=("north",))
        await Site(world.home("north")).run(coordinator)

    train()
    return world.home("north")


def test_egress_lists_what_left_with_totals_and_verifies_the_chain(trained):
    found = _json("egress", "--home", trained.path, "--verify")
    updates = [e for e in found["entries"] if e["kind"] == "update"]
    assert len(updates) == 2
    assert all(e["bytes"] == 4 * (16 * 8 + 32 * 128 + 1 + 1) for e in updates)
    assert all(e["receipt_ms"] >= e["time_ms"] for e in updates)
    assert found["totals"]["update"] == {"count": 2, "bytes": sum(e["bytes"] for e in updates)}
    assert found["totals"]["hello"]["count"] == 1
    assert found["verified_entries"] == len(found["entries"]) + 2
    text = _call("egress", "--home", trained.path)
    assert "update" in text
    assert "toy-1 round 2.1" in text
    assert _call("egress", "--home", trained.path, "--all").count("download_model") > 1


def test_status_tells_the_run_and_whether_an_agent_runs(trained):
    run = _json("status", "--home", trained.path)["run"]
    assert (run["run_id"], run["state"], run["trained_round"]) == ("toy-1", "completed", 2)
    assert run["updates_delivered"] == 2
    with trained.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _json("status", "--home", trained.path)["agent_running"]
        error = _json("run", "--home", trained.path, code=StateError.exit_code)["error"]
        assert "runs on" in error["what"]


def test_a_person_reviews_approves_and_takes_back(trained):
    _json("exchange", "approve", "--home", trained.path, code=NotFoundError.exit_code)
    _json("exchange", "review", "toy-1", "--home", trained.path, code=NotFoundError.exit_code)
    site = Site(trained)
    run = site.store.run("toy-1")
    site.desk.propose(run, "exchange-1", run.plan.hash)
    site.store.close()
    shown = _json("exchange", "review", "toy-1", "--home", trained.path)
    assert (shown["state"], shown["sealed_to"]) == ("asked", ["east", "west"])
    assert "512 bytes" in shown["releases"]
    assert _json("exchange", "approve", "--home", trained.path)["state"] == "approved"
    assert _json("exchange", "approve", "toy-1", "--home", trained.path)["state"] == "approved"
    refused = _json("exchange", "refuse", "exchange-1", "--reason", "no", "--home", trained.path)
    assert (refused["state"], refused["reason"]) == ("declined", "no")
    _json("exchange", "approve", "exchange-1", "--home", trained.path, code=StateError.exit_code)


def test_preflight_looks_at_the_images_and_says_what_is_assumed(tmp_path, palms):
    home = tmp_path / "north"
    _join(home, "--data", palms)
    report = _json("preflight", "--home", home)
    assert (report["images"], report["identities"]) == (18, 6)
    assert (report["closed_identities"], report["open_identities"]) == (3, 3)
    assert "cannot be checked" in report["assumed"]
    Image.new("L", (128, 128), 7).save(palms / "p0" / "0.png")
    _json("preflight", "--home", home, code=DataError.exit_code)
    bare = tmp_path / "bare"
    _join(bare)
    _json("preflight", "--home", bare, code=ConfigError.exit_code)


def test_evaluating_without_a_run_says_so(trained, world):
    home = world.home("west")
    _json("evaluate", "--home", home.path, code=NotFoundError.exit_code)
    _json("evaluate", "--home", trained.path, code=ConfigError.exit_code)


def test_a_home_that_is_no_site_is_an_error_with_a_code(tmp_path):
    for command in ("status", "egress", "run", "preflight"):
        error = _json(command, "--home", tmp_path / "none", code=ConfigError.exit_code)["error"]
        assert error["code"] == "config"
