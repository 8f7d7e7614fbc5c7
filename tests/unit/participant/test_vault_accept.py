"""A database of another moment than its mark: who can unlock the vault goes on with it, and it is told."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from contextlib import closing

import pytest
from click.testing import CliRunner

from fedpalm.audit.findings import Exit
from fedpalm.audit.trust import Trust
from fedpalm.audit.verify import verify_bundle
from fedpalm.errors import RefusedError, StateError, VaultError, VaultRolledBackError
from fedpalm.ledger.bodies import EntryKind
from participant.audit import export_bundle
from participant.cli import main
from participant.config import Home
from participant.vault_accept import accept, look
from tests.support.participant import Crash, Site, World
from tests.support.vault import fill, flip, holds_everything, keep, open_store

DATABASE = ("site.sqlite3", "site.sqlite3-wal", "site.sqlite3-shm")


def quiet(what, done, total):
    """No progress."""


def call(home, command, *arguments, code=0, typed=None):
    words = ["vault", command, *arguments, "--home", str(home.path), "--json"]
    result = CliRunner().invoke(main, words, input=typed, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def accepted(home):
    """The entries of the log that tell of it."""
    site = Site(home)
    try:
        return [one for one in site.log.entries() if one.kind is EntryKind.VAULT_ACCEPTED]
    finally:
        site.store.close()


def newer_mark(home):
    """A backup that took the database, and the mark only after the next record."""
    put_back = keep(home, *DATABASE)
    with closing(open_store(home)) as store, store.transaction() as db:
        store.items.put(db, "person", "newer", b"x")
    put_back()


def older_mark(home):
    put_back = keep(home, "vault.mark")
    with closing(open_store(home)) as store, store.transaction() as db:
        store.items.put(db, "person", "newer", b"x")
        store.items.delete(db, "person", "newer")
    put_back()


def no_mark(home):
    home.vault_mark.unlink()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    fill(world.home("north"))
    return world


@pytest.fixture
def home(world, tmp_path):
    copy = Home(tmp_path / "north")
    shutil.copytree(world.home("north").path, copy.path)
    return copy


@pytest.mark.parametrize("tear", [newer_mark, older_mark, no_mark])
def test_who_can_unlock_it_accepts_a_torn_backup_once_and_the_log_tells_it(home, tear):
    tear(home)
    error = call(home, "check", code=16)["error"]
    assert error["code"] == "vault_rolled_back" and "vault accept" in error["next_step"]
    assert "--yes" in call(home, "accept", code=StateError.exit_code)["error"]["next_step"]
    assert accepted(home) == []
    said = call(home, "accept", "--yes")
    (entry,) = accepted(home)
    assert {**entry.body, "entry": entry.seq} == said
    assert (said["mark"] == "none") == (tear is no_mark) and said["database"] != said["mark"]
    with closing(open_store(home)) as store:
        assert holds_everything(store)
        with store.transaction() as db:
            store.items.put(db, "person", "next", b"y")
    assert call(home, "check")["damaged"] == []
    error = call(home, "accept", "--yes", code=StateError.exit_code)["error"]
    assert "nothing to accept" in error["what"] and len(accepted(home)) == 1


def test_an_audit_tells_it(world, tmp_path):
    home = world.home("west")
    with closing(open_store(home)) as store, store.transaction() as db:
        store.items.put(db, "person", "first", b"x")
    no_mark(home)
    call(home, "accept", "--yes")
    site = Site(home)
    with closing(site.store):
        bundle = export_bundle(site.desk, tmp_path / "north.bundle").path
    found = verify_bundle(bundle, Trust(world.authority.anchors))
    assert found.exit is Exit.OK, [str(one) for one in found.findings]
    assert sum("a person accepted it" in note for note in found.notes) == 1


def test_a_database_of_before_the_first_record_is_accepted_as_empty(world, tmp_path):
    home = world.home("south")
    open_store(home).close()
    put_back = keep(home, *DATABASE)
    with closing(open_store(home)) as store, store.transaction() as db:
        store.items.put(db, "person", "first", b"x")
    put_back()
    assert call(home, "accept", "--yes")["database"] == "none"
    with closing(open_store(home)) as store:
        assert list(store.items.all("person")) == []


def test_a_person_is_asked_and_a_no_changes_nothing(home, monkeypatch):
    no_mark(home)
    monkeypatch.setattr(sys.modules["participant.cli.vault"], "somebody_is_there", lambda: True)
    call(home, "accept", typed="n\n", code=RefusedError.exit_code)
    assert accepted(home) == [] and not home.vault_mark.exists()
    call(home, "accept", typed="y\n")
    assert len(accepted(home)) == 1
    assert call(home, "check")["damaged"] == []


def flipped_file(home):
    (private,) = home.state.glob("*.safetensors")
    flip(private, 80)


def lost_file(home):
    next(home.state.glob("*.key")).unlink()


def changed(statement):
    def change(home):
        with closing(sqlite3.connect(home.database)) as db, db:
            db.execute(statement)

    return change


DAMAGE = {
    "flipped file": flipped_file,
    "lost file": lost_file,
    "record gone": changed(
        "DELETE FROM vault_items WHERE rowid IN (SELECT MIN(rowid) FROM vault_items)"
    ),
    "record flipped": changed(
        "UPDATE vault_items SET sealed = CAST(sealed || x'00' AS BLOB) WHERE kind = 'person'"
    ),
    "root flipped": changed("UPDATE vault_root SET sealed = CAST(sealed || x'00' AS BLOB)"),
    "root gone": changed("DELETE FROM vault_root"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_never_accepted(home, damage):
    newer_mark(home)
    DAMAGE[damage](home)
    mark = home.vault_mark.read_bytes()
    assert "error" in call(home, "accept", "--yes", code=VaultError.exit_code)
    assert accepted(home) == [] and home.vault_mark.read_bytes() == mark


def test_neither_a_forged_mark_nor_an_old_header_nor_another_key_is_accepted(home):
    header = keep(home, "vault.json")
    call(home, "rotate")
    newer_mark(home)
    mark = home.vault_mark.read_bytes()
    for spoil, mend in (
        (lambda: flip(home.vault_mark, 20), keep(home, "vault.mark")),
        (header, keep(home, "vault.json")),
        (lambda: flip(home.vault_key, 1), keep(home, "vault.key")),
    ):
        spoil()
        call(home, "accept", "--yes", code=VaultError.exit_code)
        mend()
        assert accepted(home) == [] and home.vault_mark.read_bytes() == mark
    call(home, "accept", "--yes")


def test_the_log_tells_first_and_a_crash_before_the_mark_accepts_nothing(home):
    no_mark(home)

    def dies(step):
        if step == "committed":
            raise Crash(step)

    site = Site(home, dies)
    with closing(site.store), pytest.raises(Crash):
        accept(site.store, site.log, look(site.store, quiet))
    assert len(accepted(home)) == 1
    with closing(open_store(home)) as store, pytest.raises(VaultRolledBackError):
        _ = store.vault
    call(home, "accept", "--yes")
    assert call(home, "check")["damaged"] == []


def test_a_database_that_changed_since_it_was_looked_at_is_not_accepted(home):
    newer_mark(home)
    site = Site(home)
    with closing(site.store):
        found = look(site.store, quiet)
        changed("DELETE FROM vault_root")(home)
        with pytest.raises(VaultRolledBackError):
            accept(site.store, site.log, found)
    assert call(home, "check", code=16)["error"]["code"] == "vault_rolled_back"
