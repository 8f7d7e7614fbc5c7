"""Masked attempts: takes what sites say in each step, closes steps, and tells the sites what comes next.

    keys -> boxes -> inputs -> agreements -> reveals -> done

What a site says is stored before it counts, and a step is stored as closed before anybody hears of the
next one; so after a restart an attempt goes on where it was. Whoever says nothing in time, or nothing
that is its own, is left out of what follows. With too few left the attempt is aborted, and the next one
begins with fresh secrets at every site; from the step reveals on, its model is spent and the round is lost.
Sites that are caught at breaking the rules are named to the run, which keeps them out of later attempts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from fedpalm.clock import Clock
from fedpalm.errors import (
    BadShareError,
    IntegrityError,
    MaskingError,
    MaskingMessageError,
    NotOnRosterError,
    ResourceError,
    StaleRoundError,
)
from fedpalm.rounds.events import (
    Abort,
    RoundInput,
    RoundRef,
    SharesAsked,
    SumReady,
    TimerKind,
    UpdateAccepted,
)
from fedpalm.rounds.machine import RoundState
from fedpalm.rounds.run import InRound, RunInput, SitesCaught
from fedpalm.secagg.messages import Complaint, MaskedInput, Signed
from fedpalm.secagg.unmasking import Collection, Step

from . import instructions
from .conducted import ConductedRun
from .facts import Fact
from .masked_attempt import MaskedAttempt, begun, relayed, taken
from .masking_records import MaskingMessages, MaskingStep, SpentModel
from .outside import Outside
from .run_records import RunRecords

log = logging.getLogger(__name__)

Feed = Callable[[str, RunInput, Sequence[Fact]], None]


class MaskingDesk:
    """The masked attempts of all runs, one a run at most.

    Args:
        feed: advances a run and stores facts with it; it calls :meth:`look` at its end.
    """

    def __init__(self, records: RunRecords, outside: Outside, clock: Clock, feed: Feed) -> None:
        self._records, self._outside, self._clock, self._feed = records, outside, clock, feed
        self._open: dict[str, MaskedAttempt] = {}

    # --- looking ----------------------------------------------------------------------------------

    def attempt(self, run_id: str, ref: RoundRef | None = None) -> MaskedAttempt | None:
        """The run's attempt, if it is masked and not over; with ``ref``, if it is that one."""
        attempt = self._open.get(run_id)
        return attempt if attempt is not None and ref in (None, attempt.ref) else None

    def collection(self, run_id: str, ref: RoundRef) -> Collection | None:
        """What has come in an attempt; None if it is not masked, or over."""
        attempt = self.attempt(run_id, ref)
        return attempt.collection if attempt is not None else None

    # --- what sites do ----------------------------------------------------------------------------

    def take(
        self, run_id: str, ref: RoundRef, site: str, step: Step, said: Sequence[Signed]
    ) -> None:
        """What a site says in a step, all at once; the same again changes nothing, in later steps too.

        Raises:
            StaleRoundError: not the current attempt, or one that the site was expelled from.
            NotOnRosterError: the site is not in its cohort.
            IllegalTransitionError: the step is not open.
            MaskingMessageError, BadShareError, ContributionReuseError: not this site's message.
        """
        if step is Step.INPUTS and not all(isinstance(one, Complaint) for one in said):
            raise MaskingMessageError(
                "a masked input comes with its vector", safe="nothing was stored"
            )
        attempt = self._of_cohort(run_id, ref, site)
        try:
            after = taken(attempt.collection, step, site, said)
        except BadShareError as error:
            if error.caught:
                self._catch(attempt, (error.caught,), error.what)
            raise
        if after is attempt.collection:
            return
        self._records.write(MaskingMessages(run_id, ref, step, site, tuple(said)))
        attempt.collection = after
        log.info("%s: %s: %s of site %s", run_id, ref, step.value, site)
        self.look(run_id)

    def check_input(self, run_id: str, ref: RoundRef, site: str, said: MaskedInput) -> None:
        """May the masked vector that ``said`` is about come now? Raises as :meth:`take`."""
        taken(self._of_cohort(run_id, ref, site).collection, Step.INPUTS, site, (said,))

    def accept_input(
        self, run_id: str, ref: RoundRef, said: MaskedInput, facts: Sequence[Fact]
    ) -> None:
        """The masked vector is durable: it counts, together with ``facts``. Raises as :meth:`take`."""
        site = said.site
        attempt = self._of_cohort(run_id, ref, site)
        after = taken(attempt.collection, Step.INPUTS, site, (said,))
        row = MaskingMessages(run_id, ref, Step.INPUTS, site, (said,))
        accepted = UpdateAccepted(site, said.payload_hash.hex())
        self._feed(run_id, self._in(attempt, accepted), (*facts, row))
        attempt.collection = after
        log.info("%s: %s: masked update of site %s", run_id, ref, site)
        self.look(run_id)

    def fetch(self, run_id: str, ref: RoundRef, site: str, step: Step) -> Sequence[Signed]:
        """What a step that is closed gave, as far as it is for this site.

        Raises:
            StaleRoundError, NotOnRosterError: as :meth:`take`.
            MaskingMessageError: the step is not closed, the site dropped out in it, or nobody may have it.
        """
        return relayed(self._of_cohort(run_id, ref, site).collection, step, site)

    # --- what the run does ------------------------------------------------------------------------

    def begin(
        self, conducted: ConductedRun, ref: RoundRef, keys_deadline_ms: int, not_before_ms: int
    ) -> RunInput | None:
        """Open the first step of an attempt, or after a restart the one that it has come to.

        Args:
            keys_deadline_ms: when the first step ends.
            not_before_ms: no later step ends before this.
        Returns:
            What follows, if the attempt cannot go on.
        """
        failed = self.restore(conducted, ref)
        if failed is not None:
            return failed
        attempt = self._open[conducted.run_id]
        stored = self._records.masking.step(conducted.run_id, ref)
        attempt.deadline_ms = max(stored[1], not_before_ms) if stored else keys_deadline_ms
        self._outside.set_timer(conducted.run_id, ref, TimerKind.MASKING, attempt.deadline_ms)
        return None

    def restore(self, conducted: ConductedRun, ref: RoundRef) -> RunInput | None:
        """Have the attempt in memory, from the store if it is not there; as :meth:`begin`."""
        if self.attempt(conducted.run_id, ref) is not None:
            return None
        try:
            collection = begun(conducted, ref, self._records.masking)
        except IntegrityError as error:
            log.error("%s: %s", conducted.run_id, error.what)
            return InRound(ref, Abort(error.what), self._now_ms())
        self._open[conducted.run_id] = MaskedAttempt(conducted, ref, collection, 0)
        return None

    def over(self, run_id: str, ref: RoundRef) -> None:
        """The attempt is over; what was said in it is deleted already."""
        if self.attempt(run_id, ref) is not None:
            del self._open[run_id]

    def to_train(self, run_id: str, ref: RoundRef, sites: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``sites`` that the first step waits for; in later steps, training comes too late."""
        attempt = self.attempt(run_id, ref)
        if attempt is None:
            return sites
        return tuple(one for one in sites if attempt.step is Step.KEYS and one in attempt.awaited)

    def tell_again(self, run_id: str, site: str) -> None:
        """A site is back: it hears of the step that waits for it."""
        attempt = self.attempt(run_id)
        if attempt is not None and site in attempt.awaited and attempt.step is not Step.KEYS:
            self._tell(attempt, (site,))

    # --- steps ------------------------------------------------------------------------------------

    def timer_rang(self, run_id: str, ref: RoundRef) -> None:
        """Go on without those who are waited for. Raises ResourceError: it could not be stored."""
        attempt = self.attempt(run_id, ref)
        if attempt is None or not _collecting(attempt):
            return
        if self._now_ms() < attempt.deadline_ms:
            self._outside.set_timer(run_id, ref, TimerKind.MASKING, attempt.deadline_ms)
            return
        self._close(attempt)
        self.look(run_id)

    def look(self, run_id: str) -> None:
        """Close the step if nobody is waited for; what cannot be stored now is tried again."""
        try:
            self._close_complete(run_id)
        except ResourceError as error:
            log.error("%s: %s", run_id, error.what)
            self._outside.try_again(partial(self._close_complete, run_id))

    def _close_complete(self, run_id: str) -> None:
        attempt = self._open.get(run_id)
        if attempt is not None and _collecting(attempt) and not attempt.awaited:
            self._close(attempt)
            self._close_complete(run_id)

    def _close(self, attempt: MaskedAttempt) -> None:
        run_id, ref, before = attempt.run_id, attempt.ref, attempt.collection
        silent = ", ".join(sorted(before.waiting_for))
        without = f"; nothing came from {silent}" if silent else ""
        if before.step is Step.INPUTS and before.caught:
            self._catch(attempt, before.caught, before.told_complaints)
            if attempt.collection is not before or self.attempt(run_id, ref) is None:
                return  # The run looked again at what was known by then, and closed the step.
        try:
            _check_caught(before)
            after = before.close_step()
        except MaskingError as error:
            self._feed(run_id, self._in(attempt, Abort(f"{error.what}{without}")), ())
            return
        log.info("%s: %s: %s are in%s", run_id, ref, before.step.value, without)
        if after.step is Step.DONE:
            self._sum_up(attempt, after)
            return
        step_ms = round(attempt.conducted.plan.draft.masking_step_deadline_s * 1000)
        deadline_ms = self._now_ms() + step_ms
        attempt.collection, attempt.deadline_ms, ended_ms = after, deadline_ms, attempt.deadline_ms
        try:
            self._store_step(attempt)
        except ResourceError:
            attempt.collection, attempt.deadline_ms = before, ended_ms
            raise
        self._outside.set_timer(run_id, ref, TimerKind.MASKING, deadline_ms)
        self._tell(attempt, tuple(attempt.awaited))
        self._outside.changed(run_id)

    def _store_step(self, attempt: MaskedAttempt) -> None:
        """The step that begins; if it asks for shares, the model is spent with it."""
        run_id, ref, current = attempt.run_id, attempt.ref, attempt.conducted.run.current
        row = MaskingStep(run_id, ref, attempt.step, attempt.deadline_ms)
        if attempt.step is Step.REVEALS and current is not None:
            spent = SpentModel(current.model_hash, run_id, ref)
            self._feed(run_id, self._in(attempt, SharesAsked()), (row, spent))
        else:
            self._records.write(row)

    def _catch(self, attempt: MaskedAttempt, sites: Sequence[str], reason: str) -> None:
        """Name sites to the run; those that it knows already are no news."""
        if fresh := frozenset(sites) - attempt.conducted.run.caught:
            self._feed(attempt.run_id, SitesCaught(fresh, reason), ())

    def _sum_up(self, attempt: MaskedAttempt, after: Collection) -> None:
        """The last step is closed: whoever forms the sum finds the collection done."""
        before, attempt.collection = attempt.collection, after
        done = MaskingStep(attempt.run_id, attempt.ref, Step.DONE, 0)
        try:
            self._feed(attempt.run_id, self._in(attempt, SumReady(after.survivors)), (done,))
        except ResourceError:
            attempt.collection = before
            raise

    # --- inside -----------------------------------------------------------------------------------

    def _tell(self, attempt: MaskedAttempt, sites: tuple[str, ...]) -> None:
        message = instructions.masking_step(attempt.run_id, attempt.ref, attempt.step)
        for site in sorted(sites):
            self._outside.instruct(site, message)

    def _of_cohort(self, run_id: str, ref: RoundRef, site: str) -> MaskedAttempt:
        attempt = self.attempt(run_id, ref)
        current = attempt.conducted.run.current if attempt is not None else None
        if attempt is None or current is None or current.ref != ref:
            raise StaleRoundError(
                f"run {run_id} has no masked attempt {ref} that goes on",
                safe="nothing was stored",
                next_step="wait for the next instruction",
            )
        if site not in current.cohort:
            raise NotOnRosterError(
                f"site {site} is not in the cohort of {ref}", safe="nothing was stored"
            )
        if site in current.expelled:
            raise StaleRoundError(
                f"site {site} was expelled from {ref}",
                safe="nothing was stored",
                next_step="wait for the next instruction; it takes part from the next round on",
            )
        return attempt

    def _in(self, attempt: MaskedAttempt, received: RoundInput) -> InRound:
        return InRound(attempt.ref, received, self._now_ms())

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)


def _check_caught(collection: Collection) -> None:
    """End an attempt in which a site is caught, before any share is given and the model spent.

    Nothing of its boxes can be relied on, whether its vector came or not: the sum needs what is in them.

    Raises:
        MaskingError: there is such a site.
    """
    if collection.step is Step.INPUTS and collection.caught:
        raise MaskingError(
            f"inputs: boxes do not open: {collection.told_complaints}", safe="sums stay masked"
        )


def _collecting(attempt: MaskedAttempt) -> bool:
    current = attempt.conducted.run.current
    return (
        current is not None
        and current.ref == attempt.ref
        and current.state is RoundState.COLLECTING
    )
