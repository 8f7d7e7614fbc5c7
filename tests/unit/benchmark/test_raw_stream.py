from __future__ import annotations

import pytest

from fedpalm.benchmark import raw_stream
from fedpalm.benchmark.raw_stream import raw_round_seconds
from fedpalm.errors import UnavailableError


@pytest.mark.parametrize("stored", [False, True])
def test_two_processes_move_the_bytes_of_a_round_and_say_how_long_it_took(stored: bool) -> None:
    assert raw_round_seconds(2, 2_500_000, 7, hashed=stored, fsync=stored, repeats=1) > 0


def test_a_process_that_fails_is_an_error_and_not_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_stream, "_make_identities", lambda folder: None)
    with pytest.raises(UnavailableError, match="ended with 1"):
        raw_round_seconds(1, 1, 1, hashed=False, fsync=False)
