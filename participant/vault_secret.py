"""Where the secret comes from that unlocks the vault: a key file, a file with a passphrase, or a person.

A passphrase is never an argument or an environment value: both can be read by others and end up in logs.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedpalm.errors import ConfigError, KeyFileError, VaultLockedError
from fedpalm.pki.files import read_secret, write_secret_once

from .config import Home, VaultSettings
from .vault_header import KEY_BYTES, SlotKind

LEAST_CHARACTERS = 12
LEAST_DIFFERENT = 5

Ask = Callable[[str], str]
"""Shows a prompt on a terminal and returns what was typed, unseen."""


class SecretSource(Protocol):
    """A secret that is there, or is made with the vault."""

    @property
    def kind(self) -> SlotKind: ...

    def read(self) -> bytes:
        """Raises KeyFileError, VaultLockedError: it is not there, or others can read it."""

    def make(self) -> bytes:
        """For a new vault. Raises ConfigError: the passphrase is weak."""


@dataclass(frozen=True)
class KeyFile:
    """32 random bytes in a file that its owner alone can read."""

    path: Path
    kind: SlotKind = "key-file"

    def read(self) -> bytes:
        if not self.path.exists():
            raise VaultLockedError(
                f"{self.path}: the vault's key file is not there",
                safe="what is sealed is as it was",
                next_step="put the key file back: mount the medium that it lies on, or take its copy. "
                "Without it, what is sealed cannot be opened",
            )
        content = read_secret(self.path, "vault key")
        if len(content) != KEY_BYTES:
            raise KeyFileError(f"{self.path}: not the key file of a vault ({KEY_BYTES} bytes)")
        return content

    def make(self) -> bytes:
        """The file that is there, or a new one: a crash may have left one whose vault was not made."""
        if not self.path.exists():
            try:
                write_secret_once(self.path, secrets.token_bytes(KEY_BYTES), "vault key")
            except KeyFileError:
                if not self.path.exists():
                    raise
        return self.read()


@dataclass(frozen=True)
class PassphraseFile:
    """The passphrase is a file's one line: for an agent that nobody starts by hand."""

    path: Path
    kind: SlotKind = "passphrase"

    def read(self) -> bytes:
        if not self.path.exists():
            raise VaultLockedError(
                f"{self.path}: the file with the vault's passphrase is not there",
                safe="what is sealed is as it was",
                next_step="put it back, or name the right one: participant.toml, [vault] passphrase_file",
            )
        content = read_secret(self.path, "passphrase", from_root=True)
        try:
            text = content.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise KeyFileError(f"{self.path}: not UTF-8 text") from None
        return _encoded(text)

    def make(self) -> bytes:
        return strong(self.read())


@dataclass(frozen=True)
class AskedPassphrase:
    """A person types it."""

    ask: Ask
    kind: SlotKind = "passphrase"

    def read(self) -> bytes:
        return _encoded(self.ask("Passphrase of the vault"))

    def make(self) -> bytes:
        chosen = strong(_encoded(self.ask("New passphrase of the vault")))
        if _encoded(self.ask("The same again")) != chosen:
            raise ConfigError("the two passphrases differ", safe="nothing was changed")
        return chosen


@dataclass(frozen=True)
class ChosenPassphrase:
    """One that a person has just set: nobody is asked for it again to try it."""

    secret: bytes = field(repr=False)
    kind: SlotKind = "passphrase"

    def read(self) -> bytes:
        return self.secret

    def make(self) -> bytes:
        return self.secret


def source_of(home: Home, settings: VaultSettings | None, ask: Ask) -> SecretSource:
    """What ``[vault]`` in ``participant.toml`` names; ``vault.key`` in the home where it names nothing."""
    if settings is not None and settings.passphrase is not None:
        return AskedPassphrase(ask)
    if settings is not None and settings.passphrase_file is not None:
        return PassphraseFile(_path(home, settings.passphrase_file))
    if settings is not None and settings.key_file is not None:
        return KeyFile(_path(home, settings.key_file))
    return KeyFile(home.vault_key)


def no_terminal(prompt: str) -> str:
    """The ``ask`` of a process that nobody sits at."""
    raise VaultLockedError(
        "the vault opens with a passphrase, and there is nobody to ask",
        safe="nothing was unlocked",
        next_step="run it on a terminal, or name a file in participant.toml: "
        '[vault] passphrase_file = "PATH"',
    )


def strong(passphrase: bytes) -> bytes:
    """The passphrase. Raises ConfigError: it is short, or hardly varied."""
    text = passphrase.decode()
    if len(text) < LEAST_CHARACTERS or len(set(text)) < LEAST_DIFFERENT:
        raise ConfigError(
            f"the passphrase is weak: it needs {LEAST_CHARACTERS} characters, {LEAST_DIFFERENT} of them "
            "different",
            safe="nothing was changed",
            next_step="take six words that a die has chosen from a list, or a password manager's",
        )
    return passphrase


def _encoded(text: str) -> bytes:
    """One byte string however a keyboard composes its letters (NFC)."""
    return unicodedata.normalize("NFC", text).encode()


def _path(home: Home, said: str) -> Path:
    return home.path / Path(said).expanduser()
