"""gRPC status <-> our errors, both ways.

An error travels as the status of its family and, in the trailing metadata ``fedpalm-error-bin``, as
JSON {code, what, safe, next_step}. A status without that comes from gRPC itself and is put into words
here. docs/PROTOCOL.md has the table.
"""

from __future__ import annotations

import json
from typing import Any

import grpc

from ..errors import (
    DeadlineError,
    FedPalmError,
    IdentityError,
    IntegrityError,
    MessageTooLargeError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    ResourceError,
    RoundAbortedError,
    StateError,
    UnavailableError,
    VersionMismatchError,
    error_codes,
    error_from_code,
)
from ..text import clean_text

ERROR_METADATA_KEY = "fedpalm-error-bin"
# gRPC refuses more than 8 KiB of metadata; base64 adds a third.
MAX_ERROR_BYTES = 4096
_MAX_PART_CHARS = {"what": 2000, "safe": 400, "next_step": 400}
_MAX_DETAILS_CHARS = 300
# What gRPC says beside UNKNOWN or INTERNAL when a connection ends in the middle of a call.
_BROKEN = ("rst_stream", "stream removed", "goaway", "connection reset")
_VAGUE = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)

_FAMILIES: dict[grpc.StatusCode, type[FedPalmError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: ProtocolError,
    grpc.StatusCode.OUT_OF_RANGE: ProtocolError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: IdentityError,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.FAILED_PRECONDITION: StateError,
    grpc.StatusCode.ALREADY_EXISTS: StateError,
    grpc.StatusCode.DATA_LOSS: IntegrityError,
    grpc.StatusCode.ABORTED: RoundAbortedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNIMPLEMENTED: VersionMismatchError,
}


def status_of(error: FedPalmError) -> tuple[grpc.StatusCode, str, bytes]:
    """Status, details and metadata value that stand for ``error``; long texts are cut."""
    parts = {name: _cut(getattr(error, name), limit) for name, limit in _MAX_PART_CHARS.items()}
    while len(value := _json({"code": error.code, **parts})) > MAX_ERROR_BYTES:
        longest = max(parts, key=lambda name: len(parts[name]))
        parts[longest] = _cut(parts[longest], len(parts[longest]) // 2)
    return grpc.StatusCode[error.grpc_status], _cut(error.what, _MAX_DETAILS_CHARS), value


def error_of(error: grpc.aio.AioRpcError, address: str, if_absent: str) -> FedPalmError:
    """Our error for a failed call to ``address``; its texts hold nothing that moves a terminal.

    ``if_absent`` is the next step where nobody listens there.
    """
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            carried = _carried_error(value, error.code())
            if carried is not None:
                return carried
    return _grpc_error(error.code(), clean_text(error.details() or ""), address, if_absent)


def _carried_error(value: bytes, status: grpc.StatusCode) -> FedPalmError | None:
    try:
        parts = json.loads(value)
        texts = {name: clean_text(str(parts[name])) for name in ("what", "safe", "next_step")}
        code = str(parts["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if code in error_codes():
        return error_from_code(code, **texts)
    return _FAMILIES.get(status, FedPalmError)(**texts)


def _grpc_error(
    status: grpc.StatusCode, details: str, address: str, if_absent: str
) -> FedPalmError:
    said = details.lower()
    if "larger than max" in said:
        return MessageTooLargeError(f"{address}: {details}")
    broken = status in _VAGUE and any(mark in said for mark in _BROKEN)
    if broken or status is grpc.StatusCode.UNAVAILABLE:
        return _unreachable(said, details, address, if_absent)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(
            f"{address}: no answer before the deadline",
            next_step="try again; if it stays so, look at the network and the other side's load",
        )
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return VersionMismatchError(
            f"{address}: the other side does not know this call ({details})",
            next_step="install the same version of fedpalm on both sides",
        )
    if status is grpc.StatusCode.CANCELLED:
        return UnavailableError(f"{address}: the other side ended the call", next_step="try again")
    return _FAMILIES.get(status, FedPalmError)(f"{address}: {status.name}: {details}")


def _unreachable(said: str, details: str, address: str, if_absent: str) -> FedPalmError:
    """Words for a connection that was not made, or broke."""
    if "hostname verification" in said:
        return IdentityError(
            f"{address}: the certificate there is not that of the server that belongs here",
            safe="nothing was sent",
            next_step="check the address, and the federation this identity belongs to",
        )
    if "certificate_verify_failed" in said or "certificate verify failed" in said:
        return IdentityError(
            f"{address}: the certificate there is expired or does not lead to this federation's CA",
            safe="nothing was sent",
            next_step="compare the CA fingerprint on both ends, and the clocks",
        )
    if "ssl" in said or "handshake" in said or "tsi" in said:
        return UnavailableError(
            f"{address}: no TLS connection: {details}",
            safe="nothing was sent",
            next_step="check that a FedPalm server listens there",
        )
    if "resolving" in said or "resolution" in said or "domain name" in said:
        return UnavailableError(
            f"{address}: the host name cannot be resolved", next_step="check the address"
        )
    if "connection refused" in said:
        return UnavailableError(f"{address}: nobody listens there", next_step=if_absent)
    if "failed to connect" in said and ("socket closed" in said or "reset" in said):
        return UnavailableError(
            f"{address}: the connection was closed before the first call; the other side is "
            "stopping, or does not accept this certificate (expired, or of another CA)",
            next_step="try again; if it stays so, check the certificate's dates and CA",
        )
    return UnavailableError(f"{address}: cannot be reached: {details}", next_step="try again")


def _json(parts: dict[str, str]) -> bytes:
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
