"""The site's commands, as a person types them."""

from __future__ import annotations

import fcntl
import importlib
import json
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fedpalm.clock import FakeClock
from fedpalm.errors import (
    ConfigError,
    DataError,
    IdentityError,
    NotFoundError,
    RefusedError,
    StateError,
)
from fedpalm.pki.authority import create_authority
from fedpalm.pki.bundle import chain_from_pem, pem_of
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.invitation import write_invitation
from fedpalm.pki.request import parse_request
from participant.cli import main
from participant.config import DataSettings, Home, ParticipantConfig, to_toml
from participant.enrolment import install_member, prepare_request, site_identity
from tests.support.aio import in_loop
from tests.support.enrolment import EnrolmentOperator, invitation_of, issue
from tests.support.fake_coordinator import FakeCoordinator, exchange_terms
from tests.support.participant import FEDERATION, Site, World, make_plan


def _call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


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


def _request(home: Path, *more: object, code: int = 0):
    return _json(
        "request", "north", "--home", home, "--federation", FEDERATION,
        "--coordinator", "127.0.0.1:7443", *more, code=code,
    )  # fmt: skip


def _sign(world: World, home: Path, name: str = "north", authority=None) -> Path:
    """What the operator's command does."""
    authority = authority or world.authority
    chain = issue(authority, (home / "request.pem").read_bytes(), name)
    bundle = home.parent / f"{home.name}.bundle"
    bundle.write_bytes(pem_of([*chain, *authority.anchors]))
    return bundle


def _root(world: World) -> str:
    return fingerprint(world.authority.anchors[0])


def test_a_site_joins_by_files_and_its_keys_never_leave_its_home(world, tmp_path, palms):
    home = tmp_path / "north"
    asked = _request(home, "--data", palms, "--cap", 3)
    assert len(asked["fingerprint"].replace(" ", "")) == 64
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for key in ("tls.key", "signing.key"):
        assert stat.S_IMODE((home / "tls" / key).stat().st_mode) == 0o600
    assert b"PRIVATE" not in (home / "request.pem").read_bytes()
    assert Home(home).load().data == DataSettings(source=str(palms), cap_per_identity=3)

    waiting = _json("status", "--home", home)
    assert (waiting["state"], waiting["asked_with"]) == ("waiting", asked["fingerprint"])
    _json("egress", "--home", home, code=StateError.exit_code)
    installed = _json(
        "install", _sign(world, home), "--root-fingerprint", _root(world), "--home", home
    )
    assert (installed["site"], installed["root_fingerprints"]) == ("north", [_root(world)])
    found = _json("status", "--home", home)
    assert (found["site"], found["state"], found["run"]) == ("north", "member", None)
    assert (found["agent_running"], found["certificate_warning"]) == (False, "")
    assert 89 < found["certificate_days_left"] <= 90
    assert found["policy"]["auto_approve"] is False


def test_asking_again_shows_the_same_request(world, tmp_path, palms):
    home = tmp_path / "north"
    first = _request(home, "--data", palms)
    assert _request(home)["fingerprint"] == first["fingerprint"]
    assert Home(home).load().data is not None
    error = _json(
        "request", "west", "--home", home, "--federation", FEDERATION, "--coordinator", "h:1",
        code=StateError.exit_code,
    )["error"]  # fmt: skip
    assert "home of north" in error["what"]


def test_no_root_is_trusted_that_nobody_has_compared(world, tmp_path, monkeypatch):
    home = tmp_path / "north"
    _request(home)
    bundle = _sign(world, home)
    unasked = _json("install", bundle, "--home", home, code=StateError.exit_code)["error"]
    assert _root(world) in unasked["what"]
    wrong = _root(world).replace(_root(world)[0], "f" if _root(world)[0] != "f" else "0", 1)
    _json("install", bundle, "--root-fingerprint", wrong, "--home", home, code=6)
    # The package has the command under the module's name.
    module = importlib.import_module("participant.cli.install")
    monkeypatch.setattr(module, "somebody_is_there", lambda: True)
    no = CliRunner().invoke(main, ["install", str(bundle), "--home", str(home)], input="n\n")
    assert no.exit_code == RefusedError.exit_code
    assert not (home / "tls" / "tls.pem").exists()
    yes = CliRunner().invoke(main, ["install", str(bundle), "--home", str(home)], input="y\n")
    assert yes.exit_code == 0
    assert _root(world) in yes.output


def test_every_anchor_of_a_bundle_has_to_be_known(world, tmp_path):
    home = tmp_path / "north"
    _request(home)
    second = create_authority(FEDERATION, time.time())[0].anchors[0]
    bundle = _sign(world, home)
    bundle.write_bytes(bundle.read_bytes() + pem_of([second]))
    known = ("--root-fingerprint", _root(world))
    _json("install", bundle, *known, "--home", home, code=IdentityError.exit_code)
    as_typed = fingerprint(second).replace(" ", ":").upper()
    both = (*known, "--root-fingerprint", as_typed)
    assert len(_json("install", bundle, *both, "--home", home)["root_fingerprints"]) == 2


def test_a_bundle_for_somebody_else_or_of_another_ca_is_not_installed(world, tmp_path):
    home, other = tmp_path / "north", tmp_path / "west"
    _request(home)
    _call("request", "west", "--home", other, "--federation", FEDERATION, "--coordinator", "h:1")
    known = ("--root-fingerprint", _root(world))
    _json("install", _sign(world, other, "west"), *known, "--home", home, code=6)
    foreign = create_authority("elsewhere", time.time())[0].anchors
    mixed = home.parent / "mixed.bundle"
    good = _sign(world, home).read_bytes()
    mixed.write_bytes(good.replace(pem_of(world.authority.anchors), pem_of(foreign)))
    told = ("--root-fingerprint", fingerprint(foreign[0]))
    _json("install", mixed, *told, "--home", home, code=IdentityError.exit_code)
    leaf_alone = home.parent / "leaf.bundle"
    leaf_alone.write_bytes(pem_of(chain_from_pem(good, "it")[:1]))
    _json("install", leaf_alone, *known, "--home", home, code=IdentityError.exit_code)
    assert not (home / "tls" / "tls.pem").exists()


@pytest.fixture
def invited(world, tmp_path, monkeypatch):
    """Write an invitation for ``north`` and answer what comes with it by a script."""

    def invite(*script: str) -> tuple[Path, EnrolmentOperator]:
        operator = EnrolmentOperator(world.authority, *script)
        monkeypatch.setattr("fedpalm.transport.channel.EnrolmentConnection", operator.connect)
        file = tmp_path / "north.invitation"
        if not file.exists():
            write_invitation(file, invitation_of(world.authority, "north", time.time()))
        return file, operator

    return invite


def test_a_site_joins_by_invitation(invited, tmp_path, palms):
    home, policy = tmp_path / "north", tmp_path / "limits.toml"
    policy.write_text("auto_approve = true\nmin_cohort = 3\n")
    file, operator = invited("wait", "issue")
    done = CliRunner().invoke(
        main,
        [*map(str, ("join", file, "--home", home, "--data", palms, "--policy", policy)), "--json"],
    )
    assert done.exit_code == 0, done.output
    member = json.loads(done.stdout)
    assert (member["state"], member["coordinator"]) == ("member", "127.0.0.1:7443")
    shown = fingerprint(parse_request(operator.requests[0]))
    assert shown in done.stderr
    assert "telephone" in done.stderr
    found = _json("status", "--home", home)
    assert (found["state"], found["policy"]["min_cohort"]) == ("member", 3)
    kinds = [entry["kind"] for entry in _json("egress", "--home", home, "--all")["entries"]]
    assert kinds == ["enrol"]

    # The same command again has nothing left to do, and asks nobody.
    again, operator = invited()
    assert _json("join", again, "--home", home)["state"] == "member"
    assert operator.requests == []


def test_a_join_that_does_not_wait_says_how_to_go_on_and_goes_on(invited, tmp_path):
    home = tmp_path / "north"
    file, operator = invited("wait", "wait", "issue")
    waiting = _json("join", file, "--home", home, "--no-wait", code=StateError.exit_code)
    assert waiting["state"] == "waiting"
    assert f"join {file}" in waiting["next"]
    assert _json("status", "--home", home)["asked_with"] == waiting["fingerprint"]
    again = _json("join", file, "--home", home, "--no-wait", code=StateError.exit_code)
    assert again["fingerprint"] == waiting["fingerprint"]
    assert _json("join", file, "--home", home)["state"] == "member"
    assert len(set(operator.requests)) == 1


def test_a_rejected_request_is_told_with_the_operators_words(invited, tmp_path):
    file, _ = invited("wait", "unknown machine")
    error = _json("join", file, "--home", tmp_path / "north", code=RefusedError.exit_code)["error"]
    assert "unknown machine" in error["what"]


def test_an_interrupted_join_says_how_to_go_on(invited, tmp_path, monkeypatch):
    file, operator = invited("wait")

    async def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(operator, "unary", pressed)
    error = _json("join", file, "--home", tmp_path / "north", code=130)["error"]
    assert f"join {file}" in error["next_step"]
    assert (tmp_path / "north" / "request.pem").exists()


def test_a_wrong_policy_or_an_open_invitation_file_stops_a_join_before_it_begins(invited, tmp_path):
    file, operator = invited("issue")
    policy = tmp_path / "limits.toml"
    policy.write_text("min_cohort = 1\n")
    home = tmp_path / "north"
    _json("join", file, "--home", home, "--policy", policy, code=ConfigError.exit_code)
    file.chmod(0o644)
    _json("join", file, "--home", home, code=6)
    assert not home.exists()
    assert operator.requests == []


def test_a_certificate_that_has_ended_cannot_renew_itself(world, tmp_path):
    home = Home(tmp_path / "north")
    past = FakeClock(time.time() - 200 * 86400)
    authority = create_authority(FEDERATION, past.now())[0]
    config = ParticipantConfig(federation=FEDERATION, site="north", coordinator="127.0.0.1:1")
    home.make()
    home.save(config)
    leaf = authority.issue(prepare_request(home, config), site_identity(config), now=past.now())
    install_member(home, config, authority.chain(leaf), authority.anchors, past)
    error = _json("renew", "--home", home.path, code=IdentityError.exit_code)["error"]
    assert "cannot renew itself" in error["what"]
    assert "new invitation" in error["next_step"]
    _json("run", "--home", home.path, code=IdentityError.exit_code)
    found = _json("status", "--home", home.path)
    assert found["state"] == "expired"
    assert "invitation" in found["certificate_warning"]


def test_wrong_names_and_missing_images_are_told_before_anything_is_made(tmp_path):
    home = tmp_path / "north"
    bad = _json(
        "request", "North!", "--home", home, "--federation", "x y", "--coordinator", "nowhere",
        code=ConfigError.exit_code,
    )["error"]["what"]  # fmt: skip
    assert all(key in bad for key in ("site", "federation", "coordinator"))
    _request(home, "--data", tmp_path / "absent", code=DataError.exit_code)
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
        coordinator = FakeCoordinator(world, make_plan(2), expected=("north",))
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
    # Beside what left: the approval, and of each round the manifest and the receipt.
    assert found["verified_entries"] == len(found["entries"]) + 5
    text = _call("egress", "--home", trained.path)
    assert "update" in text
    assert "toy-1 round 2.1" in text
    assert _call("egress", "--home", trained.path, "--all").count("download_model") > 1


def test_status_tells_the_run_and_whether_an_agent_runs(trained):
    run = _json("status", "--home", trained.path)["run"]
    assert (run["run_id"], run["state"], run["trained_round"]) == ("toy-1", "completed", 2)
    assert run["updates_delivered"] == 2
    told = _call("status", "--home", trained.path)
    assert "toy-1: completed, fedpalm, trained round 2 of 2, 2 delivered" in told
    assert "days left" in told
    trained.policy.write_text("min_cohort = 1\n")
    assert "nothing is approved, trained or sent" in _call("status", "--home", trained.path)
    with trained.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _json("status", "--home", trained.path)["agent_running"]
        error = _json("run", "--home", trained.path, code=StateError.exit_code)["error"]
        assert "runs on" in error["what"]


def test_a_person_reviews_approves_and_takes_back(trained, world):
    _json("exchange", "approve", "--home", trained.path, code=NotFoundError.exit_code)
    none = _json("exchange", "review", "--home", trained.path, code=NotFoundError.exit_code)
    assert "exchange status" in none["error"]["next_step"]
    _json("exchange", "review", "toy-1", "--home", trained.path, code=NotFoundError.exit_code)
    site = Site(trained)
    run = site.store.run("toy-1")
    assert _json("exchange", "status", "--home", trained.path) == {"exchanges": []}
    site.desk.propose(run, exchange_terms(world, run.plan))
    site.store.close()
    shown = _json("exchange", "review", "toy-1", "--home", trained.path)
    assert (shown["state"], shown["recipients"]) == ("asked", ["east", "west"])
    assert shown["releases"]["bytes"] == 512
    words = _call("exchange", "review", "--home", trained.path)
    assert "Purpose, in the operator's words: to verify at all sites" in words
    assert "no noise covers" in words
    assert _json("exchange", "approve", "--home", trained.path)["state"] == "approved"
    assert _json("exchange", "approve", "toy-1", "--home", trained.path)["state"] == "approved"
    refused = _json("exchange", "refuse", "exchange-1", "--reason", "no", "--home", trained.path)
    assert (refused["state"], refused["reason"]) == ("declined", "no")
    (listed,) = _json("exchange", "status", "--home", trained.path)["exchanges"]
    assert listed["state"] == "declined"
    words = _call("exchange", "status", "--home", trained.path)
    assert "to verify at all sites" in words and "east, west" in words
    _json("exchange", "approve", "exchange-1", "--home", trained.path, code=StateError.exit_code)


def test_preflight_looks_at_the_images_and_says_what_is_assumed(tmp_path, palms):
    home = tmp_path / "north"
    _request(home, "--data", palms)
    report = _json("preflight", "--home", home)
    assert (report["images"], report["identities"]) == (18, 6)
    assert (report["closed_identities"], report["open_identities"]) == (3, 3)
    assert "cannot be checked" in report["assumed"]
    Image.new("L", (128, 128), 7).save(palms / "p0" / "0.png")
    _json("preflight", "--home", home, code=DataError.exit_code)
    bare = tmp_path / "bare"
    _request(bare)
    _json("preflight", "--home", bare, code=ConfigError.exit_code)


def test_evaluating_without_a_run_says_so(trained, world):
    home = world.home("west")
    _json("evaluate", "--home", home.path, code=NotFoundError.exit_code)
    _json("evaluate", "--home", trained.path, code=ConfigError.exit_code)


def test_a_home_that_is_no_site_is_an_error_with_a_code(tmp_path):
    for command in ("status", "egress", "run", "preflight"):
        error = _json(command, "--home", tmp_path / "none", code=ConfigError.exit_code)["error"]
        assert error["code"] == "config"
