"""Tables into a page that people write: between two marks, and nothing else of it is touched."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from ..jobs.results import whole

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def check_page(page: Path) -> tuple[str, str]:
    """What stands before and behind the tables.

    Raises:
        DataError: it cannot be read, or does not hold each mark once, the begin first.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{page} cannot be read: {error}", next_step="name a page that is there"
        ) from error
    before, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + behind:
        raise DataError(
            f"{page} has no one place for the tables",
            safe="it was left as it is",
            next_step=f"put a line {BEGIN} and a line {END} where they shall stand",
        )
    return before, behind


def insert(page: Path, tables: str) -> None:
    """Put the tables in the place of what stands between the marks. Raises DataError."""
    before, behind = check_page(page)
    with whole(page) as partial:
        partial.write_text(
            f"{before}{BEGIN}\n\n{tables.strip()}\n\n{END}{behind}", encoding="utf-8"
        )
