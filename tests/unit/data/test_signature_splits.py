"""Signature splits: nobody on two sides, every claim of the kind that it says, nothing by position."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.data.signature_splits import (
    CLAIMS_PER_WRITER,
    SignatureSplit,
    SignatureTrial,
    found_forgeries,
    require_aside,
    split_signatures,
)
from fedpalm.data.signatures import SignatureRecord, by_claim
from fedpalm.data.splits import partition_sites
from fedpalm.errors import DataError


def _source(writers: int = 8, genuine: int = 7, forged: int = 5) -> list[SignatureRecord]:
    return [
        SignatureRecord(Path(f"/s/w{writer}/{kind}/{number}.png"), f"w{writer}", kind=kind)
        for writer in range(writers)
        for kind, count in (("genuine", genuine), ("skilled", forged))
        for number in range(count)
    ]


def _named(writers: int = 8, names: int = 3, each: int = 4) -> list[SignatureRecord]:
    return [
        SignatureRecord(
            Path(f"/s/{writer}/{name}-{number}.png"),
            f"w{writer}",
            text=f"n{name}",
            author=f"w{writer}",
        )
        for writer in range(writers)
        for name in range(names)
        for number in range(each)
    ]


def _trials(split: SignatureSplit) -> tuple[SignatureTrial, SignatureTrial]:
    return split.closed, split.open


def _probes(trial: SignatureTrial) -> list[SignatureRecord]:
    return [
        record
        for field in fields(trial)
        if field.name != "references"
        for record in getattr(trial, field.name)
    ]


@given(
    writers=st.integers(4, 9),
    genuine=st.integers(2, 7),
    forged=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_half_of_the_writers_train_and_no_image_has_two_uses(writers, genuine, forged, seed):
    records = _source(writers, genuine, forged)
    split = split_signatures(records, seed, "a")
    assert len(split.writers) == (writers + 1) // 2
    assert not set(split.writers) & set(split.open_writers)
    assert {r.writer for r in split.train} == set(split.writers)
    assert {r.writer for r in split.open.references} == set(split.open_writers)
    assert [r for r in split.train if r.genuine] == list(split.closed.references)
    used = {r.path for r in split.train}
    used |= {r.path for r in split.open.references}
    for trial in _trials(split):
        assert not used & {r.path for r in _probes(trial)}
        assert all(r.genuine for r in trial.references + trial.genuine)
        assert all(r.kind == "skilled" for r in trial.skilled)
    shown = used | {r.path for trial in _trials(split) for r in _probes(trial)}
    assert shown == {r.path for r in records}


def test_every_writer_is_enrolled_and_tried_with_all_kinds():
    split = split_signatures(_source(), 1, "a")
    for trial, names in ((split.closed, split.writers), (split.open, split.open_writers)):
        for records in (trial.references, trial.genuine, trial.skilled, trial.random):
            assert {r.writer for r in records} == set(names)
        assert not trial.simple
    assert len([r for r in split.train if r.kind == "skilled"]) == 4 * 3
    assert len(split.closed.skilled) == 4 * 2 and len(split.open.skilled) == 4 * 5


def test_a_random_forgery_is_another_writer_s_probe_of_the_same_half():
    split = split_signatures(_source(), 1, "a")
    for trial in _trials(split):
        by_path = {r.path: r.writer for r in trial.genuine}
        for record in trial.random:
            assert record.kind == "random" and not record.genuine
            assert by_path[record.path] == record.author != record.writer
        assert len({(r.path, r.writer) for r in trial.random}) == len(trial.random)


def test_a_simple_forgery_is_the_claimed_name_and_a_random_one_another():
    records = _named()
    written = {r.path: r.text for r in records}
    split = split_signatures(records, 3, "a")
    for trial in _trials(split):
        assert trial.simple and trial.random
        for record in trial.simple:
            assert record.text == written[record.path] and record.author != record.writer
        for record in trial.random:
            assert record.text != written[record.path] and record.author != record.writer
        assert len(trial.simple) <= CLAIMS_PER_WRITER * 4


def test_no_image_trains_as_genuine_and_as_a_forgery():
    split = split_signatures(_named(), 3, "a")
    assert all(r.genuine for r in split.train)
    assert split.train == split.closed.references


def test_every_name_of_a_writer_is_a_signature_of_its_own():
    split = split_signatures(_named(), 3, "a")
    trained = [(w, f"n{n}") for w in split.writers for n in range(3)]
    assert list(by_claim(split.train)) == list(by_claim(split.closed.references)) == trained
    for writer in split.open_writers:
        first = [r for r in split.open.first_references(2) if r.writer == writer]
        assert [r.text for r in first] == ["n0", "n0", "n1", "n1", "n2", "n2"]
        assert sum(r.writer == writer for r in split.open.references) == 6


def test_a_forgery_has_to_say_which_of_a_writers_names_is_forged():
    forged = SignatureRecord(Path("/s/forged.png"), "w0", kind="skilled")
    with pytest.raises(DataError, match="no genuine one") as caught:
        split_signatures([*_named(), forged], 3, "a")
    assert "forged.png: w0" in str(caught.value)
    named = replace(forged, text="n1")
    split = split_signatures([*_named(), named], 3, "a")
    assert named in (*split.train, *split.closed.skilled, *split.open.skilled)


def test_fewer_references_are_the_first_of_more():
    trial = split_signatures(_source(), 1, "a").open
    assert set(trial.first_references(1)) < set(trial.first_references(3)) < set(trial.references)
    for count in (0, 5):
        with pytest.raises(DataError):
            trial.first_references(count)


def test_order_of_the_records_does_not_matter_and_seed_and_site_do():
    records = _source()
    split = split_signatures(records, 1, "a")
    assert split_signatures(records[::-1], 1, "a") == split
    assert split_signatures(records, 2, "a") != split
    assert split_signatures(records, 1, "b") != split


def test_sites_are_dealt_whole_writers():
    records = _source(writers=12)
    sites = partition_sites(records, 3, None, seed=0)
    names = [{r.writer for r in site} for site in sites]
    assert sum(map(len, names)) == len(set().union(*names)) == 12
    assert sorted(r.path for site in sites for r in site) == sorted(r.path for r in records)


def test_claims_are_capped_by_writer_and_the_fewer_are_among_the_more():
    genuine = [r for r in _named() if r.writer in ("w0", "w1", "w2")]
    few, many = (found_forgeries(genuine, "simple", n, seed=0) for n in (2, 5))
    assert len(few) == 6 and len(many) == 15
    assert {(r.path, r.writer) for r in few} < {(r.path, r.writer) for r in many}


@pytest.mark.parametrize(
    "records", [_source(writers=3), _source(genuine=1), [r for r in _source() if not r.genuine]]
)
def test_too_few_writers_or_genuine_signatures_are_refused(records):
    with pytest.raises(DataError):
        split_signatures(records, 0, "a")


def test_a_site_where_nothing_could_be_kept_aside_is_told_what_is_missing():
    """Two genuine signatures are enough to be tried, of which one trains."""
    require_aside(split_signatures(_source(genuine=3), 0, "north").train, "north")
    with pytest.raises(DataError, match="site north: of no name do two genuine") as refused:
        require_aside(split_signatures(_source(genuine=2), 0, "north").train, "north")
    assert "three genuine signatures" in refused.value.next_step
