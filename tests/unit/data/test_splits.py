"""Identities are disjoint where they must be, and no split depends on a position."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedpalm.data.readers import open_source
from fedpalm.data.records import ImageRecord
from fedpalm.data.splits import SiteSplit, Unit, partition_sites, split_site, write_list
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


def _people(palms: list[int], images: int) -> list[ImageRecord]:
    """People with so many palms each."""
    return [
        ImageRecord(Path(f"/data/{hand}-{i:03}/{k}.png"), f"{hand}-{i:03}", person=f"{i:03}")
        for i, count in enumerate(palms)
        for hand in ("left", "right")[:count]
        for k in range(images)
    ]


def _split_or_skip(records: list[ImageRecord], seed: int, unit: Unit) -> SiteSplit:
    try:
        return split_site(records, seed, "a", unit)
    except DataError:
        assume(False)
        raise


def test_without_differential_privacy_deal_and_split_are_those_of_published_results():
    records = _records(9, 3)
    split = split_site(records, 7, "site-1")
    assert split.classes == ("p001", "p002", "p003", "p006", "p008")
    assert [r.path.as_posix()[6:-4] for r in split.train] == [
        "p001/0", "p001/1", "p002/0", "p002/2", "p003/1", "p003/2", "p006/0", "p006/1", "p008/0", "p008/1"
    ]  # fmt: skip
    assert [sorted(_names(part)) for part in partition_sites(records, 2, None, 7)] == [
        ["p002", "p004", "p005", "p006", "p008"], ["p000", "p001", "p003", "p007"]
    ]  # fmt: skip
    first, second = partition_sites(records, 2, 4, 7)
    assert sorted(_names(first)) == ["p004", "p005", "p006", "p008"]
    assert sorted(_names(second)) == ["p000", "p001", "p003", "p007"]


@given(
    palms=st.lists(st.integers(1, 2), min_size=7, max_size=14),
    images=st.integers(2, 4),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_by_person_one_person_more_or_less_moves_nobody_else(palms, images, seed, data):
    records = _people(palms, images)
    gone = data.draw(st.sampled_from(sorted({r.subject for r in records})))
    whole = _split_or_skip(records, seed, "subject")
    rest = _split_or_skip([r for r in records if r.subject != gone], seed, "subject")
    for name in ("train", "closed_probe", "open_gallery", "open_probe"):
        assert [r for r in getattr(whole, name) if r.subject != gone] == list(getattr(rest, name))
    trains = {r.subject for r in whole.train}
    assert not trains & {r.subject for r in whole.open_gallery}, "a person in both halves"


@given(
    identities=st.integers(7, 12),
    images=st.integers(3, 5),
    sessions=st.booleans(),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_by_record_one_image_more_or_less_moves_no_other(identities, images, sessions, seed, data):
    records = [
        ImageRecord(r.path, r.identity, session=1 + int(r.path.stem) % 2 if sessions else None)
        for r in _records(identities, images)
    ]
    gone = data.draw(st.sampled_from(records))
    whole = _split_or_skip(records, seed, "record")
    rest = _split_or_skip([r for r in records if r != gone], seed, "record")
    assert [r for r in whole.train if r != gone] == list(rest.train)
    assert set(whole.train) | set(whole.closed_probe) == {
        r for r in records if r.identity in whole.classes
    }
    if sessions:
        assert {r.session for r in whole.train} == {1}


@pytest.mark.parametrize("unit", ["subject", "record"])
def test_by_own_hash_about_half_train_and_a_half_of_one_is_refused(unit):
    split = split_site(_records(400, 4), 1, "a", unit)
    assert 160 < len(split.classes) < 240
    assert 0.4 < len(split.train) / (4 * len(split.classes)) < 0.6
    with pytest.raises(DataError, match="everybody's own hash decides"):
        for seed in range(50):
            split_site(_records(4, 2), seed, "a", unit)


@given(
    palms=st.lists(st.integers(1, 2), min_size=24, max_size=30),
    per_site=st.none() | st.integers(4, 7),
    seed=st.integers(0, 2**40),
)
def test_no_person_is_at_two_sites(palms, per_site, seed):
    parts = partition_sites(_people(palms, 2), 3, per_site, seed)
    people = [{r.subject for r in part} for part in parts]
    assert sum(map(len, people)) == len(set().union(*people))
    sizes = [len(_names(part)) for part in parts]
    if per_site is None:
        assert sum(sizes) == sum(palms)
        assert max(sizes) - min(sizes) <= 2
    else:
        assert set(sizes) == {per_site}


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
        ImageRecord(make_image(tmp_path / folder / name), identity, person=person)
        for folder, identity, person in [
            ("a b", "Ann Lee", None),
            ("c", "50% ü", None),
            ("d", "tab\tname", "two words"),
            ("e", "person=x", None),
            ("f", "person=y", "50% =ü"),
        ]
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


def test_a_palm_named_as_another_person_is_dealt_too():
    people = [f"p{number}" for number in range(12)]
    records = [
        ImageRecord(Path(f"{hand}-{who}-{image}.png"), f"{hand}-{who}", person=who)
        for who in people
        for hand in ("left", "right")
        for image in range(2)
    ]
    records += [
        ImageRecord(Path(f"{who}-{image}.png"), who) for who in people for image in range(2)
    ]
    dealt = partition_sites(records, 2, None, 3)
    assert sorted(r.identity for site in dealt for r in site) == sorted(r.identity for r in records)
