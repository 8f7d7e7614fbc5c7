"""Exchanges of experts at the coordinator: who is asked, who has said yes, and when it ends.

Conducts :class:`fedpalm.exchange.machine.ExchangeMachine` the way the conductor conducts runs: step, store,
then tell. A consent is verified against the federation's trust anchors before it is stored. What is sealed
goes through :class:`coordinator.exchange_relay.ExpertRelay`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from fedpalm.clock import Clock
from fedpalm.errors import (
    ConsentError,
    NotFoundError,
    NotOnRosterError,
    RefusedError,
    StateError,
)
from fedpalm.exchange.consent import Consent, Sanction, verify_consent
from fedpalm.exchange.machine import (
    AnswersClosed,
    AskConsent,
    AskKeys,
    AskSealed,
    CancelRequested,
    ConsentGiven,
    ConsentRefused,
    DeliverKeys,
    Effect,
    EraseSealed,
    ExchangeMachine,
    ExchangeState,
    Input,
    TellClosed,
    TimeOver,
)
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.pki.statement import SignedStatement
from fedpalm.text import one_line
from fedpalm.wire.v1 import federation_pb2 as pb

from . import instructions
from .conductor import Conductor
from .exchange_records import ConsentRow, ExchangeRecords, StoredExchange
from .facts import Fact
from .notary import Notary
from .proposal import check_first, check_moment, check_sites, check_words
from .spool import Spool

log = logging.getLogger(__name__)

SIGNED = (ExchangeState.SEALING, ExchangeState.REVEALING, ExchangeState.DELIVERING)
"""Every site has answered: who signs is fixed."""


class ExchangeDesk:
    """All exchanges of a coordinator.

    Args:
        tell: gives an instruction to a site, if it is connected.
        changed: the status of this run is another one.
        notary: signs terms, and knows the trust anchors that every consent must lead to.
        absent: the sites that cannot come at the moment.
        certified_until: when the present certificate of each site ends, ms since the Unix epoch.
    """

    def __init__(
        self,
        records: ExchangeRecords,
        conductor: Conductor,
        spool: Spool,
        clock: Clock,
        notary: Notary,
        *,
        tell: Callable[[str, pb.Instruction], None],
        changed: Callable[[str], None],
        absent: Callable[[], frozenset[str]],
        certified_until: Callable[[], Mapping[str, int]],
    ) -> None:
        self._records, self._conductor, self._spool = records, conductor, spool
        self._clock, self._notary = clock, notary
        self._tell, self._changed, self._absent = tell, changed, absent
        self._certified_until = certified_until
        self._machines: dict[str, ExchangeMachine] = {}
        self._terms: dict[str, SignedStatement] = {}
        self._sanctions: dict[str, Sanction] = {}
        for stored in records.load():
            self._take_up(stored)

    def restart(self) -> None:
        """Erase what is not needed any more; sites are told what they owe when they connect."""
        self._spool.keep_sealed_only(
            machine.terms.exchange_id for machine in self._machines.values() if not machine.ended
        )

    def of_run(self, run_id: str) -> ExchangeMachine | None:
        """The newest exchange of a run."""
        found = [one for one in self._machines.values() if one.terms.run == run_id]
        return max(found, key=lambda one: one.terms.number, default=None)

    def completed(self, run_id: str) -> bool:
        """Whether the experts of a run are exchanged; not everybody need have opened all of them."""
        newest = self.of_run(run_id)
        return newest is not None and newest.state is ExchangeState.COMPLETED

    def sealed_before(self, plan_hash: str) -> frozenset[str]:
        """Sites that sealed an expert in a cancelled exchange of a plan: they will seal no other."""
        return frozenset(
            site
            for machine in self._of_plan(plan_hash)
            if machine.state is ExchangeState.CANCELLED
            for site in machine.sealed
        )

    def uncertified(self, machine: ExchangeMachine) -> list[str]:
        """Sites whose yes stops counting before the exchange expires, as long as that matters.

        A yes is verified by every other site before it seals, and is for as long as the certificate that
        it was signed under; of a site that has not answered that is its present one.
        """
        if machine.state not in (ExchangeState.PROPOSED, ExchangeState.SEALING):
            return []
        until = dict(self._certified_until())
        for site, signed in self._records.consents(machine.terms.exchange_id).items():
            until[site] = round(signed.chain[0].not_valid_after_utc.timestamp() * 1000)
        ends = machine.terms.expires_ms
        return sorted(site for site in _awaited(machine) if until.get(site, ends) < ends)

    # --- what operators do ------------------------------------------------------------------------

    def propose(self, run_id: str, operator: str, purpose: str, valid_ms: int) -> None:
        """Propose the exchange of a run to its roster.

        Where the plan goes on without those who refuse, sites that cannot come count as such.

        Args:
            purpose: one line for the people at the sites.
            valid_ms: how long it may take from now.
        Raises:
            ConfigError: no purpose, or no such time.
            StateError: the run is not where its plan exchanges experts; the plan has an exchange already,
                or too few sites are left that can say yes.
            ResourceError: the terms could not be signed or stored.
        """
        run, plan = self._conductor.run(run_id), self._conductor.plan(run_id)
        check_words(purpose, valid_ms)
        self.expire()
        plan_hash = plan.hash.hex()
        check_first(self._of_plan(plan_hash))
        check_moment(run_id, run, plan)
        absent = (self._absent() | run.expelled) & set(plan.roster)
        check_sites(run_id, plan, absent, self.sealed_before(plan_hash))
        now_ms = self._now_ms()

        def made(number: int) -> StoredExchange:
            exchange_id = f"exchange-{secrets.token_hex(4)}"
            terms = ExchangeTerms.of(
                plan,
                run_id,
                exchange_id,
                number=number,
                purpose=purpose,
                expires_ms=now_ms + valid_ms,
            )
            refused = dict.fromkeys(absent, "it was revoked, or has left the run")
            machine = ExchangeMachine(terms, operator, refused=refused)
            return StoredExchange(machine, self._notary.exchange_terms(terms))

        stored = self._records.propose(plan_hash, made, now_ms)
        self._take_up(stored)
        log.info("%s: proposed, number %d", run_id, stored.machine.terms.number)
        self._carry_out(stored.machine, stored.machine.outstanding())
        self._changed(run_id)

    def cancel(self, run_id: str, operator: str) -> None:
        """End the exchange of a run.

        Raises:
            NotFoundError, IllegalTransitionError: there is none, or it is completed.
            StateError: every site can have every key by now: to end it would keep the experts from those
                alone who have not opened them yet.
        """
        machine = self._newest(run_id)
        if machine.state is ExchangeState.DELIVERING:
            raise StateError(
                f"exchange {machine.terms.exchange_id} is delivering: sites have the keys, and nothing "
                "can be taken back",
                safe="it goes on as it was",
                next_step="it ends by itself once every site has opened or said that it cannot, or when "
                "it expires: fedpalm-coordinator exchange status",
            )
        self.feed(machine, CancelRequested(f"operator {operator}", "by command"))

    def close_answers(self, run_id: str, operator: str) -> None:
        """Go on with the sites that have said yes; whoever has not answered counts as one that refuses.

        Raises:
            NotFoundError, IllegalTransitionError: there is no exchange, or it waits for no answers.
            RefusedError: the terms do not go on without those who refuse, or fewer than two said yes.
            StateError: one of those is about to leave.
        """
        machine = self._newest(run_id)
        gone = machine.consents.keys() & self._absent()
        self._require_none_gone(machine, gone)
        self.feed(machine, AnswersClosed(f"operator {operator}"))

    def expel(self, site: str, reason: str) -> None:
        """Nobody seals an expert to keys that are revoked: end every exchange that waits for this site.

        Where the terms go on without those who refuse, and who signs is still open, it counts as one; and
        once every site can have the keys, the others go on without its receipt.

        Raises:
            ResourceError: not all of it could be stored; again does the rest.
        """
        for machine in list(self._machines.values()):
            if machine.ended or site not in _awaited(machine):
                continue
            if machine.state is ExchangeState.DELIVERING:
                self.feed(machine, ConsentRefused(site, f"it was {reason}"))
            elif machine.state is ExchangeState.PROPOSED and machine.terms.without_refusers:
                left = self.feed(machine, ConsentRefused(site, f"it was {reason}"))
                if left.state is ExchangeState.PROPOSED:
                    # Whoever said yes meanwhile was told to come again.
                    self._carry_out(left, left.outstanding())
            else:
                self.feed(machine, CancelRequested("the coordinator", f"site {site} was {reason}"))

    def expire(self) -> None:
        """End every exchange whose time is over. Raises ResourceError: not all of it could be stored."""
        for machine in list(self._machines.values()):
            self._unless_expired(machine)

    # --- what sites do ----------------------------------------------------------------------------

    def site_connected(self, site: str) -> None:
        """Tell the site how its exchanges ended, since it may have missed that, and what they still want.

        In their order: a site takes up no proposal while it believes that an earlier one goes on.
        """
        for machine in sorted(self._machines.values(), key=lambda one: one.terms.number):
            if site in machine.terms.roster:
                machine = self._unless_expired(machine)
                mine = [one for one in machine.outstanding() if getattr(one, "site", "") == site]
                self._carry_out(machine, mine)

    def consent(self, run_id: str, exchange_id: str, site: str, signed: SignedStatement) -> None:
        """Store a site's yes; the same one again changes nothing.

        Raises:
            ConsentError, NotOnRosterError, IdentityError: not its own, or not signed with its present key;
                or with the key or the commitment of another site.
            RefusedError: it said something else before, or the answers are closed.
            SanctionExpiredError, StateError: not now.
        """
        machine = self.of_site(run_id, exchange_id, site)
        if machine.consents.get(site) == signed.hash:
            return
        self.require_open(machine)
        if site in machine.refused:
            raise RefusedError(
                f"exchange {exchange_id} goes on without {site}: {machine.refused[site]}",
                safe="nothing was stored",
            )
        self.require_all_there(machine)
        party = verify_consent(signed, machine.terms, self._notary.anchors, now=self._clock.now())
        if party.site != site:
            raise NotOnRosterError(f"site {site} sent the consent of {party.site}")
        self._notary.require_present_key(site, party.signing_key)
        self._require_own(machine, party.consent)
        row = ConsentRow(exchange_id, site, signed)
        self.feed(machine, ConsentGiven(site, signed.hash), (row,))

    def refuse(self, run_id: str, exchange_id: str, site: str, reason: str) -> None:
        """A site's no; every site and operator reads its reason, in one line. Again changes nothing."""
        machine = self.of_site(run_id, exchange_id, site)
        self.feed(machine, ConsentRefused(site, one_line(reason)))

    def consents(self, run_id: str, exchange_id: str, site: str) -> list[SignedStatement]:
        """The consents of all signers, for each of them.

        Raises:
            SanctionExpiredError, StateError: not every site has answered, or the exchange is over.
            NotOnRosterError: the site has not signed.
        """
        machine = self.of_signer(run_id, exchange_id, site, SIGNED)
        return self._signed_by(machine)

    # --- for the relay ----------------------------------------------------------------------------

    def of_site(self, run_id: str, exchange_id: str, site: str) -> ExchangeMachine:
        """An exchange that the site may speak of; ended, if its time is over.

        Raises:
            NotFoundError, NotOnRosterError: none of this run, or not this site's.
        """
        machine = self._machines.get(exchange_id)
        if machine is None or machine.terms.run != run_id:
            raise NotFoundError(f"run {run_id!r} has no exchange {exchange_id!r}")
        if site not in machine.terms.roster:
            raise NotOnRosterError(f"site {site} is not on the roster of exchange {exchange_id}")
        return self._unless_expired(machine)

    def of_signer(
        self, run_id: str, exchange_id: str, site: str, states: Collection[ExchangeState]
    ) -> ExchangeMachine:
        """An exchange in one of these states, for a site that signs it while nobody has left.

        Raises:
            NotFoundError, NotOnRosterError: none of this run, or the site has not signed.
            SanctionExpiredError, StateError: not in these states, or a signer has left.
        """
        machine = self.of_site(run_id, exchange_id, site)
        self.require_open(machine)
        if machine.state not in states:
            raise StateError(
                f"exchange {exchange_id} is {machine.state.value}", safe="nothing was relayed"
            )
        if site not in machine.consents:
            raise NotOnRosterError(
                f"site {site} has not signed exchange {exchange_id}", safe="nothing was relayed"
            )
        if site in machine.failed:
            raise StateError(
                f"site {site} is out of exchange {exchange_id}: {machine.failed[site]}",
                safe="nothing was relayed",
            )
        if machine.state is ExchangeState.DELIVERING:
            # Whoever leaves now keeps nobody from opening.
            self._require_none_gone(machine, self._absent() & {site})
        else:
            self.require_all_there(machine)
        return machine

    def require_open(self, machine: ExchangeMachine) -> None:
        """Raises SanctionExpiredError, StateError: the exchange is over."""
        if machine.state is ExchangeState.CANCELLED or machine.failed:
            machine.terms.require_alive(self._clock.now())
        if machine.ended:
            raise StateError(
                f"exchange {machine.terms.exchange_id} is {machine.state.value}",
                safe="nothing was relayed",
            )

    def require_all_there(self, machine: ExchangeMachine) -> None:
        """A revocation counts from the moment that it is in the registry. Raises StateError."""
        self._require_none_gone(machine, self._absent() & _awaited(machine))

    def sanction(self, machine: ExchangeMachine) -> Sanction:
        """What the signers agreed to, for an exchange whose signers are fixed; verified once a process.

        Each yes was verified when it came, and goes on to count after its certificate has ended or its
        trust anchor was retired. Who is not a member any more has left the exchange (:meth:`expel`).

        Raises:
            ConsentError, SanctionExpiredError: it does not hold, or not any more.
        """
        exchange_id, now = machine.terms.exchange_id, self._clock.now()
        machine.terms.require_alive(now)
        if exchange_id not in self._sanctions:
            self._sanctions[exchange_id] = Sanction(
                self._signed_by(machine),
                machine.terms,
                self._notary.record_anchors,
                now=now,
                of_record=True,
            )
        return self._sanctions[exchange_id]

    def feed(
        self, before: ExchangeMachine, received: Input, facts: Sequence[Fact] = ()
    ) -> ExchangeMachine:
        """Step, store with ``facts``, then carry out; returns the exchange as it is then.

        Raises:
            IllegalTransitionError, NotOnRosterError, RefusedError: as :meth:`ExchangeMachine.step`.
            ResourceError: it could not be stored; nothing changed.
        """
        machine, effects = before.step(received)
        if machine == before:
            return before
        self._records.save(machine, facts)
        self._machines[machine.terms.exchange_id] = machine
        if machine.ended:
            self._sanctions.pop(machine.terms.exchange_id, None)
        self._carry_out(machine, effects)
        if machine.state is not before.state:
            log.info(
                "%s: %s%s",
                machine.terms.exchange_id,
                machine.state.value,
                f": {machine.reason}" if machine.reason else "",
            )
        self._changed(machine.terms.run)
        return machine

    # --- inside -----------------------------------------------------------------------------------

    def _newest(self, run_id: str) -> ExchangeMachine:
        """The newest exchange of a run; if its time is over, it ends now. Raises NotFoundError."""
        machine = self.of_run(run_id)
        if machine is None:
            raise NotFoundError(f"run {run_id} has no exchange")
        return self._unless_expired(machine)

    def _require_none_gone(self, machine: ExchangeMachine, gone: Collection[str]) -> None:
        if gone:
            raise StateError(
                f"exchange {machine.terms.exchange_id}: {', '.join(sorted(gone)[:5])} left the "
                "federation, or was admitted anew",
                safe="nothing was relayed",
                next_step="wait: the exchange is about to end, or to go on without",
            )

    def _take_up(self, stored: StoredExchange) -> None:
        exchange_id = stored.machine.terms.exchange_id
        self._machines[exchange_id], self._terms[exchange_id] = stored.machine, stored.terms

    def _of_plan(self, plan_hash: str) -> Iterator[ExchangeMachine]:
        return (one for one in self._machines.values() if one.terms.plan_hash == plan_hash)

    def _unless_expired(self, machine: ExchangeMachine) -> ExchangeMachine:
        """The exchange; if its time is over, it ends now."""
        if machine.ended or self._now_ms() <= machine.terms.expires_ms:
            return machine
        return self.feed(machine, TimeOver())

    def _require_own(self, machine: ExchangeMachine, consent: Consent) -> None:
        """Raises ConsentError: no sanction could hold this consent beside another site's."""
        for signed in self._signed_by(machine):
            other = Consent.read(signed)
            for what in ("recipient_key", "commitment"):
                if other.site != consent.site and getattr(other, what) == getattr(consent, what):
                    raise ConsentError(
                        f"the {what.replace('_', ' ')} of {consent.site} is that of {other.site}",
                        safe="nothing was stored",
                    )

    def _signed_by(self, machine: ExchangeMachine) -> list[SignedStatement]:
        stored = self._records.consents(machine.terms.exchange_id)
        return [stored[site] for site in machine.signers]

    def _carry_out(self, machine: ExchangeMachine, effects: Sequence[Effect]) -> None:
        terms = machine.terms
        for effect in effects:
            match effect:
                case AskConsent(site=site):
                    signed = self._terms[terms.exchange_id]
                    self._tell(site, instructions.exchange_proposed(terms, signed))
                case AskSealed(site=site):
                    self._tell(site, instructions.seal_experts(terms))
                case AskKeys(site=site):
                    self._tell(site, instructions.reveal_keys(terms))
                case DeliverKeys(site=site):
                    self._tell(site, instructions.open_experts(terms))
                case TellClosed(site=site, completed=completed, reason=reason):
                    self._tell(site, instructions.exchange_closed(terms, completed, reason))
                case EraseSealed():
                    self._spool.erase_sealed(terms.exchange_id)

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)


def _awaited(machine: ExchangeMachine) -> frozenset[str]:
    """The sites that an exchange waits for: those that have not refused so far, then its signers, and in
    the end those of them that are not done."""
    if machine.state is ExchangeState.PROPOSED:
        return frozenset(machine.terms.roster) - frozenset(machine.refused)
    if machine.state is ExchangeState.DELIVERING:
        return frozenset(machine.undone)
    return frozenset(machine.consents)
