"""The gate by itself, with a call that is no network's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import grpc

from fedpalm.errors import FedPalmError, RevokedError
from fedpalm.transport.calls import Caller
from fedpalm.transport.gate import Gate
from fedpalm.wire.v1.federation_pb2 import HelloReply, HelloRequest
from tests.support.aio import in_loop


class Door:
    """Admits everybody until it is shut."""

    confidential = False

    def __init__(self) -> None:
        self.shut = False

    def admit(self, service: str, context: Any) -> Caller:
        self.readmit()
        return Caller(f"caller of {service}", self.readmit)

    def readmit(self) -> None:
        if self.shut:
            raise RevokedError("shut")


class Call:
    """What gRPC hands to a handler, and what it is told."""

    def __init__(self) -> None:
        self.statuses: list[str] = []

    def peer(self) -> str:
        return "ipv4:192.0.2.7:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self.statuses.append(code.name)
        raise grpc.aio.AbortError


async def _guarded(gate: Gate, handler: Any) -> Any:
    async def resolve(_: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            handler, HelloRequest.FromString, HelloReply.SerializeToString
        )

    class Details:
        method = "/fedpalm.wire.v1.Federation/Hello"

    found = await gate.intercept_service(resolve, cast(Any, Details()))
    return found.stream_unary


async def _one_request() -> AsyncIterator[bytes]:
    yield b""


@in_loop
async def test_a_call_whose_handler_has_ended_is_not_cut_any_more() -> None:
    async def answer(request: HelloRequest, context: Any) -> HelloReply:
        return HelloReply(federation_id="palms")

    door, call = Door(), Call()
    gate = Gate(door, calls_per_caller=2, unary_deadline_s=10)
    handler = await _guarded(gate, answer)
    assert await handler(_one_request(), call) == HelloReply(federation_id="palms")
    # The task lives on: gRPC is sending the reply and its status.
    assert len(gate.calls) == 1
    door.shut = True
    await gate.calls.recheck()
    assert call.statuses == []


@in_loop
async def test_a_handler_that_fails_after_its_call_was_cut_says_nothing_more() -> None:
    call, door = Call(), Door()
    gate = Gate(door, calls_per_caller=2, unary_deadline_s=10)

    async def fail(request: HelloRequest, context: Any) -> HelloReply:
        door.shut = True
        (ongoing,) = gate.calls._calls
        with suppress(grpc.aio.AbortError):
            await ongoing.abort(RevokedError("shut"))
        raise FedPalmError("late")

    assert await (await _guarded(gate, fail))(_one_request(), call) is None
    assert call.statuses == ["PERMISSION_DENIED"]
