"""Sealing and opening, and everything that may be wrong with a header, a secret or a sealed blob."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.canonical import canonical_json
from fedpalm.errors import (
    KeyFileError,
    VaultDamagedError,
    VaultError,
    VaultLockedError,
    VaultRolledBackError,
)
from participant.vault import BLOB_EXTRA, Vault, read_header
from participant.vault_header import MOST_COST, STANDARD_COST, Argon2Cost
from participant.vault_secret import AskedPassphrase, KeyFile
from tests.support.vault import CHEAP, PASSPHRASE, flip, keep, make_home


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path / "north")


def by_key(home, **options):
    return Vault(home, KeyFile(home.vault_key), **{"in_use": False, **options})


def by_passphrase(home, typed=PASSPHRASE, **options):
    options = {"in_use": False, "cost": CHEAP, **options}
    return Vault(home, AskedPassphrase(lambda prompt: typed), **options)


def rewrite(home, change):
    """Edit the header as somebody would who knows its format, check sum included."""
    values = json.loads(home.vault_header.read_bytes())
    del values["sha256"]
    change(values)
    values["sha256"] = hashlib.sha256(canonical_json(values)).hexdigest()
    home.vault_header.write_bytes(canonical_json(values))


@pytest.fixture(scope="module")
def vaults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vaults")
    return [by_key(make_home(folder / name)) for name in ("one", "other")]


@settings(max_examples=40)
@given(st.text(max_size=80), st.binary(max_size=2000))
def test_what_was_sealed_comes_back_and_only_for_its_purpose_and_from_its_vault(
    vaults, purpose, data
):
    vault, other = vaults
    sealed = vault.seal(purpose, data)
    assert vault.open(purpose, sealed) == data
    assert len(sealed) == len(data) + BLOB_EXTRA
    assert len(data) < 8 or data not in sealed
    with pytest.raises(VaultDamagedError, match="sealed as something else"):
        vault.open(purpose + "/", sealed)
    with pytest.raises(VaultDamagedError, match="another vault"):
        other.open(purpose, sealed)


def test_the_same_bytes_are_sealed_differently_every_time(vaults):
    assert len({vaults[0].seal("p", b"x") for _ in range(50)}) == 50


@settings(max_examples=200)
@given(st.data())
def test_no_changed_or_cut_blob_opens(vaults, data):
    vault = vaults[0]
    sealed = bytearray(vault.seal("p", b"private" * 20))
    if data.draw(st.booleans()):
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del sealed[data.draw(st.integers(0, len(sealed) - 1)) :]
    with pytest.raises(VaultError):
        vault.open("p", sealed)


def test_every_single_bit_of_a_blob_counts(vaults):
    sealed = vaults[0].seal("p", b"private")
    for at in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(VaultError):
            vaults[0].open("p", changed)


def test_a_label_gives_one_key_after_rotation_and_in_every_process(home):
    vault = by_key(home)
    before = vault.derive("label")
    assert len(before) == 32 and before != vault.derive("other")
    vault.begin_generation()
    vault.end_generation()
    assert vault.derive("label") == by_key(home).derive("label") == before


def test_the_key_file_is_made_once_and_for_its_owner_alone(home):
    sealed = by_key(home).seal("p", b"x")
    assert home.vault_key.stat().st_mode & 0o777 == 0o600
    assert len(home.vault_key.read_bytes()) == 32
    assert by_key(home).open("p", sealed) == b"x"
    home.vault_key.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        by_key(home)


def test_a_wrong_and_a_missing_key_file_are_told_apart(home):
    by_key(home)
    flip(home.vault_key, 0)
    with pytest.raises(VaultLockedError, match="not the key-file"):
        by_key(home)
    home.vault_key.write_bytes(b"short")
    with pytest.raises(KeyFileError, match="not the key file of a vault"):
        by_key(home)
    home.vault_key.unlink()
    with pytest.raises(VaultLockedError, match="is not there"):
        by_key(home)
    assert not home.vault_key.exists()


def test_a_passphrase_opens_and_another_one_does_not(home):
    sealed = by_passphrase(home).seal("p", b"x")
    assert not home.vault_key.exists()
    assert by_passphrase(home).open("p", sealed) == b"x"
    for wrong in (PASSPHRASE + " ", PASSPHRASE.upper(), ""):
        with pytest.raises(VaultLockedError, match="not the passphrase"):
            by_passphrase(home, wrong)
    with pytest.raises(VaultLockedError, match="opens with a passphrase"):
        by_key(home, cost=CHEAP)
    assert not home.vault_key.exists()


def test_a_header_that_is_gone_is_not_made_anew(home):
    by_key(home)
    home.vault_header.unlink()
    with pytest.raises(VaultDamagedError, match="is gone"):
        by_key(home, in_use=True)
    assert not home.vault_header.exists()


def test_no_byte_of_the_header_can_be_flipped(home):
    by_passphrase(home)
    for at in range(home.vault_header.stat().st_size):
        flip(home.vault_header, at, at % 7)
        with pytest.raises(VaultDamagedError):
            by_passphrase(home)
        flip(home.vault_header, at, at % 7)
    by_passphrase(home)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[" * 60_000, b"null", b'{"format":2}', b"\xff"], ids=len
)
def test_what_is_no_header_is_refused(home, raw):
    home.vault_header.write_bytes(raw)
    with pytest.raises(VaultDamagedError, match="not the header of a vault"):
        by_key(home)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(epoch=99),
        lambda values: values.update(generations=[1, 2]),
        lambda values: values.update(generations=[2]),
        lambda values: values.update(vault="00" * 16),
        lambda values: values["slots"][0].update(wrapped="00" * 112),
    ],
    ids=["epoch", "more generations", "other generation", "vault id", "wrapped keys"],
)
def test_a_header_that_was_edited_with_a_right_check_sum_is_refused(home, change):
    by_passphrase(home)
    rewrite(home, change)
    with pytest.raises(VaultDamagedError, match="edited after it was written"):
        by_passphrase(home)


@pytest.mark.parametrize(
    "cost",
    [
        {"memory_kib": STANDARD_COST.memory_kib - 1},
        {"memory_kib": 8},
        {"passes": 1},
        {"passes": 0},
        {"lanes": 1},
        {"memory_kib": MOST_COST.memory_kib + 1},
        {"memory_kib": 2**40},
        {"passes": 2**31},
        {"lanes": 1000},
        {"passes": -1},
    ],
    ids=str,
)
def test_kdf_parameters_beyond_their_bounds_are_refused_before_they_are_used(
    home, cost, monkeypatch
):
    by_passphrase(home)
    standard = {"memory_kib": STANDARD_COST.memory_kib, "passes": 3, "lanes": 4}
    rewrite(home, lambda values: values["slots"][0].update(argon2id=standard | cost))
    monkeypatch.setattr("participant.vault_keys.Argon2id", None)
    with pytest.raises(VaultDamagedError, match="somebody edited it"):
        by_passphrase(home, cost=STANDARD_COST)


def test_kdf_parameters_that_were_edited_within_the_bounds_give_another_key(home):
    by_passphrase(home)
    rewrite(home, lambda values: values["slots"][0]["argon2id"].update(passes=2))
    with pytest.raises(VaultLockedError, match="was edited"):
        by_passphrase(home)


def test_the_programs_own_cost_is_the_second_recommended_option_of_rfc_9106(home):
    vault = Vault(home, AskedPassphrase(lambda prompt: PASSPHRASE), in_use=False)
    (slot,) = vault.header.slots
    assert slot.cost == STANDARD_COST == Argon2Cost(memory_kib=65536, passes=3, lanes=4)
    sealed = vault.seal("p", b"x")
    again = Vault(home, AskedPassphrase(lambda prompt: PASSPHRASE), in_use=True)
    assert again.open("p", sealed) == b"x"


def test_a_cheap_header_of_a_test_is_not_opened_by_the_program(home):
    by_passphrase(home)
    with pytest.raises(VaultDamagedError, match="somebody edited it"):
        by_passphrase(home, cost=STANDARD_COST)
    with pytest.raises(VaultDamagedError):
        read_header(home)


def test_both_data_keys_open_while_a_rotation_goes_on_and_the_old_one_never_again(home):
    vault = by_key(home)
    old = vault.seal("p", b"old")
    vault.begin_generation()
    new = vault.seal("p", b"new")
    assert (vault.open("p", old), vault.open("p", new)) == (b"old", b"new")
    vault.begin_generation()
    assert vault.header.generations == (1, 2), "a rotation that was interrupted is gone on with"
    vault.end_generation()
    assert vault.open("p", new) == b"new"
    with pytest.raises(VaultRolledBackError, match="under data key 1"):
        vault.open("p", old)


def test_another_process_learns_of_a_rotation_before_it_seals_or_opens(home):
    one, other = by_key(home), by_key(home)
    one.begin_generation()
    one.end_generation()
    assert one.open("p", other.seal("p", b"x")) == b"x"
    assert other.open("p", one.seal("p", b"y")) == b"y"
    assert other.header.generations == (2,)


def test_another_process_does_not_go_on_under_a_lock_that_was_changed(home):
    one, other = by_key(home), by_key(home)
    new = KeyFile(home.path / "new.key")
    one.keep_lock(one.add_lock(new))
    with pytest.raises(VaultLockedError, match="another secret meanwhile"):
        other.seal("p", b"x")
    assert Vault(home, new, in_use=True).header == one.header


def test_a_header_that_is_put_back_while_the_vault_is_in_use_is_noticed(home):
    vault = by_key(home)
    put_back = keep(home, "vault.json")
    vault.begin_generation()
    put_back()
    with pytest.raises(VaultRolledBackError, match="while it was in use"):
        vault.seal("p", b"x")


def test_a_change_of_lock_leaves_two_ways_in_until_it_is_done(home):
    vault = by_key(home)
    sealed = vault.seal("p", b"x")
    lock = vault.add_lock(AskedPassphrase(lambda prompt: PASSPHRASE))
    assert len(vault.header.slots) == 2
    assert by_key(home).open("p", sealed) == b"x"
    vault.keep_lock(lock)
    assert len(vault.header.slots) == 1
    with pytest.raises(VaultLockedError, match="opens with a passphrase"):
        by_key(home)
    opened = Vault(home, AskedPassphrase(lambda prompt: PASSPHRASE), in_use=True)
    assert opened.open("p", sealed) == b"x"
