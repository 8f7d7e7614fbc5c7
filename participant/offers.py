"""Plans as they come: fetched, checked and stored, answered as this site decides, joined once approved.

Works beside the rounds: a later plan can be looked at and answered while a run goes on, and a person's
decision, made by a command in another process, is sent as soon as it is stored. Nobody joins a run here
whose plan is not approved in the store at that moment.
"""

from __future__ import annotations

import asyncio
from collections import deque

from fedpalm.errors import (
    ConfigError,
    FedPalmError,
    ForkError,
    HashMismatchError,
    IdentityError,
    NotFoundError,
    NotOnRosterError,
    PlanNotApprovedError,
    PolicyError,
    ProtocolError,
    RefusedError,
    ResourceError,
    RevokedError,
    StateError,
    WrongRoleError,
)
from fedpalm.wire.v1 import federation_pb2 as wire

from .link import Link
from .masked_store import MaskedBook
from .plan_book import PlanState, StoredPlan
from .plan_desk import PlanDesk
from .reporter import Reporter
from .store import SiteStore, StoredRun
from .trainer import Trainer

MAX_OFFERS = 256
"""That wait to be looked at, on one connection."""
MAX_MENTIONED = 10_000
"""Runs that the coordinator may speak of on one connection."""


class OfferWorker:
    """Follows the instructions that offer a run, and the decisions about their plans.

    Args:
        poll_s: how often the store and the policy file are looked at.
    """

    def __init__(
        self,
        store: SiteStore,
        desk: PlanDesk,
        trainer: Trainer,
        report: Reporter,
        *,
        poll_s: float,
    ) -> None:
        self._store, self._desk = store, desk
        self._trainer, self._report, self._poll_s = trainer, report, poll_s
        self._policy_seen: object = None
        self._told: set[tuple[str, str]] = set()
        self.reconnected()

    def reconnected(self) -> None:
        """The coordinator will say again which runs there are."""
        self._offers: asyncio.Queue[wire.RunOffer] = asyncio.Queue()
        self._later: deque[wire.RunOffer] = deque()  # for which there was no room
        self._mentioned: set[str] = set()
        self._ended: set[str] = set()
        self._open: dict[str, None] = {}  # offered and not joined on this connection, in order
        self._asked_again: set[str] = set()
        self._told_full = False

    def note(self, instruction: wire.Instruction) -> None:
        """Take note of an instruction as it arrives; an offer is followed by :meth:`work`.

        Raises:
            ProtocolError: the coordinator offers or speaks of more than any coordinator has to.
        """
        match instruction.WhichOneof("kind"):
            case "run_offer":
                self._mentioned.add(instruction.run_offer.run_id)
                if self._offers.qsize() + len(self._later) >= MAX_OFFERS:
                    raise ProtocolError(f"more than {MAX_OFFERS} offers wait to be looked at")
                self._offers.put_nowait(instruction.run_offer)
            case "train":
                self._mentioned.add(instruction.train.ref.run_id)
            case "round_closed":
                self._mentioned.add(instruction.round_closed.ref.run_id)
            case "run_ended":
                self._mentioned.add(instruction.run_ended.run_id)
                self._ended.add(instruction.run_ended.run_id)
                self._open.pop(instruction.run_ended.run_id, None)
        if len(self._mentioned) > MAX_MENTIONED:
            raise ProtocolError(f"the coordinator speaks of more than {MAX_MENTIONED} runs")

    async def work(self, link: Link) -> None:
        """Take up offers, send answers and join, for as long as the connection lasts.

        Raises:
            LayoutMismatchError, DataError, IntegrityError: this site cannot take part
                in what it has approved; and whatever the link raises.
            ResourceError: the coordinator is busy.
        """
        while True:
            while self._later and self._has_room():
                await self._take_up(link, self._later.popleft())
            while not self._offers.empty():
                await self._take_up(link, self._offers.get_nowait())
            self._follow_policy()
            await self._send_answers(link)
            for run_id in list(self._open):
                await self._join_if_approved(link, run_id)
            try:
                offer = await asyncio.wait_for(self._offers.get(), self._poll_s)
            except TimeoutError:
                continue
            await self._take_up(link, offer)

    # --- an offer ---------------------------------------------------------------------------------

    async def _take_up(self, link: Link, offer: wire.RunOffer) -> None:
        run_id = offer.run_id
        known = self._desk.book.get(run_id)
        if known is None and not self._has_room():
            self._later.append(offer)
            return
        if known is None or known.plan.hash != offer.plan_hash:
            self._report.working(f"run {run_id}: reading the plan")
            try:
                plan, signed = await link.fetch_plan(run_id)
            except (ConfigError, ProtocolError, HashMismatchError, NotFoundError) as error:
                self._report.line(f"run {run_id}: offer refused: {error.what}")
                return
            try:
                known = self._desk.propose(run_id, plan, signed)
            except (
                *(IdentityError, WrongRoleError, ProtocolError, HashMismatchError),
                NotOnRosterError,
            ) as error:
                self._report.line(f"run {run_id}: offer refused: {error.what}")
                return
            except ForkError as error:
                self._report.line(f"WARNING: {error.what}. {error.safe}. {error.next_step}")
                return
            if known.plan.hash != offer.plan_hash:
                self._report.line(
                    f"run {run_id}: offer refused: it names another plan than the coordinator signed"
                )
                return
        self._open[run_id] = None
        self._consider(run_id)

    def _has_room(self) -> bool:
        """Whether another plan is taken up; what is not waits until there is room."""
        try:
            self._desk.require_room()
        except ResourceError as error:
            if not self._told_full:
                self._report.line(f"offers are left alone: {error.what}. Next: {error.next_step}")
            self._told_full = True
            return False
        return True

    # --- decisions --------------------------------------------------------------------------------

    def _follow_policy(self) -> None:
        """Look at every plan of this connection again when the policy has changed."""
        stamp = self._desk.policy.stamp
        if stamp != self._policy_seen:
            self._policy_seen = stamp
            for run_id in sorted(self._mentioned - self._ended):
                if self._desk.book.get(run_id) is not None:
                    self._consider(run_id)

    def _consider(self, run_id: str) -> None:
        number = self._desk.plan(run_id).number
        try:
            stored = self._desk.consider(run_id)
        except PolicyError as error:
            # Of the policy the agent tells it, too, and connects anew when that can be used again.
            self._tell_once(run_id, f"not decided: {error.what}. Next: {error.next_step}")
            return
        if stored.number != number:
            words = "approved" if stored.state is PlanState.APPROVED else "refused"
            because = f": {stored.reason}" if stored.reason else ""
            self._report.line(
                f"run {run_id}: plan {_short(stored)} {words} by this site's policy{because}"
            )
        elif stored.state is PlanState.PROPOSED:
            self._tell_once(
                run_id,
                f"plan {_short(stored)} waits for a decision: fedpalm-participant review {run_id}, "
                f"then approve {run_id} or refuse {run_id}",
            )

    async def _send_answers(self, link: Link) -> None:
        for stored in self._desk.book.unanswered():
            run_id, word = stored.run_id, _word(stored)
            try:
                await link.answer_plan(run_id, self._desk.answer_to_send(run_id))
            except RevokedError:
                raise
            except PolicyError as error:
                self._tell_once(run_id, f"the {word} is not sent: {error.what}")
            except (
                StateError,
                RefusedError,
                NotFoundError,
                ProtocolError,
                HashMismatchError,
            ) as error:
                self._desk.book.set_answered(run_id, stored.number)
                self._report.line(
                    f"run {run_id}: the coordinator did not take this site's {word}: {error.what}"
                )
            else:
                self._desk.book.set_answered(run_id, stored.number)
                self._report.line(f"run {run_id}: this site's {word} was sent")
                if stored.state is PlanState.REFUSED and run_id in self._mentioned - self._ended:
                    self._open[run_id] = None  # to be joined again, should it be approved again

    # --- joining ----------------------------------------------------------------------------------

    async def _join_if_approved(self, link: Link, run_id: str) -> None:
        if not self._desk.book.is_agreed(run_id):
            return
        try:
            await self._join(link, run_id)
        except PlanNotApprovedError as error:
            await self._not_approved_there(run_id, error)
        except PolicyError as error:
            self._tell_once(run_id, f"not joined: {error.what}")
        except ConfigError as error:
            # The settings were read when the agent began: asked again, they say the same.
            self._open.pop(run_id, None)
            self._tell_once(
                run_id,
                f"not joined: {error.what}. Next: {error.next_step}; then start this agent again",
            )
        except (StateError, NotFoundError) as error:
            self._open.pop(run_id, None)
            self._report.line(f"run {run_id}: not joined: {error.what}")

    async def _not_approved_there(self, run_id: str, error: FedPalmError) -> None:
        """The coordinator has no approval of this site: it may have lost it, so say it once more."""
        stored = self._desk.plan(run_id)
        if stored.state is PlanState.APPROVED and run_id not in self._asked_again:
            self._asked_again.add(run_id)
            self._desk.book.set_answered(run_id, stored.number, answered=False)
        else:
            self._open.pop(run_id, None)
            self._report.line(f"run {run_id}: not joined: {error.what}")

    async def _join(self, link: Link, run_id: str) -> None:
        plan = self._desk.book.approved(run_id)
        run = self._store.run(run_id)
        active = self._store.active_run()
        if run is not None and run.state != "joined":
            raise StateError(f"it is over at this site: {run.state}")
        if run is None and active is not None and self._goes_on(active):
            self._tell_once(
                run_id, f"approved; it is joined when run {active.run_id} is over (one at a time)"
            )
            return
        self._report.working(f"run {run_id}: loading images and model")
        await asyncio.to_thread(self._trainer.prepare, run_id, plan)
        self._desk.book.approved(run_id)  # it may have been taken back meanwhile
        if run is None:
            if active is not None:
                self._store.end_run(active.run_id, "left", None, f"{run_id} was offered")
                MaskedBook(self._store).kill(active.run_id)
            self._store.add_run(run_id, plan)
            self._report.line(
                f"run {run_id}: {plan.draft.method}, {plan.draft.rounds} rounds, "
                f"{len(plan.roster)} sites"
            )
        await link.join_run(run_id)
        self._open.pop(run_id, None)
        self._report.line(f"run {run_id}: joined")

    def _goes_on(self, active: StoredRun) -> bool:
        """Whether the coordinator still speaks of the run, and this site still takes part."""
        stored = self._desk.book.get(active.run_id)
        withdrawn = stored is not None and stored.state is PlanState.REFUSED
        return active.run_id in self._mentioned and not withdrawn

    def _tell_once(self, run_id: str, text: str) -> None:
        if len(self._told) > MAX_MENTIONED:
            self._told.clear()
        if (run_id, text) not in self._told:
            self._told.add((run_id, text))
            self._report.line(f"run {run_id}: {text}")


def _short(stored: StoredPlan) -> str:
    return stored.plan.hash.hex()[:12]


def _word(stored: StoredPlan) -> str:
    return "approval" if stored.state is PlanState.APPROVED else "refusal"
