"""Sealed records: as they were put, over every crash; nothing old, swapped or missing goes unnoticed."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedpalm.errors import VaultDamagedError, VaultLockedError, VaultRolledBackError
from tests.support.vault import (
    RECORDS,
    RUN,
    every_crash,
    fill,
    flip,
    holds_everything,
    keep,
    make_home,
    open_store,
)

DATABASE = ("site.sqlite3", "site.sqlite3-wal", "site.sqlite3-shm")


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path / "north")


def put(store, name, data, kind="person"):
    with store.transaction() as db:
        store.items.put(db, kind, name, data)


def delete(store, name):
    with store.transaction() as db:
        return store.items.delete(db, "person", name)


def tamper(home, *statements):
    """Edit the database as somebody without the vault's key can."""
    with closing(sqlite3.connect(home.database)) as db, db:
        for statement, *values in statements:
            db.execute(statement, values)


def rows(home):
    with closing(sqlite3.connect(home.database)) as db:
        return db.execute("SELECT kind, key, version, sealed FROM vault_items").fetchall()


def test_records_are_kept_by_kind_and_name_and_listed_by_name(home):
    with closing(open_store(home)) as store:
        for name in ("zoe", "ärne", "abe"):
            put(store, name, name.encode())
        put(store, "abe", b"other kind", "device")
        put(store, "abe", b"second")
        assert store.items.get("person", "abe") == b"second"
        assert store.items.get("person", "nobody") is None
        assert [name for name, _ in store.items.all("person")] == ["abe", "zoe", "ärne"]
        assert list(store.items.all("device")) == [("abe", b"other kind")]
        assert delete(store, "zoe") and not delete(store, "zoe")
        assert store.items.count() == 3 and store.items.count("person") == 2
    with closing(open_store(home)) as store:
        assert dict(store.items.all("person")) == {"abe": b"second", "ärne": "ärne".encode()}
        assert store.items.check() == []


def test_who_reads_where_nothing_was_ever_put_makes_no_vault(home):
    with closing(open_store(home)) as store:
        assert store.items.get("person", "abe") is None
        assert list(store.items.all("person")) == []
        assert not home.vault_header.exists() and not home.vault_key.exists()


def test_neither_name_nor_record_lies_in_the_clear(home):
    with closing(open_store(home)) as store:
        put(store, "Abraham-Palmer", b"private-template" * 4)
        found = b"".join(path.read_bytes() for path in home.path.rglob("*") if path.is_file())
    assert b"Abraham-Palmer" not in found and b"private-template" not in found


def test_what_a_transaction_put_is_seen_inside_it_and_gone_with_it(home):
    with closing(open_store(home)) as store:
        put(store, "abe", b"first")
        with pytest.raises(ZeroDivisionError), store.transaction() as db:
            store.items.put(db, "person", "abe", b"second")
            store.items.put(db, "person", "zoe", b"new")
            assert store.items.get("person", "abe") == b"second"
            raise ZeroDivisionError
        assert dict(store.items.all("person")) == {"abe": b"first"}
        put(store, "abe", b"third")
        assert dict(store.items.all("person")) == {"abe": b"third"}


def test_several_processes_see_each_others_records(home):
    with closing(open_store(home)) as one, closing(open_store(home)) as other:
        for number in range(10):
            put(one if number % 2 else other, f"{number}", bytes([number]))
            assert one.items.count() == other.items.count() == number + 1
            assert list(one.items.all("person")) == list(other.items.all("person"))


@pytest.mark.parametrize("act", ["put", "replace", "delete"])
def test_a_crash_at_any_step_leaves_the_records_before_or_after(home, act):
    with closing(open_store(home)) as store:
        for name, data in RECORDS.items():
            put(store, name, data)
    after = dict(RECORDS)
    if act == "put":
        after["new"] = b"new"
    elif act == "replace":
        after["person-1"] = b"new"
    else:
        del after["person-1"]

    def change(store):
        with store.transaction() as db:
            if act == "delete":
                store.items.delete(db, "person", "person-1")
            else:
                store.items.put(db, "person", "new" if act == "put" else "person-1", b"new")

    steps = []
    for step, left in every_crash(home, change):
        steps.append(step)
        with closing(open_store(left)) as store:
            found = dict(store.items.all("person"))
            done = step in ("vault records committed", "vault mark confirmed", "committed")
            assert found == (after if done else RECORDS), step
            change(store)
            assert dict(store.items.all("person")) == after
            assert store.items.check() == []
    assert steps == [
        "before commit",
        "vault mark prepared",
        "vault records committed",
        "vault mark confirmed",
        "committed",
    ]


def test_a_crash_while_the_vault_is_made_leaves_a_home_that_goes_on(home):
    steps = []
    for step, left in every_crash(home, lambda store: put(store, "abe", b"first")):
        steps.append(step)
        with closing(open_store(left)) as store:
            assert store.items.get("person", "abe") in (None, b"first")
            put(store, "abe", b"second")
        with closing(open_store(left)) as store:
            assert store.items.get("person", "abe") == b"second"
    assert {"vault secret made", "vault header written", "vault mark prepared"} <= set(steps)


def test_after_a_crash_between_commit_and_mark_the_older_database_is_refused_again(home):
    with closing(open_store(home)) as store:
        put(store, "abe", b"first")
    old = {
        name: (home.path / name).read_bytes() for name in DATABASE if (home.path / name).exists()
    }
    for step, left in every_crash(home, lambda store: put(store, "abe", b"second")):
        if step != "vault records committed":
            continue
        with closing(open_store(left)) as store:
            assert store.items.get("person", "abe") == b"second"
        for name in DATABASE:
            (left.path / name).unlink(missing_ok=True)
        for name, data in old.items():
            (left.path / name).write_bytes(data)
            (left.path / name).chmod(0o600)
        with closing(open_store(left)) as store, pytest.raises(VaultRolledBackError):
            store.items.get("person", "abe")
        return
    pytest.fail("no crash between commit and mark")


# --- somebody changes what is stored ---------------------------------------------------------------


@pytest.fixture
def filled(home):
    fill(home)
    return home


def refused(home, error, match):
    """Every way to read the records says so, and so does an attempt to write one."""
    with closing(open_store(home)) as store:
        with pytest.raises(error, match=match):
            store.items.get("person", "person-1")
        with pytest.raises(error, match=match):
            list(store.items.all("person"))
        with pytest.raises(error, match=match):
            put(store, "new", b"x")
        return [type(one) for one in store.items.check()]


def closed(home):
    """Database and mark are not of one moment: nothing private is read, records or not."""
    with closing(open_store(home)) as store:
        for read in (
            lambda: store.items.get("person", "person-1"),
            lambda: put(store, "new", b"x"),
            lambda: store.load_state(RUN),
            lambda: store.vault,
        ):
            with pytest.raises(VaultRolledBackError, match="an old copy"):
                read()


def test_a_row_that_was_deleted_is_missed(filled):
    (kind, key, _, _), *_ = rows(filled)
    tamper(filled, ("DELETE FROM vault_items WHERE kind = ? AND key = ?", kind, key))
    assert refused(filled, VaultDamagedError, "1 of 6 records are gone") == [VaultDamagedError]


def test_all_rows_deleted_are_missed_too(filled):
    tamper(filled, ("DELETE FROM vault_items",))
    refused(filled, VaultDamagedError, "6 of 6 records are gone")


def test_a_row_that_is_there_twice_is_one_too_many(filled):
    kind, _, version, sealed = rows(filled)[0]
    tamper(filled, ("INSERT INTO vault_items VALUES (?, x'00', ?, ?)", kind, version, sealed))
    assert VaultDamagedError in refused(filled, VaultDamagedError, "none of the set")


def test_two_rows_that_were_swapped_do_not_open_under_each_others_name(filled):
    one, other, *_ = (row for row in rows(filled) if row[0] == "person")
    change = "UPDATE vault_items SET sealed = ?, version = ? WHERE key = ?"
    tamper(filled, (change, other[3], other[2], one[1]), (change, one[3], one[2], other[1]))
    found = refused(filled, VaultRolledBackError, "an old or another one")
    assert found == [VaultDamagedError, VaultDamagedError, VaultRolledBackError]


def test_an_old_row_that_is_put_back_is_noticed_although_it_opens(filled):
    before = rows(filled)
    with closing(open_store(filled)) as store:
        put(store, "person-1", b"newer")
    (old,) = set(before) - set(rows(filled))
    tamper(
        filled,
        ("UPDATE vault_items SET version = ?, sealed = ? WHERE key = ?", old[2], old[3], old[1]),
    )
    assert refused(filled, VaultRolledBackError, "an old or another one") == [VaultRolledBackError]


def test_a_deleted_row_that_is_put_back_is_noticed(filled):
    before = rows(filled)
    with closing(open_store(filled)) as store:
        delete(store, "person-1")
    (old,) = set(before) - set(rows(filled))
    tamper(filled, ("INSERT INTO vault_items VALUES (?, ?, ?, ?)", *old))
    refused(filled, VaultDamagedError, "none of the set")


def test_an_old_row_under_a_running_process_is_noticed_at_the_next_look(filled):
    with closing(open_store(filled)) as store:
        assert store.items.get("person", "person-1") == RECORDS["person-1"]
        before = rows(filled)
        put(store, "person-1", b"newer")
        assert store.items.get("person", "person-1") == b"newer"
        (old,) = set(before) - set(rows(filled))
        tamper(
            filled,
            (
                "UPDATE vault_items SET version = ?, sealed = ? WHERE key = ?",
                old[2],
                old[3],
                old[1],
            ),
        )
        with pytest.raises(VaultRolledBackError):
            store.items.get("person", "person-1")


def test_a_flipped_byte_of_a_row_or_of_the_root_is_an_error_of_its_own(filled):
    key, sealed = next((row[1], row[3]) for row in rows(filled) if row[0] == "person")
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    tamper(filled, ("UPDATE vault_items SET sealed = ? WHERE key = ?", changed, key))
    assert VaultDamagedError in refused(filled, VaultRolledBackError, "an old or another one")
    tamper(filled, ("UPDATE vault_items SET sealed = ? WHERE key = ?", sealed, key))
    with closing(sqlite3.connect(filled.database)) as db:
        (root,) = db.execute("SELECT sealed FROM vault_root").fetchone()
    tamper(filled, ("UPDATE vault_root SET sealed = ?", root[:-1] + bytes([root[-1] ^ 1])))
    closed(filled)


def test_an_old_root_that_is_put_back_is_noticed(filled):
    with closing(sqlite3.connect(filled.database)) as db:
        (old,) = db.execute("SELECT sealed FROM vault_root").fetchone()
    with closing(open_store(filled)) as store:
        put(store, "new", b"x")
    tamper(filled, ("UPDATE vault_root SET sealed = ?", old))
    closed(filled)


@pytest.mark.parametrize("before_the_first_record", [False, True])
def test_an_old_database_that_is_put_back_is_noticed(home, before_the_first_record):
    with closing(open_store(home)) as store:
        if not before_the_first_record:
            put(store, "abe", b"first")
    put_back = keep(home, *DATABASE)
    with closing(open_store(home)) as store:
        put(store, "abe", b"second")
    put_back()
    with closing(open_store(home)) as store:
        with pytest.raises(VaultRolledBackError, match="an old copy"):
            store.items.get("person", "abe")
        with pytest.raises(VaultRolledBackError, match="an old copy"):
            put(store, "abe", b"third")


@pytest.mark.parametrize("what", ["old", "gone", "another vault's", "flipped"])
def test_a_mark_that_is_not_the_newest_is_noticed(filled, tmp_path, what):
    put_back = keep(filled, "vault.mark")
    with closing(open_store(filled)) as store:
        put(store, "new", b"x")
    error = VaultRolledBackError
    if what == "old":
        put_back()
    elif what == "gone":
        filled.vault_mark.unlink()
    elif what == "flipped":
        flip(filled.vault_mark, 20)
        error = VaultDamagedError
    else:
        other = make_home(tmp_path / "other")
        fill(other)
        filled.vault_mark.write_bytes(other.vault_mark.read_bytes())
        error = VaultDamagedError
    with closing(open_store(filled)) as store, pytest.raises(error):
        store.items.get("person", "person-1")


def test_the_whole_home_put_back_is_the_one_thing_that_is_not_noticed(filled):
    put_back = keep(filled, *DATABASE, "vault.mark", "vault.json")
    with closing(open_store(filled)) as store:
        put(store, "person-1", b"newer")
    put_back()
    with closing(open_store(filled)) as store:
        assert holds_everything(store)


def test_records_without_their_vault_are_not_taken_for_none(filled):
    filled.vault_header.unlink()
    with closing(open_store(filled)) as store, pytest.raises(VaultDamagedError, match="is gone"):
        store.items.get("person", "person-1")
    assert not filled.vault_header.exists()


def test_records_need_the_key(filled):
    flip(filled.vault_key, 3)
    with closing(open_store(filled)) as store, pytest.raises(VaultLockedError):
        store.items.get("person", "person-1")


NAMES = st.sampled_from(["", "a", "b", "é", "a" * 200])


class Records(RuleBasedStateMachine):
    """Against a dict: puts, deletes, rollbacks, rotations, another process, and reopening."""

    def __init__(self):
        super().__init__()
        self._place = tempfile.TemporaryDirectory()
        self.home = make_home(Path(self._place.name) / "north")
        self.store, self.expected = open_store(self.home), {}

    @rule(name=NAMES, data=st.binary(max_size=60))
    def put(self, name, data):
        put(self.store, name, data)
        self.expected[name] = data

    @rule(name=NAMES)
    def delete(self, name):
        assert delete(self.store, name) == (self.expected.pop(name, None) is not None)

    @rule(name=NAMES, data=st.binary(max_size=60))
    def roll_back(self, name, data):
        with pytest.raises(ZeroDivisionError), self.store.transaction() as db:
            self.store.items.put(db, "person", name, data)
            raise ZeroDivisionError

    @rule(name=NAMES, data=st.binary(max_size=60))
    def another_process_puts(self, name, data):
        with closing(open_store(self.home)) as other:
            put(other, name, data)
        self.expected[name] = data

    @rule()
    def rotate(self):
        self.store.vault.begin_generation()
        with self.store.transaction() as db:
            self.store.items.reseal(db, 100)
        self.store.vault.end_generation()

    @rule()
    def reopen(self):
        self.store.close()
        self.store = open_store(self.home)

    @invariant()
    def all_is_there(self):
        assert dict(self.store.items.all("person")) == self.expected

    def teardown(self):
        assert self.store.items.check() == []
        self.store.close()
        self._place.cleanup()


Records.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRecords = Records.TestCase
