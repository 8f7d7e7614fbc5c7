"""How an upload really ended.

When the coordinator ends a call while the site still writes, grpcio may report its own failed write
(INTERNAL, "Internal error from Core") in place of the status that came (grpc/grpc#36066). So the
status is noted at the moment it arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

T = TypeVar("T")

_OVERWRITTEN_DETAILS = "Internal error from Core"
_PATIENCE_S = 2.0


class Ending:
    """The first status of ``call`` that the other side, or the network, gave it."""

    def __init__(self, call: Any) -> None:
        self._arrived: asyncio.Future[grpc.aio.AioRpcError] = (
            asyncio.get_running_loop().create_future()
        )
        call.add_done_callback(self._note)

    async def of(self, reported: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """What ended the call, given what grpcio says of it.

        A call that ended well and whose reply is lost comes out as UNAVAILABLE: ask again.
        """
        if reported.details() != _OVERWRITTEN_DETAILS:
            return reported
        try:
            return await asyncio.wait_for(asyncio.shield(self._arrived), _PATIENCE_S)
        except TimeoutError:
            return _unavailable("the connection broke during the upload")

    def _note(self, call: Any) -> None:
        code, details = _at_once(call.code()), _at_once(call.details())
        if self._arrived.done() or details == _OVERWRITTEN_DETAILS:
            return
        if code is grpc.StatusCode.OK:
            ended = _unavailable("the answer came before the end of the upload, and is lost")
        else:
            trailing = _at_once(call.trailing_metadata())
            ended = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details, None)
        self._arrived.set_result(ended)


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details, None)


def _at_once(finished: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for: the call is over."""
    try:
        finished.send(None)
    except StopIteration as result:
        value: T = result.value
        return value
    finished.close()
    raise RuntimeError("a finished call had to wait for its status")
