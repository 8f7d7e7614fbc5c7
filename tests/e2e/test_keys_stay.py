"""Private keys stay on the machine that made them: not one is on the wire, in a store or in a log.

Both of a site's ports pass through a tap that ends TLS, from the invitation to a renewed certificate.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fedpalm.errors import KeyFileError
from fedpalm.pki.invitation import read_invitation, write_invitation

from .harness import AGREEABLE, RealFederation, run_cli
from .secrets import contents, found_in, keys_below
from .wire_tap import WireTap

PLAN = """
name = "tapped"
method = "rehearsal"
rounds = 2
seed = 5
reproducible = true
quorum = 2
"""


@dataclass
class Story:
    """What there is to search after a membership has begun, worked and been renewed."""

    federation: RealFederation
    wire: dict[str, list[bytes]]
    keys: dict[Path, set[bytes]]
    """Every key file of a site that ever was, with the spellings of what is secret in it."""
    said: list[bytes] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    federation = RealFederation(tmp_path_factory.mktemp("keys"), ("amber", "birch"))
    root, home = federation.root, federation.coordinator_home
    keys: dict[Path, set[bytes]] = {}
    said: list[bytes] = []

    def look_at_keys() -> None:
        for site in federation.sites:
            for path, spelled in keys_below(federation.site_home(site)).items():
                keys[path] = keys.get(path, set()) | spelled

    def say(*arguments: Any) -> None:
        done = run_cli(*arguments)
        said.extend((done.stdout.encode(), done.stderr.encode()))

    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.found()
        federation.serve()
        taps: dict[str, WireTap] = {}
        for site in federation.sites:
            _join(federation, site, stack, taps)
            look_at_keys()
            tap = WireTap(federation.site_home(site) / "tls", home / "tls", federation.address)
            taps[site] = stack.enter_context(tap)
            config = federation.site_home(site) / "participant.toml"
            config.write_text(config.read_text().replace(federation.address, tap.address))
        plan, model = root / "plan.toml", root / "initial.safetensors"
        plan.write_text(PLAN)
        run_cli("fedpalm", "model", "init", plan, "--out", model, "--parameters", "5001")
        run_id = federation.submit(plan, model)
        for site in federation.sites:
            federation.run_site(site)
        for site in federation.sites:
            say("participant", "renew", "--home", federation.site_home(site))
            look_at_keys()
            say("participant", "status", "--home", federation.site_home(site))
        federation.operator("start", "--run", run_id)
        federation.wait_for(
            lambda: federation.operator("status", "--run", run_id)["state"] == "completed",
            "the run",
        )
        look_at_keys()
        federation.stop()
        wire = {name: [*tap.sent, *tap.received] for name, tap in taps.items()}
        yield Story(federation, wire, keys, said)


def _join(
    federation: RealFederation, site: str, stack: ExitStack, taps: dict[str, WireTap]
) -> None:
    """As a site joins, with its invitation leading to the tap."""
    invitation = read_invitation(federation.invite(site))
    tap = WireTap(None, federation.coordinator_home / "tls", invitation.enrol_address)
    taps[f"{site} joins"] = stack.enter_context(tap)
    led = federation.root / f"{site}.tapped.invitation"
    write_invitation(led, replace(invitation, enrol_address=tap.address))
    policy = federation.root / "policy.toml"
    policy.write_text(AGREEABLE)
    federation._start(
        f"join-{site}", "participant", "join", led,
        "--home", federation.site_home(site), "--policy", policy,
    )  # fmt: skip
    federation.approve(site)
    assert federation.processes.pop(f"join-{site}").wait(timeout=120) == 0, federation.logs()


def test_the_taps_heard_every_step(story: Story) -> None:
    """Otherwise what follows would prove nothing."""
    for site in story.federation.sites:
        joined = b"".join(story.wire[f"{site} joins"])
        assert b"-----BEGIN CERTIFICATE REQUEST-----" in joined
        working = b"".join(story.wire[site])
        assert b"-----BEGIN CERTIFICATE REQUEST-----" in working, "the renewal was not heard"
        assert sum(map(len, story.wire[site])) > 2 * 5001 * 4, "the updates were not heard"


def test_the_search_finds_a_key_where_it_is(story: Story) -> None:
    homes = [story.federation.site_home(site) for site in story.federation.sites]
    for home in homes:
        for path, secrets in keys_below(home).items():
            assert found_in(secrets, path.read_bytes())
            assert secrets <= story.keys[path]
    # tls.key was another one before the renewal; signing.key stays.
    counts = {path.name: len(secrets) for path, secrets in story.keys.items()}
    assert counts["tls.key"] > counts["signing.key"]


def test_the_search_outlives_files_that_come_and_go_and_finds_what_was_renamed(tmp_path: Path):
    for name in ("a.sqlite3", "b.sqlite3-wal", "c.json.tmp"):
        (tmp_path / name).write_bytes(name.encode())
    found = {}
    for path, data in contents(tmp_path):
        found[path.name] = data
        if len(found) == 1:
            # What was listed after the first file is gone before it is read.
            for other in set(tmp_path.iterdir()) - {path}:
                other.rename(tmp_path / f"{other.name}-renamed")
    first, *others = found
    assert not first.endswith("-renamed")
    assert len(others) == 2 and all(name.endswith("-renamed") for name in others)


def test_no_private_key_of_a_site_is_on_the_wire(story: Story) -> None:
    secrets = set().union(*story.keys.values())
    for name, messages in story.wire.items():
        assert not found_in(secrets, b"\0".join(messages)), name


def test_no_private_key_of_a_site_is_in_the_coordinators_home(story: Story) -> None:
    secrets = set().union(*story.keys.values())
    searched = set()
    for path, data in contents(story.federation.coordinator_home):
        assert not found_in(secrets, data), path
        searched.add(path.name)
    assert "store.sqlite3" in searched


def test_no_private_key_of_anybody_is_in_a_log_or_an_output(story: Story) -> None:
    root = story.federation.root
    secrets = set().union(
        *story.keys.values(), *keys_below(story.federation.coordinator_home).values()
    )
    logs = [path.read_bytes() for path in root.glob("*.log")]
    assert len(logs) >= 3
    assert not found_in(secrets, *logs, *story.said)


def test_no_private_key_of_the_coordinator_is_on_the_wire_or_at_a_site(story: Story) -> None:
    secrets = set().union(*keys_below(story.federation.coordinator_home).values())
    for name, messages in story.wire.items():
        assert not found_in(secrets, b"\0".join(messages)), name
    for site in story.federation.sites:
        searched = set()
        for path, data in contents(story.federation.site_home(site)):
            assert not found_in(secrets, data), path
            searched.add(path.name)
        assert "site.sqlite3" in searched


def test_a_tokens_only_trace_at_the_coordinator_is_its_hash(story: Story) -> None:
    for site in story.federation.sites:
        token = read_invitation(story.federation.root / f"{site}.invitation").token
        for path, data in contents(story.federation.coordinator_home):
            assert not found_in({token, token.hex().encode()}, data), path


def test_key_files_are_for_their_owner_alone_and_refused_otherwise(story: Story) -> None:
    keys = list(story.federation.root.rglob("*.key"))
    assert len(keys) >= 8
    for path in keys:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    amber = story.federation.site_home("amber")
    for name in ("tls.key", "signing.key"):
        path = amber / "tls" / name
        path.chmod(0o640)
        for command in (("run",), ("renew",)):
            done = run_cli("participant", *command, "--home", amber, ok=False)
            assert done.returncode == KeyFileError.exit_code, done.stdout + done.stderr
            assert "chmod" in done.stdout + done.stderr
        path.chmod(0o600)
    serving = story.federation.coordinator_home / "tls" / "tls.key"
    serving.chmod(0o644)
    done = run_cli("coordinator", "serve", "--home", story.federation.coordinator_home, ok=False)
    assert done.returncode == KeyFileError.exit_code, done.stdout + done.stderr
    serving.chmod(0o600)
