"""Rotation and other locks: killed anywhere they lose nothing, and done they leave nothing of the old."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedpalm.errors import (
    ConfigError,
    IntegrityError,
    VaultDamagedError,
    VaultLockedError,
    VaultRolledBackError,
)
from participant.config import Home, VaultSettings
from participant.store import file_purpose
from participant.vault import sealed_generation
from participant.vault_lock import lock_with_key, lock_with_passphrase
from participant.vault_rotation import check, rotate, sealed_files
from tests.support.vault import (
    PASSPHRASE,
    RECORDS,
    RUN,
    UPDATE,
    every_crash,
    fill,
    flip,
    holds_everything,
    keep,
    make_home,
    open_store,
    state,
)


def quiet(what, done, total):
    """Nobody looks on."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("made") / "north")
    fill(home)
    return home


@pytest.fixture
def home(made, tmp_path):
    copy = Home(tmp_path / "north")
    shutil.copytree(made.path, copy.path)
    return copy


def the_file(home, suffix):
    (found,) = home.state.glob(f"*{suffix}")
    return found


# --- the private state ------------------------------------------------------------------------------


def test_no_private_byte_of_a_home_lies_in_the_clear(home):
    with closing(open_store(home)) as store:
        store.commit_round(RUN, 2, state(2), UPDATE)
        found = b"".join(path.read_bytes() for path in home.path.rglob("*") if path.is_file())
    secrets = [tensor.tobytes() for one in (1, 2) for tensor in state(one).values()]
    assert not [one for one in (*secrets, b"k" * 12, *RECORDS.values()) if one[:12] in found]
    assert b"head.open" not in found, "names of tensors tell what is there"
    assert UPDATE.payload in found, "the search is blind"


def test_every_private_file_is_bound_to_its_name(home):
    with closing(open_store(home)) as store:
        key, private = the_file(home, ".key"), the_file(home, ".safetensors")
        shutil.copy(private, key)
        with pytest.raises(VaultDamagedError, match="sealed as something else"):
            store.read_private(key.name)
        with pytest.raises(VaultDamagedError, match="not sealed by a vault"):
            key.write_bytes(b"k" * 96)
            store.read_private(key.name)


def test_an_old_state_file_that_is_put_back_is_noticed(home):
    with closing(open_store(home)) as store:
        old = the_file(home, ".safetensors").read_bytes()
        store.commit_round(RUN, 2, state(2), UPDATE)
        the_file(home, ".safetensors").write_bytes(old)
        with pytest.raises(IntegrityError, match="not those that were stored"):
            store.load_state(RUN)


def test_an_old_state_file_that_is_put_back_with_its_row_is_noticed(home):
    with closing(open_store(home)) as store:
        path = the_file(home, ".safetensors")
        (row,), old = store.rows("SELECT * FROM states"), path.read_bytes()
        store.commit_round(RUN, 2, state(2), UPDATE)
        path.write_bytes(old)
        with store.transaction() as db:
            db.execute(
                "UPDATE states SET (round, file, file_hash) = (?, ?, ?)",
                (row["round"], row["file"], row["file_hash"]),
            )
        with pytest.raises(VaultRolledBackError, match="an old one was put back"):
            store.load_state(RUN)


def test_an_old_database_with_its_files_is_noticed_before_anything_is_erased(home):
    put_back = keep(home, "site.sqlite3", "site.sqlite3-wal", "site.sqlite3-shm")
    with closing(open_store(home)) as store:
        store.commit_round(RUN, 2, state(2), UPDATE)
    newest = the_file(home, ".safetensors")
    put_back()
    with closing(open_store(home)) as store:
        with pytest.raises(VaultRolledBackError, match="an old copy"):
            _ = store.vault
        with pytest.raises(VaultRolledBackError, match="an old copy"):
            store.load_state(RUN)
    assert newest.exists()


def test_a_state_can_be_read_while_another_process_commits_the_next(home):
    """The file that a row names is there for as long as the reader needs it."""
    with closing(open_store(home)) as reader, closing(open_store(home)) as writer:
        _ = reader.vault
        steps = []

        class Reading(Exception):
            pass

        def commits(step):
            steps.append(step)
            if step == "vault mark prepared":
                raise Reading

        writer.on_step = commits
        with pytest.raises(Reading):
            writer.commit_round(RUN, 2, state(2), UPDATE)
        found = reader.load_state(RUN)
        assert np.array_equal(
            found["closed_set.expert.weight"], state(1)["closed_set.expert.weight"]
        )


# --- rotation ----------------------------------------------------------------------------------------


def test_a_rotation_leaves_nothing_under_the_old_key_and_changes_nothing_else(home):
    old = the_file(home, ".safetensors")
    old_bytes = old.read_bytes()
    with closing(open_store(home)) as store:
        label = store.vault.derive("label")
        done = rotate(store, quiet)
        assert (done.generation, done.files, store.vault.header.generations) == (2, 2, (2,))
        assert holds_everything(store) and check(store, quiet) == []
        assert store.vault.derive("label") == label
        for one in sealed_files(store):
            assert sealed_generation(one.path.read_bytes()) == 2
        with pytest.raises(VaultRolledBackError, match="under data key 1"):
            store.vault.open(file_purpose(old.name), old_bytes)
    assert not old.exists()


def test_what_was_forgotten_cannot_be_opened_after_a_rotation(home):
    with closing(open_store(home)) as store:
        (row,) = store.rows("SELECT * FROM vault_items WHERE kind = 'person' ORDER BY key LIMIT 1")
        with store.transaction() as db:
            for name in RECORDS:
                store.items.delete(db, "person", name)
        rotate(store, quiet)
        purpose = f"item person {row['key'].hex()} {row['version']}"
        with pytest.raises(VaultRolledBackError, match="under data key 1"):
            store.vault.open(purpose, row["sealed"])


def test_a_rotation_that_is_killed_at_any_step_loses_nothing_and_is_finished(home):
    steps = []
    for step, left in every_crash(home, lambda store: rotate(store, quiet)):
        steps.append(step)
        with closing(open_store(left)) as store:
            assert holds_everything(store), step
            assert check(store, quiet) == [], step
            before = store.vault.header.generations
            rotate(store, quiet)
            assert store.vault.header.generations == (
                (2,) if len(before) == 2 else (before[0] + 1,)
            )
            assert holds_everything(store), step
            store.remove_orphans()
            assert len(list(left.state.iterdir())) == 3, "state, update and key"
        with closing(open_store(left)) as store:
            assert holds_everything(store), step
        shutil.rmtree(left.path)
    wanted = {"vault header written", "file sealed anew", "old file erased", "vault mark prepared"}
    assert wanted <= set(steps) and steps.count("vault header written") == 2


def test_what_was_sealed_before_a_rotation_and_stored_during_it_is_sealed_anew(home):
    with closing(open_store(home)) as store, closing(open_store(home)) as other:
        name = other.write_private("x-2", "key", b"z" * 96)
        stored = []

        def meanwhile(what, done, total):
            if what == "records" and not stored:
                stored.append(name)
                with other.transaction() as db:
                    db.execute(
                        "INSERT INTO exchanges (exchange_id, run_id, machine, state, proposal, "
                        "key_file, proposed_ms) VALUES ('x-2', ?, '{}', 'approved', x'00', ?, 1)",
                        (RUN, name),
                    )

        rotate(store, meanwhile)
        (row,) = store.rows("SELECT key_file FROM exchanges WHERE exchange_id = 'x-2'")
        assert stored and row["key_file"] != name
        assert store.read_private(row["key_file"]) == b"z" * 96
        assert check(store, quiet) == []


def test_a_rotation_stops_at_what_does_not_open_and_both_keys_stay(home):
    private = the_file(home, ".safetensors")
    flip(private, 100)
    with closing(open_store(home)) as store:
        with pytest.raises(IntegrityError, match=private.name):
            rotate(store, quiet)
        assert store.vault.header.generations == (1, 2)
        flip(private, 100)
        rotate(store, quiet)
        assert holds_everything(store) and store.vault.header.generations == (2,)


@pytest.mark.parametrize("change", ["rotated", "rotation under way"])
def test_an_old_header_is_refused_after_a_rotation(home, change):
    put_back = keep(home, "vault.json")
    with closing(open_store(home)) as store:
        if change == "rotated":
            rotate(store, quiet)
        else:
            store.vault.begin_generation()
            with store.transaction() as db:
                store.items.touch(db)
    put_back()
    with (
        closing(open_store(home)) as store,
        pytest.raises(VaultRolledBackError, match=r"vault\.json"),
    ):
        store.load_state(RUN)


def test_the_check_names_everything_that_is_damaged(home):
    with closing(open_store(home)) as store:
        assert check(store, quiet) == []
        private, key = the_file(home, ".safetensors"), the_file(home, ".key")
        flip(private, 200)
        flip(key, 100)
        with store.transaction() as db:
            db.execute(
                "UPDATE vault_items SET sealed = zeroblob(100) WHERE key = "
                "(SELECT key FROM vault_items WHERE kind = 'person' LIMIT 1)"
            )
        store.items._looked_at = None
        found = [one.what for one in check(store, quiet)]
    assert private.name in found[0] and key.name in found[1]
    assert "item person" in found[2] and "old or another one" in found[3] and len(found) == 4


# --- other locks ---------------------------------------------------------------------------------------


def test_a_passphrase_takes_the_place_of_the_key_file(home):
    comment = "# who answers for this site: Dr Palmer\n"
    home.config.write_text(comment + home.config.read_text())
    with closing(open_store(home, passphrase=PASSPHRASE)) as store:
        lock_with_passphrase(store, None)
        assert holds_everything(store)
    assert not home.vault_key.exists()
    assert home.load().vault == VaultSettings(passphrase="ask")
    assert home.config.read_text().startswith(comment)
    with closing(open_store(home, passphrase=PASSPHRASE)) as store:
        assert holds_everything(store)
    wrong = open_store(home, passphrase="another passphrase")
    with closing(wrong), pytest.raises(VaultLockedError, match="not the passphrase"):
        _ = wrong.vault
    with closing(open_store(home)) as store, pytest.raises(VaultLockedError, match="nobody to ask"):
        _ = store.vault


def test_a_passphrase_from_a_file_and_back_to_a_key_file_elsewhere(home, tmp_path):
    secret, key = tmp_path / "passphrase", tmp_path / "medium.key"
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    with closing(open_store(home)) as store:
        lock_with_passphrase(store, str(secret))
    with closing(open_store(home)) as store:
        assert holds_everything(store)
        lock_with_key(store, str(key))
    assert home.load().vault == VaultSettings(key_file=str(key))
    assert len(key.read_bytes()) == 32 and secret.exists()
    with closing(open_store(home)) as store:
        assert holds_everything(store)
        before = key.read_bytes()
        lock_with_key(store, None)
        assert key.read_bytes() != before and holds_everything(store)


def test_a_weak_passphrase_changes_nothing(home):
    before = home.vault_header.read_bytes()
    for weak in ("short", "aaaaaaaaaaaaaaaaaaaa", ""):
        store = open_store(home, passphrase=weak)
        with closing(store), pytest.raises(ConfigError, match="weak"):
            lock_with_passphrase(store, None)
    assert home.vault_header.read_bytes() == before and home.load().vault is None
    with closing(open_store(home)) as store:
        assert holds_everything(store)


@pytest.mark.parametrize(
    "act",
    [
        lambda store: lock_with_passphrase(store, None),
        lambda store: lock_with_key(store, None),
        lambda store: lock_with_key(store, "other.key"),
    ],
    ids=["passphrase", "new key", "key elsewhere"],
)
def test_a_change_of_lock_that_is_killed_at_any_step_opens_as_the_settings_say(home, act):
    steps = []
    for step, left in every_crash(home, act, PASSPHRASE):
        steps.append(step)
        with closing(open_store(left, passphrase=PASSPHRASE)) as store:
            assert holds_everything(store), step
            act(store)
            assert len(store.vault.header.slots) == 1
        with closing(open_store(left, passphrase=PASSPHRASE)) as store:
            assert holds_everything(store), step
        shutil.rmtree(left.path)
    assert steps.count("vault header written") == 2 and len(steps) >= 8


def test_the_old_header_is_refused_with_the_new_secret_and_with_the_old_one(home):
    put_header, old_key = keep(home, "vault.json"), home.vault_key.read_bytes()
    with closing(open_store(home)) as store:
        lock_with_key(store, None)
    put_header()
    with (
        closing(open_store(home)) as store,
        pytest.raises(VaultLockedError, match="not the key-file"),
    ):
        store.load_state(RUN)
    home.vault_key.write_bytes(old_key)
    with (
        closing(open_store(home)) as store,
        pytest.raises(VaultRolledBackError, match="an old one, the"),
    ):
        store.load_state(RUN)


# --- kill -9 -------------------------------------------------------------------------------------------

_WORKER = """
import itertools, sys
from pathlib import Path
from participant.config import Home
from participant.vault_rotation import rotate
from tests.support.vault import RUN, UPDATE, open_store, state

store = open_store(Home(Path(sys.argv[1])))
done = store.state_round(RUN)
for number in itertools.count(done + 1):
    with store.transaction() as db:
        store.items.put(db, "count", "n", str(number).encode())
    store.commit_round(RUN, number, state(number), UPDATE)
    print(number, flush=True)
    if number % 2:
        rotate(store, lambda *_: None)
"""


def test_a_process_that_is_killed_while_it_works_loses_nothing_that_it_said_it_had_stored(home):
    rng, rounds = np.random.default_rng(1), 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", _WORKER, str(home.path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        ) as worker:
            assert worker.stdout is not None
            said = int(worker.stdout.readline())
            time.sleep(rng.uniform(0, 0.2))
            worker.send_signal(signal.SIGKILL)
            rest = worker.stdout.read().split()
        said = int(rest[-1]) if rest else said
        assert said > rounds
        with closing(open_store(home)) as store:
            assert check(store, quiet) == []
            rounds = store.state_round(RUN)
            assert rounds in (said, said + 1)
            found = store.load_state(RUN)
            assert np.array_equal(
                found["head.open.prototypes"], state(rounds)["head.open.prototypes"]
            )
            assert int(store.items.get("count", "n")) in (rounds, rounds + 1)
            assert dict(store.items.all("person")) == RECORDS
