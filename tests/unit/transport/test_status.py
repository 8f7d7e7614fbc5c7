"""Errors travel as a status and come out as they went in; gRPC's own failures get words."""

from __future__ import annotations

import json

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import (
    DeadlineError,
    FedPalmError,
    IdentityError,
    MessageTooLargeError,
    ProtocolError,
    ResourceError,
    StaleRoundError,
    StateError,
    UnavailableError,
    VersionMismatchError,
    error_codes,
)
from fedpalm.transport.status import ERROR_METADATA_KEY, MAX_ERROR_BYTES, error_of, status_of

Status = grpc.StatusCode
ADDRESS = "hub.example:8443"
IF_ABSENT = "start it"


def rpc_error(
    status: Status, details: str = "", value: bytes | None = None
) -> grpc.aio.AioRpcError:
    trailing = (
        grpc.aio.Metadata() if value is None else grpc.aio.Metadata((ERROR_METADATA_KEY, value))
    )
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), trailing, details, "")


def there_and_back(error: FedPalmError) -> FedPalmError:
    return error_of(rpc_error(*status_of(error)), ADDRESS, IF_ABSENT)


@pytest.mark.parametrize("kind", error_codes().values(), ids=lambda kind: kind.code)
def test_every_error_comes_out_as_it_went_in(kind: type[FedPalmError]) -> None:
    back = there_and_back(kind("what happened\nin two lines", safe="all", next_step="go on"))
    assert type(back) is kind
    assert (back.what, back.safe, back.next_step) == ("what happened\nin two lines", "all", "go on")


@given(st.text(), st.text(), st.text())
def test_any_text_fits_into_the_metadata_and_comes_back_harmless(
    what: str, safe: str, next_step: str
) -> None:
    status, details, value = status_of(StateError(what * 50, safe=safe * 50, next_step=next_step))
    assert len(value) <= MAX_ERROR_BYTES and len(details) <= 300
    back = error_of(rpc_error(status, details, value), ADDRESS, IF_ABSENT)
    assert type(back) is StateError
    for text in (back.what, back.safe, back.next_step):
        assert all(c == "\n" or (c.isprintable() or ord(c) > 0x9F) for c in text)


def test_terminal_sequences_from_the_other_side_do_not_survive() -> None:
    back = there_and_back(StateError("\x1b[2Jcleared\r\x07 \u202egnp.exe", next_step="\x9b1m"))
    assert "\x1b" not in back.what and "\r" not in back.what and "\u202e" not in back.what
    assert "cleared" in back.what and "\x9b" not in back.next_step


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_stands_in_the_metadata_an_error_of_ours_comes_out(value: bytes) -> None:
    assert isinstance(
        error_of(rpc_error(Status.ABORTED, "x", value), ADDRESS, IF_ABSENT), FedPalmError
    )


def test_a_code_from_a_later_version_keeps_the_family_of_its_status() -> None:
    value = json.dumps({"code": "new", "what": "w", "safe": "", "next_step": "n"}).encode()
    back = error_of(rpc_error(Status.FAILED_PRECONDITION, "w", value), ADDRESS, IF_ABSENT)
    assert type(back) is StateError and back.next_step == "n"


def test_a_concrete_error_keeps_its_exit_code() -> None:
    assert there_and_back(StaleRoundError("round 4 is over")).exit_code == 8


@pytest.mark.parametrize(
    ("status", "details", "kind", "words"),
    [
        (Status.UNAVAILABLE, "failed to connect: Connection refused", UnavailableError, "listens"),
        (
            Status.UNAVAILABLE,
            "errors resolving x: Domain name not found",
            UnavailableError,
            "resolv",
        ),
        (Status.UNAVAILABLE, "Hostname Verification Check failed.", IdentityError, "server"),
        (Status.UNAVAILABLE, "SSL: CERTIFICATE_VERIFY_FAILED", IdentityError, "CA"),
        (Status.UNAVAILABLE, "Ssl handshake failed: WRONG_VERSION", UnavailableError, "TLS"),
        (Status.UNAVAILABLE, "failed to connect; Socket closed", UnavailableError, "certificate"),
        (Status.UNAVAILABLE, "Socket closed", UnavailableError, "reached"),
        (Status.UNKNOWN, "Stream removed", UnavailableError, "reached"),
        (Status.INTERNAL, "Received RST_STREAM with error code 2", UnavailableError, "reached"),
        (Status.CANCELLED, "", UnavailableError, "ended the call"),
        (Status.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineError, "deadline"),
        (Status.DEADLINE_EXCEEDED, "Stream removed (Deadline)", DeadlineError, "deadline"),
        (
            Status.RESOURCE_EXHAUSTED,
            "SERVER: Received message larger than max (9 vs. 1)",
            MessageTooLargeError,
            "larger",
        ),
        (Status.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", ResourceError, "limit"),
        (Status.UNIMPLEMENTED, "Method not found!", VersionMismatchError, "same version"),
        (Status.INVALID_ARGUMENT, "?", ProtocolError, "INVALID_ARGUMENT"),
        (Status.INTERNAL, "?", FedPalmError, "INTERNAL"),
    ],
)
def test_a_failure_of_grpc_itself_becomes_an_error_with_words(
    status: Status, details: str, kind: type[FedPalmError], words: str
) -> None:
    error = error_of(rpc_error(status, details), ADDRESS, IF_ABSENT)
    assert type(error) is kind
    assert ADDRESS in error.what and words in str(error)
