"""A site's agent against a coordinator that lies: it signs nothing, and no update leaves.

The agent is the real process; the coordinator has the real one's keys and address. Before and between the
lies it is honest, so that silence means refusal and nothing else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fedpalm.layout import Layout, TensorSpec
from fedpalm.methods.rehearsal import rehearsal_vector
from fedpalm.pki.bundle import TlsIdentity, load_tls_identity
from fedpalm.pki.signing import sign
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanOffer
from fedpalm.rounds.manifest import ManifestHead, RoundManifest
from fedpalm.wire.statements import from_wire
from tests.support.agreement import key_texts

from .background import wait_until
from .harness import RealFederation, run_json
from .liar import Liar
from .members import enrol_together

ROSTER = ("amber", "birch")
SENT = ("Countersign", "UpdateOffset", "UploadUpdate")


@dataclass
class Stage:
    federation: RealFederation
    liar: Liar
    birch: TlsIdentity
    runs: int = 0

    def log(self) -> str:
        return (self.federation.root / "amber.log").read_text(errors="replace")

    @contextmanager
    def joined(self, plan: Plan) -> Iterator[tuple[str, ManifestHead]]:
        """An honest offer, approved by amber's policy and joined; over at the end."""
        self.runs += 1
        run_id = f"run-{self.runs}"
        self.liar.offer(run_id, plan)
        self.liar.wait_for("JoinRun", run_id)
        try:
            yield run_id, ManifestHead.start(plan, run_id)
        finally:
            self.liar.end(run_id)

    def honest_round(
        self, plan: Plan, run_id: str, head: ManifestHead, number: int
    ) -> ManifestHead:
        """As it should be: the update arrives."""
        manifest = self.liar.manifest(plan, run_id, head, number)
        self.liar.let_the_accomplice_sign(manifest)
        self.liar.ask(manifest)
        self.liar.wait_for("UploadUpdate", run_id, number)
        return ManifestHead.after(manifest)

    @contextmanager
    def refusing(self, run_id: str, words: str) -> Iterator[None]:
        """What is asked inside is refused with these words in the site's log, and nothing is sent."""
        before = {method: len(self.liar.came(method, run_id)) for method in SENT}
        at = len(self.log())
        yield
        wait_until(lambda: words in self.log()[at:], f"{words!r} in the log of the site")
        time.sleep(0.7)  # Longer than it waits between two looks at the countersignatures.
        after = {method: len(self.liar.came(method, run_id)) for method in SENT}
        assert after == before, self.log()[at:]

    def nothing_left(self, run_id: str, rounds: int) -> None:
        """By the site's own log, updates of so many rounds left in this run."""
        home = self.federation.site_home("amber")
        told = run_json("participant", "egress", "--verify", "--home", home)
        updates = [
            one for one in told["entries"] if (one["kind"], one.get("run")) == ("update", run_id)
        ]
        assert len(updates) == rounds, updates


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    federation = RealFederation(tmp_path_factory.mktemp("lied-to"), ROSTER)
    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.found()
        federation.serve()
        enrol_together(federation, *ROSTER)
        federation.stop()
        amber, birch = (
            load_tls_identity(federation.site_home(one) / "tls", now=time.time()) for one in ROSTER
        )
        home = federation.coordinator_home / "tls"
        liar = stack.enter_context(Liar(home, federation.address, birch, key_texts([amber, birch])))
        federation.run_site("amber")
        stage = Stage(federation, liar, birch)
        yield stage
        assert federation.processes["amber"].poll() is None, stage.log()


def plan(rounds: int = 3, **draft: Any) -> Plan:
    layout = Layout((TensorSpec("open_set.rehearsal.vector", (97,)),))
    initial = rehearsal_vector(layout, 7).astype("<f4").tobytes()
    return Plan.model_validate(
        {
            "federation": "trial",
            "draft": {"name": "lies", "method": "rehearsal", "rounds": rounds, "seed": 7, **draft},
            "roster": list(ROSTER),
            "layout": layout.to_json(),
            "initial_model": hashlib.sha256(initial).hexdigest(),
        }
    )


def test_an_honest_coordinator_gets_what_it_asks_for(stage: Stage) -> None:
    with stage.joined(plan()) as (run_id, head):
        for number in (1, 2, 3):
            head = stage.honest_round(plan(), run_id, head, number)
        stage.nothing_left(run_id, rounds=3)


def test_a_plan_that_was_altered_after_it_was_signed_is_not_answered(stage: Stage) -> None:
    altered, offered = plan(rounds=30), plan(rounds=2)
    for name, changes in {
        "altered": {"document": altered.to_bytes()},
        "altered-too": {
            "document": altered.to_bytes(),
            "signed": _reworded(stage.liar.signed_offer("altered-too", offered), offered, altered),
        },
        "signed-by-a-site": {"signed": _signed_as(stage.birch, stage.liar, offered)},
    }.items():
        with stage.refusing(name, "offer refused"):
            stage.liar.offer(name, offered, **changes)
        assert not stage.liar.came("AnswerPlan", name) and not stage.liar.came("JoinRun", name)


def _reworded(signed: SignedStatement, before: Plan, after: Plan) -> SignedStatement:
    said = signed.statement.replace(before.hash.hex().encode(), after.hash.hex().encode())
    assert said != signed.statement
    return SignedStatement(said, signed.signature, signed.chain)


def _signed_as(site: TlsIdentity, liar: Liar, offered: Plan) -> SignedStatement:
    signed = liar.signed_offer("signed-by-a-site", offered)
    return SignedStatement(
        signed.statement, sign(site.signing_key, PlanOffer.DOMAIN, signed.statement), site.chain
    )


def test_a_plan_that_is_exchanged_after_its_approval_changes_nothing(stage: Stage) -> None:
    approved, other = plan(), plan(rounds=300)
    with stage.joined(approved) as (run_id, head):
        head = stage.honest_round(approved, run_id, head, 1)
        answers = len(stage.liar.came("AnswerPlan", run_id))
        with stage.refusing(run_id, "is offered with another plan"):
            stage.liar.offer(run_id, other)
        with stage.refusing(run_id, "it names another plan"):
            changed = stage.liar.manifest(other, run_id, head, 2)
            stage.liar.let_the_accomplice_sign(changed)
            stage.liar.ask(changed)
        assert len(stage.liar.came("AnswerPlan", run_id)) == answers
        stage.nothing_left(run_id, rounds=1)


def test_an_update_stays_when_another_site_signed_another_manifest(stage: Stage) -> None:
    with stage.joined(plan()) as (run_id, head):
        ours = stage.liar.manifest(plan(), run_id, head, 1)
        theirs = stage.liar.manifest(plan(), run_id, head, 1, sealed_ms=ours.sealed_ms + 1)
        stage.liar.let_the_accomplice_sign(theirs)
        stage.liar.ask(ours)
        (signed,) = stage.liar.wait_for("Countersign", run_id)
        assert from_wire(signed.countersignature).statement.count(ours.hash.hex().encode()) == 1
        wait_until(lambda: "WARNING" in stage.log() or "fork" in stage.log(), "the fork in the log")
        with stage.refusing(run_id, "refused"):
            stage.liar.ask(ours)
        assert not stage.liar.came("UploadUpdate", run_id)
        stage.nothing_left(run_id, rounds=0)


def test_a_second_manifest_for_a_position_that_is_filled_is_refused(stage: Stage) -> None:
    with stage.joined(plan()) as (run_id, head):
        after = stage.honest_round(plan(), run_id, head, 1)
        second = stage.liar.manifest(plan(), run_id, head, 1, attempt=2)
        stage.liar.let_the_accomplice_sign(second)
        with stage.refusing(run_id, "refused"):
            stage.liar.ask(second)
        assert after.size == 1
        stage.nothing_left(run_id, rounds=1)


@pytest.mark.parametrize(
    ("said", "number", "attempt", "changes"),
    [
        ("comes after", 1, 2, {}),
        ("comes after", 2, 1, {}),
        ("refused", 4, 1, {}),
        ("refused", 3, 1, {"cohort": ["birch"]}),
        ("refused", 3, 1, {"cohort": ["amber", "mallory"]}),
        ("refused", 3, 1, {"cohort": ["amber"]}),
        ("refused", 3, 1, {"previous": "00" * 32}),
    ],
    ids=[
        "rolled back",
        "repeated",
        "skipped",
        "without this site",
        "with a stranger",
        "too small",
        "chain broken",
    ],
)
def test_a_round_that_does_not_follow_is_refused(
    stage: Stage, said: str, number: int, attempt: int, changes: dict[str, Any]
) -> None:
    with stage.joined(plan(rounds=5)) as (run_id, head):
        head = stage.honest_round(plan(rounds=5), run_id, head, 1)
        head = stage.honest_round(plan(rounds=5), run_id, head, 2)
        lie = stage.liar.manifest(plan(rounds=5), run_id, head, number, attempt, **changes)
        stage.liar.let_the_accomplice_sign(lie)
        with stage.refusing(run_id, said):
            stage.liar.ask(lie)
        stage.nothing_left(run_id, rounds=2)


def test_a_manifest_that_the_coordinator_did_not_sign_is_refused(stage: Stage) -> None:
    with stage.joined(plan()) as (run_id, head):
        manifest = stage.liar.manifest(plan(), run_id, head, 1)
        stage.liar.let_the_accomplice_sign(manifest)
        good = manifest.sign(stage.liar.identity)
        by_birch = sign(stage.birch.signing_key, RoundManifest.DOMAIN, good.statement)
        for signed in (
            SignedStatement(good.statement, bytes(64), good.chain),
            SignedStatement(good.statement, by_birch, stage.birch.chain),
            SignedStatement(good.statement, by_birch, good.chain),
        ):
            with stage.refusing(run_id, "refused"):
                stage.liar.ask(manifest, signed)
        # The same manifest under the right signature is followed: it was the signature.
        stage.liar.ask(manifest)
        stage.liar.wait_for("UploadUpdate", run_id)
        stage.nothing_left(run_id, rounds=1)
