"""The deployment exchange at the coordinator: it relays what it cannot open, and checks that it may.

Conducts :class:`fedpalm.exchange.machine.ExchangeMachine` the way the conductor conducts runs: step,
store, then tell. A consent is verified against the federation's trust anchors before it is stored, a
sealed expert against the consents of the whole roster.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from fedpalm.clock import Clock
from fedpalm.errors import (
    HashMismatchError,
    MessageTooLargeError,
    NotFoundError,
    NotOnRosterError,
    StateError,
)
from fedpalm.exchange.consent import Agreement, SignedConsent, verify_consent
from fedpalm.exchange.machine import (
    AskConsent,
    AskSealed,
    CancelRequested,
    ConsentGiven,
    ConsentRefused,
    DeliverExperts,
    Effect,
    EraseSealed,
    ExchangeMachine,
    ExchangeState,
    ExpertsDelivered,
    ExpertSealed,
    Input,
    Started,
    TellCancelled,
)
from fedpalm.exchange.sealing import SEAL_OVERHEAD_BYTES, SealedExpert, verify_sealed
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.run import RunState
from fedpalm.text import one_line
from fedpalm.wire.v1 import federation_pb2 as pb

from . import instructions
from .claims import SealedClaim, sealed_place
from .conductor import Conductor
from .exchange_records import ConsentRow, ExchangeRecords, SealedRow
from .facts import Fact, ReceiptRow
from .notary import Notary
from .run_records import RunRecords
from .spool import Spool

log = logging.getLogger(__name__)

_ENDED = (ExchangeState.COMPLETED, ExchangeState.CANCELLED)
_RELAYING = (ExchangeState.SEALING, ExchangeState.DELIVERING)


class ExchangeDesk:
    """All exchanges of a coordinator.

    Args:
        tell: gives an instruction to a site, if it is connected.
        changed: the status of this run is another one.
        notary: knows the trust anchors that every consent must lead to, and signs receipts.
        runs: where the receipts are.
        absent: the sites that cannot come at the moment.
    """

    def __init__(
        self,
        records: ExchangeRecords,
        conductor: Conductor,
        spool: Spool,
        clock: Clock,
        notary: Notary,
        runs: RunRecords,
        *,
        tell: Callable[[str, pb.Instruction], None],
        changed: Callable[[str], None],
        absent: Callable[[], frozenset[str]],
    ) -> None:
        self._records, self._conductor, self._spool = records, conductor, spool
        self._clock, self._notary, self._runs = clock, notary, runs
        self._tell, self._changed, self._absent = tell, changed, absent
        self._machines = {machine.terms.exchange_id: machine for machine in records.load()}

    def restart(self) -> None:
        """Erase what is not needed any more; sites are told what they owe when they connect."""
        self._spool.keep_sealed_only(
            machine.terms.exchange_id
            for machine in self._machines.values()
            if machine.state not in _ENDED
        )

    def of_run(self, run_id: str) -> ExchangeMachine | None:
        """The newest exchange of a run."""
        found = [one for one in self._machines.values() if one.terms.run == run_id]
        return found[-1] if found else None

    # --- what operators do ------------------------------------------------------------------------

    def start(self, run_id: str, operator: str) -> None:
        """Propose the exchange of a completed run to its roster.

        Raises:
            StateError: the run is not completed, releases no experts, or has an exchange already; or a
                site of its roster is revoked or was expelled, whose yes cannot come.
        """
        run, plan = self._conductor.run(run_id), self._conductor.plan(run_id)
        if run.state is not RunState.COMPLETED:
            raise StateError(
                f"run {run_id} is {run.state.value}; experts are exchanged after its last round",
                safe="nothing was proposed",
            )
        if not plan.expert_layout:
            raise StateError(f"the plan of run {run_id} releases no experts")
        if missing := sorted((self._absent() | run.expelled) & set(plan.roster)):
            raise StateError(
                f"run {run_id}: every site of its roster must say yes, and these cannot, since they "
                f"were revoked or left the run: {', '.join(missing[:5])}",
                safe="nothing was proposed",
                next_step="let a revoked site in again (fedpalm-coordinator invite), or exchange after "
                "a run without them: fedpalm-coordinator plan amend RUN --remove SITE before the last "
                "round, or plan submit with another roster",
            )
        earlier = self.of_run(run_id)
        if earlier is not None and earlier.state is not ExchangeState.CANCELLED:
            raise StateError(
                f"run {run_id} has exchange {earlier.terms.exchange_id} ({earlier.state.value})",
                safe="it goes on unchanged",
            )
        exchange_id = f"exchange-{secrets.token_hex(4)}"
        fresh = ExchangeMachine(ExchangeTerms.of(plan, run_id, exchange_id))
        self._machines[exchange_id] = fresh
        try:
            self._feed(exchange_id, Started(operator))
        except BaseException:
            if self._machines[exchange_id] is fresh:
                del self._machines[exchange_id]
            raise

    def cancel(self, run_id: str, operator: str) -> None:
        """End the exchange of a run. Raises NotFoundError, IllegalTransitionError."""
        machine = self.of_run(run_id)
        if machine is None:
            raise NotFoundError(f"run {run_id} has no exchange")
        cancelled = CancelRequested(f"operator {operator}", "by command")
        self._feed(machine.terms.exchange_id, cancelled)

    def expel(self, site: str, reason: str) -> None:
        """End every exchange that this site is in: nobody seals an expert to keys that are revoked.

        Raises:
            ResourceError: not all of it could be stored; again does the rest.
        """
        for exchange_id, machine in list(self._machines.items()):
            if site in machine.terms.roster and machine.state not in _ENDED:
                ended = CancelRequested("the coordinator", f"site {site} was {reason}")
                self._feed(exchange_id, ended)

    # --- what sites do ----------------------------------------------------------------------------

    def site_connected(self, site: str) -> None:
        """Tell the site what its exchanges still want of it, or how the last one ended."""
        newest = {machine.terms.run: machine for machine in self._machines.values()}
        for machine in newest.values():
            if site not in machine.terms.roster:
                continue
            if machine.state is ExchangeState.COMPLETED:
                self._tell(site, instructions.exchange_closed(machine.terms, True, ""))
            for effect in machine.outstanding():
                if getattr(effect, "site", None) == site:
                    self._carry_out(machine, effect)

    def consent(self, run_id: str, exchange_id: str, site: str, signed: SignedConsent) -> None:
        """Store a site's yes.

        Raises:
            ConsentError, NotOnRosterError, IdentityError: not its own, signed with its present key.
            StateError: not now.
        """
        machine = self._machine(run_id, exchange_id, site)
        self._require_all_there(machine)
        party = verify_consent(signed, machine.terms, self._notary.anchors, now=self._clock.now())
        if party.site != site:
            raise NotOnRosterError(f"site {site} sent the consent of {party.site}")
        self._notary.require_present_key(site, party.signing_key)
        known = site in machine.consents
        self._feed(
            exchange_id,
            ConsentGiven(site, signed.consent.hash),
            () if known else (ConsentRow(exchange_id, signed),),
        )

    def refuse(self, run_id: str, exchange_id: str, site: str, reason: str) -> None:
        """A site's no ends the exchange; every site and operator reads its reason, in one line."""
        self._machine(run_id, exchange_id, site)
        self._feed(exchange_id, ConsentRefused(site, one_line(reason)))

    def consents(self, run_id: str, exchange_id: str, site: str) -> list[SignedConsent]:
        """All consents, once there is one of every site. Raises StateError before."""
        machine = self._machine(run_id, exchange_id, site)
        self._require_relaying(machine)
        return self._records.consents(exchange_id)

    def check_sealed(self, claim: SealedClaim) -> SignedStatement | None:
        """May this sealed expert come? If it has come already: its receipt, as it was given.

        Raises:
            NotOnRosterError, StateError: not between these sites, or not now.
            HashMismatchError: the sender delivered another one already.
            MessageTooLargeError: longer than an expert of the plan can be.
        """
        machine = self._machine(claim.run_id, claim.exchange_id, claim.sender)
        if claim.recipient not in machine.terms.others(claim.sender):
            raise NotOnRosterError(f"{claim.recipient!r} is no recipient of this exchange")
        self._require_relaying(machine)
        known = self._records.sealed(claim.exchange_id, claim.sender, claim.recipient)
        if known is not None and known.payload_hash != claim.payload_hash:
            raise HashMismatchError(
                f"{claim.sender} already sealed another expert to {claim.recipient}",
                safe="the first one stays",
            )
        expert_bytes = 4 * self._conductor.plan(claim.run_id).released_layout.size
        if not 0 < claim.payload_bytes <= expert_bytes + SEAL_OVERHEAD_BYTES:
            raise MessageTooLargeError(
                f"{claim.payload_bytes} bytes; a sealed expert of this plan has at most "
                f"{expert_bytes + SEAL_OVERHEAD_BYTES}",
                safe="nothing was stored",
            )
        if known is None:
            return None
        place = sealed_place(claim.run_id, claim.exchange_id)
        return self._runs.receipt(claim.run_id, claim.sender, place, claim.recipient)

    def accept_sealed(self, claim: SealedClaim) -> SignedStatement:
        """The sealed bytes are whole and durable: verify what can be verified, and count them.

        Raises:
            SealedExpertError: not signed by the sender, or not for this exchange.
        """
        known = self.check_sealed(claim)
        if known is not None:
            return known
        machine = self._machines[claim.exchange_id]
        path = self.sealed_path(claim)
        try:
            sealed = SealedExpert.from_bytes(path.read_bytes())
            agreement = Agreement(
                self._records.consents(claim.exchange_id),
                machine.terms,
                self._notary.anchors,
                now=self._clock.now(),
            )
            layout = self._conductor.plan(claim.run_id).released_layout
            verify_sealed(sealed, layout, agreement, sender=claim.sender, recipient=claim.recipient)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        now_ms = self._now_ms()
        row = SealedRow(
            claim.exchange_id, claim.sender, claim.recipient,
            claim.payload_hash, claim.payload_bytes, now_ms,
        )  # fmt: skip
        place = sealed_place(claim.run_id, claim.exchange_id)
        receipt = self._notary.receipt(
            site=claim.sender,
            payload="sealed_expert",
            place=place,
            recipient=claim.recipient,
            payload_hash=claim.payload_hash,
            payload_bytes=claim.payload_bytes,
            received_ms=now_ms,
        )
        given = ReceiptRow(claim.run_id, claim.sender, place, claim.recipient, receipt)
        came = ExpertSealed(claim.sender, claim.recipient, sealed.hash)
        self._feed(claim.exchange_id, came, (row, given))
        return receipt

    def sealed_path(self, claim: SealedClaim) -> Path:
        return self._spool.sealed(claim.exchange_id, claim.sender, claim.recipient)

    def deliverable(
        self, run_id: str, exchange_id: str, sender: str, recipient: str
    ) -> tuple[Path, int]:
        """File and size of an expert that its recipient may fetch now.

        Raises:
            StateError: not every expert has arrived, or the exchange is over.
            NotFoundError: there is none from this sender.
        """
        machine = self._machine(run_id, exchange_id, recipient)
        self._require_all_there(machine)
        if machine.state is not ExchangeState.DELIVERING:
            raise StateError(f"exchange {exchange_id} is {machine.state.value}")
        row = self._records.sealed(exchange_id, sender, recipient)
        if row is None:
            raise NotFoundError(
                f"exchange {exchange_id} has no expert of {sender!r} for {recipient}"
            )
        return self._spool.sealed(exchange_id, sender, recipient), row.payload_bytes

    def confirm(self, run_id: str, exchange_id: str, site: str) -> None:
        """The site has opened every expert."""
        self._machine(run_id, exchange_id, site)
        self._feed(exchange_id, ExpertsDelivered(site))

    # --- inside -----------------------------------------------------------------------------------

    def _feed(self, exchange_id: str, received: Input, facts: Sequence[Fact] = ()) -> None:
        before = self._machines[exchange_id]
        machine, effects = before.step(received)
        if machine != before:
            self._records.save(machine, self._now_ms(), facts)
        self._machines[exchange_id] = machine
        for effect in effects:
            self._carry_out(machine, effect)
        if machine.state is ExchangeState.COMPLETED and before.state is not machine.state:
            for site in machine.terms.roster:
                self._tell(site, instructions.exchange_closed(machine.terms, True, ""))
        if machine.state is not before.state:
            log.info("%s: %s", exchange_id, machine.state.value)
        self._changed(machine.terms.run)

    def _carry_out(self, machine: ExchangeMachine, effect: Effect) -> None:
        terms = machine.terms
        match effect:
            case AskConsent(site=site):
                self._tell(site, instructions.exchange_proposed(terms))
            case AskSealed(site=site):
                self._tell(site, instructions.seal_experts(terms))
            case DeliverExperts(site=site):
                self._tell(site, instructions.fetch_experts(terms))
            case TellCancelled(site=site, reason=reason):
                self._tell(site, instructions.exchange_closed(terms, False, reason))
            case EraseSealed():
                self._spool.erase_sealed(terms.exchange_id)

    def _machine(self, run_id: str, exchange_id: str, site: str) -> ExchangeMachine:
        machine = self._machines.get(exchange_id)
        if machine is None or machine.terms.run != run_id:
            raise NotFoundError(f"run {run_id!r} has no exchange {exchange_id!r}")
        if site not in machine.terms.roster:
            raise NotOnRosterError(f"site {site} is not on the roster of exchange {exchange_id}")
        return machine

    def _require_all_there(self, machine: ExchangeMachine) -> None:
        """A revocation counts from the moment that it is in the registry."""
        if gone := sorted(self._absent() & set(machine.terms.roster)):
            raise StateError(
                f"exchange {machine.terms.exchange_id} ends: {', '.join(gone[:5])} left the federation, or "
                "was admitted anew",
                safe="nothing was relayed",
            )

    def _require_relaying(self, machine: ExchangeMachine) -> None:
        self._require_all_there(machine)
        if machine.state not in _RELAYING:
            raise StateError(
                f"exchange {machine.terms.exchange_id} is {machine.state.value}",
                safe="nothing was relayed",
            )

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)
