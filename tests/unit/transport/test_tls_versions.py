"""Both listeners speak TLS 1.3 and nothing older, whatever another program offers them.

The program is OpenSSL's: another implementation than the one inside gRPC.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedpalm.pki.bundle import pem_of
from fedpalm.pki.identity import Role
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.programs import needs_openssl
from tests.support.servicer import Desk, Recorder, enrolling, live_identity, running

AUTHORITY = TestAuthority("palms")
HUB = AUTHORITY.enrol(Role.COORDINATOR, "hub")
NORTH = AUTHORITY.enrol(Role.PARTICIPANT, "north")
LISTENERS = ("members", "newcomers")
# Every suite that OpenSSL knows, the weak and the anonymous included.
ALL_SUITES = ("-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")


async def _s_client(port: int, folder: Path, *options: str) -> tuple[int, str]:
    """Exit status and output of one handshake as site north."""
    files = {
        "key": NORTH.key_pem,
        "cert": pem_of([NORTH.leaf]),
        "cert_chain": pem_of(NORTH.chain[1:]),
        "CAfile": NORTH.ca_pem,
    }
    arguments = ["s_client", "-alpn", "h2", "-connect", f"127.0.0.1:{port}", *options]
    for option, content in files.items():
        path = folder / option
        path.write_bytes(content)
        path.chmod(0o600)
        arguments += [f"-{option}", str(path)]
    process = await asyncio.create_subprocess_exec(
        "openssl",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode or 0, output.decode("utf-8", "replace")


def _handshake(listener: str, folder: Path, *options: str) -> tuple[int, str]:
    results = []

    @in_loop
    async def run() -> None:
        identity = live_identity(folder / "hub", HUB)
        serve = (
            running(Recorder(), identity) if listener == "members" else enrolling(Desk(), identity)
        )
        async with serve as listening:
            results.append(await _s_client(listening.port, folder, *options))

    (folder / "hub").mkdir(mode=0o700)
    run()
    return results[0]


@needs_openssl
@pytest.mark.parametrize("listener", LISTENERS)
def test_a_tls_1_3_handshake_with_a_good_certificate_is_made(listener: str, tmp_path: Path) -> None:
    status, output = _handshake(listener, tmp_path, "-tls1_3")
    assert status == 0, output
    assert "New, TLSv1.3" in output and "Verify return code: 0 (ok)" in output


@needs_openssl
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_1", "-tls1", "-no_tls1_3"])
@pytest.mark.parametrize("suites", [(), ALL_SUITES], ids=["usual suites", "all suites"])
def test_no_older_version_is_spoken(
    listener: str, version: str, suites: tuple[str, ...], tmp_path: Path
) -> None:
    status, output = _handshake(listener, tmp_path, version, *suites)
    assert status != 0, output
    assert "Cipher is (NONE)" in output and "New, TLSv1" not in output


@needs_openssl
def test_newcomers_are_not_asked_for_a_certificate_and_members_are(tmp_path: Path) -> None:
    for listener, asked in (("members", True), ("newcomers", False)):
        folder = tmp_path / listener
        folder.mkdir()
        _, output = _handshake(listener, folder, "-tls1_3", "-trace")
        assert ("CertificateRequest" in output) is asked, listener
