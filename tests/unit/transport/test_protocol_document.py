"""docs/PROTOCOL.md says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedpalm.errors import error_codes
from fedpalm.transport.limits import CHUNK_BYTES, MAX_CONCURRENT_CALLS, MAX_MESSAGE_BYTES
from fedpalm.transport.status import ERROR_METADATA_KEY, MAX_ERROR_BYTES
from fedpalm.wire.v1 import federation_pb2, operator_pb2

DOCUMENT = Path(__file__).parents[3].joinpath("docs", "PROTOCOL.md").read_text(encoding="utf-8")


def test_the_table_of_errors_is_that_of_the_program() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([A-Z_]+) \| (\d+) \|", DOCUMENT, re.MULTILINE)
    assert sorted(rows) == sorted(
        (code, kind.grpc_status, str(kind.exit_code))
        for code, kind in error_codes().items()
        if kind.__module__ == "fedpalm.errors"
    )


@pytest.mark.parametrize("module", [federation_pb2, operator_pb2])
def test_every_call_is_told(module: object) -> None:
    for service in module.DESCRIPTOR.services_by_name.values():  # type: ignore[attr-defined]
        for method in service.methods:
            assert f"`{method.name}`" in DOCUMENT


@pytest.mark.parametrize(
    "figure", [CHUNK_BYTES, MAX_MESSAGE_BYTES, MAX_CONCURRENT_CALLS, MAX_ERROR_BYTES]
)
def test_a_figure_is_the_one_in_force(figure: int) -> None:
    assert f"{figure:,}" in DOCUMENT


def test_the_name_of_the_metadata_is_the_one_in_use() -> None:
    assert ERROR_METADATA_KEY in DOCUMENT
