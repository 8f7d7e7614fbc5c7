"""The updates of sites: may one come, and from when it counts."""

from __future__ import annotations

from fedpalm.errors import StateError
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.events import UpdateAccepted
from fedpalm.rounds.run import InRound

from .claims import UpdateClaim, check_claim, update_place
from .facts import ReceiptRow, UpdateRow
from .notary import Notary
from .run_loop import RunLoop
from .run_records import RunRecords


class UpdateDesk:
    """Takes the updates of all runs, masked or not, and gives receipts."""

    def __init__(self, loop: RunLoop, records: RunRecords, notary: Notary) -> None:
        self._loop, self._records, self._notary = loop, records, notary

    def check(self, claim: UpdateClaim) -> SignedStatement | None:
        """May this update come? If it has come already: its receipt, as it was given.

        Raises:
            NotFoundError, NotOnRosterError: no such run, or not this site's.
            PlanNotApprovedError: the site has taken its approval back.
            StaleRoundError: not the current attempt, or one that takes no more updates.
            StateError: the site delivered another update already.
            HashMismatchError: another plan or global model.
            ProtocolError: not exactly the bytes that the codec makes.
            MaskingMessageError, IllegalTransitionError: under masking, not the site's own masked vector
                of this attempt, or not in the step for it; an update that is not masked.
        """
        conducted = self._loop.of_roster(claim.run_id, claim.site)
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
        if claim.masked is not None:
            self._loop.masking.check_input(claim.run_id, claim.ref, claim.site, claim.masked)
        return None

    def accept(self, claim: UpdateClaim) -> SignedStatement:
        """The update is whole and durable: count it, and give the receipt.

        Raises: as :meth:`check`; the round may have closed while the update came.
        """
        known = self.check(claim)
        if known is not None:
            return known
        now_ms, place = self._loop.now_ms(), update_place(claim.run_id, claim.ref)
        row = UpdateRow(
            claim.run_id, claim.ref, claim.site, claim.payload_hash, claim.payload_bytes, now_ms
        )
        receipt = self._notary.receipt(
            site=claim.site,
            payload="update",
            place=place,
            payload_hash=claim.payload_hash,
            payload_bytes=claim.payload_bytes,
            received_ms=now_ms,
        )
        facts = (row, ReceiptRow(claim.run_id, claim.site, place, receipt))
        if claim.masked is not None:
            self._loop.masking.accept_input(claim.run_id, claim.ref, claim.masked, facts)
        else:
            received = UpdateAccepted(claim.site, claim.payload_hash)
            self._loop.feed(claim.run_id, InRound(claim.ref, received, now_ms), facts)
        return receipt
