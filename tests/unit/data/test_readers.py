"""What the readers take, in which order, and how they refuse."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fedpalm.data.readers import open_source
from fedpalm.data.records import by_identity
from fedpalm.data.roi import preflight
from fedpalm.errors import DataError


def test_folder_gives_one_identity_a_sub_folder_in_sorted_order(palm_folder):
    (palm_folder / ".hidden").mkdir()
    (palm_folder / "README.txt").write_text("not an identity")
    (palm_folder / "a" / "Thumbs.db").write_bytes(b"not an image")
    records = open_source(palm_folder)
    assert [(r.identity, r.path.name) for r in records] == [
        (identity, f"{n}.png") for identity in "abcdef" for n in range(4)
    ]


def test_list_paths_may_hold_spaces_and_are_relative_to_the_list(tmp_path, make_image):
    first = make_image(tmp_path / "left hand" / "one 1.png")
    second = make_image(tmp_path / "elsewhere" / "two.bmp")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text(
        f"../left hand/one 1.png 7\r\n\n{second}\t7\n", encoding="utf-8"
    )
    records = open_source(lists / "train.txt")
    assert {(r.path, r.identity) for r in records} == {(first, "7"), (second, "7")}


def test_auto_reads_a_folder_with_bin_as_signatures(signature_folder):
    records = open_source(signature_folder)
    assert len(records) == 5 * 40
    assert {r.identity for r in records} == {"1", "2", "3", "4", "5"}
    assert [r.path.stem for r in records[:40]] == [str(n) for n in range(1, 41)]


def test_a_folder_named_bin_with_other_images_is_an_ordinary_identity(tmp_path, make_image):
    for identity in ("bin", "other"):
        for number in range(2):
            make_image(tmp_path / identity / f"{number}.png")
    assert {r.identity for r in open_source(tmp_path)} == {"bin", "other"}


def test_cap_spreads_signatures_over_the_media(signature_folder):
    records = open_source(signature_folder, cap_per_identity=6, seed=3)
    for group in by_identity(records).values():
        media = Counter((int(r.path.stem) - 1) // 10 for r in group)
        assert sum(media.values()) == 6
        assert sorted(media.values()) == [1, 1, 2, 2]


def test_cap_depends_on_names_and_seed_alone(palm_folder, tmp_path):
    def chosen(root: Path, seed: int) -> set[str]:
        return {f"{r.identity}/{r.path.name}" for r in open_source(root, "auto", 2, seed)}

    before = chosen(palm_folder, 1)
    assert len(before) == 12
    assert any(chosen(palm_folder, seed) != before for seed in range(2, 6))
    moved = tmp_path / "moved"
    shutil.copytree(palm_folder, moved)
    assert chosen(moved, 1) == before
    shutil.rmtree(moved / "a")
    assert chosen(moved, 1) == {name for name in before if not name.startswith("a/")}


def test_removing_an_image_that_was_not_chosen_changes_nothing(palm_folder):
    before = open_source(palm_folder, cap_per_identity=2)
    spare = next(
        p for p in sorted((palm_folder / "c").iterdir()) if p not in {r.path for r in before}
    )
    spare.unlink()
    assert open_source(palm_folder, cap_per_identity=2) == before


def _missing(root: Path, make_image) -> Path:
    return root / "nowhere"


def _empty(root: Path, make_image) -> Path:
    return root


def _only_text(root: Path, make_image) -> Path:
    (root / "notes.txt").write_text("x")
    return root


def _loose_images(root: Path, make_image) -> Path:
    make_image(root / "1.png")
    return root


def _folders_without_images(root: Path, make_image) -> Path:
    (root / "a").mkdir()
    (root / "b" / "deeper").mkdir(parents=True)
    return root


def _one_folder_without_images(root: Path, make_image) -> Path:
    for number in range(2):
        make_image(root / "a" / f"{number}.png")
    (root / "vacant").mkdir()
    return root


def _single_image(root: Path, make_image) -> Path:
    for number in range(2):
        make_image(root / "a" / f"{number}.png")
    make_image(root / "lonely" / "only.png")
    return root


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (_missing, "no such file or folder"),
        (_empty, "the folder is empty"),
        (_only_text, "neither sub-folders nor images"),
        (_loose_images, "1 images lie directly in the folder"),
        (_folders_without_images, "none of its 2 sub-folders"),
        (_one_folder_without_images, "vacant: no png"),
        (_single_image, "lonely: only.png is its only image"),
    ],
)
def test_a_wrong_folder_is_refused_with_a_next_step(tmp_path, make_image, build, says):
    with pytest.raises(DataError) as caught:
        open_source(build(tmp_path, make_image))
    assert says in caught.value.what
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the list names no image"),
        (b"\n  \n", "the list names no image"),
        (b"a/0.png a\nno-label\n", "line 2: 'no-label' is not `path label`"),
        (b"a/0.png a\na/nine.png a\n", "line 2: 'a/nine.png': no such file"),
        (b"a/0.png a\n./a/0.png b\n", "line 2: './a/0.png' is listed already, on line 1"),
        (b"a a\n", "line 1: 'a': no such file"),
        (b"a/0.png a person=x\na/1.png a person=y\n", "line 2: a is of another person than"),
        (b"a/0.png a person=x\na/1.png a\n", "line 2: a is of another person than"),
        (b"a/0.png a person=\n", "line 1: person= names nobody"),
        (b"list.txt a\n", "line 1: 'list.txt' is not a png"),
        (b"a/0.png a\n", "a: 0.png is its only image"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
        (b"a/0.png\0 a\n", "line 1: a path cannot hold a zero byte"),
    ],
)
def test_a_wrong_list_is_refused_by_line(palm_folder, text, says):
    (palm_folder / "list.txt").write_bytes(text)
    with pytest.raises(DataError) as caught:
        open_source(palm_folder / "list.txt")
    assert says in caught.value.what


def test_many_problems_become_five_and_a_count(palm_folder):
    (palm_folder / "list.txt").write_text("".join(f"a/x{n}.png a\n" for n in range(12)))
    with pytest.raises(DataError) as caught:
        open_source(palm_folder / "list.txt")
    assert "(12 problems)" in caught.value.what
    assert caught.value.what.count("no such file") == 5
    assert "and 7 more" in caught.value.what


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("list", "not a file"),
        ("cross-media-signatures", "no folder bin/"),
        ("nonsense", "not a kind of source"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(palm_folder, kind, says):
    with pytest.raises(DataError, match=says):
        open_source(palm_folder, kind)


def test_a_file_read_as_a_folder_is_refused(palm_folder):
    with pytest.raises(DataError, match="cannot be listed"):
        open_source(palm_folder / "a" / "0.png", "folder")


def test_a_strange_name_among_signatures_is_refused(signature_folder, make_image):
    make_image(signature_folder / "bin" / "2" / "41.png")
    with pytest.raises(DataError, match=r"41\.png: not <1\.\.40>\.png"):
        open_source(signature_folder)


def test_a_cap_below_two_is_refused(palm_folder):
    with pytest.raises(DataError, match="leave nothing to compare"):
        open_source(palm_folder, cap_per_identity=1)


def test_real_signatures_read_as_seventy_two_writers(signature_folder):
    """On the data set where FEDPALM_DATA names its folder, on generated files of its layout else."""
    home = os.environ.get("FEDPALM_DATA")
    source, writers = signature_folder, 5
    if home:
        source, writers = Path(home) / "cross-media-signatures", 72
    else:
        print("FEDPALM_DATA is unset: real signatures were not read, generated ones were")
    records = open_source(source, cap_per_identity=8)
    assert Counter(Counter(r.identity for r in records).values()) == {8: writers}
    report = preflight(records)
    assert report.identities == writers
    assert report.images == 8 * writers
