"""The coordinator killed before and after every transaction of a run whose logs are witnessed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coordinator.facts import CountersignatureRow
from coordinator.store import Store
from fedpalm.errors import StaleRoundError
from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import RoundRef, TimerKind
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.rounds.run import RunState
from fedpalm.wire.statements import from_wire
from fedpalm.wire.v1 import federation_pb2 as pb
from tests.simulation.federation import RUN, SimulatedFederation, identity, rehearsal_plan
from tests.support.agreement import countersignature

PRIVATE = {"reproducible": False, "colluders": 0, "training": {"privacy": {"unit": "subject"}}}
PLAN = rehearsal_plan(3, 2, **PRIVATE)
A, B, C = PLAN.roster
SMALL_PLAN = rehearsal_plan(2, 2, **PRIVATE)


class Died(BaseException):
    """Stands for kill -9 of the coordinator."""


class Log:
    """A site's log: what it gave for each attempt, once."""

    def __init__(self, site: str) -> None:
        self.site, self.tree = site, MerkleTree()
        self.given: list[GivenCheckpoint] = []

    def give(self, order: pb.PrepareRound) -> list[GivenCheckpoint]:
        said = [Checkpoint.read(one.signed) for one in self.given]
        ref = order.ref
        if not any((one.round, one.attempt) == (ref.round, ref.attempt) for one in said):
            before = len(self.tree) if self.given else 0
            for number in range(3):
                self.tree.append(f"{self.site} {len(self.given)}.{number}".encode())
            signer = identity(self.site)
            made = Checkpoint(
                federation=PLAN.federation,
                site=self.site,
                key_id=key_id(signer.signing_key.public_key()).hex(),
                size=len(self.tree),
                root=self.tree.root().hex(),
                run=RUN,
                round=ref.round,
                attempt=ref.attempt,
                time_ms=1,
            )
            proof = tuple(self.tree.consistency_proof(before))
            self.given.append(GivenCheckpoint(made.sign(signer), proof))
        if not order.HasField("newest"):
            return list(self.given)
        newest = from_wire(order.newest).hash
        known = [one.signed.hash for one in self.given].index(newest)
        return self.given[known + 1 :] or self.given[-1:]


class WitnessedFederation(SimulatedFederation):
    """Sites give checkpoints when they are asked; the coordinator dies around its ``kill_at``-th commit."""

    def __init__(
        self, root: Path, plan: Plan = PLAN, kill_at: int = 0, *, committed: bool = False
    ) -> None:
        self.logs = {site: Log(site) for site in plan.roster}
        self.updates: dict[tuple[str, int], bytes] = {}
        self.commits, self.counting, self.killed = 0, False, False
        self.kill_at, self.committed = kill_at, committed
        super().__init__(root, plan)

    def begin(self) -> None:
        """Everybody is there, and the run is started; from now on the coordinator may die."""
        self.connect()
        self.start()
        self.counting = True

    def boot(self) -> None:
        super().boot()
        self._count(self.store)

    def _count(self, store: Store) -> None:
        inner = store.transaction

        @contextmanager
        def counted(name: str) -> Iterator[object]:
            with inner(name) as db:
                yield db
                self.commits += self.counting
                due = self.counting and self.commits == self.kill_at and not self.killed
                if due and not self.committed:
                    self.killed = True
                    raise Died
            if due:
                self.killed = True
                raise Died

        store.transaction = counted  # type: ignore[assignment, method-assign]

    def work(self) -> bool:
        """Every site does the first thing that it was told; False if there was nothing to do."""
        busy = False
        for site in list(self.inbox):
            if self.inbox[site]:
                order = self.inbox[site].popleft()
                busy = True
                match order.WhichOneof("kind"):
                    case "run_offer":
                        self.accept_offer(site)
                    case "prepare":
                        self.prepare(site, order.prepare)
                    case "train":
                        self.train(site, from_wire(order.train.manifest))
        while self.sums:
            self.sum_up()
            busy = True
        return busy

    def prepare(self, site: str, order: pb.PrepareRound) -> None:
        given = self.logs[site].give(order)
        ref = RoundRef(order.ref.round, order.ref.attempt)
        try:
            self.conductor.checkpoints.give(RUN, ref, site, given)
        except StaleRoundError:
            assert self.run.current.ref != ref

    def train(self, site: str, signed: SignedStatement) -> None:
        manifest = RoundManifest.read(signed)
        own = {Checkpoint.read(one.signed).hash.hex() for one in self.logs[site].given}
        assert manifest.checkpoints[site] in own
        said = countersignature(identity(site), signed)
        self.records.write(CountersignatureRow(RUN, manifest.ref, site, said))
        if self.run.current.ref == manifest.ref:
            self.deliver(site)

    def to_the_end(self) -> None:
        """Until the run is over, whoever dies meanwhile."""
        while True:
            try:
                if not self.work():
                    if self.run.over:
                        return
                    self.idle()
            except Died:
                self.reboot()

    def payload(self, site: str) -> bytes:
        """Rounded with a fresh key, and kept: the same bytes in every attempt, as at a site."""
        place = (site, self.run.current.ref.round)
        if place not in self.updates:
            self.updates[place] = super().payload(site)
        return self.updates[place]

    def idle(self) -> None:
        if self.postponed:
            self.postponed.popleft()()
        elif len(self.inbox) < len(self.plan.roster):
            self.connect()
        else:
            self.deadline()

    def reboot(self) -> None:
        self.kill()
        for site in self.plan.roster:
            self.inbox.setdefault(site, deque())
            self.conductor.site_connected(site)


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
def test_a_coordinator_that_dies_around_any_commit_goes_on(tmp_path, committed):
    calm = WitnessedFederation(tmp_path / "calm", SMALL_PLAN)
    calm.begin()
    calm.to_the_end()
    steps = calm.commits
    assert steps > 15
    for kill_at in range(1, steps + 1):
        root = tmp_path / str(kill_at)
        root.mkdir()
        federation = WitnessedFederation(root, SMALL_PLAN, kill_at, committed=committed)
        federation.begin()
        federation.to_the_end()
        assert federation.killed, kill_at
        assert federation.run.state is RunState.COMPLETED
        check(federation)
        federation.store.close()


def check(federation: WitnessedFederation) -> None:
    """Manifests name what sites gave for that very attempt; the store has all that was given, in order."""
    records = federation.records
    for signed in records.manifests(RUN, 0):
        manifest = RoundManifest.read(signed)
        assert sorted(manifest.checkpoints) == manifest.cohort
        for site, named in manifest.checkpoints.items():
            (given,) = [
                one
                for one in federation.logs[site].given
                if Checkpoint.read(one.signed).hash.hex() == named
            ]
            said = Checkpoint.read(given.signed)
            assert (said.round, said.attempt) == (manifest.round, manifest.attempt)
    for site, log in federation.logs.items():
        seqs = records.checkpoints.between(site, 0, 1000)
        stored = [records.checkpoints.given(seq).signed.hash for seq in seqs]
        assert stored == [one.signed.hash for one in log.given][: len(stored)]
        assert len(stored) >= 2


def test_a_site_that_is_absent_misses_the_cohort_at_the_deadline(tmp_path):
    federation = WitnessedFederation(tmp_path)
    federation.connect(A, B)
    federation.start()
    while federation.work():
        pass
    assert federation.timer is not None
    assert federation.timer[1] is TimerKind.JOIN
    federation.deadline()
    assert federation.run.current.cohort == (A, B)


def test_a_site_that_is_there_and_gives_nothing_misses_it_too(tmp_path):
    federation = WitnessedFederation(tmp_path)
    federation.connect()
    federation.start()
    orders = [one for one in federation.inbox[C] if one.WhichOneof("kind") == "prepare"]
    assert len(orders) == 1
    federation.inbox[C].clear()
    while federation.work():
        pass
    assert federation.run.current.state.value == "open"
    federation.deadline()
    assert federation.run.current.cohort == (A, B)
    federation.prepare(C, orders[0].prepare)
    assert federation.run.current.cohort == (A, B)


def test_a_revoked_site_gives_another_checkpoint_when_it_is_back(tmp_path):
    federation = WitnessedFederation(tmp_path)
    federation.connect(A, B)
    federation.start()
    while federation.work():
        pass
    assert federation.run.current.prepared == {A, B}
    federation.revoke(B)
    assert federation.run.current.prepared == {A}
