"""What operators and sites do to runs, and what time and threads do: the way in to the run machines.

No clock tick, thread or socket of its own: time comes from a :class:`Clock`, and everything that
leaves goes through :class:`Outside`. So the server and the simulation conduct with the same code.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedpalm.clock import Clock
from fedpalm.errors import (
    BadShareError,
    FedPalmError,
    HashMismatchError,
    LayoutMismatchError,
    ResourceError,
    StateError,
)
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import (
    Aggregate,
    Aggregated,
    AggregationFailed,
    JoinDeadline,
    Restarted,
    RoundDeadline,
    RoundRef,
    SiteExpelled,
    SiteJoined,
    SiteLeft,
    TimerKind,
)
from fedpalm.rounds.run import (
    EndRun,
    InRound,
    Pause,
    Run,
    RunInput,
    RunState,
    SitesCaught,
)
from fedpalm.secagg.codec import FixedPointCodec

from . import instructions
from .amendment import check_continues, check_unspent
from .checkpoints import CheckpointDesk
from .conducted import ConductedRun
from .facts import (
    AnswerGone,
    AnswerRow,
    Fact,
)
from .notary import Notary
from .outside import Outside
from .run_loop import RESTART_GRACE_MS, RunLoop
from .run_records import RunRecords
from .updates import UpdateDesk

log = logging.getLogger(__name__)


class Conductor:
    """All runs of a coordinator.

    ``updates`` takes what sites deliver, ``masking`` what they say masked, ``checkpoints`` their logs'.

    Args:
        records: where they are stored; read on construction, see :meth:`restart`.
        outside: carries out effects.
        notary: signs for the coordinator and verifies what sites have signed.
    """

    def __init__(self, records: RunRecords, outside: Outside, clock: Clock, notary: Notary) -> None:
        self._records, self._outside, self._notary = records, outside, notary
        self._loop = RunLoop(records, outside, clock, notary)
        self.masking = self._loop.masking
        self.updates = UpdateDesk(self._loop, records, notary)
        self.checkpoints = CheckpointDesk(self._loop, records, notary)
        self._connected: set[str] = set()

    def restart(self) -> None:
        """Take up every unfinished run where the store says it is."""
        for run_id in self._loop.runs:
            self.feed(run_id, Restarted(self._loop.now_ms(), RESTART_GRACE_MS))

    # --- looking ----------------------------------------------------------------------------------

    def run_ids(self) -> list[str]:
        """Oldest first."""
        return list(self._loop.runs)

    def run(self, run_id: str) -> Run:
        return self._loop.conducted(run_id).run

    def plan(self, run_id: str) -> Plan:
        return self._loop.conducted(run_id).plan

    def codec(self, run_id: str) -> FixedPointCodec:
        return self._loop.conducted(run_id).codec

    def deadline_ms(self, run_id: str) -> int:
        """Until when the current attempt, or the step of a masked one, waits; 0: for nobody."""
        current = self.run(run_id).current
        if current is None or not current.deadline_ms:
            return 0
        attempt = self.masking.attempt(run_id, current.ref)
        return attempt.deadline_ms if attempt is not None else current.deadline_ms

    def offer(self, run_id: str) -> SignedStatement:
        """The signed offer of the run's plan."""
        return self._loop.conducted(run_id).offer

    def manifest_hash(self, run_id: str) -> bytes:
        """32 bytes of the newest manifest; zeros before the first cohort is sealed."""
        manifest = self._loop.conducted(run_id).manifest
        return manifest.hash if manifest is not None else bytes(32)

    def answered(self, run_id: str, kind: str) -> list[str]:
        """Sites whose newest answer to the plan is ``approve`` or ``refuse``, sorted."""
        return self._loop.conducted(run_id).answered(kind)

    # --- what operators do ------------------------------------------------------------------------

    def create(self, run_id: str, plan: Plan) -> None:
        """A new run, whose initial model is durable; its roster hears of it at once.

        Raises:
            StateError: as :meth:`check_start`.
        """
        self.check_start(plan)
        offer = self._notary.offer(run_id, plan)
        self._loop.runs[run_id] = ConductedRun(
            self._records.create(run_id, plan, offer, self._loop.now_ms())
        )
        self._loop.offer(run_id, plan.roster)
        self._outside.changed(run_id)

    def check_start(self, plan: Plan) -> None:
        """May a run of this plan start from its initial model?

        Raises:
            StateError: it is an amended plan and does not go on from where its run ended, or sites have
                given shares for this model already.
        """
        check_unspent(plan, self._records.masking.spent(plan.initial_model))
        if plan.continues is not None:
            ended = self._loop.runs.get(plan.continues.run)
            done = max(self._records.models(ended.run_id)) if ended else 0
            check_continues(plan, plan.continues, ended, done, self._loop.runs.values())

    def expel(self, site: str, reason: str) -> None:
        """A revoked site takes part in no run any more; again changes nothing.

        Its approvals are void: whoever is admitted under its name is asked again.

        Raises:
            ResourceError: it could not be stored for every run; again does the rest.
        """
        failed: ResourceError | None = None
        for run_id, conducted in list(self._loop.runs.items()):
            if site not in conducted.roster or conducted.run.over:
                continue
            void = (AnswerGone(run_id, site),) if site in conducted.answers else ()
            if site in conducted.run.expelled and not void:
                continue
            log.warning("%s: site %s is out: %s", run_id, site, reason)
            try:
                self.feed(run_id, SiteExpelled(site, reason, self._loop.now_ms()), void)
            except ResourceError as error:
                failed = error
            else:
                conducted.answers.pop(site, None)
        if failed is not None:
            raise failed

    # --- what sites do ----------------------------------------------------------------------------

    def site_connected(self, site: str) -> None:
        """Tell the site everything that the present state demands of it."""
        self._connected.add(site)
        ended = [
            (run_id, conducted.run)
            for run_id, conducted in self._loop.runs.items()
            if conducted.run.over and (site in conducted.run.joined or site in conducted.answers)
        ]
        for run_id, run in ended[-1:]:
            ending = EndRun(run.state is RunState.COMPLETED, run.model_hash, run.reason)
            self._outside.instruct(site, instructions.run_ended(run_id, ending))
        for run_id, conducted in list(self._loop.runs.items()):
            if site in conducted.roster and not conducted.run.over:
                self._loop.offer(run_id, (site,))
                if site in conducted.run.joined:
                    self._joined(run_id, site)

    def site_disconnected(self, site: str) -> None:
        self._connected.discard(site)
        for run_id, conducted in list(self._loop.runs.items()):
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
        conducted = self._loop.of_roster(run_id, site)
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
            out = SiteExpelled(site, "it refused the plan", self._loop.now_ms())
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
        conducted = self._loop.of_roster(run_id, site)
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
        self._joined(run_id, site)

    def require_on_roster(self, run_id: str, site: str) -> None:
        """Raises NotFoundError, NotOnRosterError."""
        self._loop.of_roster(run_id, site)

    def _joined(self, run_id: str, site: str) -> None:
        """The site is there: it hears of what is waited for in the current attempt."""
        if site not in self.run(run_id).present:
            self.feed(run_id, SiteJoined(site))
            self.masking.tell_again(run_id, site)

    # --- what time and threads do -----------------------------------------------------------------

    def feed(self, run_id: str, received: RunInput, facts: Sequence[Fact] = ()) -> None:
        """Advance a run; see :meth:`coordinator.run_loop.RunLoop.feed`."""
        self._loop.feed(run_id, received, facts)

    def timer_rang(self, run_id: str, ref: RoundRef, kind: TimerKind) -> None:
        """Raises ResourceError: what follows could not be stored."""
        if kind is TimerKind.MASKING:
            self.masking.timer_rang(run_id, ref)
            return
        deadline = JoinDeadline() if kind is TimerKind.JOIN else RoundDeadline()
        self.feed(run_id, InRound(ref, deadline, self._loop.now_ms()))

    def aggregated(self, run_id: str, effect: Aggregate, model_hash: str) -> None:
        """What ``effect`` asked for is durable under this hash; a masked round commits no spent model."""
        done: Aggregated | AggregationFailed = Aggregated(model_hash, effect.lost)
        if self._loop.conducted(run_id).masking is not None:
            spent = self._records.masking.spent(model_hash)
            if spent is not None:
                reason = "the sum leads to the model of round {1} of run {0}, which is spent"
                done = AggregationFailed(reason.format(*spent), effect.lost)
        self.feed(run_id, InRound(effect.ref, done, self._loop.now_ms()))

    def aggregation_failed(self, run_id: str, effect: Aggregate, error: FedPalmError) -> None:
        """A full disk pauses the run, since trying again would fill it again."""
        run = self.run(run_id)
        current = run.current
        if current is None or current.ref != effect.ref or run.state is not RunState.RUNNING:
            return
        if isinstance(error, ResourceError):
            self.feed(run_id, Pause(error.what))
            return
        if isinstance(error, BadShareError) and error.caught:
            self.feed(run_id, SitesCaught(frozenset({error.caught}), error.what))
        failed = AggregationFailed(error.what, effect.lost)
        self.feed(run_id, InRound(effect.ref, failed, self._loop.now_ms()))
