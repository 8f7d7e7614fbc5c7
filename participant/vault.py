"""The vault of a site: private bytes are sealed under data keys, and these under a passphrase or key file.

A sealed blob is magic (4) || vault id (16) || generation (4) || salt (32) || AES-256-GCM ciphertext, tag.
What stands before the salt, and the purpose (which file, which record), is associated data: a blob that was
swapped, or is of another vault, does not open. Generations of data keys come and go by rotation; the root
key, from which :meth:`Vault.derive` makes keys, stays.

What the vault protects: a home that is copied, lost or thrown away without its secret. What it does not: a
running process holds the keys in memory, and whoever acts as the site's user while it is unlocked reads
everything.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fedpalm.errors import VaultDamagedError, VaultError, VaultLockedError, VaultRolledBackError

from .config import Home
from .files import Buffer, write_durably
from .vault_header import MAX_HEADER_BYTES, STANDARD_COST, Argon2Cost, Header
from .vault_keys import SEALED_EXTRA, DataKeys, SlotKey, hkdf, open_sealed, seal
from .vault_secret import SecretSource

MAGIC = b"FPV1"
_PREFIX_BYTES = len(MAGIC) + 16 + 4
BLOB_EXTRA = _PREFIX_BYTES + SEALED_EXTRA
"""Bytes that a blob has more than what is sealed in it."""

_SAFE = "nothing was read from it, and nothing was changed"
_BACKUP = "put the newest backup of the whole home in place (docs/guides/SITE.md, The vault)"


def _nothing(step: str) -> None:
    """The default of ``on_step``."""


@dataclass(frozen=True)
class _Unlocked:
    header: Header
    keys: DataKeys
    slot_key: SlotKey
    stamp: tuple[int, int, int]


class Vault:
    """Unlocked when it is made; safe to use from several threads.

    Args:
        source: where the secret comes from.
        in_use: whether something is sealed in this home already; then a header that is gone is an
            error, and is not made anew.
        cost: of a passphrase that is set, and the least that a header may say.
        on_step: called with the name of each durable step just after it is done.
    Raises:
        VaultLockedError: the secret is missing, or is another one.
        VaultDamagedError: the header is gone, was altered, or asks for too weak or too costly a KDF.
        KeyFileError: others can read the file with the secret.
        ConfigError: the passphrase that is to be set is weak.
    """

    def __init__(
        self,
        home: Home,
        source: SecretSource,
        *,
        in_use: bool,
        cost: Argon2Cost = STANDARD_COST,
        on_step: Callable[[str], None] = _nothing,
    ) -> None:
        self._home, self._path, self._cost, self._on_step = home, home.vault_header, cost, on_step
        self._lock = threading.RLock()
        if not self._path.exists():
            if in_use:
                raise _gone(self._path)
            self._create(source)
        self._held = self._unlock(source)

    # --- sealing ----------------------------------------------------------------------------------

    def seal(self, purpose: str, plaintext: Buffer) -> bytes:
        """Seal under the newest data key. Only :meth:`open` with this purpose gives it back."""
        now = self._fresh()
        prefix = MAGIC + now.header.vault_id + now.header.newest.to_bytes(4, "big")
        key = now.keys.by_generation[now.header.newest]
        return prefix + seal(key, prefix + purpose.encode(), plaintext)

    def open(self, purpose: str, sealed: Buffer) -> bytes:
        """Exactly what was sealed for this purpose.

        Raises:
            VaultDamagedError: altered, cut, or sealed for another purpose or by another vault.
            VaultRolledBackError: sealed under a data key that the header no longer has, or not yet.
        """
        now, view = self._fresh(), memoryview(sealed)
        generation = sealed_generation(view)
        if generation is None:
            raise VaultDamagedError(
                f"{purpose}: not sealed by a vault", safe=_SAFE, next_step=_BACKUP
            )
        if bytes(view[4:20]) != now.header.vault_id:
            raise VaultDamagedError(
                f"{purpose}: sealed by another vault", safe=_SAFE, next_step=_BACKUP
            )
        key = now.keys.by_generation.get(generation)
        if key is None:
            raise VaultRolledBackError(
                f"{purpose}: sealed under data key {generation}; this vault has "
                f"{', '.join(map(str, now.header.generations))}: an old copy of "
                f"{'it' if generation < now.header.newest else self._path.name} was put back, or bytes "
                "were changed",
                safe=_SAFE,
                next_step=_BACKUP,
            )
        prefix = bytes(view[:_PREFIX_BYTES])
        plaintext = open_sealed(key, prefix + purpose.encode(), view[_PREFIX_BYTES:])
        if plaintext is None:
            raise VaultDamagedError(
                f"{purpose}: altered after it was sealed, or sealed as something else",
                safe=_SAFE,
                next_step=_BACKUP,
            )
        return plaintext

    def derive(self, label: str) -> bytes:
        """32 bytes that this vault alone gives for a label; the same after rotation."""
        return hkdf(self._fresh().keys.root, f"derived/{label}")

    # --- what it is -------------------------------------------------------------------------------

    @property
    def header(self) -> Header:
        return self._fresh().header

    def require_epoch(self, epoch: int) -> None:
        """Raise VaultRolledBackError if the header was written later than the one that is here."""
        found = self.header.epoch
        if found < epoch:
            raise VaultRolledBackError(
                f"{self._path}: its state {found} is an old one, the site's records know {epoch}",
                safe=_SAFE,
                next_step="put the newest copy of this file in place. If somebody put it back on purpose, "
                "they have the secret that it opened with: rotate the vault once it is mended",
            )

    # --- other keys and other locks (vault_rotation.py, vault_lock.py) ---------------------------

    def begin_generation(self) -> None:
        """Seal under a new data key from now on; the one before opens until :meth:`end_generation`.

        A rotation that was interrupted is gone on with. Other ways to unlock are dropped.
        """
        with self._changing() as now:
            keys = now.keys if len(now.header.generations) > 1 else now.keys.with_new()
            self._write(now, keys, (now.slot_key,), now.slot_key)

    def end_generation(self) -> None:
        """Forget all data keys but the newest: what is sealed under them can never be opened again."""
        with self._changing() as now:
            self._write(now, now.keys.newest_only(), (now.slot_key,), now.slot_key)

    def add_lock(self, source: SecretSource) -> SlotKey:
        """Have a second secret unlock the vault, too, until :meth:`keep_lock`.

        Raises:
            ConfigError: the passphrase is weak.
        """
        made = SlotKey.new(source.kind, source.make(), self._cost)
        with self._changing() as now:
            self._write(now, now.keys, (now.slot_key, made), now.slot_key)
        return made

    def keep_lock(self, lock: SlotKey) -> None:
        """Have this secret alone unlock the vault."""
        with self._changing() as now:
            self._write(now, now.keys, (lock,), lock)

    def reopen(self, source: SecretSource) -> None:
        """Unlock the header as it lies on the disk, as a process that starts now. Raises as that would."""
        with self._lock:
            self._held = self._unlock(source)

    # --- the header -------------------------------------------------------------------------------

    def _create(self, source: SecretSource) -> None:
        secret = source.make()
        self._on_step("vault secret made")
        with vault_lock(self._home):
            if self._path.exists():
                return
            made, keys = SlotKey.new(source.kind, secret, self._cost), DataKeys.new()
            header = Header(secrets.token_bytes(16), 1, keys.generations, ())
            header = replace(header, slots=(made.wrap(header, keys),))
            write_durably(self._path, header.to_bytes())
        self._on_step("vault header written")

    def _unlock(self, source: SecretSource) -> _Unlocked:
        header, stamp = self._read()
        slots = [slot for slot in header.slots if slot.kind == source.kind]
        if not slots:
            raise VaultLockedError(
                f"{self._path}: the vault opens with a {header.slots[0].kind}, [vault] in participant.toml "
                f"names a {source.kind}",
                safe=_SAFE,
                next_step="correct [vault] in participant.toml; another lock is set with "
                "fedpalm-participant vault passphrase, or vault key",
            )
        secret = source.read()
        for slot in slots:
            found = SlotKey.of(slot, secret)
            if found is not None:
                return self._unwrapped(header, found, stamp)
        place = getattr(source, "path", None)
        named = f"what {place} holds is" if place is not None else "this is"
        raise VaultLockedError(
            f"{named} not the {source.kind} that the vault was locked with, or {self._path} was edited",
            safe=_SAFE,
            next_step=f"put the right one into {place}" if place is not None else "type it again",
        )

    def _fresh(self) -> _Unlocked:
        """The keys as the header has them now: another process may have rotated or locked it anew."""
        with self._lock:
            if self._stamp() == self._held.stamp:
                return self._held
            header, stamp = self._read()
            held = self._held
            if header.vault_id != held.header.vault_id or header.epoch < held.header.epoch:
                raise VaultRolledBackError(
                    f"{self._path}: an old or another one was put in its place while it was in use",
                    safe=_SAFE,
                    next_step="put the newest copy of this file in place",
                )
            for slot in header.slots:
                if (slot.salt, slot.check) == (held.slot_key.slot.salt, held.slot_key.slot.check):
                    self._held = self._unwrapped(header, held.slot_key, stamp)
                    return self._held
            raise VaultLockedError(
                f"{self._path}: the vault was locked with another secret meanwhile",
                safe=_SAFE,
                next_step="start this program again",
            )

    def _unwrapped(
        self, header: Header, slot_key: SlotKey, stamp: tuple[int, int, int]
    ) -> _Unlocked:
        slot = next(one for one in header.slots if one.salt == slot_key.slot.salt)
        keys = slot_key.unwrap(header, slot)
        if keys is None:
            raise VaultDamagedError(
                f"{self._path}: edited after it was written",
                safe=_SAFE,
                next_step="put the newest copy of this file in place",
            )
        return _Unlocked(header, keys, slot_key, stamp)

    @contextmanager
    def _changing(self) -> Iterator[_Unlocked]:
        with self._lock, vault_lock(self._home):
            yield self._fresh()

    def _write(
        self, now: _Unlocked, keys: DataKeys, locks: tuple[SlotKey, ...], held: SlotKey
    ) -> None:
        header = Header(now.header.vault_id, now.header.epoch + 1, keys.generations, ())
        header = replace(header, slots=tuple(one.wrap(header, keys) for one in locks))
        write_durably(self._path, header.to_bytes())
        self._held = _Unlocked(header, keys, held, self._stamp())
        self._on_step("vault header written")

    def _read(self) -> tuple[Header, tuple[int, int, int]]:
        stamp = self._stamp()
        header = read_header(self._home, self._cost)
        return header, stamp

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            raise _gone(self._path) from None
        return status.st_ino, status.st_mtime_ns, status.st_size


def read_header(home: Home, least: Argon2Cost = STANDARD_COST) -> Header:
    """What ``vault.json`` says, without unlocking anything.

    Raises:
        VaultDamagedError: it is gone, or is not as it was written.
    """
    path = home.vault_header
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_HEADER_BYTES)
    except FileNotFoundError:
        raise _gone(path) from None
    except OSError as error:
        raise VaultError(f"{path}: {error.strerror}", safe=_SAFE) from error
    return Header.from_bytes(raw, path, least)


def sealed_generation(sealed: Buffer) -> int | None:
    """Which data key a blob says that it is sealed under; None if it is none of a vault."""
    view = memoryview(sealed)
    if view.nbytes < BLOB_EXTRA or bytes(view[: len(MAGIC)]) != MAGIC:
        return None
    return int.from_bytes(view[20:_PREFIX_BYTES], "big")


@contextmanager
def vault_lock(home: Home, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold ``vault.lock``; the kernel lets it go with the process, however that ends.

    Yields:
        whether it is held: False only without ``wait``, where somebody else holds it.
    """
    handle = os.open(home.vault_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _gone(path: object) -> VaultDamagedError:
    return VaultDamagedError(
        f"{path}: the header of the vault is gone",
        safe="what is sealed is as it was",
        next_step="put the newest copy of this file in place; without one, what is sealed cannot be opened",
    )
