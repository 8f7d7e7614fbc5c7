"""``fedpalm-participant vault``, as a person types it, and where the secret may come from."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedpalm.errors import ConfigError, KeyFileError, StateError, VaultError, VaultLockedError
from fedpalm.settings import parse_settings
from participant.cli import main
from participant.cli.run import only_agent
from participant.config import Home, VaultSettings, to_toml
from participant.files import write_durably
from participant.vault_lock import lock_with_key
from participant.vault_secret import AskedPassphrase, PassphraseFile, strong
from tests.support.vault import PASSPHRASE, fill, flip, holds_everything, make_home, open_store


def call(home, *arguments, code=0, typed=None, monkeypatch=None):
    if typed is not None:
        answers = iter(typed)
        commands = sys.modules["participant.cli.vault"]
        monkeypatch.setattr(commands, "ask_passphrase", lambda prompt: next(answers))
    words = ["vault", *arguments, "--home", str(home.path), "--json"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


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


def test_before_anything_was_sealed_there_is_no_vault_and_none_is_made(tmp_path):
    home = make_home(tmp_path / "north")
    assert call(home, "status")["made"] is False
    for command in ("check", "rotate"):
        error = call(home, command, code=StateError.exit_code)["error"]
        assert "nothing was ever sealed" in error["what"]
    assert not home.vault_header.exists()


def test_the_status_tells_how_it_is_locked_and_what_is_in_it_and_needs_no_key(home):
    home.vault_key.unlink()
    found = call(home, "status")
    (lock,) = found["unlocked_by"]
    assert (lock["kind"], lock["path"]) == ("key-file", str(home.vault_key))
    assert (found["data_keys"], found["unfinished"]) == ([1], "")
    assert sorted((one["kind"], one["of"], one["data_key"]) for one in found["files"]) == [
        ("key", "x-1", 1),
        ("state", "toy-1", 1),
    ]
    assert {kind: one["count"] for kind, one in found["records"].items()} == {
        "person": 5,
        "state": 1,
    }


def test_the_status_tells_which_file_is_gone_and_says_it_in_words(home):
    (private,) = home.state.glob("*.safetensors")
    private.unlink()
    assert [one["bytes"] for one in call(home, "status")["files"] if one["kind"] == "state"] == [
        None
    ]
    result = CliRunner().invoke(main, ["vault", "status", "--home", str(home.path)])
    assert f"{private.name}, GONE" in result.stdout and "person: 5" in result.stdout


def test_the_check_ends_with_sixteen_and_names_what_is_damaged(home):
    assert call(home, "check")["damaged"] == []
    (private,) = home.state.glob("*.safetensors")
    flip(private, 80)
    found = call(home, "check", code=16)
    assert VaultError.exit_code == 16
    (wrong,) = found["damaged"]
    assert wrong["code"] == "integrity" and private.name in wrong["what"]


def test_a_wrong_key_ends_with_sixteen(home):
    flip(home.vault_key, 1)
    error = call(home, "check", code=16)["error"]
    assert error["code"] == "vault_locked" and error["next_step"]


def test_rotation_and_new_locks_need_the_agent_to_rest(home):
    with only_agent(home):
        for command in ("rotate", "passphrase", "key"):
            assert "an agent runs" in call(home, command, code=8)["error"]["what"]
    assert call(home, "rotate") == {"data_key": 2, "files": 2, "records": 5}
    assert call(home, "status")["data_keys"] == [2]
    assert call(home, "check")["damaged"] == []


def test_an_unfinished_rotation_is_told(home):
    with closing(open_store(home)) as store:
        store.vault.begin_generation()
    assert "vault rotate" in call(home, "status")["unfinished"]
    call(home, "rotate")
    assert call(home, "status")["unfinished"] == ""


def test_a_person_sets_a_passphrase_by_typing_it_twice(home, monkeypatch):
    error = call(
        home, "passphrase", typed=[PASSPHRASE, PASSPHRASE + "?"], monkeypatch=monkeypatch, code=3
    )["error"]
    assert "differ" in error["what"]
    found = call(home, "passphrase", typed=[PASSPHRASE] * 2, monkeypatch=monkeypatch)
    (lock,) = found["unlocked_by"]
    assert lock["argon2id"] == {"memory_kib": 65536, "passes": 3, "lanes": 4}
    assert "vault rotate" in found["next"]
    assert call(home, "check", typed=[PASSPHRASE], monkeypatch=monkeypatch)["damaged"] == []
    monkeypatch.undo()
    error = call(home, "check", code=16)["error"]
    assert "nobody to ask" in error["what"], "the test's stdin is no terminal"


def test_a_key_file_on_another_medium_is_needed_from_then_on(home, tmp_path):
    medium = tmp_path / "medium"
    medium.mkdir()
    found = call(home, "key", "--file", str(medium / "north.key"))
    assert found["unlocked_by"][0]["path"] == str(medium / "north.key")
    assert not home.vault_key.exists()
    medium.rename(tmp_path / "unmounted")
    error = call(home, "check", code=16)["error"]
    assert "is not there" in error["what"] and "medium" in error["next_step"]
    (tmp_path / "unmounted").rename(medium)
    with closing(open_store(home)) as store:
        assert holds_everything(store)


def relative(home, monkeypatch):
    monkeypatch.chdir(home.path.parent)
    return Home(Path("north")), str(home.path / "vault.key")


def dotted(home, monkeypatch):
    return home, "../north/vault.key"


def through_a_linked_folder(home, monkeypatch):
    linked = home.path.parent / "linked"
    linked.symlink_to(home.path)
    return home, str(linked / "vault.key")


def hard_link(home, monkeypatch):
    other = home.path.parent / "other.key"
    other.hardlink_to(home.vault_key)
    return home, str(other)


@pytest.mark.parametrize("name", [relative, dotted, through_a_linked_folder, hard_link])
def test_the_present_key_file_by_any_of_its_names_is_replaced_and_not_erased(
    home, monkeypatch, name
):
    before = home.vault_key.read_bytes()
    called, file = name(home, monkeypatch)
    call(called, "key", "--file", file)
    assert len(home.vault_key.read_bytes()) == 32 and home.vault_key.read_bytes() != before
    with closing(open_store(home)) as store:
        assert holds_everything(store)


def test_the_first_vaults_own_key_file_is_not_erased_under_another_name(tmp_path, monkeypatch):
    home = make_home(tmp_path / "north")
    call(home, "key", "--file", "../north/vault.key")
    assert len(home.vault_key.read_bytes()) == 32
    assert call(home, "check")["damaged"] == []


@pytest.mark.parametrize("name", [relative, dotted, through_a_linked_folder, hard_link])
def test_a_key_file_that_is_taken_for_a_passphrase_is_not_erased(home, monkeypatch, name):
    home.vault_key.write_bytes(b"thirty-two letters of a real key")
    home.vault_header.unlink()
    home.vault_mark.unlink()
    shutil.rmtree(home.state)
    home.database.unlink()
    fill(home)  # a vault that this file opens, which is text as well
    called, file = name(home, monkeypatch)
    call(called, "passphrase", "--file", file)
    assert home.vault_key.read_bytes() == b"thirty-two letters of a real key"
    with closing(open_store(home)) as store:
        assert holds_everything(store)
    call(home, "key")  # and back, in the same place
    with closing(open_store(home)) as store:
        assert holds_everything(store)


@pytest.mark.parametrize("file", [None, "other.key"])
def test_a_new_secret_that_does_not_open_what_lies_on_the_disk_takes_the_place_of_none(home, file):
    """Something else comes under the new key's name."""
    new = home.path / (file or "vault.key.new")

    def overwritten(step):
        if step == "vault header written":
            new.write_bytes(b"x" * 32)

    with closing(open_store(home, overwritten)) as store, pytest.raises(VaultLockedError):
        lock_with_key(store, file)
    assert home.load().vault is None
    with closing(open_store(home)) as store:
        assert holds_everything(store)


def test_the_key_file_is_erased_only_once_the_new_secret_has_opened_the_last_header(home):
    other, before = home.path / "other.key", home.vault_key.read_bytes()

    def overwritten(step):
        if step == "settings written":
            other.write_bytes(b"x" * 32)

    with closing(open_store(home, overwritten)) as store, pytest.raises(VaultLockedError):
        lock_with_key(store, "other.key")
    assert home.vault_key.read_bytes() == before


def test_a_passphrase_file_that_is_missing_is_a_locked_vault_and_named(tmp_path):
    missing = tmp_path / "pass.txt"
    with pytest.raises(VaultLockedError, match=re.escape(f"{missing}: the file with")):
        PassphraseFile(missing).read()


@pytest.mark.parametrize("command", ["status", "check", "rotate", "passphrase", "key", "accept"])
def test_no_option_takes_a_secret(command):
    """What a process is called with, and its environment, others can read."""
    found = main.commands["vault"].commands[command]  # type: ignore[attr-defined]
    options = {option.name: option.envvar for option in found.params}
    assert set(options) <= {"home", "as_json", "file", "yes"}
    assert {one for one in options.values() if one} <= {"FEDPALM_HOME"}


# --- settings and secrets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"key_file": "a", "passphrase": "ask"},
        {"passphrase": "ask", "passphrase_file": "b"},
        {"passphrase": "my secret"},
        {"key_file": ""},
    ],
    ids=str,
)
def test_settings_name_one_way_and_never_the_passphrase_itself(values):
    with pytest.raises(ConfigError):
        parse_settings(VaultSettings, values, "here")


def test_settings_of_the_vault_are_written_and_replaced_and_the_rest_stays(tmp_path):
    home = make_home(tmp_path / "north")
    before = "# a person's remark\n" + to_toml(home.load()) + '\n[data]\nsource = "x"\n'
    home.config.write_text(before)
    for settings in (VaultSettings(passphrase="ask"), VaultSettings(key_file='a"\\b'), None):
        write_durably(home.config, home.with_vault(settings))
        assert home.load().vault == settings
        assert home.config.read_text().startswith(before.rstrip("\n"))
    assert home.config.read_text() == before
    inside = before.replace("[data]", '[vault] # here\nkey_file = "k"\n\n[data]')
    home.config.write_text(inside)
    write_durably(home.config, home.with_vault(None))
    assert home.load().vault is None and home.load().data.source == "x"
    home.config.write_text('vault = { key_file = "k" }\n' + before)
    with pytest.raises(ConfigError, match="cannot be"):
        home.with_vault(VaultSettings(passphrase="ask"))
    assert home.load().vault == VaultSettings(key_file="k")


def test_a_passphrase_file_is_one_line_that_others_cannot_read(tmp_path):
    path = tmp_path / "secret"
    path.write_text(PASSPHRASE + "\r\n")
    path.chmod(0o600)
    assert PassphraseFile(path).read() == PASSPHRASE.encode()
    path.chmod(0o604)
    with pytest.raises(KeyFileError, match="chmod"):
        PassphraseFile(path).read()
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="UTF-8"):
        PassphraseFile(path).read()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can own a file of root's")
def test_a_credential_as_systemd_hands_it_out_is_taken(tmp_path):
    path = tmp_path / "secret"
    path.write_text(PASSPHRASE)
    os.chown(path, 0, 0)
    path.chmod(0o440)
    assert PassphraseFile(path).read() == PASSPHRASE.encode()
    for owner in ((0, 1000), (1000, 0)):
        os.chown(path, *owner)
        with pytest.raises(KeyFileError):
            PassphraseFile(path).read()


def test_a_passphrase_is_the_same_however_its_letters_are_composed():
    composed = AskedPassphrase(lambda prompt: "caf\u00e9 au lait s'il vous plait").read()
    assert AskedPassphrase(lambda prompt: "cafe\u0301 au lait s'il vous plait").read() == composed


@pytest.mark.parametrize("weak", ["", "elevenchars", "abababababababab", "            "])
def test_weak_passphrases_are_refused(weak):
    with pytest.raises(ConfigError, match="weak"):
        strong(weak.encode())
    assert strong(b"twelve chars") == b"twelve chars"


def test_no_secret_is_in_a_representation_that_a_log_could_show(home):
    with closing(open_store(home)) as store:
        shown = repr(store.vault) + repr(store.vault._held)
        held = store.vault._held
    secrets = (held.keys.root, held.slot_key.key, *held.keys.by_generation.values())
    assert "DataKeys" in shown
    assert not [one for one in secrets if repr(one)[2:-1] in shown or one.hex() in shown]
