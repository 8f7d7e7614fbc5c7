"""Machines that are network namespaces: one each for the parties, and a switch that somebody listens on.

Needs root and iproute2. Names carry the number of this process, so that two runs do not meet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SWITCH_ADDRESS = "10.77.0.254"
TLS_RECORD_TYPES = range(20, 24)
X25519MLKEM768 = 0x11EC
TLS_1_3 = 0x0304


def why_not() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("openssl", "openssl")):
        if shutil.which(program) is None:
            return f"the test in network namespaces needs {package} (the command {program})"
    name = f"fp{os.getpid()}-try"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode != 0:
        return f"network namespaces cannot be made here: {done.stderr.strip()}"
    try:
        made = _ip(name, "link", "add", "br0", "type", "bridge", check=False)
        return "" if made.returncode == 0 else f"no bridge can be made here: {made.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Network:
    """A context manager: each party has its address in 10.77.0.0/24 and reaches the others."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = dict(addresses)
        self._made: list[str] = []
        self.switch = f"fp{os.getpid()}-switch"

    def __enter__(self) -> Network:
        _remove_those_of_the_dead()
        try:
            self._add(self.switch)
            _ip(self.switch, "link", "add", "br0", "type", "bridge")
            _ip(self.switch, "addr", "add", f"{SWITCH_ADDRESS}/24", "dev", "br0")
            _ip(self.switch, "link", "set", "br0", "up")
            for number, (party, address) in enumerate(self._addresses.items()):
                self._add(self.of(party))
                inside, outside = "eth0", f"port{number}"
                _ip(self.switch, "link", "add", outside, "type", "veth",
                    "peer", "name", inside, "netns", self.of(party))  # fmt: skip
                _ip(self.switch, "link", "set", outside, "master", "br0", "up")
                _ip(self.of(party), "addr", "add", f"{address}/24", "dev", inside)
                _ip(self.of(party), "link", "set", inside, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], check=True)

    def of(self, party: str) -> str:
        """The name of a party's namespace."""
        return f"fp{os.getpid()}-{party}"

    def inside(self, party: str, command: Sequence[str]) -> list[str]:
        """``command`` as it is run on a party's machine, or the switch's."""
        namespace = self.switch if party == "switch" else self.of(party)
        return ["ip", "netns", "exec", namespace, *command]

    def _add(self, namespace: str) -> None:
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        self._made.append(namespace)
        _ip(namespace, "link", "set", "lo", "up")


def _remove_those_of_the_dead() -> None:
    """Namespaces of an earlier run that was killed before it could tidy up."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
    for name in (line.split()[0] for line in listed.stdout.splitlines() if line):
        made = re.fullmatch(r"fp(\d+)-[a-z-]+", name)
        if made and not Path(f"/proc/{made[1]}").exists():
            subprocess.run(["ip", "netns", "del", name], check=True)


def _ip(namespace: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "-n", namespace, *arguments], check=check, capture_output=True, text=True
    )


# --- what passes the switch -----------------------------------------------------------------------

_LISTENER = r"""
import json, signal, socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
flows, stop = {}, []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
tap.settimeout(0.2)
print("listening", flush=True)
while not stop:
    try:
        frame = tap.recv(70000)
    except TimeoutError:
        continue
    if frame[12:14] != b"\x08\x00" or frame[23] != 6:
        continue
    at = 14 + 4 * (frame[14] & 15)
    length = int.from_bytes(frame[16:18], "big") - 4 * (frame[14] & 15) - 4 * (frame[at + 12] >> 4)
    ends = [f"{socket.inet_ntoa(frame[26:30])}:{int.from_bytes(frame[at:at+2], 'big')}",
            f"{socket.inet_ntoa(frame[30:34])}:{int.from_bytes(frame[at+2:at+4], 'big')}"]
    sequence = int.from_bytes(frame[at + 4 : at + 8], "big")
    flow = flows.setdefault(" ".join(ends), {"start": None, "parts": {}})
    if frame[at + 13] & 2:
        flow["start"] = sequence + 1 & 0xFFFFFFFF
    elif length > 0 and flow["start"] is not None:
        offset = sequence - flow["start"] & 0xFFFFFFFF
        if offset < 65536:
            data = at + 4 * (frame[at + 12] >> 4)
            flow["parts"][offset] = frame[data : data + length].hex()
json.dump({name: flow["parts"] for name, flow in flows.items()}, open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Flow:
    """One direction of a TCP connection: ``ip:port`` of both ends, and its first bytes."""

    source: str
    target: str
    head: bytes

    @property
    def is_tls(self) -> bool:
        """Nothing but TLS records, as far as it was heard."""
        at = 0
        while at + 5 <= len(self.head):
            version = int.from_bytes(self.head[at + 1 : at + 3], "big")
            if self.head[at] not in TLS_RECORD_TYPES or version not in (0x0301, 0x0303):
                return False
            at += 5 + int.from_bytes(self.head[at + 3 : at + 5], "big")
        return len(self.head) >= 5

    def chosen(self) -> tuple[int, int]:
        """(TLS version, key exchange group) of the server's hello."""
        extensions = _server_hello_extensions(self.head)
        version = int.from_bytes(extensions[0x002B], "big")
        return version, int.from_bytes(extensions[0x0033][:2], "big")


class Listener:
    """A context manager: who sits at the switch and hears how every connection begins."""

    def __init__(self, network: Network, out: Path) -> None:
        self._network, self._out = network, out

    def __enter__(self) -> Listener:
        self._process = subprocess.Popen(
            self._network.inside("switch", [sys.executable, "-c", _LISTENER, str(self._out)]),
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"listening\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)

    def flows(self) -> list[Flow]:
        """What was heard; after the end."""
        heard = json.loads(self._out.read_text())
        found = []
        for name, parts in heard.items():
            source, target = name.split()
            head, wanted = b"", {int(at): bytes.fromhex(data) for at, data in parts.items()}
            for at in sorted(wanted):
                if at > len(head):
                    break
                head += wanted[at][len(head) - at :]
            found.append(Flow(source, target, head))
        return found


def _server_hello_extensions(head: bytes) -> dict[int, bytes]:
    """RFC 8446, 4.1.3: the extensions of the last ServerHello that is in the clear."""
    at, found = 0, {}
    while at + 9 <= len(head) and head[at] == 22 and head[at + 5] == 2:
        hello = head[at + 9 : at + 5 + int.from_bytes(head[at + 3 : at + 5], "big")]
        start = 2 + 32 + 1 + hello[34] + 2 + 1 + 2
        found = {}
        while start + 4 <= len(hello):
            kind, size = (int.from_bytes(hello[start + n : start + n + 2], "big") for n in (0, 2))
            found[kind] = hello[start + 4 : start + 4 + size]
            start += 4 + size
        at += 5 + int.from_bytes(head[at + 3 : at + 5], "big")
    assert found, "no ServerHello was heard"
    return found
