"""A site's part in rounds: follow the manifest, train what is not stored, send what is, keep the model.

What is stored decides what is done: a round with a stored update is sent, never trained again; a round
without one is trained from the stored state of the round before. Training is a task of its own, so that
a lost connection does not stop it and a new one finds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from fedpalm.data.modality import modality_of
from fedpalm.errors import (
    FedPalmError,
    ForkError,
    HashMismatchError,
    IdentityError,
    IntegrityError,
    PlanNotApprovedError,
    PolicyError,
    ProtocolError,
    RefusedError,
    RolledBackError,
    StaleRoundError,
    StateError,
    UnwitnessedError,
    WrongRoleError,
)
from fedpalm.layout import FloatVector
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import CLOSING, RoundRef
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.wire import statements
from fedpalm.wire.v1 import federation_pb2 as wire

from .config import ParticipantConfig
from .egress import EgressGate
from .ending import Ended, ExitAfter, Outcome
from .figures import figures
from .link import Link
from .masking import MaskingWorker
from .outgoing import Place
from .plan_book import PlanBook, PlanState
from .reporter import Reporter
from .store import SiteStore, StoredRun, StoredUpdate
from .trainer import Trainer
from .verification.model import settle_model

STOP_GRACE_S = 5.0
COUNTERSIGNATURE_POLL_S = 0.05
COUNTERSIGNATURE_POLL_CAP_S = 5.0
"""Each question is logged: who waits for long asks more rarely."""
AMENDMENT_GRACE_S = 10.0
"""How long an agent that ends after a run waits for the plan that goes on from an amended one."""


@dataclass(frozen=True)
class _Target:
    """What the coordinator wants at present: a second manifest for the same attempt is something else."""

    place: Place
    statement: bytes

    @classmethod
    def of(cls, order: wire.TrainRound) -> _Target:
        return cls(_place(order.ref), bytes(order.manifest.statement))


@dataclass(frozen=True)
class _Amended:
    """A run that ended because it was amended; ``until`` is how long its successor is waited for."""

    outcome: Outcome
    until: float


class RunWorker:
    """Follows the instructions that are about runs and rounds."""

    def __init__(
        self,
        config: ParticipantConfig,
        store: SiteStore,
        gate: EgressGate,
        trainer: Trainer,
        report: Reporter,
        exit_after: ExitAfter,
    ) -> None:
        self._config, self._store, self._gate = config, store, gate
        self._trainer, self._report, self._exit_after = trainer, report, exit_after
        self._manifests = gate.manifests
        self._masking = MaskingWorker(store, gate, gate.live, report)
        self._target: _Target | None = None
        self._changed = asyncio.Event()
        self._amended: _Amended | None = None
        self._training: tuple[tuple[str, int], asyncio.Task[StoredUpdate]] | None = None
        self._settling: tuple[str, asyncio.Task[None]] | None = None
        self.abandoned_training = False

    def start(self) -> None:
        """Before the first connection: what cannot go on since the last time ends here."""
        self._masking.start()

    def reconnected(self) -> None:
        """The coordinator will say again what it wants."""
        self._aim(None)

    def _aim(self, target: _Target | None) -> None:
        self._target = target
        self._changed.set()

    def note(self, instruction: wire.Instruction) -> None:
        """Take note of an instruction as it arrives, while an earlier one is still followed."""
        kind = instruction.WhichOneof("kind")
        if kind == "train":
            self._aim(_Target.of(instruction.train))
        elif kind in ("prepare", "round_closed", "run_ended"):
            self._aim(None)

    async def follow(self, link: Link, instruction: wire.Instruction) -> bool:
        """Carry out an instruction; False if it is about something else.

        Raises:
            StateError, NotFoundError: it does not fit (any more), and may be skipped.
            ForkError, PlanNotApprovedError, PolicyError: the site's own no; nothing more goes out in
                this run, and the site goes on.
            Ended: what the agent was to wait for has happened.
        """
        match instruction.WhichOneof("kind"):
            case "prepare":
                await self._on_prepare(link, instruction.prepare)
            case "train":
                await self._on_train(link, instruction.train)
            case "masking":
                self._joined(instruction.masking.ref.run_id)
                await self._masking.follow(link, instruction.masking)
            case "round_closed":
                self._on_round_closed(instruction.round_closed)
            case "run_ended":
                await self._on_run_ended(link, instruction.run_ended)
            case _:
                return False
        return True

    async def _on_prepare(self, link: Link, order: wire.PrepareRound) -> None:
        """Charge the round and give a checkpoint of the log, which shows the charge.

        Raises:
            BudgetError: the budget does not allow the round; this site is not in the attempt's cohort.
            RolledBackError: this home is a copy from before a checkpoint that it signed.
            PlanNotApprovedError, ForkError: this site takes no part (any more); nothing is charged.
        """
        place = _place(order.ref)
        self._joined(place.run)
        plan = PlanBook(self._store).approved(place.run)
        self._manifests.refuse_forked(place.run)
        closing = RoundRef(order.ref.round, order.ref.attempt) == CLOSING
        in_plan = 1 <= order.ref.round <= plan.draft.rounds and order.ref.attempt >= 1
        if not plan.witnessed or not (closing or in_plan):
            raise StateError(
                f"a checkpoint for {place} was asked for; the plan of {place.run} has none",
                safe="nothing was reserved or given",
            )
        newest = statements.from_wire(order.newest) if order.HasField("newest") else None
        book = self._manifests.checkpoints
        book.check(place, newest)
        if not closing:
            self._report.working(f"round {place.round}: reserving its budget")
            await asyncio.to_thread(self._gate.budget.reserve, place.run, plan, order.ref.round)
        given = await asyncio.to_thread(book.give, place, newest)
        try:
            await link.give_checkpoints(place, given)
        except (ForkError, RolledBackError) as error:
            # Its word alone: what proves it would have come with the order.
            self._refused(place, error)

    async def _on_train(self, link: Link, order: wire.TrainRound) -> None:
        manifest = await self._accepted(link, order)
        if manifest is not None:
            await self._carry_out(link, _Target.of(order), manifest)

    async def _accepted(self, link: Link, order: wire.TrainRound) -> RoundManifest | None:
        """The manifest that this site is asked to follow; None if it is not one to follow.

        Raises:
            StaleRoundError: it is past.
            ForkError, PlanNotApprovedError, PolicyError: the site's own no.
        """
        place = _place(order.ref)
        self._joined(place.run)
        try:
            signed = statements.from_wire(order.manifest)
            said = RoundManifest.read(signed)
            if (said.run, said.round, said.attempt) != (place.run, place.round, place.attempt):
                raise HashMismatchError(f"the manifest that came is of run {said.run}, {said.ref}")
        except (ProtocolError, HashMismatchError) as error:
            self._refused(place, error)
            return None
        try:
            self._manifests.newest(signed)
        except (IdentityError, ProtocolError, WrongRoleError) as error:
            self._refused(place, error)
            return None
        missed = await self._missed(link, place.run, said.seq)
        try:
            if missed:
                self._manifests.accept_missed(missed, signed)
            return self._manifests.accept(signed)
        except (ForkError, PlanNotApprovedError, PolicyError):
            raise
        except (IdentityError, IntegrityError, ProtocolError, RefusedError) as error:
            # Neither the end of this site nor a damaged transfer: a new connection would bring the same.
            self._refused(place, error)
            return None

    async def _missed(self, link: Link, run_id: str, seq: int) -> list[SignedStatement]:
        """The manifests between the newest that is stored and the one at ``seq``, unchecked."""
        size = self._manifests.size(run_id)
        if size >= seq:
            return []
        missed = await link.fetch_manifests(run_id, size, seq - size)
        if len(missed) < seq - size:
            raise StateError(
                f"run {run_id}: manifest {seq} came, and {len(missed)} of the {seq - size} before it",
                safe="nothing was trained or sent for it",
            )
        return missed

    async def _carry_out(self, link: Link, target: _Target, manifest: RoundManifest) -> None:
        """Countersign, train if that is to be done, and send once enough sites have signed the same."""
        place = target.place
        run = self._joined(place.run)
        if target != self._target:
            return
        model_hash = bytes.fromhex(manifest.model_hash)
        signed = await self._witness(link, run.plan, place, manifest)
        if signed is None:
            return
        await link.countersign(place, signed)
        if run.plan.draft.masking != "none":
            # Known and told now, so that people can compare during training.
            await self._take_countersignatures(link, place, manifest)
            self._masking.signing_keys(manifest)
        update = self._store.update(place.run, manifest.round)
        if update is None:
            update = await self._trained(link, run, manifest, model_hash)
        if update.model_hash != model_hash:
            raise StaleRoundError(
                f"round {place.round} was trained from another global model; it is not trained twice",
                safe="the stored update was not sent",
            )
        if not await self._countersigned(link, target, manifest, run.plan):
            self._report.line(f"round {place.round}: over before this site's update was sent")
            return
        if run.plan.draft.masking != "none":
            await self._masking.send_keys(link, run.plan, place, manifest)
            return
        payload = await asyncio.to_thread(
            self._gate.release_update, manifest.run, manifest.round, manifest.attempt
        )
        self._report.working(f"round {place.round}: sending {payload.size} bytes")
        await link.upload_update(payload)
        self._report.line(f"round {place.round}: update delivered, {payload.size} bytes")

    async def _witness(
        self, link: Link, plan: Plan, place: Place, manifest: RoundManifest
    ) -> SignedStatement | None:
        """This site's countersignature, if it holds every checkpoint behind the manifest; else None."""
        book = self._manifests.checkpoints
        from_seq = book.first_unsigned(place.run)
        if manifest.checkpoints and from_seq <= manifest.seq:
            newest = book.newest_hashes(plan.roster)
            async with aclosing(link.fetch_checkpoints(place, from_seq, newest)) as stream:
                async for given in stream:
                    try:
                        book.take(given, plan.roster, place)
                    except (IdentityError, IntegrityError, ProtocolError, RefusedError) as error:
                        self._refused(place, error)
                        return None
        try:
            return self._manifests.countersign(manifest)
        except UnwitnessedError as error:
            self._refused(place, error)
            return None

    async def _countersigned(
        self, link: Link, target: _Target, manifest: RoundManifest, plan: Plan
    ) -> bool:
        """Wait until the quorum of sites has signed this very manifest; False if something else is asked.

        Under masking also until the signing key of every site of the cohort may be used.

        Raises:
            ForkError: a site has signed another one.
        """
        quorum, delay_s = plan.quorum, COUNTERSIGNATURE_POLL_S
        while target == self._target:
            self._changed.clear()
            await self._take_countersignatures(link, target.place, manifest)
            signers = self._manifests.countersigned_by(manifest)
            if len(signers) >= quorum and (
                plan.draft.masking == "none" or self._masking.signing_keys(manifest) is not None
            ):
                return target == self._target
            self._report.working(
                f"round {manifest.round}: {len(signers)} of {len(manifest.cohort)} sites have signed the "
                f"manifest, quorum {quorum}"
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), delay_s)
            delay_s = min(2 * delay_s, COUNTERSIGNATURE_POLL_CAP_S)
        return False

    async def _take_countersignatures(
        self, link: Link, place: Place, manifest: RoundManifest
    ) -> None:
        for signed in await link.fetch_countersignatures(place):
            self._manifests.take_countersignature(manifest, signed)

    def _refused(self, place: Place, error: FedPalmError) -> None:
        self._report.line(
            f"round {place.round}, attempt {place.attempt} of {place.run}: refused: {error.what}"
            + (f" (next: {error.next_step})" if error.next_step else "")
        )

    async def _trained(
        self, link: Link, run: StoredRun, manifest: RoundManifest, model_hash: bytes
    ) -> StoredUpdate:
        round_number = manifest.round
        key = (run.run_id, round_number)
        if self._training is None or self._training[0] != key:
            if self._training is not None:
                await asyncio.wait([self._training[1]])
                self._training = None
            if self._store.state_round(run.run_id) >= round_number:
                raise StaleRoundError(f"round {round_number} is past at this site")
            shared = await self._download(link, run, round_number - 1, model_hash)
            self._report.line(f"round {round_number}: training")
            task = asyncio.create_task(self._train(run, manifest, model_hash, shared))
            self._training = (key, task)
        self._report.working(f"round {round_number} of {run.plan.draft.rounds}: training")
        task = self._training[1]
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._training = None

    async def _train(
        self, run: StoredRun, manifest: RoundManifest, model_hash: bytes, shared: FloatVector
    ) -> StoredUpdate:
        """Train, then store the state and the encoded update in one transaction."""
        round_number = manifest.round
        private = run.plan.draft.privacy.unit != "none"

        def work() -> tuple[StoredUpdate, dict[str, float]]:
            self._trainer.resume(run.run_id, run.plan)
            # The download, the images and an earlier training may have taken long.
            self._manifests.still_asked(manifest)
            try:
                return trained()
            except Exception:
                self._gate.budget.aborted(run.run_id, round_number)
                raise

        def trained() -> tuple[StoredUpdate, dict[str, float]]:
            budget = self._gate.budget
            update, state = self._trainer.train(run.run_id, run.plan, round_number, shared, budget)
            encoded = self._gate.encode_update(
                run.run_id,
                round_number,
                model_hash,
                self._trainer.prepare(run.run_id, run.plan).layout,
                update,
                shared=shared,
                private=state,
            )
            pay = partial(budget.committed, run.run_id, round_number) if private else None
            stored = self._store.commit_round(
                run.run_id,
                round_number,
                state,
                encoded,
                pay=pay,
                began_from=self._trainer.began_from,
                metrics=update.metrics,
            )
            self._trainer.committed(round_number)
            return stored, dict(update.metrics)

        stored, metrics = await asyncio.to_thread(work)
        told = figures(metrics)
        self._report.line(f"round {round_number}: trained" + (f" ({told})" if told else ""))
        return stored

    def _on_round_closed(self, closed: wire.RoundClosed) -> None:
        ref = closed.ref
        self._masking.round_closed(ref.run_id, ref.round, ref.attempt, closed.committed)
        if closed.committed:
            without = f" without a sum ({closed.reason})" if closed.reason else ""
            self._report.line(
                f"round {closed.ref.round}: committed{without}, model {closed.model_hash.hex()[:12]}"
            )
        else:
            self._report.line(
                f"round {closed.ref.round}: attempt {closed.ref.attempt} aborted: {closed.reason}"
            )

    async def _on_run_ended(self, link: Link, ended: wire.RunEnded) -> None:
        run = self._store.run(ended.run_id)
        self._masking.run_ended(ended.run_id)
        state = "completed" if ended.completed else "aborted"
        if run is None:
            self._report.line(f"run {ended.run_id}: {state}, without this site")
            self._end_after_run(ended)
            return
        if run.state not in ("joined", "left"):
            # Told again after a reconnection; whoever waits, waits for a run that still goes on.
            return
        if ended.completed:
            await self._download(link, run, run.plan.draft.rounds, ended.model_hash)
            if modality_of(run.plan.draft.method) == "signature":
                # Before the run is over here: cut short, it is told again and settled then.
                await self._settled(run)
        self._store.end_run(ended.run_id, state, ended.model_hash or None, ended.reason)
        self._report.line(
            f"run {ended.run_id}: {state}"
            + (f", model {ended.model_hash.hex()[:12]}" if ended.completed else "")
            + (f": {ended.reason}" if ended.reason else "")
        )
        if ended.completed and run.plan.expert_layout and self._exit_after is ExitAfter.EXCHANGE:
            return
        self._end_after_run(ended)

    async def _settled(self, run: StoredRun) -> None:
        """Settle in a task of its own, which a lost connection does not stop and a new one finds again."""
        if self._settling is None or self._settling[0] != run.run_id:
            task = asyncio.create_task(asyncio.to_thread(self._settle, run))
            self._settling = (run.run_id, task)
        await asyncio.shield(self._settling[1])
        self._settling = None

    def _settle(self, run: StoredRun) -> None:
        """Keep what this site makes of the last model, while the images that judge it are the run's.

        Whatever goes wrong is told and ends nothing: all that it needs is stored.
        """
        try:
            method = self._trainer.resume(run.run_id, run.plan)
            settle_model(self._config, self._store, run.run_id, method)
        except Exception as error:
            what, more = f"{type(error).__name__}: {error}", ""
            if isinstance(error, FedPalmError):
                what, more = error.what, f" ({error.next_step})" if error.next_step else ""
            self._report.line(
                f"WARNING: run {run.run_id}: its model is not settled: {what}. Safe: the last model and "
                f"this site's half of it are kept. Next: mend that{more} and keep the run's signatures "
                "where they are; the first command that verifies will try again"
            )

    def _end_after_run(self, ended: wire.RunEnded) -> None:
        if self._exit_after is ExitAfter.NEVER:
            return
        outcome = Outcome(ended.run_id, ended.completed, ended.reason)
        if ended.completed or not ended.reason.startswith("amended"):
            raise Ended(outcome)
        # The plan that goes on from here is offered in a moment, or waits for a person already.
        self._amended = _Amended(outcome, self._store.clock.now() + AMENDMENT_GRACE_S)

    async def watch_amendment(self, poll_s: float) -> None:
        """Raises Ended: the run was amended, and this site does not take part in what goes on from it."""
        while True:
            if self._amended is not None:
                self._decide_amended(self._amended)
            await asyncio.sleep(poll_s)

    def _decide_amended(self, amended: _Amended) -> None:
        following = [
            one
            for one in PlanBook(self._store).all()
            if one.plan.continues is not None and one.plan.continues.run == amended.outcome.run_id
        ]
        if any(one.state is PlanState.APPROVED for one in following):
            self._amended = None
        elif following:
            if all(one.state is PlanState.REFUSED for one in following):
                raise Ended(amended.outcome)
        elif self._store.clock.now() >= amended.until:
            raise Ended(amended.outcome)

    async def _download(
        self, link: Link, run: StoredRun, round_number: int, model_hash: bytes
    ) -> FloatVector:
        """The global vector after a round, (P,) float32, from the cache or the coordinator."""
        layout = run.plan.model_layout
        path = self._store.model_path(model_hash)
        self._report.working(f"model {model_hash.hex()[:12]}: downloading")
        await link.download_model(run.run_id, model_hash, 4 * layout.size, path)
        self._store.add_model(run.run_id, round_number, model_hash, self._config.keep_models)
        try:
            return await asyncio.to_thread(self._store.load_model, model_hash, layout)
        except HashMismatchError:
            path.unlink()  # so that it is downloaded again
            raise

    def _joined(self, run_id: str) -> StoredRun:
        run = self._store.run(run_id)
        if run is None or run.state != "joined":
            raise StateError(f"run {run_id[:63]} is not one that this site takes part in")
        return run

    async def settle_training(self) -> None:
        """Let what still goes on finish, for a moment; a round is trained, a model settled again else."""
        if self._settling is not None:
            settled, _ = await asyncio.wait([self._settling[1]], timeout=STOP_GRACE_S)
            if not settled:
                self.abandoned_training = True
                self._report.line("stopped before the model was settled: the next start settles it")
        if self._training is None:
            return
        task = self._training[1]
        if not task.done():
            self._report.line("stopping: waiting for the round in training")
        done, _ = await asyncio.wait([task], timeout=STOP_GRACE_S)
        if not done:
            self.abandoned_training = True
            self._report.line("stopped in training: the round starts again from the stored state")
        elif not task.cancelled() and (error := task.exception()) is not None:
            what = error.what if isinstance(error, FedPalmError) else repr(error)
            self._report.line(f"stopped in training, which had failed: {what}")


def _place(ref: wire.RoundRef) -> Place:
    return Place(ref.run_id, ref.round, ref.attempt)
