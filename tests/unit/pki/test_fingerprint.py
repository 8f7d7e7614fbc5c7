"""Fingerprints as two people compare them, and the end of a certificate as programs and people read it."""

from __future__ import annotations

import pytest

from fedpalm.pki.authority import create_authority
from fedpalm.pki.fingerprint import fingerprint, same_fingerprint
from fedpalm.pki.validity import end_ms, end_of

NOW = 1_700_000_000.0
ROOT = create_authority("palms", NOW)[0].anchors[0]
FOUND = fingerprint(ROOT)


@pytest.mark.parametrize(
    "told",
    [
        FOUND,
        FOUND.replace(" ", ""),
        FOUND.upper(),
        FOUND.replace(" ", "\n"),
        ":".join(FOUND.replace(" ", "")[at : at + 2] for at in range(0, 64, 2)),
    ],
    ids=["as shown", "bare", "capitals", "lines", "colons"],
)
def test_a_fingerprint_is_the_same_however_it_is_written(told: str) -> None:
    assert same_fingerprint(FOUND, told)


@pytest.mark.parametrize(
    "told",
    ["", FOUND[:-1], FOUND[5:], FOUND.replace(FOUND[0], "x"), "ä" * 64],
    ids=["nothing", "cut", "its end", "other digits", "letters"],
)
def test_another_fingerprint_or_a_part_of_it_is_not_the_same(told: str) -> None:
    assert not same_fingerprint(FOUND, told)


def test_the_end_of_a_root_is_ten_years_from_its_making() -> None:
    assert end_ms(ROOT) == (1_700_000_000 + 3650 * 86400) * 1000
    assert end_of(ROOT) == "2033-11-11 22:13 UTC"
