"""Messages of names, hashes and offsets: composed here, field by field, and logged like all else."""

from __future__ import annotations

from fedpalm import __version__
from fedpalm.wire.v1 import federation_pb2 as wire

from .outgoing import OutgoingPayload, PayloadKind, Place
from .release import Releaser, refused

PROTOCOL_VERSIONS = (1,)


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
        """Raises NotFoundError: the run is not stored, so there is nothing to join."""
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

    def release_update_offset(self, payload: OutgoingPayload) -> OutgoingPayload:
        """The question how much of a released update has arrived."""
        return self._release(PayloadKind.UPDATE_OFFSET, self.update_header(payload), payload.place)

    def update_header(self, payload: OutgoingPayload) -> wire.UpdateHeader:
        """What goes before the chunks of a released update."""
        place = payload.place
        update = self._store.update(place.run, place.round or 0)
        if update is None or update.payload_hash != payload.payload_hash:
            raise refused("this payload is not the update of its round")
        return wire.UpdateHeader(
            ref=wire.RoundRef(run_id=place.run, round=place.round, attempt=place.attempt),
            site_id=self.site,
            plan_hash=self._agreed_plan(place.run).hash,
            model_hash=update.model_hash,
            payload_hash=payload.payload_hash,
            payload_bytes=payload.size,
        )

    def release_fetch_consents(self, run_id: str, exchange_id: str) -> OutgoingPayload:
        place = Place(run_id, exchange=exchange_id)
        return self._release(PayloadKind.FETCH_CONSENTS, self._exchange_ref(place), place)

    def release_download_expert(
        self, run_id: str, exchange_id: str, sender: str
    ) -> OutgoingPayload:
        place = Place(run_id, exchange=exchange_id)
        request = wire.SealedExpertRef(
            exchange=self._exchange_ref(place), sender=sender, recipient=self.site
        )
        return self._release(PayloadKind.DOWNLOAD_EXPERT, request, place)

    def release_confirm(self, run_id: str, exchange_id: str) -> OutgoingPayload:
        place = Place(run_id, exchange=exchange_id)
        request = wire.ConfirmExpertsRequest(ref=self._exchange_ref(place), site_id=self.site)
        return self._release(PayloadKind.CONFIRM_EXPERTS, request, place)

    def _exchange_ref(self, place: Place) -> wire.ExchangeRef:
        return wire.ExchangeRef(run_id=place.run, exchange_id=place.exchange)
