"""The agent's half of the deployment exchange: what needs the coordinator and the trained model.

What the site's person decided (``desk.py``) comes first; every step is stored, with its log entry and
the bytes that go with it, before its effect is carried out, and may be repeated after a crash.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fedpalm.errors import (
    IllegalTransitionError,
    IntegrityError,
    ProtocolError,
    RefusedError,
    RevokedError,
    SealedExpertError,
    StateError,
)
from fedpalm.exchange.consent import verify_consents
from fedpalm.exchange.sealing import open_expert
from fedpalm.exchange.site import ExpertOpened, SiteExchange, SiteState
from fedpalm.ledger.bodies import EntryKind
from fedpalm.methods.base import Tensors
from fedpalm.pki.identity import Identity, Role
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
            "fetch_experts",
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
            if run is None or run.state != "completed":
                raise StateError(
                    f"exchange {exchange_id}: run {message.ref.run_id} is not completed here"
                )
            if kind == "exchange_proposed":
                self._on_proposed(run, message)
            elif kind == "seal_experts":
                self.report.working(f"exchange {exchange_id}: sealing")
                count = await self.seal(link, run, exchange_id)
                self.report.line(f"exchange {exchange_id}: expert sealed to {count} sites")
            else:
                self.report.working(f"exchange {exchange_id}: receiving experts")
                count = await self.fetch(link, run, exchange_id)
                self.report.line(f"exchange {exchange_id}: {count} experts received and stored")
        except RevokedError:
            raise
        except (RefusedError, IllegalTransitionError) as error:
            # The coordinator asked for what was not agreed: say so, send nothing, go on.
            self.report.line(f"exchange {exchange_id}: refused: {error.what}")
        except SealedExpertError as error:
            # Asking again would bring the same bytes: take the yes back, and say why.
            self.report.line(f"exchange {exchange_id}: {error.what}")
            self.desk.refuse(self.desk.open_exchange(exchange_id), error.what)

    def _on_proposed(self, run: StoredRun, proposed: wire.ExchangeProposed) -> None:
        exchange_id = proposed.ref.exchange_id
        exchange = self.desk.propose(run, exchange_id, proposed.plan_hash)
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

    async def seal(self, link: Link, run: StoredRun, exchange_id: str) -> int:
        """Seal this site's expert to every other site and send it; returns to how many.

        Raises:
            EgressRefusedError, ConsentError: not approved here, or a consent does not hold.
        """
        consents = await link.fetch_consents(run.run_id, exchange_id)
        method = await asyncio.to_thread(self.trainer.resume, run.run_id, run.plan)
        payloads = await asyncio.to_thread(
            self.gate.release_sealed_experts,
            exchange_id,
            consents,
            method.expert_layout,
            method.expert(),
        )
        for payload in payloads:
            await link.upload_sealed(payload)
        return len(payloads)

    async def fetch(self, link: Link, run: StoredRun, exchange_id: str) -> int:
        """Bring, open and keep every other site's expert, then say so; returns how many.

        All of them become part of the private state in one transaction, and the key is erased.

        Raises:
            SealedExpertError: an expert does not open; nothing of any was kept.
            StateError: this site has not sealed its own.
        """
        book = self.desk.book
        exchange = book.get(exchange_id)
        if exchange is None or exchange.state not in (SiteState.SEALED, SiteState.COMPLETED):
            raise StateError(f"exchange {exchange_id[:63]!r}: this site has not sealed its expert")
        others = exchange.terms.others(exchange.site)
        if exchange.state is SiteState.SEALED:
            await self._open_all(link, run, exchange)
        await link.confirm_experts(run.run_id, exchange_id)
        return len(others)

    async def _open_all(self, link: Link, run: StoredRun, exchange: SiteExchange) -> None:
        terms, site = exchange.terms, exchange.site
        book, layout = self.desk.book, run.plan.released_layout
        key = book.key(terms.exchange_id)
        if key is None:
            raise IntegrityError(
                f"exchange {terms.exchange_id}: the key to open the experts with is gone",
                next_step="restore the site's home from a backup, or ask for a new exchange",
            )
        agreement = verify_consents(
            book.agreed(terms.exchange_id),
            terms,
            self.desk.live.current.anchors,
            now=self.desk.store.clock.now(),
        )
        experts: dict[str, Tensors] = {}
        entries = []
        for sender in terms.others(site):
            sealed = await link.download_sealed(
                run.run_id, terms.exchange_id, sender, 4 * layout.size
            )
            vector = open_expert(sealed, layout, agreement, sender=sender, recipient=site, key=key)
            experts[sender] = dict(layout.unflatten(vector))
            exchange = exchange.step(ExpertOpened(sender, bytes.fromhex(sealed.header.expert_hash)))
            entries.append(
                {
                    "run": terms.run,
                    "exchange": terms.exchange_id,
                    "plan_hash": terms.plan_hash.hex(),
                    "expert_hash": sealed.header.expert_hash,
                    "sealed_hash": sealed.hash.hex(),
                    "sender": Identity(terms.federation, Role.PARTICIPANT, sender).uri,
                }
            )
        await asyncio.to_thread(self._keep, run, exchange, experts, entries)

    def _keep(
        self,
        run: StoredRun,
        exchange: SiteExchange,
        experts: dict[str, Tensors],
        entries: list[dict[str, str]],
    ) -> None:
        method = self.trainer.resume(run.run_id, run.plan)
        self.trainer.forget()
        for sender, tensors in experts.items():
            method.receive_expert(sender, tensors)
        desk = self.desk
        if exchange.state is not SiteState.COMPLETED:
            raise SealedExpertError("not every expert was opened")
        store, exchange_id = desk.store, exchange.terms.exchange_id
        with store.files(), store.transaction() as db:
            before = desk.book.get(exchange_id)
            if before is None or before.state is not SiteState.SEALED:
                raise StateError("the exchange has changed while this site was opening experts")
            store.replace_state(db, run.run_id, method.state())
            desk.book.put(db, exchange)
            desk.book.drop_files(db, exchange_id, sealed=False)
            for body in entries:
                desk.log.append(db, EntryKind.EXPERT_RECEIVED, body)
        store.remove_orphans()
