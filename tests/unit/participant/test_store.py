"""The site's memory: whole steps or none, private files, an append-only log."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import threading

import numpy as np
import pytest

from fedpalm.errors import ChainBrokenError, HashMismatchError, IntegrityError, StateError
from fedpalm.ledger.bodies import EntryKind
from participant.files import erase, write_durably
from participant.store import NewUpdate, SiteStore
from tests.support.participant import LAYOUT, Crash, Site, initial_vector, make_plan

RUN = "toy-1"
STATE = {
    "head.open.prototypes": np.arange(12, dtype=np.float32).reshape(3, 4),
    "progress.flag": np.array(1, dtype=np.uint8),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}
UPDATE = NewUpdate(b"m" * 32, b"l" * 32, b"\x01\x02\x03\x04" * 50)


def _approved(plan, exchange="x-1"):
    return {"run": RUN, "exchange": exchange, "plan_hash": plan.hash.hex()}


def _log_one(site, exchange="x-1"):
    with site.store.transaction() as db:
        site.log.append(db, EntryKind.EXCHANGE_REFUSED, _approved(make_plan(), exchange))


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    made.store.add_run(RUN, make_plan())
    yield made
    made.store.close()


def _commit(store, round_number=1):
    return store.commit_round(RUN, round_number, STATE, UPDATE)


def test_state_and_update_come_back_as_they_were_stored(site):
    _commit(site.store)
    loaded = site.store.load_state(RUN)
    assert set(loaded) == set(STATE)
    for name, tensor in STATE.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert np.array_equal(loaded[name], tensor)
    update = site.store.update(RUN, 1)
    assert update.path.read_bytes() == UPDATE.payload
    assert update.payload_hash == hashlib.sha256(UPDATE.payload).digest()
    assert update.model_hash == UPDATE.model_hash


@pytest.mark.parametrize(
    "step", ["state file written", "update file written", "before commit", "committed"]
)
@pytest.mark.parametrize("before", [0, 1])
def test_a_crash_while_a_round_is_stored_leaves_all_of_it_or_nothing(world, step, before):
    armed = False

    def dies(name: str) -> None:
        if armed and name == step:
            raise Crash(name)

    site, home = world.site("north", dies)
    site.store.add_run(RUN, make_plan())
    if before:
        _commit(site.store, 1)
    armed = True
    with pytest.raises(Crash):
        _commit(site.store, before + 1)
    armed = False
    site.store.close()

    again = Site(home)
    again.store.remove_orphans()
    done = step == "committed"
    assert again.store.state_round(RUN) == before + done
    assert (again.store.update(RUN, before + 1) is not None) == done
    files = {path.suffix for path in home.state.iterdir()}
    assert len(list(home.state.iterdir())) == (2 if before or done else 0), files
    assert (again.store.load_state(RUN) is not None) == bool(before or done)
    again.store.close()


def test_a_round_is_stored_once(site):
    _commit(site.store, 2)
    for again in (1, 2):
        with pytest.raises(StateError, match="stored already"):
            _commit(site.store, again)


def test_only_the_newest_update_keeps_its_bytes_but_every_round_is_remembered(site):
    _commit(site.store, 1)
    _commit(site.store, 2)
    assert site.store.update(RUN, 1).path is None
    assert site.store.update(RUN, 2).path.exists()
    assert len(list(site.home.state.iterdir())) == 2


def test_a_damaged_state_file_is_not_loaded(site):
    _commit(site.store)
    (file,) = site.home.state.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="not those that were stored"):
        site.store.load_state(RUN)
    file.unlink()
    with pytest.raises(IntegrityError):
        site.store.load_state(RUN)


def test_nobody_else_can_read_what_a_site_stores(site):
    _commit(site.store)
    for path in (site.home.path, site.home.state, site.home.models):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    private = [
        site.home.database,
        *site.home.path.glob("site.sqlite3-*"),
        *site.home.state.iterdir(),
    ]
    assert len(private) >= 4
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_commit_is_on_the_disk_when_it_returns(site):
    (synchronous,) = site.store.row("PRAGMA synchronous")
    (journal,) = site.store.row("PRAGMA journal_mode")
    full = 2
    assert (synchronous, journal) == (full, "wal")


def test_a_transaction_keeps_other_processes_out_before_it_reads(site):
    other = sqlite3.connect(site.home.database, timeout=0, isolation_level=None)
    with site.store.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE")
    other.close()


def test_a_file_has_its_bytes_then_its_name_then_its_folder_on_the_disk(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "state", [], os.fsync

    def record(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        synced.append((kind, os.fstat(handle).st_size if kind == "file" else None, path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    write_durably(path, b"abc")
    assert synced == [("file", 3, False), ("folder", None, True)]
    synced.clear()
    erase(path)
    assert synced == [("file", 3, True), ("folder", None, False)]


def test_a_database_that_others_can_read_is_not_opened(site):
    site.home.database.chmod(0o640)
    with pytest.raises(IntegrityError, match="chmod"):
        SiteStore(site.home)


def test_a_database_of_another_version_is_not_opened(site):
    with sqlite3.connect(site.home.database) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(IntegrityError, match="schema 99"):
        SiteStore(site.home)


def test_it_takes_part_in_one_run_at_a_time(site):
    with pytest.raises(StateError, match="another run"):
        site.store.add_run("toy-2", make_plan())


def test_models_of_old_rounds_are_dropped(site):
    for number in range(5):
        model_hash = bytes([number]) * 32
        site.store.model_path(model_hash).write_bytes(b"model")
        site.store.add_model(RUN, number, model_hash, keep=2)
    assert list(site.store.models(RUN)) == [3, 4]
    assert len(list(site.home.models.iterdir())) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log SET entry = x'00' WHERE seq = 0",
        "DELETE FROM log",
        "INSERT OR REPLACE INTO log VALUES (0, x'00')",
        "INSERT INTO log VALUES (7, x'00')",
    ],
)
def test_the_log_refuses_to_be_changed_cut_or_written_out_of_order(site, statement):
    _log_one(site)
    with sqlite3.connect(site.home.database) as db, pytest.raises(sqlite3.DatabaseError):
        db.execute(statement)
    assert site.log.verify().size == 1


def test_a_log_that_was_altered_behind_the_triggers_does_not_verify(site):
    for number in range(3):
        _log_one(site, f"x-{number}")
    with sqlite3.connect(site.home.database) as db:
        db.execute("DROP TRIGGER log_is_not_updated")
        db.execute("UPDATE log SET entry = (SELECT entry FROM log WHERE seq = 2) WHERE seq = 1")
    with pytest.raises(ChainBrokenError):
        site.log.verify()


def test_a_log_that_was_cut_below_what_was_released_does_not_verify(site):
    site.gate.release_hello()
    with sqlite3.connect(site.home.database) as db:
        db.execute("DROP TRIGGER log_is_not_deleted")
        db.execute("DELETE FROM log")
    with pytest.raises(ChainBrokenError, match="was released"):
        site.log.verify()


def test_several_processes_of_a_site_extend_one_chain(site):
    others = [Site(site.home) for _ in range(3)]
    failures = []

    def write(one: Site) -> None:
        try:
            for number in range(10):
                _log_one(one, f"x-{number}")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert site.log.verify().size == 30
    for one in others:
        one.store.close()


def test_a_kept_model_that_is_not_what_its_name_says_is_not_loaded(site):
    vector = initial_vector()
    model_hash = hashlib.sha256(vector.tobytes()).digest()
    with pytest.raises(IntegrityError):
        site.store.load_model(model_hash, LAYOUT)
    path = site.store.model_path(model_hash)
    path.write_bytes(vector.tobytes())
    assert np.array_equal(site.store.load_model(model_hash, LAYOUT), vector)
    path.write_bytes(bytes(vector.nbytes))
    with pytest.raises(HashMismatchError):
        site.store.load_model(model_hash, LAYOUT)
