"""What the coordinator relays in an exchange and cannot open: sealed experts, then the keys to them.

A sealed expert is verified against the sanction before it counts, a wrapped key against the signed expert
that it belongs to, a receipt against what was relayed. Nothing goes out before everybody's is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpalm.clock import Clock
from fedpalm.errors import (
    HashMismatchError,
    IntegrityError,
    MessageTooLargeError,
    NotFoundError,
    SenderMismatchError,
    WrongRecipientError,
)
from fedpalm.exchange.machine import (
    ExchangeMachine,
    ExchangeState,
    ExpertSealed,
    ExpertsOpened,
    KeysSent,
)
from fedpalm.exchange.sealing import (
    SealedExpert,
    max_sealed_bytes,
    refuse_duplicates,
    verify_sealed,
    verify_wrapped,
)
from fedpalm.pki.statement import SignedStatement

from .claims import SealedClaim, sealed_place
from .conductor import Conductor
from .exchange import ExchangeDesk
from .exchange_records import ExchangeRecords, ExpertReceiptRow, KeyRow, SealedRow
from .facts import ReceiptRow
from .notary import Notary
from .run_records import RunRecords
from .spool import Spool

_SEALED_THERE = (ExchangeState.REVEALING, ExchangeState.DELIVERING)


@dataclass(frozen=True)
class KeyClaim:
    """A wrapped key as a site sends it."""

    sender: str
    recipient: str
    wrapped: bytes


class ExpertRelay:
    """Sealed experts, wrapped keys and receipts of all exchanges.

    Args:
        desk: the exchanges; every advance goes through it.
        notary: signs receipts for what came, and verifies those for what was opened.
        runs: where the receipts of the coordinator are.
    """

    def __init__(
        self,
        desk: ExchangeDesk,
        records: ExchangeRecords,
        conductor: Conductor,
        spool: Spool,
        clock: Clock,
        notary: Notary,
        runs: RunRecords,
    ) -> None:
        self._desk, self._records, self._conductor = desk, records, conductor
        self._spool, self._clock, self._notary, self._runs = spool, clock, notary, runs

    # --- sealed experts ---------------------------------------------------------------------------

    def check_sealed(self, claim: SealedClaim) -> SignedStatement | None:
        """May this sealed expert come? If it has come already: its receipt, as it was given.

        Raises:
            NotFoundError, NotOnRosterError, SanctionExpiredError, StateError: not of this site, or not now.
            HashMismatchError: the site delivered another one already.
            MessageTooLargeError: longer than an expert of the plan can be.
        """
        machine = self._desk.of_site(claim.run_id, claim.exchange_id, claim.sender)
        known = self._records.sealed(claim.exchange_id).get(claim.sender)
        if known is not None:
            if known.payload_hash != claim.payload_hash:
                raise HashMismatchError(
                    f"{claim.sender} already sealed another expert in this exchange",
                    safe="the first one stays",
                )
            place = sealed_place(claim.run_id, claim.exchange_id)
            return self._runs.receipt(claim.run_id, claim.sender, place)
        self._signer(machine, claim.sender, (ExchangeState.SEALING,))
        plan = self._conductor.plan(claim.run_id)
        most = max_sealed_bytes(plan.released_layout, len(plan.roster))
        if not 0 < claim.payload_bytes <= most:
            raise MessageTooLargeError(
                f"{claim.payload_bytes} bytes; a sealed expert of this plan has at most {most}",
                safe="nothing was stored",
            )
        return None

    def accept_sealed(self, claim: SealedClaim) -> SignedStatement:
        """The sealed bytes are whole and durable: verify what can be verified, and count them.

        Raises:
            SealedExpertError and its kinds: not signed by the sender, not for this exchange, or the
                expert of another site; the bytes are deleted.
        """
        known = self.check_sealed(claim)
        if known is not None:
            return known
        machine = self._desk.of_site(claim.run_id, claim.exchange_id, claim.sender)
        path = self.sealed_path(claim)
        try:
            sealed = SealedExpert.from_bytes(path.read_bytes())
            layout = self._conductor.plan(claim.run_id).released_layout
            sanction, now = self._desk.sanction(machine), self._clock.now()
            verify_sealed(sealed, layout, sanction, sender=claim.sender, now=now)
            for row in self._records.sealed(claim.exchange_id).values():
                if row.expert_hash == sealed.header.expert_hash:
                    refuse_duplicates((self._stored(machine, row.sender), sealed))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        now_ms, place = round(now * 1000), sealed_place(claim.run_id, claim.exchange_id)
        row = SealedRow(
            claim.exchange_id, claim.sender, sealed.header.expert_hash,
            claim.payload_hash, claim.payload_bytes, now_ms,
        )  # fmt: skip
        receipt = self._notary.receipt(
            site=claim.sender,
            payload="sealed_expert",
            place=place,
            payload_hash=claim.payload_hash,
            payload_bytes=claim.payload_bytes,
            received_ms=now_ms,
        )
        given = ReceiptRow(claim.run_id, claim.sender, place, receipt)
        self._desk.feed(machine, ExpertSealed(claim.sender, sealed.hash), (row, given))
        return receipt

    def sealed_path(self, claim: SealedClaim) -> Path:
        return self._spool.sealed(claim.exchange_id, claim.sender)

    def deliverable(
        self, run_id: str, exchange_id: str, sender: str, site: str
    ) -> tuple[Path, int]:
        """File and size of the sealed expert of ``sender``, for any other signer once all are here.

        Raises:
            NotOnRosterError, SanctionExpiredError, StateError: not for this site, or not now.
            NotFoundError: there is none from this sender.
        """
        machine = self._desk.of_signer(run_id, exchange_id, site, _SEALED_THERE)
        if sender == site or sender not in machine.sealed:
            raise NotFoundError(f"exchange {exchange_id} has no expert of {sender!r} for {site}")
        size = self._records.sealed(exchange_id)[sender].payload_bytes
        return self._spool.sealed(exchange_id, sender), size

    # --- keys -------------------------------------------------------------------------------------

    def take_keys(self, run_id: str, exchange_id: str, site: str, keys: Sequence[KeyClaim]) -> None:
        """Store the keys to a site's expert, one for each other signer; again changes nothing.

        Raises:
            NotOnRosterError, SanctionExpiredError, StateError: not from this site, or not while all sealed
                experts are here.
            SenderMismatchError: a key to another site's expert.
            WrongRecipientError: not one for each other signer, or not what the site signed.
        """
        machine = self._desk.of_signer(run_id, exchange_id, site, _SEALED_THERE)
        if other := sorted({key.sender for key in keys} - {site}):
            raise SenderMismatchError(
                f"site {site} sent a key to the expert of {other[0]!r}", safe="nothing was stored"
            )
        others = sorted(set(machine.signers) - {site})
        if sorted(key.recipient for key in keys) != others:
            raise WrongRecipientError(
                f"the keys of {site} are not one for each other signer: {', '.join(others[:5])}",
                safe="nothing was stored",
            )
        sealed = self._stored(machine, site)
        for key in keys:
            verify_wrapped(sealed, key.recipient, key.wrapped)
        rows = [KeyRow(exchange_id, site, key.recipient, key.wrapped) for key in keys]
        self._desk.feed(machine, KeysSent(site), rows)

    def keys(self, run_id: str, exchange_id: str, site: str) -> list[KeyClaim]:
        """What is wrapped for this site, once the keys to every expert are here.

        Raises:
            NotOnRosterError, SanctionExpiredError, StateError: not for this site, or not now.
        """
        self._desk.of_signer(run_id, exchange_id, site, (ExchangeState.DELIVERING,))
        return [
            KeyClaim(row.sender, row.recipient, row.wrapped)
            for row in self._records.keys(exchange_id, site)
        ]

    # --- receipts ---------------------------------------------------------------------------------

    def confirm(self, run_id: str, exchange_id: str, site: str, signed: SignedStatement) -> None:
        """Store a site's receipt for the experts that it has opened; the same again changes nothing.

        Those of the relayed experts that it does not name did not open there.

        Raises:
            NotOnRosterError, SanctionExpiredError, StateError: not from this site, or not now.
            ProtocolError, IdentityError, SenderMismatchError: not its own receipt.
            HashMismatchError: for another exchange, for none of the experts that were relayed or for
                others, or not what it signed before.
        """
        machine = self._desk.of_site(run_id, exchange_id, site)
        known = self._records.receipt(exchange_id, site)
        if known is not None and known.statement == signed.statement:
            return
        self._signer(machine, site, (ExchangeState.DELIVERING,))
        if known is not None:
            raise HashMismatchError(
                f"site {site} has signed another receipt in exchange {exchange_id}",
                safe="the first one stands",
            )
        receipt = self._notary.expert_receipt(signed, site)
        relayed = {
            row.sender: row.expert_hash
            for row in self._records.sealed(exchange_id).values()
            if row.sender != site
        }
        if (
            (receipt.federation, receipt.run, receipt.exchange_id)
            != (machine.terms.federation, run_id, exchange_id)
            or receipt.sanction != self._desk.sanction(machine).hash.hex()
            or not receipt.experts
            or not receipt.experts.items() <= relayed.items()
        ):
            raise HashMismatchError(
                f"the receipt of {site} is not for the experts that exchange {exchange_id} brought it",
                safe="nothing was stored",
            )
        row = ExpertReceiptRow(exchange_id, site, signed)
        missing = tuple(sorted(relayed.keys() - receipt.experts.keys()))
        self._desk.feed(machine, ExpertsOpened(site, missing), (row,))

    # --- inside -----------------------------------------------------------------------------------

    def _signer(
        self, machine: ExchangeMachine, site: str, states: tuple[ExchangeState, ...]
    ) -> None:
        terms = machine.terms
        self._desk.of_signer(terms.run, terms.exchange_id, site, states)

    def _stored(self, machine: ExchangeMachine, sender: str) -> SealedExpert:
        """A sealed expert that was accepted. Raises IntegrityError: its file is gone or altered."""
        path = self._spool.sealed(machine.terms.exchange_id, sender)
        try:
            sealed = SealedExpert.from_bytes(path.read_bytes())
        except (OSError, IntegrityError) as error:
            raise _damaged(path) from error
        if sealed.hash != machine.sealed[sender]:
            raise _damaged(path)
        return sealed


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path}: the stored sealed expert is gone or altered",
        safe="no key was taken",
        next_step="restore the file from a backup, or: fedpalm-coordinator exchange cancel",
    )
