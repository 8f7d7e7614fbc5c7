"""Signature sets in their official layouts: what is read and recognised, one message for each fault."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpalm.data.signature_image import preflight_signatures
from fedpalm.data.signature_sets import open_signatures, signature_layout
from fedpalm.errors import DataError

LAYOUTS = ["cross-media-signatures", "cedar", "bhsig260", "signature-folder"]
LABEL = {"Bengali": "B", "Hindi": "H"}


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.as_posix()[-20:].encode()))
    pixels = np.full((60, 120), 230, dtype=np.uint8)
    row, column = rng.integers(10, 25, 2)
    pixels[row : row + 25, column : column + 4] = 40
    pixels[row + 10 : row + 13, column : column + 70] = 40
    Image.fromarray(pixels).save(path)


@pytest.fixture
def build(tmp_path: Path):
    def make(layout: str) -> Path:
        root = tmp_path / layout
        if layout == "cross-media-signatures":
            for writer in (1, 2, 10):
                for number in range(1, 41):
                    _write(root / "bin" / str(writer) / f"{number}.png")
        elif layout == "cedar":
            for writer in (1, 2, 55):
                for number in (1, 2, 24):
                    _write(root / "full_org" / f"original_{writer}_{number}.png")
                    _write(root / "full_forg" / f"forgeries_{writer}_{number}.png")
            (root / "full_org" / "Thumbs.db").write_bytes(b"not an image")
            (root / "Readme.txt").write_text("not an image")
        elif layout == "bhsig260":
            for script, label in LABEL.items():
                for writer in (1, 2, 100):
                    for number in (1, 2, 24):
                        for kind in "GF":
                            name = f"{label}-S-{writer}-{kind}-{number:02d}.tif"
                            _write(root / script / f"{writer:03d}" / name)
                (root / script / "list.genuine").write_text("001/B-S-1-G-01.tif\n")
        else:
            for writer in ("ann", "bob", "cyd"):
                for number in range(3):
                    _write(root / writer / "genuine" / f"{number}.jpg")
                    if writer != "cyd":
                        _write(root / writer / "forged" / f"{number}.jpg")
        return root

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_is_recognised_read_in_order_and_can_be_used(build, layout):
    root = build(layout)
    assert signature_layout(root) == layout
    records = open_signatures(root)
    assert records == open_signatures(root, layout)
    assert [(r.writer, not r.genuine) for r in records] == sorted(
        (r.writer, not r.genuine) for r in records
    )
    if layout != "cross-media-signatures":
        assert preflight_signatures(records).images == len(records)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("cedar", {f"cedar-{w:02d}": (3, 3) for w in (1, 2, 55)}),
        (
            "bhsig260",
            {f"{s}-{w:03d}": (3, 3) for s in ("bengali", "hindi") for w in (1, 2, 100)},
        ),
        ("signature-folder", {"ann": (3, 3), "bob": (3, 3), "cyd": (3, 0)}),
    ],
)
def test_genuine_and_skilled_signatures_are_their_writer_s(build, layout, expected):
    records = open_signatures(build(layout))
    genuine = Counter(r.writer for r in records if r.kind == "genuine")
    skilled = Counter(r.writer for r in records if r.kind == "skilled")
    assert {w: (genuine[w], skilled[w]) for w in genuine | skilled} == expected
    for record in records:
        forged = any(word in record.path.as_posix() for word in ("forg", "-F-"))
        assert record.genuine != forged
        assert record.author == (None if forged else record.writer)


def test_a_cross_media_signature_says_which_name_was_written(build):
    records = open_signatures(build("cross-media-signatures"))
    assert Counter(r.writer for r in records) == {"1": 40, "2": 40, "10": 40}
    texts = {int(r.sample): r.text for r in records if r.writer == "2"}
    assert texts[1] == texts[11] == texts[31] == "name-01"
    assert texts[10] == texts[20] == texts[40] == "name-10"
    assert set(Counter(texts.values()).values()) == {4}


def test_real_signatures_are_read_with_their_names(build):
    """On the data set where FEDPALM_DATA names its folder, on generated files of its layout else."""
    if home := os.environ.get("FEDPALM_DATA"):
        source, writers = Path(home) / "cross-media-signatures", 72
    else:
        source, writers = build("cross-media-signatures"), 3
        print("FEDPALM_DATA is unset: real signatures were not read, generated ones were")
    records = open_signatures(source)
    assert Counter(Counter((r.writer, r.text) for r in records).values()) == {4: 10 * writers}
    assert preflight_signatures(records[::37]).images == len(records[::37])


def test_one_script_alone_is_read_as_well_from_its_own_folder(build):
    root = build("bhsig260")
    hindi = open_signatures(root / "Hindi")
    assert {r.writer for r in hindi} == {"hindi-001", "hindi-002", "hindi-100"}
    (root / "Hindi").rename(root / "BHSig260-Hindi")
    shutil.rmtree(root / "Bengali")
    assert [r.writer for r in open_signatures(root)] == [r.writer for r in hindi]


def _drop_forged(root: Path) -> None:
    shutil.rmtree(root / "full_forg")


def _swap_name(root: Path) -> None:
    (root / "full_org" / "original_1_1.png").rename(root / "full_org" / "forgeries_1_1.png")


def _other_script(root: Path) -> None:
    folder = root / "Hindi" / "001"
    (folder / "H-S-1-G-01.tif").rename(folder / "B-S-1-G-01.tif")


def _other_writer(root: Path) -> None:
    folder = root / "Hindi" / "001"
    (folder / "H-S-1-G-01.tif").rename(folder / "H-S-2-G-01.tif")


def _same_writer_twice(root: Path) -> None:
    shutil.copytree(root / "Hindi" / "001", root / "Hindi" / "1")


def _folder_of_another_set(root: Path) -> None:
    (root / "Tamil").mkdir()


def _loose(root: Path) -> None:
    _write(root / "ann" / "loose.png")


def _misspelt(root: Path) -> None:
    (root / "ann" / "forged").rename(root / "ann" / "fake")


def _no_genuine(root: Path) -> None:
    shutil.rmtree(root / "ann" / "genuine")


def _one_genuine(root: Path) -> None:
    for number in (1, 2):
        (root / "ann" / "genuine" / f"{number}.jpg").unlink()


def _twins(root: Path) -> None:
    _write(root / "ann" / "genuine" / "0.png")


def _nested(root: Path) -> None:
    _write(root / "ann" / "genuine" / "more" / "0.png")


def _strange_index(root: Path) -> None:
    _write(root / "bin" / "1" / "41.png")


@pytest.mark.parametrize(
    ("layout", "harm", "message"),
    [
        ("cedar", _drop_forged, "no folder full_forg/"),
        ("cedar", _swap_name, "full_org/forgeries_1_1.png: not a name of this set"),
        ("bhsig260", _other_script, "Hindi/001/B-S-1-G-01.tif: not a name"),
        ("bhsig260", _other_writer, "Hindi/001/H-S-2-G-01.tif: not a name"),
        ("bhsig260", _same_writer_twice, "Hindi/: writer 1 has several folders"),
        ("bhsig260", _folder_of_another_set, "Tamil/"),
        ("signature-folder", _loose, "ann/loose.png"),
        ("signature-folder", _misspelt, "ann/fake/"),
        ("signature-folder", _no_genuine, "ann/: no folder genuine/"),
        ("signature-folder", _one_genuine, "ann: 1 genuine"),
        ("signature-folder", _twins, "the same image as"),
        ("signature-folder", _nested, "ann/genuine/more/: a folder where images are expected"),
        ("cross-media-signatures", _strange_index, "41.png"),
    ],
)
def test_a_fault_in_the_layout_is_one_error_that_names_it(build, layout, harm, message):
    root = build(layout)
    harm(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(DataError) as caught:
        open_signatures(root)
    assert message in caught.value.what and caught.value.next_step
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("wrong", [layout for layout in LAYOUTS if layout != "cedar"])
def test_a_set_read_as_another_is_refused(build, wrong):
    root = build("cedar")
    with pytest.raises(DataError):
        open_signatures(root, wrong)


def test_no_folder_an_empty_one_and_one_of_something_else_are_refused(tmp_path: Path):
    _write(tmp_path / "palms" / "a" / "1.png")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("none", "no such file or folder"),
        ("palms", "not laid out"),
        ("empty", "not laid out"),
    ):
        with pytest.raises(DataError, match=message):
            open_signatures(tmp_path / name)
    with pytest.raises(DataError, match="not a kind"):
        open_signatures(tmp_path / "palms", "svc")  # type: ignore[arg-type]
