"""Certificates and the CA itself are replaced while a run goes on, and no process is started again.

Two sites are agents; the third is moved by the test, a step of the renewal for each round.
"""

from __future__ import annotations

import sqlite3
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fedpalm.errors import FedPalmError, RefusedError, UnavailableError
from fedpalm.pki.bundle import TlsIdentity, load_tls_identity
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.plan import Plan

from .harness import RealFederation, run_cli, run_json
from .members import enrol_together, rows, store_of, submit_rehearsal, wait_for_run
from .puppet import Puppet, Stream
from .rehearsals import expected_model

AGENTS = ("amber", "birch")
OVERLAP_MS = 3_600_000
ROUNDS = 4


@dataclass
class Stage:
    federation: RealFederation
    cedar: Puppet
    run_id: str
    plan: Plan
    stream: Stream
    pids: dict[str, int]

    def identity(self, site: str) -> TlsIdentity:
        return load_tls_identity(self.federation.site_home(site) / "tls", now=time.time())

    def puppet(self, site: str) -> Puppet:
        return Puppet(self.federation.site_home(site), self.federation.address)

    def row(self, certificate: x509.Certificate) -> tuple[int, int, str]:
        """When it was used first, when it is over, and why."""
        ((used_ms, over_ms, why),) = rows(
            self.federation,
            "SELECT used_ms, over_ms, why_over FROM certificates WHERE fingerprint = ?",
            fingerprint(certificate),
        )
        return used_ms, over_ms, why

    def let_the_overlap_pass(self, certificate: x509.Certificate) -> None:
        """Instead of waiting for an hour: the end of this certificate is now."""
        with closing(sqlite3.connect(store_of(self.federation), timeout=20)) as db, db:
            db.execute(
                "UPDATE certificates SET over_ms = ? WHERE fingerprint = ?",
                (round(time.time() * 1000), fingerprint(certificate)),
            )

    def wait_until_used(self, certificate: x509.Certificate) -> None:
        self.federation.wait_for(lambda: self.row(certificate)[0] > 0, "the first call with it")

    def finish_round(self, number: int) -> None:
        """The agents have delivered; now the last site does."""
        manifest = self.cedar.told_to_train(self.stream, number)
        self.cedar.countersign(manifest)
        wait_for_run(self.federation, self.run_id, round=number, delivered=list(AGENTS))
        self.cedar.deliver(self.plan, manifest)
        if number < ROUNDS:
            wait_for_run(self.federation, self.run_id, round=number + 1)
        else:
            wait_for_run(self.federation, self.run_id, state="completed")

    def renew_cedar(self) -> None:
        run_cli("participant", "renew", "--home", self.federation.site_home("cedar"))
        self.cedar.reconnect()
        self.stream = self.cedar.listen()

    def status(self) -> dict[str, Any]:
        return dict(self.federation.operator("status", "--run", self.run_id))

    def servers_certificate(self) -> x509.Certificate:
        host, _, port = self.federation.address.rpartition(":")
        pem = ssl.get_server_certificate((host, int(port)), timeout=20)
        return x509.load_pem_x509_certificate(pem.encode())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    federation = RealFederation(tmp_path, (*AGENTS, "cedar"))
    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.found()
        federation.serve()
        enrol_together(federation, *federation.sites)
        for site in AGENTS:
            federation.run_site(site)
        run_id = submit_rehearsal(federation, "renewed", rounds=ROUNDS, quorum=3)
        federation.operator("start", "--run", run_id)
        cedar = stack.enter_context(Puppet(federation.site_home("cedar"), federation.address))
        bound, stream = cedar.take_part(run_id)
        pids = {name: process.pid for name, process in federation.processes.items()}
        yield Stage(federation, cedar, run_id, bound, stream, pids)


def test_certificates_and_the_ca_are_replaced_while_a_run_goes_on(stage: Stage) -> None:
    stage.finish_round(1)
    _a_site_renews(stage)
    _the_coordinator_renews(stage)
    stage.finish_round(2)
    before = {site: stage.identity(site) for site in (*AGENTS, "cedar")}
    with stage.puppet("amber") as old_amber:
        old_amber.hello()
        _the_root_is_replaced(stage, before)
        stage.finish_round(3)
        _the_old_root_is_retired(stage, old_amber)
        stage.finish_round(4)

    ended = stage.status()
    assert (ended["state"], ended["round"], ended["attempt"]) == ("completed", 4, 1)
    assert ended["model_hash"] == expected_model(stage.plan)
    processes = stage.federation.processes
    assert {name: process.pid for name, process in processes.items()} == stage.pids
    assert all(process.poll() is None for process in processes.values())
    for site in AGENTS:
        run_cli("participant", "egress", "--verify", "--home", stage.federation.site_home(site))


def _a_site_renews(stage: Stage) -> None:
    before = stage.identity("amber")
    with stage.puppet("amber") as old:
        old.hello()
        told = run_json("participant", "renew", "--home", stage.federation.site_home("amber"))
        after = stage.identity("amber")
        assert (
            told["certificate_fingerprint"] == fingerprint(after.leaf) != fingerprint(before.leaf)
        )
        assert after.leaf.public_key() != before.leaf.public_key()
        assert after.signing_key.public_key() == before.signing_key.public_key()
        # The agent takes it up by itself.
        stage.wait_until_used(after.leaf)
        assert stage.federation.processes["amber"].poll() is None
        now_ms = time.time() * 1000
        used_ms, over_ms, why = stage.row(before.leaf)
        assert used_ms and why == "renewed"
        assert now_ms < over_ms <= now_ms + OVERLAP_MS
        old.hello()
        stage.let_the_overlap_pass(before.leaf)
        stage.federation.wait_for(lambda: _refused(old), "the end of the old certificate")
    with stage.puppet("amber") as new:
        new.hello()


def _refused(puppet: Puppet) -> bool:
    try:
        puppet.hello()
    except RefusedError as error:
        assert "another certificate has taken the place" in str(error)
        return True
    return False


def _the_coordinator_renews(stage: Stage) -> None:
    before, home = stage.servers_certificate(), stage.federation.coordinator_home
    operator = load_tls_identity(home / "operator", now=time.time())
    run_cli("coordinator", "renew", "--home", home)
    stage.federation.wait_for(
        lambda: stage.servers_certificate().serial_number != before.serial_number,
        "the coordinator's new certificate",
    )
    renewed = load_tls_identity(home / "operator", now=time.time())
    assert renewed.leaf != operator.leaf
    # The commands go by the operator's new certificate, new connections see the coordinator's.
    assert stage.status()["state"] == "running"
    stage.wait_until_used(renewed.leaf)
    with stage.puppet("birch") as birch:
        birch.hello()


def _the_root_is_replaced(stage: Stage, before: dict[str, TlsIdentity]) -> None:
    federation, home = stage.federation, stage.federation.coordinator_home
    run_cli("coordinator", "ca", "rotate", "--root", "--home", home)
    # Everybody goes on meanwhile, under the old root or the new one.
    with stage.puppet("birch") as birch:
        birch.hello()
    for site in AGENTS:
        run_cli("participant", "renew", "--home", federation.site_home(site))
        stage.wait_until_used(stage.identity(site).leaf)
    stage.renew_cedar()
    served = stage.servers_certificate()
    run_cli("coordinator", "renew", "--home", home)
    federation.wait_for(
        lambda: stage.servers_certificate().serial_number != served.serial_number,
        "the coordinator's certificate under the new CA",
    )
    for site, old in before.items():
        new = stage.identity(site)
        assert len(old.anchors) == 1 and len(new.anchors) == 2
        assert old.anchors[0] in new.anchors
        assert new.leaf.issuer != old.leaf.issuer or new.chain[1:] != old.chain[1:]
    with stage.puppet("amber") as amber:
        amber.hello()


def _the_old_root_is_retired(stage: Stage, old_amber: Puppet) -> None:
    federation, home = stage.federation, stage.federation.coordinator_home
    root = old_amber.identity.anchors[0]
    run_cli("coordinator", "ca", "retire", "--home", home)
    for site in (*AGENTS, "cedar"):
        run_cli("participant", "renew", "--home", federation.site_home(site))
        if site in AGENTS:
            stage.wait_until_used(stage.identity(site).leaf)
        (anchor,) = stage.identity(site).anchors
        assert anchor != root
    stage.cedar.reconnect()
    stage.stream = stage.cedar.listen()

    # It knows the server, and shows the certificate of the old CA: that fails in the handshake.
    past = replace(old_amber.identity, ca_pem=stage.identity("amber").ca_pem)

    def shut_out() -> bool:
        with Puppet(federation.site_home("amber"), federation.address, past) as fresh:
            try:
                fresh.hello()
            except UnavailableError:
                return True
            except FedPalmError:
                return False
        return False

    federation.wait_for(shut_out, "the end of the old CA")
    shown = run_json("coordinator", "ca", "show", "--home", home)
    assert fingerprint(root) not in str(shown)
