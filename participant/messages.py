"""Messages of names, hashes and offsets: composed here, field by field, and logged like all else."""

from __future__ import annotations

from collections.abc import Sequence

from fedpalm import __version__
from fedpalm.errors import IdentityError
from fedpalm.ledger.checkpoint import GivenCheckpoint
from fedpalm.pki.request import parse_request, verify_request
from fedpalm.pki.statement import SignedStatement
from fedpalm.secagg.messages import MaskedInput
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.checkpoints import to_wire as checkpoint_to_wire
from fedpalm.wire.masking import input_to_wire, step_to_wire
from fedpalm.wire.statements import to_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from fedpalm.wire.v1 import membership_pb2 as membership

from .outgoing import OutgoingPayload, PayloadKind, Place
from .release import Releaser, refused

PROTOCOL_VERSIONS = (1,)
_STEP_OF = {
    PayloadKind.MASKING_KEYS: Step.KEYS,
    PayloadKind.MASKING_BOXES: Step.BOXES,
    PayloadKind.MASKING_COMPLAINT: Step.INPUTS,
    PayloadKind.MASKING_AGREEMENT: Step.AGREEMENTS,
    PayloadKind.MASKING_REVEAL: Step.REVEALS,
}


class MessageGate(Releaser):
    """Every small message of a site but its answer to an exchange."""

    def release_hello(self) -> OutgoingPayload:
        request = wire.HelloRequest(
            protocol_versions=PROTOCOL_VERSIONS, site_id=self.site, software_version=__version__
        )
        return self._release(PayloadKind.HELLO, request)

    def release_fetch_plan(self, run_id: str) -> OutgoingPayload:
        request = wire.FetchPlanRequest(run_id=run_id)
        return self._release(PayloadKind.FETCH_PLAN, request, Place(run_id))

    def release_join(self, run_id: str) -> OutgoingPayload:
        """Raises PlanNotApprovedError, PolicyError: this site does not take part under this plan."""
        plan = self._agreed_plan(run_id)
        request = wire.JoinRunRequest(
            run_id=run_id,
            site_id=self.site,
            plan_hash=plan.hash,
            layout_hash=plan.model_layout.hash,
        )
        return self._release(PayloadKind.JOIN_RUN, request, Place(run_id))

    def release_instructions(self) -> OutgoingPayload:
        request = wire.InstructionsRequest(site_id=self.site)
        return self._release(PayloadKind.INSTRUCTIONS, request)

    def release_download(self, run_id: str, model_hash: bytes, offset: int) -> OutgoingPayload:
        request = wire.DownloadModelRequest(run_id=run_id, model_hash=model_hash, offset=offset)
        return self._release(PayloadKind.DOWNLOAD_MODEL, request, Place(run_id))

    def release_update_offset(
        self, payload: OutgoingPayload, masked: MaskedInput | None = None
    ) -> OutgoingPayload:
        """The question how much of a released update has arrived."""
        header = self.update_header(payload, masked)
        return self._release(PayloadKind.UPDATE_OFFSET, header, payload.place)

    def update_header(
        self, payload: OutgoingPayload, masked: MaskedInput | None = None
    ) -> wire.UpdateHeader:
        """What goes before the chunks of a released update.

        Args:
            masked: under a masked plan, this site's signed input of the attempt.
        Raises:
            EgressRefusedError: it is not the update of its round, or not masked as the plan wants it.
        """
        place = payload.place
        plan = self._agreed_plan(place.run)
        update = self._store.update(place.run, place.round or 0)
        expected = update.payload_hash if update is not None else b""
        if plan.draft.masking != "none":
            row = self.masked.row(place)
            expected = (row.masked_hash if row is not None else None) or b""
            if masked is None or (masked.site, masked.payload_hash) != (self.site, expected):
                raise refused("a masked update comes with this site's signed input")
        elif masked is not None:
            raise refused("the plan has no masking")
        if update is None or not expected or expected != payload.payload_hash:
            raise refused("this payload is not the update of its round")
        return wire.UpdateHeader(
            ref=_round_ref(place),
            site_id=self.site,
            plan_hash=plan.hash,
            model_hash=update.model_hash,
            payload_hash=payload.payload_hash,
            payload_bytes=payload.size,
            masked=input_to_wire(masked) if masked is not None else None,
        )

    def masking_header(self, payload: OutgoingPayload) -> wire.MaskingHeader:
        """What goes before the messages of a step of a masked attempt."""
        return wire.MaskingHeader(
            ref=_round_ref(payload.place),
            site_id=self.site,
            step=step_to_wire(_STEP_OF[payload.kind]),
        )

    # --- agreements -------------------------------------------------------------------------------

    def release_answer_plan(self, run_id: str, signed: SignedStatement) -> OutgoingPayload:
        """This site's newest answer to a plan, as it was stored when it was given.

        Raises:
            EgressRefusedError: it is not the stored one.
        """
        stored = self._plans.get(run_id)
        if stored is None or stored.answer is None or stored.answer.hash != signed.hash:
            raise refused(f"this is not the answer that was given here to run {run_id[:63]!r}")
        request = wire.AnswerPlanRequest(run_id=run_id, site_id=self.site, answer=to_wire(signed))
        return self._release(PayloadKind.ANSWER_PLAN, request, Place(run_id))

    def release_fetch_manifests(self, run_id: str, from_seq: int) -> OutgoingPayload:
        request = wire.FetchManifestsRequest(run_id=run_id, from_seq=from_seq)
        return self._release(PayloadKind.FETCH_MANIFESTS, request, Place(run_id))

    def release_countersign(self, place: Place, signed: SignedStatement) -> OutgoingPayload:
        """This site's signature over the manifest of an attempt.

        Raises:
            EgressRefusedError: it is not the one that was stored.
            PlanNotApprovedError, PolicyError: this site takes no part (any more).
        """
        self._agreed_plan(place.run)
        row = self._store.row(
            "SELECT signed FROM countersignatures "
            "WHERE run_id = ? AND round = ? AND attempt = ? AND site = ?",
            *(place.run, place.round, place.attempt, self.site),
        )
        if row is None or row["signed"] != signed.to_bytes():
            raise refused(f"this is not what this site has signed about {place}")
        request = wire.CountersignRequest(
            ref=_round_ref(place), site_id=self.site, countersignature=to_wire(signed)
        )
        return self._release(PayloadKind.COUNTERSIGN, request, place)

    def release_fetch_countersignatures(self, place: Place) -> OutgoingPayload:
        return self._release(PayloadKind.FETCH_COUNTERSIGNATURES, _round_ref(place), place)

    def release_give_checkpoints(
        self, place: Place, given: Sequence[GivenCheckpoint]
    ) -> OutgoingPayload:
        """Checkpoints of this site's own log, for an attempt that the coordinator is about to seal.

        Raises:
            EgressRefusedError: one is not a stored one of this site.
            PlanNotApprovedError, PolicyError: this site takes no part (any more).
        """
        self._agreed_plan(place.run)
        for one in given:
            row = self._store.row(
                "SELECT signed FROM checkpoints WHERE hash = ? AND site = ?",
                *(one.signed.hash, self.site),
            )
            if row is None or row["signed"] != one.signed.to_bytes():
                raise refused("this is not a checkpoint that this site has given")
        request = wire.GiveCheckpointRequest(
            ref=_round_ref(place), site_id=self.site, given=map(checkpoint_to_wire, given)
        )
        return self._release(PayloadKind.GIVE_CHECKPOINT, request, place)

    def release_fetch_checkpoints(
        self, place: Place, from_seq: int, newest: Sequence[bytes]
    ) -> OutgoingPayload:
        request = wire.FetchCheckpointsRequest(
            ref=_round_ref(place), site_id=self.site, from_seq=from_seq, newest=newest
        )
        return self._release(PayloadKind.FETCH_CHECKPOINTS, request, place)

    def release_fetch_masking(self, place: Place, step: Step) -> OutgoingPayload:
        """What the others said in a step of a masked attempt."""
        request = wire.FetchMaskingRequest(
            ref=_round_ref(place), site_id=self.site, step=step_to_wire(step)
        )
        return self._release(PayloadKind.FETCH_MASKING, request, place)

    def release_list_receipts(self, run_id: str) -> OutgoingPayload:
        request = wire.ListReceiptsRequest(run_id=run_id)
        return self._release(PayloadKind.LIST_RECEIPTS, request, Place(run_id))

    # --- membership -------------------------------------------------------------------------------

    def release_renew(self, csr_pem: bytes) -> OutgoingPayload:
        """A request for the next certificate of this very identity and signing key.

        Raises:
            EgressRefusedError: it is anything else.
        """
        own = self._live.current
        try:
            asked = verify_request(parse_request(csr_pem))
        except IdentityError as error:
            raise refused(f"not a certificate request: {error.what}") from error
        if asked.identity != own.identity or asked.signing_key != own.signing_key.public_key():
            raise refused("the certificate request is for somebody else")
        return self._release(PayloadKind.RENEW, membership.RenewRequest(request=csr_pem))

    def release_fetch_trust(self) -> OutgoingPayload:
        return self._release(PayloadKind.FETCH_TRUST, membership.FetchTrustRequest())

    # --- the exchange of experts ------------------------------------------------------------------

    def release_fetch_consents(self, run_id: str, exchange_id: str) -> OutgoingPayload:
        place = Place(run_id, exchange=exchange_id)
        return self._release(PayloadKind.FETCH_CONSENTS, self._exchange_ref(place), place)

    def release_download_expert(
        self, run_id: str, exchange_id: str, sender: str
    ) -> OutgoingPayload:
        place = Place(run_id, exchange=exchange_id)
        request = wire.SealedExpertRef(exchange=self._exchange_ref(place), sender=sender)
        return self._release(PayloadKind.DOWNLOAD_EXPERT, request, place)

    def release_fetch_keys(self, run_id: str, exchange_id: str) -> OutgoingPayload:
        place = Place(run_id, exchange=exchange_id)
        return self._release(PayloadKind.FETCH_EXPERT_KEYS, self._exchange_ref(place), place)

    def _exchange_ref(self, place: Place) -> wire.ExchangeRef:
        return wire.ExchangeRef(run_id=place.run, exchange_id=place.exchange)


def _round_ref(place: Place) -> wire.RoundRef:
    return wire.RoundRef(run_id=place.run, round=place.round, attempt=place.attempt)
