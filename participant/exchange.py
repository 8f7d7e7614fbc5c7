"""The agent's half of the exchange of experts: what needs the coordinator and the trained model.

What the site's person decided (``desk.py``) comes first; every step is stored, with its log entry and
the bytes that go with it, before its effect is carried out, and may be repeated after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from fedpalm.errors import (
    IdentityError,
    IllegalTransitionError,
    IntegrityError,
    ProtocolError,
    RefusedError,
    RevokedError,
    SealedExpertError,
    StateError,
)
from fedpalm.exchange.consent import Sanction
from fedpalm.exchange.sealing import (
    SealedExpert,
    expert_hash,
    max_sealed_bytes,
    open_expert,
    refuse_duplicates,
    verify_sealed,
)
from fedpalm.exchange.site import AllVerified, ExpertsOpened, SiteExchange, SiteState
from fedpalm.layout import FloatVector
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Identity, Role
from fedpalm.text import one_line
from fedpalm.wire.statements import from_wire
from fedpalm.wire.v1 import federation_pb2 as wire

from .desk import Desk
from .egress import EgressGate
from .ending import Ended, ExitAfter, Outcome
from .link import Link
from .outgoing import PayloadKind
from .reporter import Reporter
from .store import StoredRun
from .trainer import Trainer


@dataclass(frozen=True)
class ExchangeAgent:
    """The part that needs the coordinator and the trained model."""

    desk: Desk
    gate: EgressGate
    trainer: Trainer
    report: Reporter
    exit_after: ExitAfter

    async def follow(self, link: Link, instruction: wire.Instruction) -> None:
        """Carry out an instruction about an exchange; what was not agreed is refused and told.

        Raises:
            ProtocolError: an instruction that this site does not know.
            StateError: it does not fit (any more), and may be skipped.
            Ended: what the agent was to wait for has happened.
        """
        kind = instruction.WhichOneof("kind")
        if kind not in (
            "exchange_proposed",
            "seal_experts",
            "reveal_keys",
            "open_experts",
            "exchange_closed",
        ):
            raise ProtocolError(f"unknown instruction {kind!r}")
        message = getattr(instruction, kind)
        exchange_id = message.ref.exchange_id
        try:
            if kind == "exchange_closed":
                self._on_closed(message)
                return
            run = self.desk.store.run(message.ref.run_id)
            if run is None:
                raise StateError(
                    f"exchange {exchange_id[:63]!r}: run {message.ref.run_id[:63]!r} is not known here"
                )
            if kind == "exchange_proposed":
                self._on_proposed(run, message)
            elif kind == "seal_experts":
                self.report.working(f"exchange {exchange_id}: sealing")
                await self.seal(link, run, exchange_id)
                self.report.line(
                    f"exchange {exchange_id}: expert sealed and sent, its keys kept back"
                )
            elif kind == "reveal_keys":
                self.report.working(f"exchange {exchange_id}: verifying the sealed experts")
                count = await self.reveal(link, run, exchange_id)
                self.report.line(f"exchange {exchange_id}: {count} sealed experts hold; keys sent")
            else:
                self.report.working(f"exchange {exchange_id}: opening experts")
                count = await self.open(link, run, exchange_id)
                self.report.line(f"exchange {exchange_id}: {count} experts opened and stored")
        except RevokedError:
            raise
        except (RefusedError, IdentityError, IllegalTransitionError) as error:
            # The coordinator asked for what was not agreed: say so, send nothing, go on.
            self.report.line(f"exchange {exchange_id}: refused: {error.what}")
        except SealedExpertError as error:
            # Asking again would bring the same bytes: take the yes back, and say why.
            self.report.line(f"exchange {exchange_id}: {error.what}")
            self.desk.refuse(self.desk.open_exchange(exchange_id), error.what)
        except IntegrityError as error:
            # Something is damaged, here or at the coordinator; the rest of this site's work goes on.
            self.report.line(
                f"exchange {exchange_id}: {error.what}"
                + (f" (next: {error.next_step})" if error.next_step else "")
            )

    def _on_proposed(self, run: StoredRun, proposed: wire.ExchangeProposed) -> None:
        exchange = self.desk.propose(run, from_wire(proposed.terms))
        exchange_id = exchange.terms.exchange_id
        if exchange.state is SiteState.ASKED:
            self.report.line(
                f"exchange {exchange_id}: the operator asks for this site's expert; decide with: "
                f"fedpalm-participant exchange review | approve | refuse"
            )
        else:
            # It asks again, so it may not have the answer.
            self.desk.book.set_answered(exchange_id, False)

    def _on_closed(self, closed: wire.ExchangeClosed) -> None:
        exchange = self.desk.close(closed.ref.exchange_id, closed.completed, closed.reason)
        if exchange is None:
            return
        word = "completed" if closed.completed else "cancelled"
        self.report.line(
            f"exchange {closed.ref.exchange_id}: {word}"
            + (f": {closed.reason}" if closed.reason else "")
        )
        if self.exit_after is ExitAfter.EXCHANGE:
            raise Ended(Outcome(closed.ref.run_id, closed.completed, closed.reason))

    async def answer(self, link: Link, exchange_id: str) -> None:
        """Send the answer that was given here, and remember that it arrived."""
        payload = self.gate.release_answer(exchange_id)
        await link.send_answer(payload)
        self.desk.book.set_delivered(exchange_id, payload.kind is PayloadKind.REFUSAL)

    async def seal(self, link: Link, run: StoredRun, exchange_id: str) -> None:
        """Seal this site's expert to every other signer and send it, without its keys.

        Raises:
            EgressRefusedError, ConsentError: not approved here, or a consent does not hold.
        """
        consents = await link.fetch_consents(run.run_id, exchange_id)
        payload = await asyncio.to_thread(self.gate.release_sealed_expert, exchange_id, consents)
        await link.upload_sealed(payload)

    async def reveal(self, link: Link, run: StoredRun, exchange_id: str) -> int:
        """Bring, verify and keep every other signer's sealed expert, then send the keys of this site's.

        Returns:
            How many were verified.
        Raises:
            SealedExpertError: one does not hold; no key was sent.
            StateError: this site has not sealed its own.
        """
        exchange = self._sealed(exchange_id)
        if exchange.state is SiteState.SEALED:
            limit = max_sealed_bytes(run.plan.released_layout, len(exchange.signers))
            sealed = {}
            for sender in exchange.others:
                sealed[sender] = await link.download_sealed(run.run_id, exchange_id, sender, limit)
            await asyncio.to_thread(self._verify_all, run, exchange, sealed)
        await link.send_keys(self.gate.release_keys(exchange_id))
        return len(exchange.others)

    async def open(self, link: Link, run: StoredRun, exchange_id: str) -> int:
        """Bring the keys, open and keep the other signers' experts, and sign for them; returns how many.

        They become part of the private state in one transaction, and the key is erased. A sender whose
        expert does not open costs nobody else's: it is named.

        Raises:
            SealedExpertError: none opens.
            StateError: this site has not sent its own keys.
        """
        exchange = self._sealed(exchange_id)
        if exchange.state is SiteState.SEALED:
            raise StateError(f"exchange {exchange_id}: the sealed experts were not verified here")
        if exchange.state is SiteState.REVEALED:
            keys = await link.fetch_keys(run.run_id, exchange_id)
            exchange = await asyncio.to_thread(self._open_all, run, exchange, keys)
        await link.confirm_experts(self.gate.release_confirm(exchange_id))
        if exchange.reason:
            self.report.line(f"exchange {exchange_id}: {exchange.reason}")
        return len(exchange.opened)

    def _sealed(self, exchange_id: str) -> SiteExchange:
        exchange = self.desk.book.get(exchange_id)
        past = (SiteState.SEALED, SiteState.REVEALED, SiteState.COMPLETED)
        if exchange is None or exchange.state not in past:
            raise StateError(f"exchange {exchange_id[:63]!r}: this site has not sealed its expert")
        return exchange

    def _sanction(self, exchange: SiteExchange) -> Sanction:
        """The one that this site sealed under, read back: it outlives the certificates in it."""
        desk, exchange_id = self.desk, exchange.terms.exchange_id
        sanction = Sanction(
            desk.book.agreed(exchange_id),
            exchange.terms,
            desk.live.current.record_anchors,
            now=desk.store.clock.now(),
            of_record=True,
        )
        if sanction.hash != exchange.sanction:
            raise IntegrityError(f"exchange {exchange_id}: the stored consents are not those of it")
        return sanction

    def _verify_all(
        self, run: StoredRun, exchange: SiteExchange, sealed: Mapping[str, SealedExpert]
    ) -> None:
        desk, exchange_id = self.desk, exchange.terms.exchange_id
        sanction, layout = self._sanction(exchange), run.plan.released_layout
        now = desk.store.clock.now()
        for sender, one in sealed.items():
            verify_sealed(one, layout, sanction, sender=sender, now=now)
        refuse_duplicates([*desk.book.sealed(exchange_id).values(), *sealed.values()])
        verified = exchange.step(AllVerified({sender: one.hash for sender, one in sealed.items()}))
        with desk.store.files(), desk.store.transaction() as db:
            self._require_unchanged(exchange)
            data = {sender: one.to_bytes() for sender, one in sealed.items()}
            desk.book.put_sealed(db, exchange_id, data)
            desk.book.put(db, verified)

    def _open_all(
        self, run: StoredRun, exchange: SiteExchange, keys: Mapping[str, bytes]
    ) -> SiteExchange:
        desk, terms, site = self.desk, exchange.terms, exchange.site
        sanction, layout = self._sanction(exchange), run.plan.released_layout
        secrets = desk.book.secrets(terms.exchange_id)
        if secrets is None:
            raise IntegrityError(
                f"exchange {terms.exchange_id}: the key to open the experts with is gone",
                next_step="restore the site's home from a backup, or ask for a new exchange",
            )
        sealed = desk.book.sealed(terms.exchange_id)
        now = desk.store.clock.now()
        experts: dict[str, FloatVector] = {}
        failures: list[SealedExpertError] = []
        for sender in exchange.others:
            if sealed[sender].hash != exchange.verified[sender]:
                raise IntegrityError(f"the stored expert of {sender} is not the verified one")
            try:
                experts[sender] = open_expert(
                    sealed[sender],
                    keys.get(sender, b""),
                    layout,
                    sanction,
                    sender=sender,
                    recipient=site,
                    key=secrets.key,
                    now=now,
                )
            except SealedExpertError as error:
                failures.append(error)
        if not experts:
            raise failures[0]
        hashes = {sender: expert_hash(layout, one) for sender, one in experts.items()}
        method = self.trainer.resume(run.run_id, run.plan)
        self.trainer.forget()
        for sender, vector in experts.items():
            method.receive_expert(sender, dict(layout.unflatten(vector)))
        completed = exchange.step(
            ExpertsOpened(hashes, "; ".join(one_line(error.what) for error in failures))
        )
        store = desk.store
        with store.files(), store.transaction() as db:
            self._require_unchanged(exchange)
            store.replace_state(db, run.run_id, method.state())
            desk.book.put(db, completed)
            desk.book.drop_files(db, terms.exchange_id, sealed=False)
            for sender, digest in hashes.items():
                desk.log.append(
                    db,
                    EntryKind.EXPERT_RECEIVED,
                    {
                        "run": terms.run,
                        "exchange": terms.exchange_id,
                        "plan_hash": terms.plan_hash,
                        "sanction": exchange.sanction.hex(),
                        "expert_hash": digest,
                        "sealed_hash": sealed[sender].hash.hex(),
                        "sender": Identity(terms.federation, Role.PARTICIPANT, sender).uri,
                    },
                )
        store.remove_orphans()
        return completed

    def _require_unchanged(self, exchange: SiteExchange) -> None:
        if self.desk.book.get(exchange.terms.exchange_id) != exchange:
            raise StateError("the exchange has changed while this site was at work on it")
