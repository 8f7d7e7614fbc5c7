"""The dialling side: one connection to the coordinator, errors as ours, limits checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from google.protobuf.message import Message

from ..pki.bundle import TlsIdentity


class Connection:
    """A connection to the coordinator of ``tls.identity.federation`` at ``address`` (``host:port``).

    An async context manager. ``federation`` and ``operator`` are the generated stubs, whose methods
    go into :meth:`unary`, :meth:`stream` and :meth:`upload`.
    """

    federation: Any
    operator: Any

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Connection:
        raise NotImplementedError

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError

    async def unary(self, method: Any, request: Message, *, deadline_s: float) -> Any:
        """One request, one reply."""
        raise NotImplementedError

    def stream(self, method: Any, request: Message, *, idle_s: float) -> AsyncIterator[Any]:
        """One request, replies as they come; DeadlineError after ``idle_s`` without one."""
        raise NotImplementedError

    async def upload(
        self, method: Any, requests: AsyncIterator[Message], *, deadline_s: float
    ) -> Any:
        """Requests as fast as they are taken, one reply."""
        raise NotImplementedError
