"""What trained stays what trains, whoever is added; a copy or another name of it is no probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedpalm.data.names import one_spelling
from fedpalm.data.signature_splits import SignatureSplit, split_signatures
from fedpalm.data.signatures import SignatureRecord
from fedpalm.data.trained_signatures import TrainedImage, TrainedSignatures
from fedpalm.errors import DataError

SITE = "a"


def _writer(folder: Path, name: str) -> list[SignatureRecord]:
    records = []
    for kind, count in (("genuine", 5), ("skilled", 4)):
        for number in range(count):
            path = folder / name / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {kind} {number}".encode())
            records.append(SignatureRecord(path, name, kind=kind))
    return records


@pytest.fixture
def records(tmp_path: Path) -> list[SignatureRecord]:
    return [one for number in range(9) for one in _writer(tmp_path, f"w{number}")]


def _probes(split: SignatureSplit) -> set[Path]:
    return {
        one.path
        for trial in (split.closed, split.open)
        for one in (*trial.references, *trial.genuine, *trial.skilled, *trial.random)
        if one not in split.train
    }


def test_an_unchanged_folder_splits_as_it_did(records):
    split = split_signatures(records, 1, SITE)
    kept = TrainedSignatures.from_bytes(TrainedSignatures.of(split.train).to_bytes())
    assert split_signatures(records, 1, SITE, kept) == split
    assert kept.writers == split.writers


def test_newcomers_are_open_and_new_images_of_closed_writers_are_probes(records, tmp_path):
    split = split_signatures(records, 1, SITE)
    kept = TrainedSignatures.of(split.train)
    moved = 0
    for number in range(12):
        more = [*records, *_writer(tmp_path, f"new{number}")]
        moved += bool(set(split_signatures(more, 1, SITE).open_writers) & set(split.writers))
        again = split_signatures(more, 1, SITE, kept)
        assert again.train == split.train and again.writers == split.writers
        assert set(again.open_writers) == {*split.open_writers, f"new{number}"}
        assert (again.closed.references, again.closed.genuine) == (
            split.closed.references,
            split.closed.genuine,
        )
    assert moved, "by rank alone nobody would have moved, so nothing is shown"
    late = tmp_path / "late.png"
    for kind, trial in (("genuine", "genuine"), ("skilled", "skilled")):
        late.write_bytes(kind.encode())
        added = SignatureRecord(late, split.writers[0], kind=kind)
        again = split_signatures([*records, added], 1, SITE, kept)
        assert again.train == split.train
        assert set(getattr(again.closed, trial)) == {*getattr(split.closed, trial), added}


def test_an_image_that_trained_is_no_probe_under_another_path_or_name(records, tmp_path):
    split = split_signatures(records, 1, SITE)
    kept = TrainedSignatures.of(split.train)
    own = split.train[0]
    copy = tmp_path / "copy.png"
    copy.write_bytes(own.path.read_bytes())
    # A copy of what trained; the same of somebody else; and a folder that was given another name.
    again = split_signatures([*records, replace(own, path=copy)], 1, SITE, kept)
    assert len(again.train) == len(split.train) and len({own.path, copy} & _probes(again)) == 0
    renamed = [replace(one, identity="zoe") if one.writer == own.writer else one for one in records]
    again = split_signatures(renamed, 1, SITE, kept)
    assert "zoe" in again.writers and "zoe" not in again.open_writers
    assert not {one.writer for one in again.train} & {"zoe"}
    assert not {one.path for one in renamed if one.writer == "zoe"} & _probes(again)


def test_a_name_is_known_however_its_accents_are_stored(records, tmp_path):
    composed, apart = "Ren\u00e9", "Rene\u0301"
    assert one_spelling(apart) == composed
    name = split_signatures(records, 1, SITE).writers[0]
    others = [one for one in records if one.writer != name]
    kept = TrainedSignatures(
        (
            *TrainedSignatures.of(split_signatures(records, 1, SITE).train).images,
            TrainedImage("00", composed, "", True),
        )
    )
    later = split_signatures([*others, *_writer(tmp_path, apart)], 1, SITE, kept)
    assert apart in later.writers and apart not in later.open_writers


def test_too_few_of_either_half_are_refused(records):
    split = split_signatures(records, 1, SITE)
    kept = TrainedSignatures.of(split.train)
    some = [one for one in records if one.writer in (*split.writers, split.open_writers[0])]
    with pytest.raises(DataError, match="5 writers who trained and 1 who did not"):
        split_signatures(some, 1, SITE, kept)
