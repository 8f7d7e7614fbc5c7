"""Another way to unlock the vault: a new passphrase, or a new key file.

The header has two locks while this goes on, and ``participant.toml`` (or the key file's name) decides, in
one step, which of them is used; then the old one goes. So whatever a crash leaves opens as the settings
say, and the same command run again finishes. What was sealed is not touched: a copy of the old header still
opens with the old secret, and gives the data keys until a rotation. Put in place of the new one, it is
refused: the records name the newest epoch.

One file has many names: relative, through a linked folder, by a hard link. A key file is erased only if the
secret that takes its place lies in another file, and has opened the header as it lies on the disk.
"""

from __future__ import annotations

import os
from pathlib import Path

from .config import VaultSettings
from .files import erase, sync_folder, write_durably
from .store import SiteStore
from .vault_secret import (
    AskedPassphrase,
    ChosenPassphrase,
    KeyFile,
    PassphraseFile,
    SecretSource,
    source_of,
)


def lock_with_passphrase(store: SiteStore, file: str | None) -> None:
    """Lock with a passphrase that a person chooses, or that a file has. No agent may run.

    Raises:
        VaultError, KeyFileError: the vault does not open as it is locked now.
        ConfigError: the passphrase is weak.
    """
    _ = store.vault  # whoever has to type the present secret does so before the new one
    said = {"passphrase": "ask"} if file is None else {"passphrase_file": file}
    settings = VaultSettings.model_validate(said)
    source = source_of(store.home, settings, store.ask)
    if isinstance(source, AskedPassphrase):
        source = ChosenPassphrase(source.make())
    _relock(store, source, settings)


def lock_with_key(store: SiteStore, file: str | None) -> Path:
    """Lock with a new key file, or with one of 32 bytes that is there; returns its path. No agent may run.

    Args:
        file: relative to the home. Left out, a new file takes the place of the present one, or is
            ``vault.key`` in the home. Any name of the present one means the present one.
    Raises:
        VaultError, KeyFileError: the vault does not open as it is locked now, or the file is no key.
    """
    vault = store.vault  # with the first vault its key file is made, which can then be compared
    home, now = store.home, store.home.load().vault
    present = source_of(home, now, store.ask)
    settings = None if file is None else VaultSettings(key_file=file)
    wanted = source_of(home, settings, store.ask)
    assert isinstance(wanted, KeyFile)
    same = _same_file(present, wanted)
    if isinstance(present, KeyFile) and (file is None or same):
        return _exchange(store, present.path)
    if file is None and not same and all(one.kind != "key-file" for one in vault.header.slots):
        erase(wanted.path)  # of an earlier lock, should a crash have left it
    _relock(store, wanted, settings)
    return wanted.path


def _relock(store: SiteStore, source: SecretSource, settings: VaultSettings | None) -> None:
    home, vault = store.home, store.vault
    before = source_of(home, home.load().vault, store.ask)
    config = home.with_vault(settings)
    lock = vault.add_lock(source)
    vault.reopen(source)
    write_durably(home.config, config)
    store.on_step("settings written")
    vault.keep_lock(lock)
    with store.transaction() as db:
        store.items.touch(db)
    if isinstance(before, KeyFile) and not _same_file(before, source):
        vault.reopen(source)
        erase(before.path)


def _exchange(store: SiteStore, path: Path) -> Path:
    """A new key file in the place of the present one."""
    vault = store.vault
    new = KeyFile(path.with_name(f"{path.name}.new"))
    lock = vault.add_lock(new)
    vault.reopen(new)
    new.path.replace(path)
    sync_folder(path.parent)
    store.on_step("key file replaced")
    vault.keep_lock(lock)
    with store.transaction() as db:
        store.items.touch(db)
    return path


def _same_file(one: SecretSource, other: SecretSource) -> bool:
    """Whether both are read from one file, whatever it is called."""
    paths = [each.path for each in (one, other) if isinstance(each, KeyFile | PassphraseFile)]
    if len(paths) < 2:
        return False
    try:
        return paths[0].samefile(paths[1])
    except FileNotFoundError:  # what is not there is compared by where it would be
        return os.path.realpath(paths[0]) == os.path.realpath(paths[1])
