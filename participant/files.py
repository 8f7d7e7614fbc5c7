"""Files that survive a crash: whole or absent, readable by the site's own user alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from fedpalm.errors import IntegrityError

Buffer = bytes | bytearray | memoryview


def private_folder(path: Path) -> Path:
    """Make a folder of mode 0700 (also tighten one that exists) and return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def sync_folder(path: Path) -> None:
    """Make renames and unlinks in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: Buffer) -> None:
    """Write ``path`` as tmp, fsync, rename, fsync of the folder; mode 0600."""
    write_with(path, lambda handle: _write_all(handle, data))


def write_with(path: Path, write: Callable[[int], None]) -> None:
    """As :func:`write_durably`, the content written by ``write`` to a file descriptor."""
    tmp = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            write(handle)
            os.fsync(handle)
        finally:
            os.close(handle)
        tmp.rename(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def erase(path: Path) -> None:
    """Overwrite a small secret file with zeros, then unlink it; absent is fine.

    Overwriting is best effort: a copy-on-write file system or an SSD may keep the old blocks.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        _write_all(handle, bytes(os.fstat(handle).st_size))
        os.fsync(handle)
    finally:
        os.close(handle)
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def check_owner_only(path: Path) -> None:
    """Raise IntegrityError if group or others have any right on ``path``."""
    if path.stat().st_mode & 0o077:
        raise IntegrityError(
            f"{path} can be read by other users", next_step=f"run: chmod go-rwx {path}"
        )


def _write_all(handle: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(handle, view) :]
