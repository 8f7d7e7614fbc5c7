"""Three machines and the guide: from an installed package to a finished round, command by command.

The commands are read out of docs/guides/OPERATOR.md; the test adds what people do between them: it
carries the invitations, compares the fingerprints, and waits where the guide says to wait.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedpalm.data.palms import synthetic_palms

from .installed import ROOT, install_wheel
from .namespaces import TLS_1_3, X25519MLKEM768, Listener, Network, why_not

GUIDE = ROOT / "docs" / "guides" / "OPERATOR.md"
HEADING = "## Eight commands to the first round"
ADDRESSES = {"coordinator": "10.77.0.1", "site-a": "10.77.0.2", "site-b": "10.77.0.3"}
SITES = ("site-a", "site-b")
PORT = 7443
PATIENCE_S = 240.0
FINGERPRINT = re.compile(r"(?:[0-9a-f]{4} ){15}[0-9a-f]{4}")
PLAN = """
name = "first"
method = "fedavg"
rounds = 1
seed = 7
round_deadline_s = 200

[training]
local_epochs = 1
batch_size = 8
"""

KNOCK = """
import socket
s = socket.create_connection(("10.77.0.1", 7443), 20)
s.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
s.settimeout(20)
try:
    print(s.recv(4096).hex())
except ConnectionResetError:
    print()
"""

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


def commands() -> list[str]:
    """The lines of the guide's command block."""
    block = GUIDE.read_text().partition(HEADING)[2].split("```")[1]
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def party_of(command: str) -> str:
    """On whose machine a line is typed: a site's command names its home."""
    words = shlex.split(command)
    if words[0] == "fedpalm-participant":
        return words[words.index("--home") + 1]
    return "coordinator"


class Machines:
    """Each party's folder and processes."""

    def __init__(self, root: Path, network: Network, environment: dict[str, str]) -> None:
        self.root, self._network, self._environment = root, network, environment
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for party in ADDRESSES:
            (root / party).mkdir()

    def folder(self, party: str) -> Path:
        return self.root / party

    def words(self, party: str, command: str) -> list[str]:
        return self._network.inside(party, shlex.split(command))

    def run(self, party: str, command: str) -> str:
        """A command to its end; what it printed."""
        with (self.root / "command.log").open("w+") as log:
            process = subprocess.Popen(
                self.words(party, command),
                cwd=self.folder(party),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                self.wait_for(lambda: process.poll() is not None, command)
            finally:
                process.kill()
            assert process.wait() == 0, f"{command}\n{self.told()}"
            log.seek(0)
            return log.read()

    def leave_running(self, party: str, command: str) -> None:
        with (self.root / f"{party}.log").open("wb") as log:
            self.running[party] = subprocess.Popen(
                self.words(party, command),
                cwd=self.folder(party),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def answer(self, party: str, command: str, reply: Callable[[str], str]) -> None:
        """A command at a terminal; ``reply`` is given what it shows before each question."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            self.words(party, command),
            cwd=self.folder(party),
            env={**self._environment, "TERM": "dumb", "COLUMNS": "120"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown, asked, until = "", 0, time.monotonic() + PATIENCE_S
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            assert time.monotonic() < until, shown
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                shown += os.read(ours, 65536).decode()
            except OSError:
                break  # How a terminal ends on Linux.
            if "[y/N]" in shown[asked:]:
                os.write(ours, reply(shown[asked:]).encode() + b"\n")
                asked = len(shown)
        os.close(ours)
        assert process.wait() == 0, shown

    def said(self, party: str) -> str:
        return (self.root / f"{party}.log").read_text(errors="replace")

    def told(self) -> str:
        logs = sorted(self.root.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            for party, process in self.running.items():
                assert process.poll() is None, f"{party} ended, waiting for {what}\n{self.told()}"
            assert time.monotonic() < until, f"gave up waiting for {what}\n{self.told()}"
            time.sleep(0.1)

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(ADDRESSES) as made:
        yield made


def furnish(machines: Machines) -> None:
    """What the people at each end have beside the package: images, limits, a plan."""
    sites = synthetic_palms(machines.root / "palms", len(SITES), 4, 4, seed=5)
    for site, records in zip(SITES, sites, strict=True):
        folder = machines.folder(site) / f"images-{site[-1]}"
        for number, record in enumerate(records):
            (folder / record.identity).mkdir(parents=True, exist_ok=True)
            shutil.copy(record.path, folder / record.identity / f"{number}.png")
        (machines.folder(site) / "policy.toml").write_text("auto_approve = true\n")
    (machines.folder("coordinator") / "plan.toml").write_text(PLAN)


def test_the_guide_has_at_most_eight_commands() -> None:
    lines = commands()
    assert 0 < len(lines) <= 8
    programs = {"fedpalm", "fedpalm-coordinator", "fedpalm-participant"}
    assert {shlex.split(line)[0] for line in lines} == programs
    assert {party_of(line) for line in lines} == set(ADDRESSES)


def test_three_machines_reach_a_finished_round_with_the_commands_of_the_guide(
    network: Network, tmp_path: Path
) -> None:
    environment = install_wheel(_made(tmp_path / "installed"))
    machines = Machines(_made(tmp_path / "machines"), network, environment)
    furnish(machines)
    with ExitStack() as stack:
        listener = stack.enter_context(Listener(network, tmp_path / "heard.json"))
        stack.callback(machines.stop)
        for command in commands():
            _type(machines, command)
        status = json.loads(
            machines.run("coordinator", "fedpalm-coordinator status --home coord --json")
        )
        assert (status["state"], status["round"]) == ("completed", 1)
        assert status["approved"] == status["delivered"] == list(SITES)
        for site in SITES:
            machines.run(site, f"fedpalm-participant egress --verify --home {site}")
            assert machines.running[site].poll() is None, machines.told()
        _a_stranger_gets_nothing(network, machines)
        machines.stop()
    _what_was_heard(listener)


def _type(machines: Machines, command: str) -> None:
    party, words = party_of(command), shlex.split(command)
    if "serve" in words or "--run" in words:
        machines.leave_running(party, command)
    elif "approve" in words:
        machines.wait_for(
            lambda: all("the operator decides" in machines.said(site) for site in SITES),
            "the sites to have asked",
        )
        machines.answer(party, command, lambda shown: _compare(machines, shown))
    else:
        machines.run(party, command)
    if "invite" in words:
        for site in SITES:
            (sent,) = machines.folder(party).glob(f"{site}.invitation")
            shutil.copy(sent, machines.folder(site))


def _compare(machines: Machines, shown: str) -> str:
    """The operator, who has each site on the telephone."""
    (fingerprint,) = FINGERPRINT.findall(shown)
    (site,) = [name for name in SITES if name in shown]
    return "y" if fingerprint in machines.said(site) else "n"


def _a_stranger_gets_nothing(network: Network, machines: Machines) -> None:
    """A fourth machine that speaks TCP, and TLS without a certificate."""
    done = subprocess.run(
        network.inside("switch", [sys.executable, "-c", KNOCK]), capture_output=True, text=True
    )
    # Nothing, or the alert of a TLS server that was not greeted as one.
    assert re.fullmatch(r"(1503..0002....)?\n", done.stdout), done.stdout + done.stderr
    address = f"{ADDRESSES['coordinator']}:{PORT}"
    ca = machines.folder("site-a") / "site-a" / "tls" / "ca.pem"
    dial = ["openssl", "s_client", "-connect", address, "-CAfile", str(ca), "-alpn", "h2"]
    done = subprocess.run(
        network.inside("switch", [*dial, "-quiet", "-verify_return_error"]),
        input="PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    # It reached the coordinator, and was hung up on: of HTTP/2 not even the greeting came.
    assert "O = palms, OU = coordinator" in done.stderr and "verify error" not in done.stderr
    assert done.returncode != 0 and done.stdout == ""


def _what_was_heard(listener: Listener) -> None:
    """At the switch: TLS 1.3 with the hybrid group, from every site, and not a byte beside it."""
    flows = [one for one in listener.flows() if one.head]
    spoken = {}
    for flow in flows:
        host, _, port = flow.source.rpartition(":")
        if host != ADDRESSES["coordinator"] or int(port) not in (PORT, PORT + 1):
            continue
        listener_host = flow.target.rpartition(":")[0]
        if listener_host in (ADDRESSES["site-a"], ADDRESSES["site-b"]):
            assert flow.is_tls and flow.chosen() == (TLS_1_3, X25519MLKEM768)
            spoken.setdefault(listener_host, set()).add(int(port))
    assert spoken == {ADDRESSES[site]: {PORT, PORT + 1} for site in SITES}
    for flow in flows:
        if flow.source.rpartition(":")[0] in (ADDRESSES["site-a"], ADDRESSES["site-b"]):
            assert flow.is_tls, f"something else than TLS: {flow.source} to {flow.target}"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
