"""Identities are disjoint where they must be, and no split depends on a position."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.data.readers import open_source
from fedpalm.data.records import ImageRecord
from fedpalm.data.splits import partition_sites, split_site, write_list
from fedpalm.errors import DataError


def _records(identities: int, images: int) -> list[ImageRecord]:
    return [
        ImageRecord(Path(f"/data/p{i:03}/{k}.png"), f"p{i:03}")
        for i in range(identities)
        for k in range(images)
    ]


def _names(records) -> set[str]:
    return {r.identity for r in records}


@given(
    sites=st.integers(1, 6),
    per_site=st.none() | st.integers(4, 7),
    spare=st.integers(0, 5),
    images=st.integers(2, 5),
    seed=st.integers(0, 2**40),
)
def test_sites_share_no_identity_and_lose_no_image(sites, per_site, spare, images, seed):
    records = _records(sites * (per_site or 4) + spare, images)
    parts = partition_sites(records, sites, per_site, seed)
    assert len(parts) == sites
    sizes = [len(_names(part)) for part in parts]
    assert sum(sizes) == len(set().union(*map(_names, parts)))
    for part, size in zip(parts, sizes, strict=True):
        assert len(part) == size * images
    if per_site is None:
        assert sum(sizes) == len(_names(records))
        assert max(sizes) - min(sizes) <= 1
    else:
        assert set(sizes) == {per_site}


@given(
    identities=st.integers(4, 11),
    images=st.integers(2, 7),
    seed=st.integers(0, 2**40),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_site_split_uses_each_image_once_and_keeps_closed_from_open(
    identities, images, seed, shuffle: random.Random
):
    records = _records(identities, images)
    split = split_site(records, seed, "site-1")
    parts = [split.train, split.closed_probe, split.open_gallery, split.open_probe]
    used = [r for part in parts for r in part]
    assert len(used) == len(set(used)) == len(records)
    assert _names(split.train) == _names(split.closed_probe) == set(split.classes)
    assert _names(split.open_gallery) == _names(split.open_probe) == set(split.open_classes)
    assert not set(split.classes) & set(split.open_classes)
    assert len(split.classes) - len(split.open_classes) in (0, 1)
    for gallery, probe in (parts[:2], parts[2:]):
        for identity in _names(gallery):
            enrolled = sum(r.identity == identity for r in gallery)
            compared = sum(r.identity == identity for r in probe)
            assert enrolled + compared == images
            assert enrolled - compared in (0, 1)

    moved = [
        ImageRecord(Path("/elsewhere") / r.path.relative_to("/data"), r.identity) for r in records
    ]
    shuffle.shuffle(moved)
    again = split_site(moved, seed, "site-1")
    assert again.classes == split.classes
    assert [r.path.parts[-2:] for r in again.train] == [r.path.parts[-2:] for r in split.train]


def test_seed_and_site_both_change_the_split():
    records = _records(12, 6)
    first = split_site(records, 1, "a")
    assert any(split_site(records, s, "a").classes != first.classes for s in range(2, 6))
    assert any(split_site(records, 1, n).classes != first.classes for n in "bcde")
    assert any(split_site(records, 1, n).train != first.train for n in "bcde")


def test_an_image_taken_away_from_one_identity_moves_no_other():
    records = _records(8, 6)
    before, after = split_site(records, 5, 0), split_site(records[1:], 5, 0)
    gone = records[0].identity
    for name in ("train", "closed_probe", "open_gallery", "open_probe"):
        one = [r for r in getattr(before, name) if r.identity != gone]
        two = [r for r in getattr(after, name) if r.identity != gone]
        assert one == two


@pytest.mark.parametrize(("sites", "per_site"), [(3, None), (2, 6), (2, 3), (0, None)])
def test_too_few_identities_for_the_sites_are_refused(sites, per_site):
    with pytest.raises(DataError, match="too few"):
        partition_sites(_records(11, 2), sites, per_site, 0)


def test_a_site_needs_two_identities_in_each_half_and_two_images_of_each():
    with pytest.raises(DataError, match="3 identities"):
        split_site(_records(3, 4), 0, 0)
    with pytest.raises(DataError, match="p000: 1 image"):
        split_site(_records(5, 2)[1:], 0, 0)


def test_a_written_list_reads_back_to_the_same_records(tmp_path, make_image):
    records = [
        ImageRecord(make_image(tmp_path / folder / name), identity)
        for folder, identity in [("a b", "Ann Lee"), ("c", "50% ü"), ("d", "tab\tname")]
        for name in ("one 1.png", "two.png")
    ]
    write_list(records, tmp_path / "lists" / "site.txt")
    assert set(open_source(tmp_path / "lists" / "site.txt")) == set(records)


@pytest.mark.parametrize("name", ["line\nbreak.png", "carriage\rreturn.png"])
def test_a_path_that_a_line_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot hold"):
        write_list([ImageRecord(tmp_path / name, "a")], tmp_path / "list.txt")
    assert not (tmp_path / "list.txt").exists()
    with pytest.raises(DataError, match="at least one"):
        write_list([], tmp_path / "list.txt")
