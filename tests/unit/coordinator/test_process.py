"""The coordinator as a process: ready with a line, alone in its home, quick, and gone when told."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.errors import (
    ConfigError,
    FedPalmError,
    KeyFileError,
    RevokedError,
    StateError,
    UnavailableError,
)
from fedpalm.pki.bundle import TlsIdentity, create_keys, install_certificates
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.invitation import Invitation, read_invitation
from fedpalm.pki.request import create_request, parse_request
from fedpalm.transport.channel import Connection, EnrolmentConnection
from fedpalm.wire.membership import issued_from_wire
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import membership_pb2 as m
from tests.support.commands import run_program


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "coordinator", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_program("coordinator", *arguments)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("process") / "home"
    done = run("init", "--home", home, "--federation", "trial", "--listen", "127.0.0.1:0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["federation"] == "trial"
    return home


@contextmanager
def serving(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A coordinator that has said that it is ready, and that line."""
    process = subprocess.Popen(
        command("serve", "--home", home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_answers_its_operator_and_stops_when_told(
    home: Path, number: signal.Signals
) -> None:
    with serving(home) as (process, line):
        address = (home / "listen").read_text().strip()
        assert line == f"ready: coordinator of trial on {address}\n"
        status = run("status", "--home", home, "--json")
        assert (status.returncode, json.loads(status.stdout)) == (0, {"runs": []})
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


def test_it_takes_as_many_open_files_as_it_may(home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with serving(home) as (process, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_home_has_one_coordinator_at_a_time_even_after_a_kill(home: Path) -> None:
    with serving(home) as (first, _):
        second = run("serve", "--home", home)
        assert second.returncode == StateError.exit_code
        assert "another coordinator serves this home" in second.stderr
        assert first.poll() is None
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with serving(home) as (_, line):
            assert line.startswith("ready:")


def test_it_serves_without_any_library_that_could_run_a_model(home: Path) -> None:
    """Looks into the process that serves: nothing of torch is mapped, and nothing was imported."""
    with serving(home) as (process, _):
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "numpy" in maps
        assert not [line for line in maps.splitlines() if "torch" in line or "opacus" in line]


def test_a_home_that_is_not_there_or_lost_its_key_is_refused_by_name(
    home: Path, tmp_path: Path
) -> None:
    nothing = run("serve", "--home", tmp_path)
    assert nothing.returncode == ConfigError.exit_code
    assert "coordinator.toml" in nothing.stderr
    key = home / "tls" / "tls.key"
    moved = key.rename(tmp_path / "tls.key")
    try:
        keyless = run("serve", "--home", home)
    finally:
        moved.rename(key)
    assert keyless.returncode == KeyFileError.exit_code
    assert "tls.key" in keyless.stderr
    key.chmod(0o644)
    try:
        assert run("serve", "--home", home).returncode == KeyFileError.exit_code
    finally:
        key.chmod(0o600)


def test_a_second_init_changes_nothing(home: Path) -> None:
    before = {
        path: path.read_bytes() for path in home.rglob("*") if path.suffix in (".key", ".pem")
    }
    done = run("init", "--home", home, "--federation", "other")
    assert done.returncode == StateError.exit_code
    assert before == {path: path.read_bytes() for path in before}


# --- members come and go --------------------------------------------------------------------------

PATIENCE_S = 20.0


def told(*arguments: str | Path) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def enrol(invitation: Invitation, request: bytes) -> m.EnrolReply:
    """Ask until somebody listens: the port opens a moment after the invitation."""
    message = m.EnrolRequest(
        invitation_id=invitation.invitation_id, token=invitation.token, request=request
    )
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with EnrolmentConnection(
                    invitation.enrol_address, invitation.federation, invitation.anchors
                ) as connection:
                    return await connection.unary(
                        connection.enrolment.Enrol, message, deadline_s=PATIENCE_S
                    )
            except UnavailableError:
                await asyncio.sleep(0.1)


def member(home: Path, folder: Path, site: str) -> tuple[TlsIdentity, str]:
    """Bring a site in, all the way, beside a coordinator that serves; and where it dials."""
    told("invite", site, "--home", home, "--out", folder)
    invitation = read_invitation(folder / f"{site}.invitation")
    keys = create_keys(folder / site)
    request = create_request(Identity("trial", Role.PARTICIPANT, site), *keys)
    pem = request.public_bytes(Encoding.PEM)
    assert asyncio.run(enrol(invitation, pem)).retry_after_ms > 0
    (waiting,) = told("sites", "--home", home)["waiting"]
    assert waiting["request_fingerprint"] == fingerprint(parse_request(pem))
    mark = waiting["request_fingerprint"]
    told("sites", "approve", site, "--fingerprint", mark, "--home", home)
    chain, trust = issued_from_wire(asyncio.run(enrol(invitation, pem)).issued)
    identity = install_certificates(folder / site, chain, trust.anchors, now=time.time())
    return identity, invitation.coordinator_address


async def hello(address: str, identity: TlsIdentity) -> f.HelloReply:
    request = f.HelloRequest(protocol_versions=[1], site_id=identity.identity.name)
    async with Connection(address, identity) as connection:
        return await connection.unary(connection.federation.Hello, request, deadline_s=PATIENCE_S)


async def cut_off(
    address: str, identity: TlsIdentity, revoke: list[str]
) -> tuple[FedPalmError, float]:
    """What ends the site's stream after ``revoke`` has run, and how long after that."""
    request = f.InstructionsRequest(site_id=identity.identity.name)
    async with Connection(address, identity) as connection:
        stream = connection.stream(connection.federation.Instructions, request, idle_s=PATIENCE_S)
        await anext(stream)
        process = await asyncio.create_subprocess_exec(*revoke)
        assert await process.wait() == 0
        revoked = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for _ in stream:
                    pass
        except FedPalmError as error:
            return error, time.monotonic() - revoked
    raise AssertionError("the stream ended without an error")


def test_a_site_comes_in_by_invitation_and_is_cut_off_in_the_middle_by_a_revocation(
    home: Path, tmp_path: Path
) -> None:
    with serving(home):
        amber, address = member(home, tmp_path, "amber")
        birch, _ = member(home, tmp_path, "birch")
        assert asyncio.run(hello(address, amber)).federation_id == "trial"
        (first, second) = told("sites", "--home", home)["sites"]
        assert (first["site"], first["connected"], second["site"]) == ("amber", False, "birch")
        revoke = command("sites", "revoke", "amber", "--reason", "test", "--home", home)
        error, waited_s = asyncio.run(cut_off(address, amber, revoke))
        assert isinstance(error, RevokedError)
        assert waited_s < 2.0
        with pytest.raises(RevokedError):
            asyncio.run(hello(address, amber))
        asyncio.run(hello(address, birch))


def test_a_revocation_while_nobody_serves_is_in_force_from_the_first_call(
    home: Path, tmp_path: Path
) -> None:
    with serving(home):
        clove, address = member(home, tmp_path, "clove")
        asyncio.run(hello(address, clove))
    told("sites", "revoke", "clove", "--reason", "test", "--home", home)
    with serving(home), pytest.raises(RevokedError):
        asyncio.run(hello(address, clove))


def test_neither_tokens_nor_keys_are_in_the_log_or_the_store(home: Path, tmp_path: Path) -> None:
    with serving(home) as (process, _):
        dill, address = member(home, tmp_path, "dill")
        asyncio.run(hello(address, dill))
        process.terminate()
        _, log = process.communicate(timeout=60)
    token = read_invitation(tmp_path / "dill.invitation").token
    assert "dill" in log and "claims the invitation" in log
    assert token.hex() not in log and "PRIVATE" not in log
    stored = b"".join(path.read_bytes() for path in home.glob("store.sqlite3*"))
    assert b"dill" in stored
    assert token not in stored and token.hex().encode() not in stored
    assert b"PRIVATE KEY" not in stored and dill.key_pem not in stored


def test_an_operator_without_a_coordinator_is_told_to_start_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run("init", "--home", home, "--federation", "trial").returncode == 0
    done = run("status", "--home", home, "--json")
    assert done.returncode == 5
    assert "serve" in json.loads(done.stdout)["error"]["next_step"]
