"""The calls that are open: looked at again as long as they are, and ended from outside.

A call ends from outside in two steps: its status is sent, then its handler is cancelled. The client has
its answer after the first; after the second alone it would wait for one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from ..errors import (
    FedPalmError,
    IdentityError,
    IntegrityError,
    ProtocolError,
    RefusedError,
    ResourceError,
)
from ..text import clean_text
from .limits import CUT_PATIENCE_S
from .occasional import OccasionalLog
from .peer import Context, current_peer
from .status import ERROR_METADATA_KEY, status_of

log = logging.getLogger(__name__)

# Refusals that somebody should look at; the others belong to the ordinary course of a run.
_SUSPICIOUS = (IdentityError, IntegrityError, ProtocolError, RefusedError)


@dataclass(frozen=True)
class Caller:
    """Somebody who was admitted; ``readmit`` raises a FedPalmError once that is over."""

    name: str
    readmit: Callable[[], None]


class OpenCall:
    """One call, made inside the task that handles it. It gets one status, whoever sends it.

    Args:
        confidential: the log gets no text of unforeseen failures, which may quote the request.
    """

    def __init__(self, method: str, context: Context, *, confidential: bool) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is handled outside a task")
        self.method, self.task = method, task
        self.caller: Caller | None = None
        self.over = False
        self._context, self._confidential = context, confidential
        self._headers: asyncio.Task[None] | None = None

    def refusal(self, failure: Exception) -> FedPalmError:
        """What the caller is told of ``failure``; the log has more."""
        if isinstance(failure, FedPalmError):
            self._log(failure)
            return failure
        incident, where = secrets.token_hex(4), f"{self.method} for {self._context.peer()}"
        if self._confidential:
            frames = "".join(traceback.format_tb(failure.__traceback__))
            kind = type(failure).__name__
            log.error("incident %s in %s: %s in\n%s", incident, where, kind, frames)
        else:
            log.error("incident %s in %s", incident, where, exc_info=failure)
        return FedPalmError(
            f"the server failed at this call (incident {incident})",
            next_step=f"its log explains incident {incident}",
        )

    async def send_headers(self) -> None:
        """Send the initial metadata, unless that is done.

        gRPC would send them with the first message. A status that comes while that is on its way would
        bring them again, and fail; so they go alone, and :meth:`abort` waits for them. Whoever is
        cancelled while it waits here does not stop them half-way.
        """
        if self._headers is None:
            self._headers = asyncio.create_task(self._send_headers())
            self._headers.add_done_callback(_take_note)
        if not self._headers.done():
            await asyncio.shield(self._headers)

    async def abort(self, error: FedPalmError) -> None:
        """Send ``error`` as the status, unless there is one already.

        Raises:
            grpc.aio.AbortError: it is sent; gRPC wants the handler to end with this.
            grpc.aio.InternalError: the caller has left.
        """
        if self.over:
            return
        self.over = True
        if self._headers is not None and not self._headers.done():
            await asyncio.wait({self._headers})
        status, details, value = status_of(error)
        await self._context.abort(status, details, ((ERROR_METADATA_KEY, value),))

    async def cut(self, error: FedPalmError) -> None:
        """End it from outside. A caller that takes nothing is not waited for."""
        if self.over:
            return
        try:
            async with asyncio.timeout(CUT_PATIENCE_S):
                await self.abort(error)
        except grpc.aio.AbortError:
            pass
        except grpc.aio.InternalError:
            log.debug("%s: the caller had left before its status", self.method)
        except TimeoutError:
            log.warning("%s: the caller does not take its status", self.method)
        finally:
            self.task.cancel()

    async def _send_headers(self) -> None:
        await self._context.send_initial_metadata(())

    def _log(self, error: FedPalmError) -> None:
        level = logging.WARNING if isinstance(error, _SUSPICIOUS) else logging.INFO
        if isinstance(error, ResourceError) and self.caller is None:
            level = (
                logging.DEBUG
            )  # A flood of calls must not flood the log: limits speak up themselves.
        try:
            name = str(current_peer(self._context).identity)
        except IdentityError:
            name = "somebody unproven"
        log.log(
            level,
            "%s: refused %s at %s: %s: %s",
            self.method,
            name,
            self._context.peer(),
            error.code,
            clean_text(error.what).replace("\n", "; "),
        )


def _take_note(sending: asyncio.Task[None]) -> None:
    """A failure is raised where it is waited for; if nobody does, the caller has left."""
    if not sending.cancelled():
        sending.exception()


class OpenCalls:
    """Every call whose caller was admitted, until its handler has ended.

    Args:
        per_caller: how many one name may have.
    """

    def __init__(self, per_caller: int) -> None:
        self._limit = per_caller
        self._calls: set[OpenCall] = set()
        self._per_caller: Counter[str] = Counter()
        self._too_many = OccasionalLog(log)

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: OpenCall, caller: Caller) -> None:
        """Raises ResourceError if this caller has as many open as one may have."""
        if self._per_caller[caller.name] >= self._limit:
            self._too_many.warning(f"{caller.name} has {self._limit} calls open")
            raise ResourceError(
                f"{caller.name}: {self._limit} calls are open",
                safe="nothing was changed",
                next_step="end some of them first",
            )
        call.caller = caller
        self._calls.add(call)
        self._per_caller[caller.name] += 1
        call.task.add_done_callback(lambda _: self._remove(call, caller))

    async def recheck(self) -> None:
        """Readmit every call; returns when those that were not are ended."""
        cuts = []
        for call in tuple(self._calls):
            if call.over or call.caller is None:
                continue
            try:
                call.caller.readmit()
            except Exception as failure:
                # Whoever cannot be looked up is not admitted either.
                cuts.append(call.cut(call.refusal(failure)))
        await asyncio.gather(*cuts)

    def _remove(self, call: OpenCall, caller: Caller) -> None:
        self._calls.discard(call)
        self._per_caller[caller.name] -= 1
        if not self._per_caller[caller.name]:
            del self._per_caller[caller.name]
