"""What lies in a folder, and what cannot be looked at: an error that says so, whoever asks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedpalm.data.listing import entries, is_image
from fedpalm.data.readers import open_source
from fedpalm.data.signature_sets import open_signatures
from fedpalm.errors import DataError


def test_visible_entries_come_by_name_and_links_to_nothing_are_no_images(tmp_path):
    for name in ("b.png", "a.png", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "d.png").symlink_to(tmp_path / "d.png")
    assert [one.name for one in entries(tmp_path)] == ["a.png", "b.png", "c.png", "d.png"]
    assert [is_image(one) for one in entries(tmp_path)] == [True, True, False, False]


@pytest.mark.parametrize("ask", [open_source, open_signatures])
def test_a_name_that_is_not_utf8_is_told_by_its_bytes(tmp_path, ask):
    for writer in (b"ann", b"b\xff"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + writer)) / "genuine"
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
    with pytest.raises(DataError, match=r"not UTF-8: b'b\\xff'") as refused:
        ask(tmp_path)
    assert "rename" in refused.value.next_step


@pytest.mark.parametrize("ask", [open_source, open_signatures])
def test_what_cannot_be_looked_at_is_told_with_its_name(tmp_path, ask):
    """A link to a name too long stands for one into a folder that may not be entered."""
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "1.png").symlink_to("x" * 300)
    with pytest.raises(DataError, match=r"1\.png': cannot be looked at"):
        ask(tmp_path)
    with pytest.raises(DataError, match=r"cannot be looked at \(File name too long"):
        ask(tmp_path / ("x" * 300))


def test_a_list_of_palms_names_what_cannot_be_looked_at(tmp_path):
    (tmp_path / "palms.txt").write_text("x" * 300 + ".png ann\n")
    with pytest.raises(DataError, match=r"line 1: .*cannot be looked at"):
        open_source(tmp_path / "palms.txt")
