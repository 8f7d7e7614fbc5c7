"""Another way to unlock the vault: a new passphrase, or a new key file.

The header has two locks while this goes on, and ``participant.toml`` (or the key file's name) decides, in
one step, which of them is used; then the old one goes. So whatever a crash leaves opens as the settings
say, and the same command run again finishes. What was sealed is not touched: a copy of the old header still
opens with the old secret, and gives the data keys until a rotation. Put in place of the new one, it is
refused: the records name the newest epoch.
"""

from __future__ import annotations

from pathlib import Path

from .config import VaultSettings
from .files import erase, sync_folder, write_durably
from .store import SiteStore
from .vault_secret import KeyFile, SecretSource, source_of


def lock_with_passphrase(store: SiteStore, file: str | None) -> None:
    """Lock with a passphrase that a person chooses, or that a file has. No agent may run.

    Raises:
        VaultError, KeyFileError: the vault does not open as it is locked now.
        ConfigError: the passphrase is weak.
    """
    home = store.home
    said = {"passphrase": "ask"} if file is None else {"passphrase_file": file}
    settings = VaultSettings.model_validate(said)
    _relock(store, source_of(home, settings, store.ask), settings)


def lock_with_key(store: SiteStore, file: str | None) -> Path:
    """Lock with a new key file, or with one of 32 bytes that is there; returns its path. No agent may run.

    Args:
        file: relative to the home. Left out, a new file takes the place of the present one, or is
            ``vault.key`` in the home.
    Raises:
        VaultError, KeyFileError: the vault does not open as it is locked now, or the file is no key.
    """
    home, now = store.home, store.home.load().vault
    present = source_of(home, now, store.ask)
    settings = None if file is None else VaultSettings(key_file=file)
    wanted = source_of(home, settings, store.ask)
    assert isinstance(wanted, KeyFile)
    if isinstance(present, KeyFile) and (file is None or wanted == present):
        return _exchange(store, present.path)
    if file is None and all(one.kind != "key-file" for one in store.vault.header.slots):
        erase(wanted.path)  # of an earlier lock, should a crash have left it
    _relock(store, wanted, settings)
    return wanted.path


def _relock(store: SiteStore, source: SecretSource, settings: VaultSettings | None) -> None:
    home, vault = store.home, store.vault
    before = source_of(home, home.load().vault, store.ask)
    config = home.with_vault(settings)
    lock = vault.add_lock(source)
    write_durably(home.config, config)
    store.on_step("settings written")
    vault.keep_lock(lock)
    with store.transaction() as db:
        store.items.touch(db)
    if isinstance(before, KeyFile) and before != source:
        erase(before.path)


def _exchange(store: SiteStore, path: Path) -> Path:
    """A new key file in the place of the present one."""
    vault = store.vault
    new = KeyFile(path.with_name(f"{path.name}.new"))
    lock = vault.add_lock(new)
    new.path.replace(path)
    sync_folder(path.parent)
    store.on_step("key file replaced")
    vault.keep_lock(lock)
    with store.transaction() as db:
        store.items.touch(db)
    return path
