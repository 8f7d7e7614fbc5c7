"""Feeds the run machines, stores what they say and what is signed about it, and only then carries it out.

No clock tick, thread or socket of its own: time comes from a :class:`Clock`, and everything that
leaves goes through :class:`Outside`. So the server and the simulation conduct with the same code.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from functools import partial

from fedpalm.clock import Clock
from fedpalm.errors import (
    FedPalmError,
    HashMismatchError,
    LayoutMismatchError,
    NotFoundError,
    ResourceError,
    StateError,
)
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import (
    Aggregate,
    Aggregated,
    AggregationFailed,
    CloseRound,
    CohortPersisted,
    JoinDeadline,
    PersistCohort,
    Restarted,
    RoundDeadline,
    RoundRef,
    SendTrain,
    SiteExpelled,
    SiteJoined,
    SiteLeft,
    StartTimer,
    TimerKind,
    UpdateAccepted,
)
from fedpalm.rounds.run import (
    EndRun,
    InRound,
    OfferRun,
    Pause,
    RoundOpened,
    Run,
    RunEffect,
    RunInput,
    RunPaused,
    RunState,
    advance,
)
from fedpalm.secagg.codec import BYTES_PER_VALUE, FixedPointCodec
from fedpalm.wire.v1 import federation_pb2 as pb

from . import instructions
from .amendment import check_continues
from .claims import UpdateClaim, check_claim, update_place
from .conducted import ConductedRun
from .facts import (
    AnswerGone,
    AnswerRow,
    Fact,
    ManifestRow,
    ReceiptRow,
    UpdateRow,
)
from .notary import Notary
from .outside import Outside
from .run_records import RunRecords

log = logging.getLogger(__name__)

RESTART_GRACE_MS = 60_000
"""After a restart sites get at least this long to come back before a deadline counts."""


class Conductor:
    """All runs of a coordinator.

    Args:
        records: where they are stored; read on construction, see :meth:`restart`.
        outside: carries out effects.
        notary: signs for the coordinator and verifies what sites have signed.
    """

    def __init__(self, records: RunRecords, outside: Outside, clock: Clock, notary: Notary) -> None:
        self._records, self._outside, self._clock = records, outside, clock
        self._notary = notary
        self._runs = {one.run_id: ConductedRun(one) for one in records.load()}
        self._connected: set[str] = set()

    def restart(self) -> None:
        """Take up every unfinished run where the store says it is."""
        for run_id in self._runs:
            self.feed(run_id, Restarted(self._now_ms(), RESTART_GRACE_MS))

    # --- looking ----------------------------------------------------------------------------------

    def run_ids(self) -> list[str]:
        """Oldest first."""
        return list(self._runs)

    def run(self, run_id: str) -> Run:
        return self._conducted(run_id).run

    def plan(self, run_id: str) -> Plan:
        return self._conducted(run_id).plan

    def codec(self, run_id: str) -> FixedPointCodec:
        return self._conducted(run_id).codec

    def offer(self, run_id: str) -> SignedStatement:
        """The signed offer of the run's plan."""
        return self._conducted(run_id).offer

    def answered(self, run_id: str, kind: str) -> list[str]:
        """Sites whose newest answer to the plan is ``approve`` or ``refuse``, sorted."""
        return self._conducted(run_id).answered(kind)

    # --- what operators do ------------------------------------------------------------------------

    def create(self, run_id: str, plan: Plan) -> None:
        """A new run, whose initial model is durable; its roster hears of it at once.

        Raises:
            StateError: it does not go on from where the run that it continues ended.
        """
        self.check_continues(plan)
        offer = self._notary.offer(run_id, plan)
        self._runs[run_id] = ConductedRun(self._records.create(run_id, plan, offer, self._now_ms()))
        self._offer(run_id, plan.roster)
        self._outside.changed(run_id)

    def check_continues(self, plan: Plan) -> None:
        """Raises StateError for an amended plan that does not go on from where its run ended."""
        if plan.continues is not None:
            ended = self._runs.get(plan.continues.run)
            done = max(self._records.models(ended.run_id)) if ended else 0
            check_continues(plan, plan.continues, ended, done, self._runs.values())

    def expel(self, site: str, reason: str) -> None:
        """A revoked site takes part in no run any more; again changes nothing.

        Its approvals are void: whoever is admitted under its name is asked again.
        """
        for run_id, conducted in list(self._runs.items()):
            if site not in conducted.roster or conducted.run.over:
                continue
            void = (AnswerGone(run_id, site),) if site in conducted.answers else ()
            if site in conducted.run.expelled and not void:
                continue
            log.warning("%s: site %s is out: %s", run_id, site, reason)
            try:
                self.feed(run_id, SiteExpelled(site, reason, self._now_ms()), void)
            except ResourceError as error:
                log.error("%s: %s; trying again", run_id, error.what)
                self._outside.try_again(partial(self.expel, site, reason))
            else:
                conducted.answers.pop(site, None)

    # --- what sites do ----------------------------------------------------------------------------

    def site_connected(self, site: str) -> None:
        """Tell the site everything that the present state demands of it."""
        self._connected.add(site)
        ended = [
            (run_id, conducted.run)
            for run_id, conducted in self._runs.items()
            if conducted.run.over and (site in conducted.run.joined or site in conducted.answers)
        ]
        for run_id, run in ended[-1:]:
            ending = EndRun(run.state is RunState.COMPLETED, run.model_hash, run.reason)
            self._outside.instruct(site, instructions.run_ended(run_id, ending))
        for run_id, conducted in list(self._runs.items()):
            if site in conducted.roster and not conducted.run.over:
                self._offer(run_id, (site,))
                if site in conducted.run.joined:
                    self.feed(run_id, SiteJoined(site))

    def site_disconnected(self, site: str) -> None:
        self._connected.discard(site)
        for run_id, conducted in list(self._runs.items()):
            if site in conducted.run.present:
                self.feed(run_id, SiteLeft(site))

    def answer_plan(self, run_id: str, site: str, signed: SignedStatement) -> None:
        """Store the site's answer if it is newer; a no takes the site out of the run.

        Raises:
            NotFoundError, NotOnRosterError: no such run, or not this site's.
            ProtocolError, IdentityError, WrongRoleError, SenderMismatchError, HashMismatchError: not
                this site's answer to this plan.
            StateError: not newer than the one before, or the run is over.
        """
        conducted = self._of_roster(run_id, site)
        answer = self._notary.answer(signed, run_id, conducted.plan, site)
        if not conducted.is_news(answer):
            return
        if conducted.run.over:
            raise StateError(
                f"run {run_id} is {conducted.run.state.value}; its plan takes no more answers",
                safe="nothing was stored",
            )
        row = AnswerRow(answer, signed)
        log.info("%s: site %s: %s, by %s", run_id, site, answer.answer, answer.by)
        if answer.answer == "refuse":
            out = SiteExpelled(site, "it refused the plan", self._now_ms())
            self.feed(run_id, out, (row,))
        else:
            self._records.write(row)
        conducted.answers[site] = answer
        self._outside.changed(run_id)

    def join(self, run_id: str, site: str, plan_hash: bytes, layout_hash: bytes) -> None:
        """The site has approved the plan and has a model of its layout.

        Raises:
            NotOnRosterError, StateError: not this site's run, or the run is over.
            PlanNotApprovedError: its newest answer to the plan is no, or none has come.
            HashMismatchError, LayoutMismatchError: another plan or layout.
        """
        conducted = self._of_roster(run_id, site)
        if conducted.run.over:
            raise StateError(f"run {run_id} is {conducted.run.state.value}")
        if plan_hash != conducted.plan.hash:
            raise HashMismatchError(
                f"run {run_id} has another plan", safe="the site has not joined"
            )
        if layout_hash != conducted.plan.model_layout.hash:
            raise LayoutMismatchError(
                f"run {run_id}: the model of site {site} has another layout than the plan's",
                safe="the site has not joined",
                next_step="bring the site to the software version that the plan was made with",
            )
        conducted.require_approval(site)
        if site not in self._connected:
            raise StateError(
                f"site {site} joins without listening",
                next_step="open the Instructions stream first",
            )
        self.feed(run_id, SiteJoined(site))

    def check_update(self, claim: UpdateClaim) -> SignedStatement | None:
        """May this update come? If it has come already: its receipt, as it was given.

        Raises:
            NotFoundError, NotOnRosterError: no such run, or not this site's.
            PlanNotApprovedError: the site has taken its approval back.
            StaleRoundError: not the current attempt, or one that takes no more updates.
            StateError: the site delivered another update already.
            HashMismatchError: another plan or global model.
            ProtocolError: not exactly the bytes that the codec makes.
        """
        conducted = self._of_roster(claim.run_id, claim.site)
        known = self._records.update(claim.run_id, claim.ref, claim.site)
        if known is not None:
            if known.payload_hash == claim.payload_hash:
                place = update_place(claim.run_id, claim.ref)
                return self._records.receipt(claim.run_id, claim.site, place)
            raise StateError(
                f"site {claim.site} already delivered another update in {claim.ref}",
                safe="the first one stays",
            )
        conducted.require_approval(claim.site)
        check_claim(claim, conducted.plan, conducted.codec, conducted.run)
        return None

    def accept_update(self, claim: UpdateClaim) -> SignedStatement:
        """The update is whole and durable: count it, and give the receipt.

        Raises: as :meth:`check_update`; the round may have closed while the update came.
        """
        known = self.check_update(claim)
        if known is not None:
            return known
        now_ms = self._now_ms()
        row = UpdateRow(
            claim.run_id, claim.ref, claim.site, claim.payload_hash, claim.payload_bytes, now_ms
        )
        receipt = self._notary.receipt(
            site=claim.site,
            payload="update",
            place=update_place(claim.run_id, claim.ref),
            recipient="",
            payload_hash=claim.payload_hash,
            payload_bytes=claim.payload_bytes,
            received_ms=now_ms,
        )
        given = ReceiptRow(
            claim.run_id, claim.site, update_place(claim.run_id, claim.ref), "", receipt
        )
        received = UpdateAccepted(claim.site, claim.payload_hash)
        self.feed(claim.run_id, InRound(claim.ref, received, now_ms), (row, given))
        return receipt

    def require_on_roster(self, run_id: str, site: str) -> None:
        """Raises NotFoundError, NotOnRosterError."""
        self._of_roster(run_id, site)

    def _of_roster(self, run_id: str, site: str) -> ConductedRun:
        conducted = self._conducted(run_id)
        conducted.require_roster(site)
        return conducted

    # --- what time and threads do -----------------------------------------------------------------

    def timer_rang(self, run_id: str, ref: RoundRef, kind: TimerKind) -> None:
        deadline = JoinDeadline() if kind is TimerKind.JOIN else RoundDeadline()
        self.feed(run_id, InRound(ref, deadline, self._now_ms()))

    def aggregated(self, run_id: str, ref: RoundRef, model_hash: str) -> None:
        self.feed(run_id, InRound(ref, Aggregated(model_hash), self._now_ms()))

    def aggregation_failed(self, run_id: str, ref: RoundRef, error: FedPalmError) -> None:
        """A full disk pauses the run, since trying again would fill it again."""
        run = self.run(run_id)
        current = run.current
        if current is None or current.ref != ref or run.state is not RunState.RUNNING:
            return
        if isinstance(error, ResourceError):
            self.feed(run_id, Pause(error.what))
        else:
            self.feed(run_id, InRound(ref, AggregationFailed(error.what), self._now_ms()))

    # --- the loop ---------------------------------------------------------------------------------

    def feed(self, run_id: str, received: RunInput, facts: Sequence[Fact] = ()) -> None:
        """Advance a run: step, store, carry out, until nothing follows by itself.

        Args:
            facts: what is stored together with the step that ``received`` makes.
        Raises:
            StateError and its kin: the machine refuses the input; nothing changed.
            ResourceError: it could not be signed or stored; nothing changed. What follows from a stored
                input is no fault of its sender: it is tried again later.
        """
        conducted = self._conducted(run_id)
        pending = deque([received])
        while pending:
            before, taken = conducted.run, pending.popleft()
            run, effects = advance(before, taken)
            if effects or facts or run.to_json() != before.to_json():
                try:
                    self._store(conducted, run, effects, facts)
                except ResourceError as error:
                    if taken is received:
                        raise
                    log.error("%s: %s", run_id, error.what)
                    for late in (taken, *pending):
                        self._outside.try_again(partial(self._follow_up, run_id, late))
                    break
                facts = ()
            conducted.run = run
            for effect in effects:
                follows = self._carry_out(run_id, conducted, effect)
                if isinstance(follows, Pause):
                    # What else this step wanted is for a round that is not to be.
                    pending = deque([follows])
                    break
                if follows is not None:
                    pending.append(follows)
        self._outside.changed(run_id)

    def _store(
        self,
        conducted: ConductedRun,
        run: Run,
        effects: Sequence[RunEffect],
        facts: Sequence[Fact],
    ) -> None:
        """Store a step; the cohort that it seals, if any, together with its signed manifest."""
        manifest = self._new_manifest(conducted, run, effects)
        if manifest is not None:
            facts = (*facts, manifest)
        self._records.save(conducted.run_id, run, effects, self._now_ms(), facts)
        if manifest is not None:
            conducted.sealed(manifest.signed)

    def _new_manifest(
        self, conducted: ConductedRun, run: Run, effects: Sequence[RunEffect]
    ) -> ManifestRow | None:
        """Of a cohort that is sealed in this step; one that was stored before a restart has its own."""
        run_id, head = conducted.run_id, conducted.head
        for effect in effects:
            if isinstance(effect, PersistCohort) and effect.ref != head.ref:
                signed = self._notary.manifest(
                    run_id, conducted.plan, head, effect.ref, effect.cohort, run.model_hash
                )
                return ManifestRow(run_id, head.size, effect.ref, signed)
        return None

    def _follow_up(self, run_id: str, received: RunInput) -> None:
        """Feed what could not be stored before, unless an operator or a deadline was faster."""
        try:
            self.feed(run_id, received)
        except StateError as error:
            log.info("%s: not needed any more: %s", run_id, error.what)

    def _carry_out(
        self, run_id: str, conducted: ConductedRun, effect: RunEffect
    ) -> RunInput | None:
        match effect:
            case RoundOpened(ref=ref):
                return self._room_for_round(run_id, ref, conducted)
            case StartTimer(ref=ref, kind=kind, at_ms=at_ms):
                self._outside.set_timer(run_id, ref, kind, at_ms)
            case PersistCohort(ref=ref, cohort=cohort):
                log.info("%s: %s: cohort %s", run_id, ref, ", ".join(cohort))
                return InRound(ref, CohortPersisted(self._now_ms()), self._now_ms())
            case SendTrain(ref=ref, sites=sites):
                if conducted.manifest is not None:
                    self._tell(sites, instructions.train(run_id, ref, conducted.manifest))
            case Aggregate(ref=ref, survivors=survivors):
                log.info("%s: %s: summing %d updates", run_id, ref, len(survivors))
                self._outside.aggregate(run_id, effect)
            case CloseRound(ref=ref, committed=committed, reason=reason):
                log.info(
                    "%s: %s: %s", run_id, ref, "committed" if committed else f"aborted: {reason}"
                )
                self._tell(conducted.run.joined, instructions.round_closed(run_id, effect))
                self._outside.round_closed(run_id, ref)
            case OfferRun():
                self._offer(run_id, conducted.roster)
            case RunPaused(reason=reason):
                log.warning("%s: paused: %s. Next: fedpalm-coordinator resume", run_id, reason)
            case EndRun(completed=completed, reason=reason):
                log.info("%s: %s", run_id, "completed" if completed else f"aborted: {reason}")
                self._tell(conducted.roster, instructions.run_ended(run_id, effect))
        return None

    def _room_for_round(
        self, run_id: str, ref: RoundRef, conducted: ConductedRun
    ) -> RunInput | None:
        codec = conducted.codec
        needed = (
            len(conducted.roster) * codec.payload_bytes + 2 * codec.parameters * BYTES_PER_VALUE
        )
        try:
            self._outside.require_room(needed, f"{run_id}: {ref}")
        except ResourceError as error:
            return Pause(error.what)
        return None

    def _offer(self, run_id: str, sites: frozenset[str] | tuple[str, ...]) -> None:
        conducted = self._conducted(run_id)
        if not conducted.run.over:
            self._tell(sites, instructions.run_offer(run_id, conducted.plan.hash))

    def _tell(self, sites: frozenset[str] | tuple[str, ...], message: pb.Instruction) -> None:
        for site in sorted(sites):
            self._outside.instruct(site, message)

    def _conducted(self, run_id: str) -> ConductedRun:
        try:
            return self._runs[run_id]
        except KeyError:
            raise NotFoundError(
                f"there is no run {run_id!r}", next_step="fedpalm-coordinator status --all"
            ) from None

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)
