"""Text from others, before it is shown or stored; and times as people here read them."""

from __future__ import annotations

import re
import time

_CONTROL = re.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean_text(text: str) -> str:
    """Text without control and direction characters, line feeds excepted: it moves no terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same on a single line: it adds no row to a table and no line to a log."""
    return clean_text(text).replace("\n", " ")


def local_time(time_ms: int) -> str:
    """Milliseconds since the Unix epoch by the clock on the wall here, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ms / 1000))
