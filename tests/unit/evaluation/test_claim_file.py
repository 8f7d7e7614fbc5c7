"""Scores of claims on disk: read back as they were, and anything else refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedpalm.errors import DataError
from fedpalm.evaluation.claim_file import read_claims, write_claims
from fedpalm.evaluation.signatures import ClaimScores, Forged

CLAIMS = ClaimScores(
    np.array([0.9, 0.8, 0.1 + 0.2]),
    np.array([0, 1, 1], np.int32),
    {
        "random": Forged(np.array([0.1]), np.array([0], np.int32)),
        "skilled": Forged(np.array([0.5, -0.25]), np.array([1, 0], np.int32)),
    },
    2,
)


def test_claims_are_read_back_as_they_were_written(tmp_path: Path):
    path = tmp_path / "new" / "claims.json"
    write_claims(path, {"open": CLAIMS, "closed": CLAIMS})
    found = read_claims(path)
    assert set(found) == {"open", "closed"}
    assert found["open"].writers == 2
    np.testing.assert_array_equal(found["open"].genuine, CLAIMS.genuine)
    np.testing.assert_array_equal(found["open"].genuine_writer, CLAIMS.genuine_writer)
    assert set(found["open"].forged) == {"random", "skilled"}
    for kind, forged in CLAIMS.forged.items():
        for ours, theirs in zip(forged, found["open"].forged[kind], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        '{"open": {}}',
        '{"open": {"writers": 1, "genuine": {"scores": [1], "writer": [1]}, "forged": {}}}',
        '{"open": {"writers": 1, "genuine": {"scores": [1, 2], "writer": [0]}, "forged": {}}}',
        '{"open": {"writers": 1, "genuine": {"scores": [NaN], "writer": [0]}, "forged": {}}}',
        "[]",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "claims.json"
    path.write_text(text)
    with pytest.raises(DataError):
        read_claims(path)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="scores cannot be written"):
        write_claims(tmp_path / "file" / "claims.json", {"open": CLAIMS})
