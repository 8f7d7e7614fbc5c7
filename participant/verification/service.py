"""``serve``: the verifier as a gRPC service for applications of the site, under the site's own CA.

One model for all calls. Attempts are limited and logged as those of the command line are, and under the
application's name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from fedpalm.errors import FedPalmError, PolicyError, ProtocolError
from fedpalm.pki.live import LiveIdentity
from fedpalm.transport.peer import Context, current_peer
from fedpalm.transport.server import VERIFICATION_ROLES, GatedServer, build_server
from fedpalm.wire.v1.verification_pb2 import (
    CalibratedMode,
    DescribeVerifierReply,
    DescribeVerifierRequest,
    EnrolSubjectReply,
    EnrolSubjectRequest,
    IdentifyReply,
    IdentifyRequest,
    VerifyReply,
    VerifyRequest,
)
from fedpalm.wire.v1.verification_pb2_grpc import (
    VerificationServicer,
    add_VerificationServicer_to_server,
)

from ..config import ParticipantConfig
from ..store import SiteStore
from .applications import Applications
from .verifier import MAX_IMAGES, Verifier

RENEWAL_LOOK_S = 3600.0
STOP_GRACE_S = 5.0
MAX_WARNINGS, MAX_WARNING_CHARS = 16, 120

log = logging.getLogger(__name__)


class VerificationService(VerificationServicer):
    """The calls, each under the name of the application's certificate."""

    def __init__(self, config: ParticipantConfig, verifier: Verifier) -> None:
        self._config, self._verifier = config, verifier

    async def Verify(self, request: VerifyRequest, context: Context) -> VerifyReply:
        found = await asyncio.to_thread(
            self._verifier.verify, request.subject, request.image, caller=_caller(context)
        )
        return VerifyReply(
            match=found.match,
            score=found.score if found.match else None,
            threshold=found.threshold,
            mode=found.mode,
            model_hash=bytes.fromhex(found.model.hash),
            warnings=_clipped(found.warnings),
        )

    async def Identify(self, request: IdentifyRequest, context: Context) -> IdentifyReply:
        found = await asyncio.to_thread(
            self._verifier.identify, request.image, caller=_caller(context)
        )
        return IdentifyReply(
            subject=found.subject or "",
            score=found.score,
            comparisons=found.comparisons,
            fpir_bound=found.fpir_bound,
            model_hash=bytes.fromhex(found.model.hash),
            warnings=_clipped(found.warnings),
        )

    async def EnrolSubject(
        self, requests: AsyncIterator[EnrolSubjectRequest], context: Context
    ) -> EnrolSubjectReply:
        if not self._verifier.settings.remote_enrolment:
            raise PolicyError(
                "this site does not let applications enrol",
                safe="no image was looked at",
                next_step="enrol at the site, or set remote_enrolment = true under [verification]",
            )
        subject, images = "", list[bytes]()
        async for part in requests:
            if (part.WhichOneof("part") == "header") != (not subject):
                raise ProtocolError("an enrolment is one header, then images")
            if not subject:
                subject = part.header.subject
                if not subject:
                    raise ProtocolError("the header names no subject")
                continue
            images.append(part.image)
            if len(images) > MAX_IMAGES:
                raise ProtocolError(f"more than {MAX_IMAGES} images")
        done = await asyncio.to_thread(self._verifier.enrol, subject, images)
        return EnrolSubjectReply(
            mode=done.mode,
            images=done.images,
            model_hash=bytes.fromhex(done.model.hash),
            # Whom somebody resembles is nothing for an application.
            warnings=_clipped(done.image_warnings),
        )

    async def DescribeVerifier(
        self, request: DescribeVerifierRequest, context: Context
    ) -> DescribeVerifierReply:
        model = self._verifier.model_id
        thresholds = await asyncio.to_thread(self._verifier.thresholds.all)
        return DescribeVerifierReply(
            site=self._config.site,
            run_id=model.run_id,
            model_hash=bytes.fromhex(model.hash),
            modes=[
                CalibratedMode(
                    mode=one.mode,
                    threshold=one.value,
                    target_fmr=one.target_fmr,
                    fmr_upper=one.fmr_interval[1],
                    calibrated_ms=one.calibrated_ms,
                    against=one.against,
                )
                for one in thresholds
                if one.model == model.hash
            ],
            enrolment=self._verifier.settings.remote_enrolment,
        )


def build_service(
    config: ParticipantConfig, store: SiteStore, verifier: Verifier, address: str
) -> GatedServer:
    """The bound listener. Call it inside the event loop.

    Raises:
        UnavailableError: the address cannot be bound.
        KeyFileError, IdentityError: the site's CA, or the service's identity, is damaged.
    """
    applications = Applications(config, store)
    applications.renew_server()
    gated = build_server(
        LiveIdentity(applications.server_folder, store.clock),
        address,
        roles=VERIFICATION_ROLES,
        authorise=lambda peer: applications.require_allowed(peer.fingerprint),
        clock=store.clock,
    )
    service = VerificationService(config, verifier)
    add_VerificationServicer_to_server(service, gated.server)  # type: ignore[no-untyped-call]
    return gated


async def serve(
    config: ParticipantConfig,
    store: SiteStore,
    verifier: Verifier,
    address: str,
    stop: asyncio.Event,
    ready: Callable[[int], None],
) -> None:
    """Serve until ``stop``; the certificate is renewed meanwhile.

    Args:
        ready: told the port once calls are taken.
    """
    # The address first, which may be taken: the model takes a while. Then the model, which whoever
    # dials is to find there.
    gated = build_service(config, store, verifier, address)
    renewing = asyncio.create_task(_keep_renewing(Applications(config, store)))
    try:
        await asyncio.to_thread(verifier.load)
        await gated.start()
        ready(gated.port)
        await stop.wait()
    finally:
        renewing.cancel()
        await gated.stop(STOP_GRACE_S)


async def _keep_renewing(applications: Applications) -> None:
    while True:
        await asyncio.sleep(RENEWAL_LOOK_S)
        try:
            await asyncio.to_thread(applications.renew_server)
        except FedPalmError as error:
            log.error("the service's certificate was not renewed: %s", error.what)


def _caller(context: Context) -> str:
    return current_peer(context).identity.name


def _clipped(warnings: tuple[str, ...]) -> list[str]:
    """As many and as long as the contract lets pass."""
    return [one[:MAX_WARNING_CHARS] for one in warnings[:MAX_WARNINGS]]
