"""What every call passes before its handler sees it, and every error before the caller does.

Order: the channel and the certificate (peer), the federation, its dates, the service's roles, the
caller's own ``authorise``, then the limits of each message. A handler's FedPalmError becomes a status;
anything else becomes INTERNAL with a number that the log explains.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

import grpc
from google.protobuf.message import Message

from ..clock import Clock
from ..errors import (
    DeadlineError,
    FedPalmError,
    IdentityError,
    IntegrityError,
    ProtocolError,
    RefusedError,
    WrongRoleError,
)
from ..pki.identity import Role
from ..wire.limits import parse_message
from .limits import RECHECK_S, STREAM_IDLE_S, UNARY_DEADLINE_S
from .peer import Context, Peer, current_peer
from .status import ERROR_METADATA_KEY, clean_text, status_of

log = logging.getLogger(__name__)

Handler = Callable[[Any, Context], Any]
Parse = Callable[[bytes], Message]

# Refusals that somebody should look at; the others belong to the ordinary course of a run.
_SUSPICIOUS = (IdentityError, IntegrityError, ProtocolError, RefusedError)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """The server's one interceptor, for all four kinds of calls.

    Args:
        federation: the only one whose certificates may call.
        roles: full service name -> roles that may call it.
        authorise: raises a FedPalmError for a peer that may not call now.
    """

    def __init__(
        self,
        federation: str,
        roles: Mapping[str, frozenset[Role]],
        authorise: Callable[[Peer], None],
        clock: Clock,
    ) -> None:
        self._federation, self._roles = federation, dict(roles)
        self._authorise, self.clock = authorise, clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the checks around the handler; what has no asynchronous handler is unimplemented."""
        inner = await continuation(handler_call_details)
        if inner is None:
            return None
        method = handler_call_details.method
        # A handler's kind is the one attribute of the four that is set.
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            handler = getattr(inner, kind)
            if iscoroutinefunction(handler) or isasyncgenfunction(handler):
                guarded = _Guarded(self, str(method), handler, inner.request_deserializer)
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                # No deserialiser: gRPC would answer malformed bytes with UNKNOWN and parser's text.
                return make(getattr(guarded, kind), None, inner.response_serializer)
        return None

    def admit(self, method: str, context: Context) -> Peer:
        """Who calls, if it may call this now. Raises FedPalmError otherwise."""
        peer = current_peer(context)
        if peer.identity.federation != self._federation:
            raise IdentityError(f"{peer.identity}: not of federation {self._federation!r}")
        if self.clock.now() >= peer.not_after:
            raise IdentityError(
                f"{peer.identity}: the certificate has expired",
                next_step="enrol anew: fedpalm-participant join, then sites admit",
            )
        service = method.lstrip("/").partition("/")[0]
        if peer.identity.role not in self._roles.get(service, frozenset()):
            raise WrongRoleError(
                f"{peer.identity}: a {peer.identity.role.value} may not call {service}",
                safe="nothing was changed",
            )
        self._authorise(peer)
        return peer


class _Guarded:
    """One method's handler with the checks around it, in the four shapes that gRPC knows."""

    def __init__(self, gate: Gate, method: str, handler: Handler, parse: Parse) -> None:
        self._gate, self._method, self._handler, self._parse = gate, method, handler, parse

    async def unary_unary(self, wire_bytes: bytes, context: Context) -> Any:
        async with self._errors_as_status(context):
            self._gate.admit(self._method, context)
            async with _limited(UNARY_DEADLINE_S, "the call was not done"):
                return await self._handler(parse_message(self._parse, wire_bytes), context)

    async def unary_stream(self, wire_bytes: bytes, context: Context) -> AsyncIterator[Any]:
        async with self._errors_as_status(context):
            admission = _Admission(self._gate, self._method, context)
            replies = self._handler(parse_message(self._parse, wire_bytes), context)
            async with aclosing(replies):
                async for reply in replies:
                    admission.renew()
                    yield reply

    async def stream_unary(self, wire_stream: AsyncIterable[bytes], context: Context) -> Any:
        async with self._errors_as_status(context):
            admission = _Admission(self._gate, self._method, context)
            requests = _in_turn(self._requests(wire_stream, admission), context)
            return await self._handler(requests, context)

    async def stream_stream(
        self, wire_stream: AsyncIterable[bytes], context: Context
    ) -> AsyncIterator[Any]:
        async with self._errors_as_status(context):
            admission = _Admission(self._gate, self._method, context)
            requests = self._requests(wire_stream, admission)
            replies = self._handler(requests, context)
            async with aclosing(replies):
                async for reply in replies:
                    admission.renew()
                    yield reply

    async def _requests(
        self, wire_stream: AsyncIterable[bytes], admission: _Admission
    ) -> AsyncIterator[Message]:
        arriving = aiter(wire_stream)
        while True:
            try:
                async with _limited(STREAM_IDLE_S, "no message came"):
                    wire_bytes = await anext(arriving)
            except StopAsyncIteration:
                return
            admission.renew()
            yield parse_message(self._parse, wire_bytes)

    @asynccontextmanager
    async def _errors_as_status(self, context: Context) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except FedPalmError as error:
            self._log_refusal(error, context)
            status, details, value = status_of(error)
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("incident %s in %s", incident, self._method)
            status, details, value = status_of(
                FedPalmError(
                    f"the coordinator failed at this call (incident {incident})",
                    next_step=f"the coordinator's log explains incident {incident}",
                )
            )
        else:
            return
        await context.abort(status, details, ((ERROR_METADATA_KEY, value),))

    def _log_refusal(self, error: FedPalmError, context: Context) -> None:
        try:
            caller = str(current_peer(context).identity)
        except IdentityError:
            caller = "somebody unproven"
        level = logging.WARNING if isinstance(error, _SUSPICIOUS) else logging.INFO
        what = clean_text(error.what).replace("\n", "; ")
        log.log(
            level,
            "%s: refused %s at %s: %s: %s",
            self._method,
            caller,
            context.peer(),
            error.code,
            what,
        )


class _Admission:
    """A peer's admission to a stream, looked at again while messages pass."""

    def __init__(self, gate: Gate, method: str, context: Context) -> None:
        self._gate, self._method, self._context = gate, method, context
        self._admit()

    def renew(self) -> None:
        """Raises FedPalmError if the peer may no longer call; asks at most once in RECHECK_S."""
        if not 0 <= self._gate.clock.now() - self._at < RECHECK_S:
            self._admit()

    def _admit(self) -> None:
        self._gate.admit(self._method, self._context)
        self._at = self._gate.clock.now()


async def _in_turn(requests: AsyncIterator[Message], context: Context) -> AsyncIterator[Message]:
    """The same requests; the sender learns when the second is wanted, and waits until then.

    So a handler that has the header decides how many payloads are under way at once.
    """
    said = False
    async for request in requests:
        yield request
        if not said:
            await context.send_initial_metadata(())
            said = True


@asynccontextmanager
async def _limited(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineError(f"{what} within {seconds:g} s") from None
