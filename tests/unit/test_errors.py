from __future__ import annotations

import grpc
import pytest

from fedpalm.errors import FedPalmError, RoundAbortedError, error_codes, error_from_code


def test_an_error_says_what_happened_what_is_safe_and_what_to_do_next() -> None:
    error = FedPalmError("the disk is full", safe="the round is stored", next_step="free 2 GB")
    assert str(error) == "the disk is full\nSafe: the round is stored\nNext: free 2 GB"


def test_an_error_is_rebuilt_from_its_code_and_an_unknown_code_is_still_an_error() -> None:
    error = error_from_code("round_aborted", "4 of 5")
    assert type(error) is RoundAbortedError and error.exit_code == 11
    assert type(error_from_code("from-the-future", "?")) is FedPalmError


@pytest.mark.parametrize("kind", error_codes().values(), ids=lambda kind: kind.code)
def test_every_error_has_a_real_grpc_status_and_a_distinct_kind_of_exit(
    kind: type[FedPalmError],
) -> None:
    assert hasattr(grpc.StatusCode, kind.grpc_status) and kind.grpc_status != "OK"
    assert 3 <= kind.exit_code <= 16 or kind.exit_code == 130
    assert kind.__doc__


def test_a_code_is_taken_once() -> None:
    with pytest.raises(TypeError, match="taken"):
        type("Copy", (FedPalmError,), {"code": "round_aborted"})
