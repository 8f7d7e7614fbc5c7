"""Advances runs: step the machine, store what it says and what is signed about it, then carry it out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from functools import partial

from fedpalm.clock import Clock
from fedpalm.errors import NotFoundError, ResourceError, StateError
from fedpalm.rounds.events import (
    CLOSING,
    Aggregate,
    AskCheckpoints,
    CloseRound,
    CohortPersisted,
    PersistCohort,
    RoundRef,
    SendTrain,
    StartTimer,
    TimerKind,
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
    SitesKeptOut,
    advance,
)
from fedpalm.secagg.codec import BYTES_PER_VALUE
from fedpalm.wire.v1 import federation_pb2 as pb

from . import instructions
from .checkpoint_records import CheckpointRow
from .conducted import ConductedRun
from .facts import Fact, ManifestRow
from .masking import MaskingDesk
from .notary import Notary
from .outside import Outside
from .run_records import RunRecords

log = logging.getLogger(__name__)

RESTART_GRACE_MS = 60_000
"""After a restart sites get at least this long to come back before a deadline counts."""


class RunLoop:
    """All runs of a coordinator in memory, as they are stored.

    ``masking`` keeps the steps of their masked attempts.
    """

    def __init__(self, records: RunRecords, outside: Outside, clock: Clock, notary: Notary) -> None:
        self._records, self._outside, self._clock = records, outside, clock
        self._notary = notary
        self.masking = MaskingDesk(records, outside, clock, self.feed)
        self.runs = {one.run_id: ConductedRun(one) for one in records.load()}

    def conducted(self, run_id: str) -> ConductedRun:
        """Raises NotFoundError."""
        try:
            return self.runs[run_id]
        except KeyError:
            raise NotFoundError(
                f"there is no run {run_id!r}", next_step="fedpalm-coordinator status --all"
            ) from None

    def of_roster(self, run_id: str, site: str) -> ConductedRun:
        """A run that the site takes part in. Raises NotFoundError, NotOnRosterError."""
        conducted = self.conducted(run_id)
        conducted.require_roster(site)
        return conducted

    def now_ms(self) -> int:
        return round(self._clock.now() * 1000)

    def feed(self, run_id: str, received: RunInput, facts: Sequence[Fact] = ()) -> None:
        """Advance a run: step, store, carry out, until nothing follows by itself.

        Args:
            facts: what is stored together with the step that ``received`` makes.
        Raises:
            StateError and its kin: the machine refuses the input; nothing changed.
            ResourceError: it could not be signed or stored; nothing changed. What follows from a stored
                input is no fault of its sender: it is tried again later.
        """
        conducted = self.conducted(run_id)
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
        # Whoever was waited for may just have left for good.
        self.masking.look(run_id)

    def offer(self, run_id: str, sites: frozenset[str] | tuple[str, ...]) -> None:
        """Tell sites of a run, unless it is over."""
        conducted = self.conducted(run_id)
        if not conducted.run.over:
            self._tell(sites, instructions.run_offer(run_id, conducted.plan.hash))

    # --- inside -----------------------------------------------------------------------------------

    def _store(
        self,
        conducted: ConductedRun,
        run: Run,
        effects: Sequence[RunEffect],
        facts: Sequence[Fact],
    ) -> None:
        """Store a step; the cohort that it seals, if any, together with its signed manifest."""
        manifest = self._new_manifest(conducted, run, effects, facts)
        if manifest is not None:
            facts = (*facts, manifest)
        self._records.save(conducted.run_id, run, effects, self.now_ms(), facts)
        if manifest is not None:
            conducted.sealed(manifest.signed)

    def _new_manifest(
        self,
        conducted: ConductedRun,
        run: Run,
        effects: Sequence[RunEffect],
        facts: Sequence[Fact],
    ) -> ManifestRow | None:
        """Of a cohort that is sealed in this step; one that was stored before a restart has its own."""
        run_id, head = conducted.run_id, conducted.head
        for effect in effects:
            if isinstance(effect, PersistCohort) and effect.ref != head.ref:
                signed = self._notary.manifest(
                    run_id,
                    conducted.plan,
                    head,
                    effect.ref,
                    effect.cohort,
                    run.model_hash,
                    self._checkpoints(conducted, effect.ref, effect.cohort, facts),
                )
                return ManifestRow(run_id, head.size, effect.ref, signed)
        return None

    def _checkpoints(
        self,
        conducted: ConductedRun,
        ref: RoundRef,
        cohort: Sequence[str],
        facts: Sequence[Fact],
    ) -> dict[str, str]:
        """By site, the hash of the checkpoint that it gave for the attempt; the last one with this step."""
        if not conducted.plan.witnessed:
            return {}
        found = {
            site: self._records.checkpoints.of_attempt(
                conducted.run_id, ref, site, self._notary.present_log(site)
            )
            for site in cohort
        }
        for fact in facts:
            if isinstance(fact, CheckpointRow):
                found[fact.checkpoint.site] = fact.checkpoint.hash.hex()
        return found

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
            case AskCheckpoints(ref=ref, sites=sites):
                self._ask_checkpoints(run_id, ref, sites)
            case StartTimer(ref=ref, kind=TimerKind.MASKING, at_ms=at_ms):
                return self.masking.begin(conducted, ref, at_ms, self.now_ms() + RESTART_GRACE_MS)
            case StartTimer(ref=ref, kind=kind, at_ms=at_ms):
                self._outside.set_timer(run_id, ref, kind, at_ms)
            case PersistCohort(ref=ref, cohort=cohort):
                log.info("%s: %s: cohort %s", run_id, ref, ", ".join(cohort))
                return InRound(ref, CohortPersisted(self.now_ms()), self.now_ms())
            case SendTrain(ref=ref, sites=sites):
                if conducted.manifest is not None:
                    asked = self.masking.to_train(run_id, ref, sites)
                    self._tell(asked, instructions.train(run_id, ref, conducted.manifest))
            case Aggregate():
                return self._sum_up(run_id, conducted, effect)
            case CloseRound():
                self._close_round(run_id, conducted, effect)
            case OfferRun():
                self.offer(run_id, conducted.roster)
            case RunPaused(reason=reason):
                waits = conducted.run.waits_for_exchange
                then = "" if waits else ". Next: fedpalm-coordinator resume"
                log.warning("%s: paused: %s%s", run_id, reason, then)
            case SitesKeptOut(sites=sites, reason=reason):
                log.warning(
                    "%s: %s broke the rules of masking and is kept out until a resume: %s",
                    run_id,
                    ", ".join(sites),
                    reason,
                )
            case EndRun(completed=completed, reason=reason):
                ended = "completed" if completed else "aborted"
                log.info("%s: %s%s", run_id, ended, f": {reason}" if reason else "")
                if conducted.plan.witnessed:
                    self._ask_checkpoints(run_id, CLOSING, sorted(conducted.run.joined))
                self._tell(conducted.roster, instructions.run_ended(run_id, effect))
        return None

    def _ask_checkpoints(self, run_id: str, ref: RoundRef, sites: Sequence[str]) -> None:
        for site in sites:
            newest = self._records.checkpoints.newest(site, self._notary.present_log(site))
            self._outside.instruct(site, instructions.prepare(run_id, ref, newest))

    def _sum_up(self, run_id: str, conducted: ConductedRun, effect: Aggregate) -> RunInput | None:
        """Have the sum formed; of a masked attempt after a restart, with what its sites had said."""
        ref, survivors = effect.ref, effect.survivors
        current = conducted.run.current
        if effect.lost:
            reason = current.lost if current is not None else ""
            log.warning("%s: %s: gives no sum, and its model is spent: %s", run_id, ref, reason)
            self.masking.over(run_id, ref)
            self._outside.aggregate(run_id, effect)
            return None
        if conducted.masking is not None:
            failed = self.masking.restore(conducted, ref)
            if failed is not None:
                return failed
        dropped = sorted(set(current.cohort if current is not None else ()) - set(survivors))
        log.info(
            "%s: %s: summing %d %supdates: %s%s",
            run_id,
            ref,
            len(survivors),
            "" if conducted.masking is None else "masked ",
            ", ".join(survivors),
            f"; without {', '.join(dropped)}" if dropped else "",
        )
        self._outside.aggregate(run_id, effect)
        return None

    def _close_round(self, run_id: str, conducted: ConductedRun, effect: CloseRound) -> None:
        ref, ended = effect.ref, "committed" if effect.committed else f"aborted: {effect.reason}"
        if effect.committed and effect.reason:
            ended = f"committed without a sum: {effect.reason}"
        log.info("%s: %s: %s", run_id, ref, ended)
        self.masking.over(run_id, ref)
        self._tell(conducted.run.joined, instructions.round_closed(run_id, effect))
        self._outside.round_closed(run_id, ref)

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

    def _tell(self, sites: frozenset[str] | tuple[str, ...], message: pb.Instruction) -> None:
        for site in sorted(sites):
            self._outside.instruct(site, message)
