"""Files of a home folder: secrets that nobody else can read, certificates replaced atomically."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import KeyFileError

MAX_FILE_BYTES = 64 * 1024


def make_private_folder(folder: Path) -> None:
    """Create ``folder`` with mode 0700, or check that it already is closed to group and others.

    Raises:
        KeyFileError: it is not a folder, is a link, or is open to others; names the chmod to run.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise KeyFileError(f"{folder}: cannot be created: {error.strerror}") from error
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise KeyFileError(f"{folder}: not a folder")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise KeyFileError(
            f"{folder}: open to others (mode {stat.S_IMODE(status.st_mode):04o})",
            safe="no key was written",
            next_step=f"chmod 700 {folder}",
        )


def write_secret_once(path: Path, content: bytes, what: str = "key") -> None:
    """Write a 0600 file that did not exist, whole and on disk before it has its name.

    The bytes go to an O_EXCL file beside it, which is then hard-linked: unlike a rename, a link
    never replaces a key that is there, and a crash never leaves half of one under its name.

    Args:
        what: what the file is, for the errors.
    Raises:
        KeyFileError: the file exists, or the folder is missing, full or not writable.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(partial, content, 0o600)
        try:
            os.link(partial, path, follow_symlinks=False)
        finally:
            partial.unlink()
        _sync_folder(path.parent)
    except FileExistsError:
        raise KeyFileError(
            f"{path}: exists already", safe=f"the {what} that is there was left as it is"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from error


def read_secret(path: Path, what: str = "private key", *, from_root: bool = False) -> bytes:
    """Read a file that its owner alone can read.

    Args:
        what: what the file is, for the errors.
        from_root: take a file of root's, too, that the group root can read: so systemd hands a service
            its credentials (mode 0440, and an ACL for the service's user).
    Raises:
        KeyFileError: missing, a link, not a plain file, too large, or open to group or others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else error.strerror
        raise KeyFileError(f"{path}: {reason}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path}: not a plain file")
        mode = stat.S_IMODE(status.st_mode)
        shared = 0o037 if from_root and status.st_uid == status.st_gid == 0 else 0o077
        if mode & shared:
            raise KeyFileError(
                f"{path}: others can read or change this {what} (mode {mode:04o})",
                safe=f"the {what} was not used",
                next_step=f"chmod 600 {path}, and replace the {what} if others have had access",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path}: larger than {MAX_FILE_BYTES} bytes, not a key")
    return content


def write_public(path: Path, content: bytes) -> None:
    """Write or replace a file atomically (tmp, fsync, rename, fsync of the folder).

    Raises:
        KeyFileError: the folder is missing, full or not writable.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            _write_new(partial, content, 0o644)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from error


def read_public(path: Path) -> bytes:
    """Read a certificate file.

    Raises:
        KeyFileError: missing, unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path}: larger than {MAX_FILE_BYTES} bytes, not a certificate chain")
    return content


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for oneself while several of its files change together, or must be read together.

    The kernel lets the lock go with the process, however that ends.

    Raises:
        KeyFileError: the folder is missing or not readable.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def take_place(path: Path, successor: Path) -> None:
    """Give ``successor`` the name ``path``; what was there is gone. Raises KeyFileError."""
    try:
        successor.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be replaced: {error.strerror}") from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
