"""IITD, Tongji and PolyU layouts: what is read, what is recognised, and one message for each fault."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fedpalm.data.readers import open_source
from fedpalm.data.records import ImageRecord, by_identity
from fedpalm.data.roi import preflight
from fedpalm.data.splits import split_as_paper, split_site
from fedpalm.errors import DataError

PALMS = 8


@pytest.fixture
def build(tmp_path: Path, make_image) -> Callable[[str], Path]:
    """A small set of eight palms in the named layout."""

    def make(layout: str) -> Path:
        root = tmp_path / layout
        if layout == "iitd":
            for hand in ("Left", "Right"):
                for person in range(1, 5):
                    for number in range(1, 6):
                        make_image(root / "Segmented" / hand / f"{person:03d}_{number}.bmp")
            (root / "Segmented" / "Left" / "Thumbs.db").write_bytes(b"not an image")
            (root / "readme.txt").write_text("not an image")
        elif layout == "tongji":
            for session in ("session1", "session2"):
                for number in range(1, 10 * PALMS + 1):
                    make_image(root / "ROI" / session / f"{number:05d}.bmp", size=(64, 64))
        elif layout == "polyu":
            for palm in range(1, PALMS + 1):
                for session in "FS":
                    for number in range(1, 4):
                        make_image(root / f"PolyU_{palm:03d}_{session}_{number:02d}.bmp")
        else:
            for palm in range(1, PALMS + 1):
                for session in (1, 2):
                    for number in range(1, 4):
                        make_image(root / f"{palm:04d}" / f"{session}_{number:02d}_s.bmp")
        return root

    return make


@pytest.mark.parametrize(
    ("layout", "kind", "name", "images", "sessions"),
    [
        ("iitd", "iitd", "right-004", 5, {None}),
        ("tongji", "tongji", "palm-008", 20, {1, 2}),
        ("polyu", "polyu", "palm-008", 6, {1, 2}),
        ("spectral", "polyu", "palm-0008", 6, {1, 2}),
    ],
)
def test_each_layout_is_recognised_and_a_palm_is_an_identity(
    build, layout, kind, name, images, sessions
):
    records = open_source(build(layout))
    assert records == open_source(build(layout), kind)
    groups = by_identity(records)
    assert len(groups) == PALMS
    assert name in groups
    assert {len(group) for group in groups.values()} == {images}
    assert {record.session for record in records} == sessions
    assert preflight(records).images == PALMS * images


def test_iitd_says_whose_palm_it_is_and_the_other_sets_do_not(build):
    records = by_identity(open_source(build("iitd")))
    assert {r.subject for name in ("left-002", "right-002") for r in records[name]} == {
        "person=002"
    }
    for layout in ("tongji", "polyu", "spectral"):
        assert {r.person for r in open_source(build(layout))} == {None}


def test_tongji_counts_ten_files_a_palm_alike_in_both_sessions(build):
    groups = by_identity(open_source(build("tongji")))
    assert [(r.session, r.path.name) for r in groups["palm-002"]] == [
        (session, f"{number:05d}.bmp") for session in (1, 2) for number in range(11, 21)
    ]


@pytest.mark.parametrize("inside", ["Segmented", "."])
def test_iitd_is_found_from_its_root_and_from_segmented(build, inside):
    assert len(open_source(build("iitd") / inside)) == 2 * 4 * 5


@pytest.mark.parametrize("layout", ["tongji", "polyu", "spectral"])
def test_gallery_and_probes_are_of_different_sessions(build, layout):
    for split in split_as_paper(open_source(build(layout)), 2, seed=3):
        assert {r.session for r in split.train + split.open_gallery} == {1}
        assert {r.session for r in split.closed_probe + split.open_probe} == {2}
    assert {r.session for r in split_site(open_source(build(layout)), 3, "a").train} == {1}


def test_a_cap_keeps_as_many_of_each_session(build):
    for group in by_identity(open_source(build("tongji"), cap_per_identity=6)).values():
        assert Counter(record.session for record in group) == {1: 3, 2: 3}


def _drop(*names: str) -> Callable[[Path, Callable], None]:
    def damage(root: Path, make_image) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _add(name: str, **size) -> Callable[[Path, Callable], None]:
    def damage(root: Path, make_image) -> None:
        make_image(root / name, **size)

    return damage


def _move(old: str, new: str) -> Callable[[Path, Callable], None]:
    def damage(root: Path, make_image) -> None:
        (root / old).rename(root / new)

    return damage


def _mix_hands(root: Path, make_image) -> None:
    for hand in ("Left", "Right"):
        for image in (root / "Segmented" / hand).glob("*.bmp"):
            image.replace(root / "Segmented" / image.name)
        shutil.rmtree(root / "Segmented" / hand)


def _empty_hand(root: Path, make_image) -> None:
    for image in (root / "Segmented" / "Left").glob("*.bmp"):
        image.unlink()


def _whole_hands(root: Path, make_image) -> None:
    shutil.rmtree(root / "Segmented")
    for hand in ("Left Hand", "Right Hand"):
        make_image(root / hand / "001_1.JPG", size=(800, 600))


def _lonely(root: Path, make_image) -> None:
    for number in range(2, 6):
        (root / "Segmented" / "Left" / f"002_{number}.bmp").unlink()


def _half_a_palm(root: Path, make_image) -> None:
    for number in range(11, 21):
        (root / "ROI" / "session2" / f"{number:05d}.bmp").unlink()


def _uncropped(pattern: str) -> Callable[[Path, Callable], None]:
    def damage(root: Path, make_image) -> None:
        for image in root.rglob(pattern):
            Image.new("L", (384, 284), 90).save(image)

    return damage


def _spectra(root: Path, make_image) -> None:
    for name in ("Red", "NIR"):
        make_image(root / name / "0001" / "1_01.bmp")


@pytest.mark.parametrize(
    ("layout", "damage", "says"),
    [
        ("iitd", _drop("Segmented/Right"), "no folder Right/ in Segmented"),
        ("iitd", _mix_hands, "left and right hands are mixed in one folder"),
        ("iitd", _empty_hand, "no png, jpg, bmp or tif file in Left"),
        ("iitd", _whole_hands, "whole hands, not segmented palms"),
        ("iitd", _uncropped("*.bmp"), "001_1.bmp is 384x284 px: whole hands"),
        ("iitd", _lonely, "left-002: 002_1.bmp is its only image"),
        ("iitd", _add("Segmented/Left/person 1.bmp"), "person 1.bmp: not a name of this set"),
        ("iitd", _add("Segmented/Left/001_1.png"), "001_1.png: the same image as 001_1.bmp"),
        ("iitd", _add("Segmented/Left/more/001_1.bmp"), "more/: a folder where images are"),
        ("tongji", _drop("ROI/session2"), "no folder session2/ in ROI"),
        ("tongji", _half_a_palm, "palm-002: no image of session 2"),
        ("tongji", _add("ROI/session1/06001.bmp"), "06001.bmp: not a name of this set"),
        ("tongji", _add("ROI/session1/1.bmp"), "session1/1.bmp: not a name of this set"),
        ("tongji", _uncropped("*.bmp"), "384x284 px: whole hands"),
        ("polyu", _uncropped("*.bmp"), "PolyU_001_F_01.bmp is 384x284 px: whole hands"),
        ("polyu", _add("PolyU_00_1.bmp"), "PolyU_00_1.bmp: not a name of this set"),
        ("polyu", _move("PolyU_003_S_01.bmp", "PolyU_009_S_01.bmp"), "palm-009: no image of"),
        ("spectral", _add("0001/3_01.bmp"), "0001/3_01.bmp: not a name of this set"),
        ("spectral", _add("index/1_01.bmp"), "index/: not a palm's folder"),
        ("spectral", _drop(*(f"0004/2_{n:02d}_s.bmp" for n in (1, 2, 3))), "palm-0004: no image"),
        ("spectral", _spectra, "holds the illuminations NIR, Red"),
    ],
)
def test_a_wrong_layout_is_refused_in_one_message_with_a_next_step(
    build, make_image, layout, damage, says
):
    root = build(layout)
    damage(root, make_image)
    with pytest.raises(DataError) as caught:
        open_source(root)
    assert says in caught.value.what
    assert caught.value.next_step


@pytest.mark.parametrize("kind", ["iitd", "tongji", "polyu"])
def test_an_empty_or_foreign_folder_is_refused_with_what_was_expected(tmp_path, palm_folder, kind):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", palm_folder):
        with pytest.raises(DataError) as caught:
            open_source(folder, kind)
        assert caught.value.next_step is not None
        assert f"docs/data/{kind}.md" in caught.value.next_step


def test_people_with_folders_of_their_own_stay_a_folder(tmp_path, make_image):
    for name in ("left", "0001", "session1", "segmented"):
        for number in "ab":
            make_image(tmp_path / "mine" / name / f"{number}.png")
    names = {record.identity for record in open_source(tmp_path / "mine")}
    assert names == {"left", "0001", "session1", "segmented"}


def test_the_papers_split_halves_all_identities_before_it_deals_them(tmp_path):
    records = [
        ImageRecord(Path(f"{hand}/{person:03d}_{n}.bmp"), f"{hand}-{person:03d}")
        for hand in ("left", "right")
        for person in range(1, 231)
        for n in range(1, 6)
    ]
    splits = split_as_paper(records, 8, seed=1)
    assert [len(s.classes) for s in splits] == [29] * 6 + [28] * 2
    assert [len(s.open_classes) for s in splits] == [29] * 6 + [28] * 2
    assert len({name for s in splits for name in s.classes + s.open_classes}) == 460
    assert len(splits[0].train) == 29 * 3
    assert len(splits[0].closed_probe) == 29 * 2


def test_the_papers_split_refuses_too_few_people(build):
    with pytest.raises(DataError, match="8 identities are too few for 3 sites"):
        split_as_paper(open_source(build("polyu")), 3, seed=0)
