"""What every call passes before its handler sees it, and every error before the caller does.

Order: who may call (:class:`Admission`), then the limits of each message. The admission holds as long as
the call is open: :class:`~fedpalm.transport.calls.OpenCalls` asks for it again and again. A handler's
FedPalmError becomes a status; anything else becomes INTERNAL with a number that the log explains.

gRPC would read the one request of a unary call before anybody could look at its caller, and wait for it
without end. So all calls are taken as streams of requests: nothing is read of a caller who is not
admitted, and one who is has a limited time to send.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from ..clock import Clock
from ..errors import DeadlineError, IdentityError, ProtocolError, WrongRoleError
from ..pki.identity import Role
from ..wire.limits import parse_message
from .calls import Caller, OpenCall, OpenCalls
from .limits import STREAM_IDLE_S
from .peer import Context, Peer, current_peer

Handler = Callable[[Any, Context], Any]
Parse = Callable[[bytes], Message]


class Admission(Protocol):
    """Who may call. ``confidential``: requests hold secrets, and failures may quote them."""

    confidential: bool

    def admit(self, service: str, context: Context) -> Caller:
        """Who calls, if it may call ``service`` now. Raises FedPalmError otherwise."""
        ...


class Members:
    """Whoever has a certificate of the federation, a role for the service, and is let in.

    Args:
        federation: the only one whose certificates may call.
        roles: full service name -> roles that may call it.
        authorise: raises a FedPalmError for a peer that may not call now.
    """

    confidential = False

    def __init__(
        self,
        federation: str,
        roles: Mapping[str, frozenset[Role]],
        authorise: Callable[[Peer], None],
        clock: Clock,
    ) -> None:
        self._federation, self._roles = federation, dict(roles)
        self._authorise, self._clock = authorise, clock

    def admit(self, service: str, context: Context) -> Caller:
        peer = current_peer(context)
        self._check(service, peer)
        return Caller(str(peer.identity), lambda: self._check(service, peer))

    def _check(self, service: str, peer: Peer) -> None:
        if peer.identity.federation != self._federation:
            raise IdentityError(f"{peer.identity}: not of federation {self._federation!r}")
        if self._clock.now() >= peer.not_after:
            raise IdentityError(
                f"{peer.identity}: the certificate has expired",
                next_step="connect with the renewed one; if there is none, ask the coordinator's "
                "operator for an invitation and join anew",
            )
        if peer.identity.role not in self._roles.get(service, frozenset()):
            raise WrongRoleError(
                f"{peer.identity}: a {peer.identity.role.value} may not call {service}",
                safe="nothing was changed",
            )
        self._authorise(peer)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """The server's one interceptor, for all four kinds of calls.

    Args:
        calls_per_caller: how many one name may have open.
        unary_deadline_s: how long a unary call may take, its request's arrival included.
    """

    def __init__(
        self, admission: Admission, *, calls_per_caller: int, unary_deadline_s: float
    ) -> None:
        self.admission, self.calls = admission, OpenCalls(calls_per_caller)
        self.unary_deadline_s = unary_deadline_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the checks around the handler; what has no asynchronous handler is unimplemented."""
        inner = await continuation(handler_call_details)
        if inner is None:
            return None
        method = str(handler_call_details.method)
        # A handler's kind is the one attribute of the four that is set.
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            handler = getattr(inner, kind)
            if iscoroutinefunction(handler) or isasyncgenfunction(handler):
                guarded = _Guarded(self, method, handler, inner.request_deserializer)
                make = getattr(grpc, f"stream_{kind.partition('_')[2]}_rpc_method_handler")
                # No deserialiser: gRPC would answer malformed bytes with UNKNOWN and parser's text.
                return make(getattr(guarded, kind), None, inner.response_serializer)
        return None


class _Guarded:
    """One method's handler with the checks around it, in the four shapes that gRPC knows."""

    def __init__(self, gate: Gate, method: str, handler: Handler, parse: Parse) -> None:
        self._gate, self._method, self._handler, self._parse = gate, method, handler, parse

    async def unary_unary(self, wire_stream: AsyncIterable[bytes], context: Context) -> Any:
        limited = _limited(self._gate.unary_deadline_s, "the call was not done")
        async with self._open(context), limited:
            return await self._handler(await self._request(wire_stream), context)

    async def unary_stream(
        self, wire_stream: AsyncIterable[bytes], context: Context
    ) -> AsyncIterator[Any]:
        async with (
            self._open(context) as call,
            aclosing(self._handler(await self._request(wire_stream), context)) as replies,
        ):
            async for reply in replies:
                await call.send_headers()
                yield reply

    async def stream_unary(self, wire_stream: AsyncIterable[bytes], context: Context) -> Any:
        async with self._open(context) as call:
            requests = _in_turn(self._requests(wire_stream), call)
            return await self._handler(requests, context)

    async def stream_stream(
        self, wire_stream: AsyncIterable[bytes], context: Context
    ) -> AsyncIterator[Any]:
        requests = self._requests(wire_stream)
        async with (
            self._open(context) as call,
            aclosing(self._handler(requests, context)) as replies,
        ):
            async for reply in replies:
                await call.send_headers()
                yield reply

    async def _request(self, wire_stream: AsyncIterable[bytes]) -> Message:
        try:
            return await anext(self._requests(wire_stream))
        except StopAsyncIteration:
            raise ProtocolError("the call came without its request") from None

    async def _requests(self, wire_stream: AsyncIterable[bytes]) -> AsyncIterator[Message]:
        arriving = aiter(wire_stream)
        while True:
            try:
                async with _limited(STREAM_IDLE_S, "no message came"):
                    wire_bytes = await anext(arriving)
            except StopAsyncIteration:
                return
            yield parse_message(self._parse, wire_bytes)

    @asynccontextmanager
    async def _open(self, context: Context) -> AsyncIterator[OpenCall]:
        """A call from its admission to its end; every failure inside becomes its status."""
        admission = self._gate.admission
        call = OpenCall(self._method, context, confidential=admission.confidential)
        try:
            service = self._method.lstrip("/").partition("/")[0]
            self._gate.calls.add(call, admission.admit(service, context))
            yield call
        except Exception as failure:
            # A call that was ended from outside fails at whatever it was doing: that is no news.
            if not call.over:
                await self._refuse(call, failure)
        finally:
            # From here on gRPC sends the status: nobody else may.
            call.over = True

    async def _refuse(self, call: OpenCall, failure: Exception) -> None:
        refusal = call.refusal(failure)
        try:
            await call.abort(refusal)
        except grpc.aio.InternalError as error:
            # The caller has left; gRPC is about to cancel this call, and says so in its own time.
            raise asyncio.CancelledError from error


async def _in_turn(requests: AsyncIterator[Message], call: OpenCall) -> AsyncIterator[Message]:
    """The same requests; the sender learns when the second is wanted, and waits until then.

    So a handler that has the header decides how many payloads are under way at once.
    """
    async for request in requests:
        yield request
        await call.send_headers()


@asynccontextmanager
async def _limited(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineError(f"{what} within {seconds:g} s") from None
