from __future__ import annotations

import logging

import pytest

from fedpalm.transport.occasional import OccasionalLog


def test_a_flood_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    seconds = 0.0
    occasional = OccasionalLog(logging.getLogger("flood"), lambda: seconds)
    for _ in range(100):
        occasional.warning("too many")
    seconds = 10.0
    occasional.warning("too many")
    assert [record.getMessage() for record in caplog.records] == [
        "too many (0 such refusals since the last line)",
        "too many (99 such refusals since the last line)",
    ]
