"""A list of signatures: what is written reads back, and every line that cannot be used is named at once."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from fedpalm.data.records import ImageRecord
from fedpalm.data.signature_sets import open_signatures
from fedpalm.data.signatures import SignatureRecord
from fedpalm.data.splits import write_list, write_signature_list
from fedpalm.errors import DataError


def _record(root: Path, name: str, writer: str, kind="genuine", text=None) -> SignatureRecord:
    image = root / name
    image.parent.mkdir(parents=True, exist_ok=True)
    image.touch()
    author = writer if kind == "genuine" else None
    return SignatureRecord(image, writer, kind=kind, text=text, author=author)


def _records(root: Path) -> list[SignatureRecord]:
    return [
        _record(root, "a b/1 #.png", "Ann Lee"),
        _record(root, "a b/2.png", "Ann Lee"),
        _record(root, "f/3.tif", "Ann Lee", "skilled"),
        _record(root, "4.png", "50% ü", text="name one"),
        _record(root, "5.png", "50% ü", text="name-02"),
        _record(root, "6.png", "50% ü", "skilled", "name-02"),
    ]


def test_a_written_list_reads_back_to_the_same_records(tmp_path):
    records = _records(tmp_path)
    write_signature_list(records, tmp_path / "lists" / "site.txt")
    for kind in ("auto", "signature-list"):
        found = open_signatures(tmp_path / "lists" / "site.txt", kind)
        assert sorted(found, key=lambda r: r.path) == sorted(records, key=lambda r: r.path)


def test_paths_are_relative_to_the_list_and_comments_and_blank_lines_are_left_out(
    tmp_path, monkeypatch
):
    _records(tmp_path)
    (tmp_path / "site.txt").write_text(
        "# path\twriter\tkind\n\na b/1 #.png\tann\tgenuine\r\n  \nf/../a b/2.png\tann\tgenuine\tname\n",
        encoding="utf-8-sig",
    )
    monkeypatch.chdir("/")
    one, two = open_signatures(tmp_path / "site.txt")
    assert (one.path, one.text) == (tmp_path / "a b" / "1 #.png", None)
    assert (two.path, two.text, two.author) == (tmp_path / "a b" / "2.png", "name", "ann")


def test_every_line_that_cannot_be_used_is_named_at_once(tmp_path):
    _records(tmp_path)
    (tmp_path / "x.txt").touch()
    lines = [
        "4.png ann genuine",
        "4.png\tann\tforged",
        "none.png\tann\tgenuine",
        "4.png\tann\tgenuine",
        "x.txt\tann\tgenuine",
    ]
    (tmp_path / "site.txt").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        open_signatures(tmp_path / "site.txt")
    said = caught.value.what
    assert "5 problems" in said
    for part in (
        "line 1: '4.png ann genuine' is not",
        "line 2: 'forged' is neither",
        "line 3: 'none.png': no such file",
        "line 4: '4.png' is listed already, on line 2",
        "line 5: 'x.txt' is not a png",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x" * 300 + ".png\tann\tgenuine", "cannot be looked at .File name too long"),
        ("4.png\ta\0nn\tgenuine", r"'a\\x00nn' is not printable"),
        ("4.png\ta\x1b[2Jnn\tgenuine", r"'a\\x1b\[2Jnn' is not printable"),
        ("4.png\tann\tgenuine\tna\x85me", r"'na\\x85me' is not printable"),
        ("a\x85b.png\tann\tgenuine", r"'a\\x85b.png': a path cannot hold"),
        ("a\0b.png\tann\tgenuine", r"'a\\x00b.png': a path cannot hold"),
        ("\x1b[2J.png\tann\tgenuine", r"'\\x1b\[2J.png': no such file"),
    ],
)
def test_a_line_that_could_not_be_written_shown_or_enrolled_is_an_error(tmp_path, line, message):
    _records(tmp_path)
    (tmp_path / "site.txt").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        open_signatures(tmp_path / "site.txt")
    assert caught.value.what.replace("\n", " ").isprintable()


def test_a_file_below_a_folder_that_may_not_be_entered_is_an_error(tmp_path, monkeypatch):
    _records(tmp_path)
    (tmp_path / "site.txt").write_text("f/3.tif\tann\tgenuine\n")
    entered = Path.stat

    def denied(path: Path, **how):
        if path.name == "3.tif":
            raise PermissionError(errno.EACCES, "Permission denied")
        return entered(path, **how)

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(DataError, match=r"3\.tif': cannot be looked at \(Permission denied"):
        open_signatures(tmp_path / "site.txt")


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to])
def test_one_image_under_two_names_is_listed_once(tmp_path, link):
    _records(tmp_path)
    link(tmp_path / "again.png", tmp_path / "4.png")
    lines = "4.png\tann\tgenuine\nagain.png\tbert\tgenuine\n"
    (tmp_path / "site.txt").write_text(lines)
    with pytest.raises(DataError, match=r"line 2: 'again\.png' is listed already, on line 1"):
        open_signatures(tmp_path / "site.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no signature"),
        (b"\x89PNG\xff\xfe", "cannot be read as UTF-8"),
        (b"4.png\tann\tgenuine\n", "two genuine"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, message):
    _records(tmp_path)
    (tmp_path / "site.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_signatures(tmp_path / "site.txt")


def test_a_list_is_no_folder_and_a_folder_no_list(tmp_path):
    write_signature_list(_records(tmp_path), tmp_path / "site.txt")
    with pytest.raises(DataError, match="a file, not a folder"):
        open_signatures(tmp_path / "site.txt", "cedar")
    with pytest.raises(DataError, match="not a file"):
        open_signatures(tmp_path, "signature-list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": "tab\tname"}, "cannot hold"),
        ({"identity": ""}, "cannot hold"),
        ({"text": " name"}, "cannot hold"),
        ({"text": "a\x1b[2Jname"}, "cannot hold"),
        ({"identity": "a\0b"}, "cannot hold"),
        ({"path": Path("line\nbreak.png")}, "cannot hold"),
        ({"kind": "simple"}, "another writer's own"),
    ],
)
def test_what_a_line_cannot_hold_is_refused_and_nothing_written(tmp_path, change, message):
    record = replace(_record(tmp_path, "1.png", "ann"), **change)
    with pytest.raises(DataError, match=message):
        write_signature_list([record], tmp_path / "list.txt")
    with pytest.raises(DataError, match="at least one"):
        write_signature_list([], tmp_path / "list.txt")
    assert not (tmp_path / "list.txt").exists()


def test_a_list_of_palms_is_not_taken_for_one_of_signatures(tmp_path):
    write_list([ImageRecord(tmp_path / "4.png", "ann")], tmp_path / "palms.txt")
    with pytest.raises(DataError, match="is not `path<TAB>writer"):
        open_signatures(tmp_path / "palms.txt")
