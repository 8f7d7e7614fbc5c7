"""Tables go between the marks of a page; a page without them is left as it is."""

from __future__ import annotations

import pytest

from fedpalm.benchmark.signature.page import BEGIN, END, insert
from fedpalm.errors import DataError


def test_what_people_wrote_stays_and_old_tables_go(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    insert(page, "| new |\n")
    insert(page, "| newer |\n")
    assert page.read_text() == f"# Title\n\n{BEGIN}\n\n| newer |\n\n{END}\n\nAfter.\n"


@pytest.mark.parametrize(
    "text", ["no marks", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"]
)
def test_a_page_without_one_place_is_left_as_it_is(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(DataError, match="no one place"):
        insert(page, "tables")
    assert page.read_text() == text
