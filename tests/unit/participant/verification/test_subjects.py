"""Who is listed, and what an erasure leaves: nothing in the home, an entry in the log, and plain words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedpalm.audit.findings import Exit
from fedpalm.audit.trust import Trust
from fedpalm.audit.verify import verify_bundle
from fedpalm.errors import NotFoundError, ProtocolError
from fedpalm.ledger.bodies import MAX_NAMES_CHARS, EntryKind, check_body
from participant.audit import export_bundle
from participant.verification.gallery import Gallery, Reference
from participant.verification.model import training_identities
from participant.verification.subjects import _body, forget, in_words, list_subjects
from participant.verification.verifier import Verifier
from tests.support.participant import Crash, World, make_plan
from tests.support.verification import VerifyingSite, palm


def enrolled(site: VerifyingSite, name: str, person: int) -> None:
    site.verifier.enrol(name, [palm(person, 0), palm(person, 1)])


def sealed_records(site: VerifyingSite) -> set[bytes]:
    """Every sealed record as it lies in the database."""
    return {bytes(row["sealed"]) for row in site.store.rows("SELECT sealed FROM vault_items")}


def _pieces(record: bytes) -> list[bytes]:
    """32 bytes of every 512; without the vault's prefix, which all records share."""
    return [record[at : at + 32] for at in range(24, len(record) - 32, 512)]


def test_the_list_says_who_is_stale_and_who_is_locked_out(ready: VerifyingSite):
    ready.set(max_failures=1)
    enrolled(ready, "bert", 101)
    enrolled(ready, "anna", 100)
    ready.verifier.verify("anna", palm(101, 5))
    found = list_subjects(ready.config, ready.store)
    json.dumps(found)
    assert [one["subject"] for one in found["subjects"]] == ["anna", "bert"]
    assert [one["stale"] for one in found["subjects"]] == [False, False]
    assert [one["locked_until_ms"] is None for one in found["subjects"]] == [False, True]
    assert [one["stale"] for one in found["thresholds"]] == [False, False]
    assert found["counts"] == {"enrolled": 2, "verify_non_match": 1}
    ready.train("toy-2", weight=2.0)
    found = list_subjects(ready.config, ready.store)
    assert {one["stale"] for one in (*found["subjects"], *found["thresholds"])} == {True}
    named = list_subjects(ready.config, ready.store, "toy-1")
    assert {one["stale"] for one in named["subjects"]} == {False}


def test_without_a_model_everybody_is_stale(ready: VerifyingSite):
    enrolled(ready, "anna", 100)
    with ready.store.transaction() as db:
        db.execute("UPDATE runs SET state = 'aborted'")
    found = list_subjects(ready.config, ready.store)
    assert found["subjects"][0]["stale"] and "completed" in found["problem"]


def test_an_erasure_leaves_nothing_in_the_home_even_sealed(ready: VerifyingSite):
    before = sealed_records(ready)
    enrolled(ready, "Anna Åkesson", 100)
    ready.verifier.verify("Anna Åkesson", palm(101, 5))
    of_anna = sealed_records(ready) - before
    assert len(of_anna) == 3
    mark = ready.verifier.attempts._mark("Anna Åkesson")
    enrolled(ready, "bert", 101)
    pieces = [mark, *(piece for record in of_anna for piece in _pieces(record))]
    at_rest = ready.bytes_at_rest()
    # A large record is torn where a page of the database ends.
    assert sum(piece in at_rest for piece in pieces) > 0.9 * len(pieces)
    done = forget(ready.config, ready.desk, "Anna Åkesson")
    assert done.erased == {"reference": True, "key": True, "images": True}
    assert (done.attempts, done.journal_cut) == (1, True)
    at_rest = ready.bytes_at_rest()
    assert not any(piece in at_rest for piece in (*pieces, "Åkesson".encode()))
    assert [one.subject for one in ready.verifier.gallery.all()] == ["bert"]
    assert ready.verifier.verify("bert", palm(101, 6)).match
    with pytest.raises(NotFoundError):
        ready.verifier.verify("Anna Åkesson", palm(100, 5))


def test_a_renewal_leaves_nothing_of_the_old_reference(ready: VerifyingSite):
    before = sealed_records(ready)
    enrolled(ready, "anna", 100)
    old = [piece for record in sealed_records(ready) - before for piece in _pieces(record)]
    assert any(piece in ready.bytes_at_rest() for piece in old)
    ready.verifier.renew()
    at_rest = ready.bytes_at_rest()
    assert not any(piece in at_rest for piece in old)


def test_the_log_gets_one_entry_that_says_nothing_of_the_person(ready: VerifyingSite):
    ready.train("toy-2", weight=2.0)
    enrolled(ready, "anna", 100)
    enrolled(ready, "bert", 101)
    for name in ("anna", "bert"):
        done = forget(ready.config, ready.desk, name)
        assert done.runs == ("toy-1", "toy-2")
    entries = [e for e in ready.desk.log.entries() if e.kind is EntryKind.SUBJECT_ERASED]
    assert [dict(one.body) for one in entries] == 2 * [{"runs": "toy-1 toy-2", "earlier": 0}]
    assert entries[-1].seq == done.entry_seq
    ready.desk.log.verify()


def test_deletion_and_entry_are_one_step(ready: VerifyingSite):
    enrolled(ready, "anna", 100)
    size = ready.desk.log.verify().size

    def crash(step: str) -> None:
        if step == "before commit":
            raise Crash

    ready.store.on_step = crash
    with pytest.raises(Crash):
        forget(ready.config, ready.desk, "anna")
    ready.store.close()
    ready.reopen()
    assert ready.verifier.gallery.get("anna").subject == "anna"
    assert ready.desk.log.verify().size == size


def test_the_words_say_what_still_remembers(ready: VerifyingSite):
    enrolled(ready, "anna", 100)
    words = "\n".join(in_words(forget(ready.config, ready.desk, "anna")))
    assert "reference, key, images" in words and "models of toy-1" in words
    assert "Backups" in words and "data folder" not in words
    assert "under another name cannot be told" in words


def test_who_is_in_the_training_data_can_be_forgotten_without_being_enrolled(ready: VerifyingSite):
    name = training_identities(ready.config, ready.store, ready.verifier.stored_model.run)[0]
    done = forget(ready.config, ready.desk, name)
    assert (done.in_training_data, any(done.erased.values())) == (True, False)
    assert "take them out of the data folder" in "\n".join(in_words(done))
    with pytest.raises(NotFoundError, match="under another name cannot be told"):
        forget(ready.config, ready.desk, "nobody")


def test_a_folder_is_known_however_its_accents_are_stored(ready: VerifyingSite, tmp_path: Path):
    """Some file systems write an accent as a character of its own; keyboards do not."""
    source = tmp_path / "apart"
    shutil.copytree(ready.config.data.source, source)
    data = ready.config.data.model_copy(update={"source": str(source)})
    config = ready.config.model_copy(update={"data": data})
    stored = ready.verifier.stored_model
    folder = source / "p00"
    for number in range(50):
        folder = folder.rename(source / f"Rene\u0301 {number}")
        if folder.name in training_identities(config, ready.store, stored.run):
            break
    typed = f"Ren\u00e9 {number}"
    assert typed != folder.name
    verifier = Verifier(config, ready.store)
    assert verifier.enrol(typed, [palm(0, 0)]).mode == "closed"
    assert forget(config, ready.desk, typed).in_training_data is True


def test_where_the_data_are_gone_it_is_not_claimed_that_nobody_trained(ready: VerifyingSite):
    enrolled(ready, "anna", 100)
    gone = ready.config.data.model_copy(update={"source": "/nowhere/at/all"})
    config = ready.config.model_copy(update={"data": gone})
    done = forget(config, ready.desk, "anna")
    assert done.in_training_data is None
    assert "may be in the site's training data" in "\n".join(in_words(done))


def test_an_entry_names_the_newest_runs_where_there_are_too_many():
    runs = [f"run-{number:05}-{'x' * 50}" for number in range(300)]
    body = _body(runs)
    check_body(EntryKind.SUBJECT_ERASED, body)
    named = str(body["runs"]).split(" ")
    assert named == runs[-len(named) :] and body["earlier"] == 300 - len(named)
    assert len(str(body["runs"])) <= MAX_NAMES_CHARS
    check_body(EntryKind.SUBJECT_ERASED, _body([]))


@pytest.mark.parametrize(
    "body",
    [
        {"runs": "b a", "earlier": 0},
        {"runs": "a a", "earlier": 0},
        {"runs": "a  b", "earlier": 0},
        {"runs": "Anna", "earlier": 0},
        {"runs": "a", "earlier": -1},
        {"runs": "a", "earlier": 0, "subject": "anna"},
        {"runs": "a"},
    ],
)
def test_an_entry_has_no_place_for_anything_else(body):
    with pytest.raises(ProtocolError):
        check_body(EntryKind.SUBJECT_ERASED, body)


def test_a_log_with_erasures_in_it_verifies(world: World, tmp_path: Path):
    site, _ = world.site("north")
    world.agreed(site, make_plan())
    for name in ("anna", "bert"):
        with site.store.transaction() as db:
            Gallery(site.store).put(db, _reference(name), bytes(32), None)
        forget(site.config, site.desk, name)
    bundle = export_bundle(site.desk, tmp_path / "north.bundle").path
    site.store.close()
    found = verify_bundle(bundle, Trust(world.authority.anchors))
    assert found.exit is Exit.OK, [str(one) for one in found.findings]
    assert sum("a person's data were erased" in note for note in found.notes) == 2
    assert b"anna" not in bundle.read_bytes()


def _reference(name: str) -> Reference:
    return Reference(name, "open", "00", "run", np.zeros(4, np.uint8), 4, 1, False, 1, 1)
