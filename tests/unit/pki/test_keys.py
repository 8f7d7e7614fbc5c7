from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from fedpalm.errors import KeyFileError
from fedpalm.pki.files import make_private_folder, write_public
from fedpalm.pki.keys import (
    new_signing_key,
    new_tls_key,
    private_key_pem,
    read_private_key,
    read_signing_key,
    read_tls_key,
    write_private_key,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home"


def put(path: Path, content: bytes, mode: int = 0o600) -> Path:
    make_private_folder(path.parent)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_keys_of_both_kinds_survive_the_disk(folder: Path):
    tls_key, signing_key = new_tls_key(), new_signing_key()
    write_private_key(folder / "tls.key", tls_key)
    write_private_key(folder / "signing.key", signing_key)
    assert read_tls_key(folder / "tls.key").public_key() == tls_key.public_key()
    assert read_signing_key(folder / "signing.key").public_key() == signing_key.public_key()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_key_file_is_0600_in_a_0700_folder_whatever_the_umask(folder: Path, umask: int):
    before = os.umask(umask)
    try:
        write_private_key(folder / "tls.key", new_tls_key())
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "tls.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["tls.key"]


def test_a_key_that_exists_is_never_replaced(folder: Path):
    first = new_tls_key()
    write_private_key(folder / "tls.key", first)
    with pytest.raises(KeyFileError, match="exists already"):
        write_private_key(folder / "tls.key", new_tls_key())
    assert read_tls_key(folder / "tls.key").public_key() == first.public_key()
    assert [path.name for path in folder.iterdir()] == ["tls.key"]


def test_a_link_in_a_keys_place_is_not_written_through(folder: Path, tmp_path: Path):
    make_private_folder(folder)
    (folder / "tls.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        write_private_key(folder / "tls.key", new_tls_key())
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_open_to_others_gets_no_key(folder: Path):
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(KeyFileError) as caught:
        write_private_key(folder / "tls.key", new_tls_key())
    assert caught.value.next_step == f"chmod 700 {folder}"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o602, 0o601, 0o644, 0o777])
def test_a_key_file_open_to_others_is_refused_with_the_chmod_to_run(folder: Path, mode: int):
    path = put(folder / "tls.key", private_key_pem(new_tls_key()), mode)
    with pytest.raises(KeyFileError) as caught:
        read_private_key(path)
    assert f"chmod 600 {path}" in caught.value.next_step


def test_a_linked_key_file_is_refused(folder: Path):
    target = put(folder / "real.key", private_key_pem(new_tls_key()))
    (folder / "tls.key").symlink_to(target)
    with pytest.raises(KeyFileError, match="symbolic link"):
        read_private_key(folder / "tls.key")


def test_a_missing_file_a_folder_and_a_pipe_are_no_key(folder: Path):
    make_private_folder(folder)
    (folder / "sub").mkdir(mode=0o700)
    os.mkfifo(folder / "pipe", mode=0o600)
    for name in ("missing", "sub", "pipe"):
        with pytest.raises(KeyFileError):
            read_private_key(folder / name)


@pytest.mark.parametrize("cut", [0, 1, 40, 120])
def test_a_damaged_key_is_refused(folder: Path, cut: int):
    path = put(folder / "tls.key", private_key_pem(new_tls_key())[:cut])
    with pytest.raises(KeyFileError, match="damaged"):
        read_private_key(path)


def test_an_encrypted_key_an_rsa_key_and_another_curve_are_refused(folder: Path):
    pem, pkcs8 = Encoding.PEM, PrivateFormat.PKCS8
    others = [
        new_tls_key().private_bytes(pem, pkcs8, BestAvailableEncryption(b"secret")),
        rsa.generate_private_key(65537, 2048).private_bytes(pem, pkcs8, NoEncryption()),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(pem, pkcs8, NoEncryption()),
    ]
    for number, content in enumerate(others):
        with pytest.raises(KeyFileError):
            read_private_key(put(folder / f"{number}.key", content))


def test_one_kind_of_key_is_not_taken_for_the_other(folder: Path):
    write_private_key(folder / "tls.key", new_tls_key())
    write_private_key(folder / "signing.key", new_signing_key())
    with pytest.raises(KeyFileError):
        read_signing_key(folder / "tls.key")
    with pytest.raises(KeyFileError):
        read_tls_key(folder / "signing.key")


def test_a_huge_file_is_not_read_as_a_key(folder: Path):
    path = put(folder / "tls.key", b"-" * 1_000_000)
    with pytest.raises(KeyFileError, match="larger"):
        read_private_key(path)


def test_no_key_shows_in_an_error(folder: Path):
    pem = private_key_pem(new_tls_key())
    path = put(folder / "tls.key", pem.replace(b"-----BEGIN", b"-----BEGUN"))
    with pytest.raises(KeyFileError) as caught:
        read_private_key(path)
    assert pem.splitlines()[1].decode() not in str(caught.value)


def test_a_certificate_file_is_replaced_whole(folder: Path):
    make_private_folder(folder)
    write_public(folder / "tls.pem", b"old")
    write_public(folder / "tls.pem", b"new")
    assert (folder / "tls.pem").read_bytes() == b"new"
    assert [path.name for path in folder.iterdir()] == ["tls.pem"]
