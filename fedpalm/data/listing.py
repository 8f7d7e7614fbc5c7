"""What lies in a folder: visible entries by name, and which of them are images."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..errors import DataError
from .records import UNTOUCHED

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})


def entries(folder: Path) -> list[Path]:
    """Visible entries of a folder by name.

    Raises:
        DataError: it cannot be listed, an entry cannot be looked at, or has a name that is not UTF-8, which
            nothing that is ordered by names can hold.
    """
    try:
        found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror})",
            safe=UNTOUCHED,
            next_step="check that it is a folder and that you may read it",
        ) from error
    for one in found:
        try:
            one.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{folder}: a name in it is not UTF-8: {os.fsencode(one.name)!r}",
                safe=UNTOUCHED,
                next_step="rename that file or folder",
            ) from error
        status(one)
    return found


def status(path: Path) -> os.stat_result | None:
    """What lies at a path, links followed; None if nothing does.

    Raises:
        DataError: it cannot be looked at: the name is too long, or a folder may not be entered.
    """
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise DataError(
            f"{str(path)!r}: cannot be looked at ({error.strerror})",
            safe=UNTOUCHED,
            next_step="check the name, and that you may enter every folder on the way",
        ) from error


def unusable_file(path: Path) -> str:
    """Why what a list names is no file; empty if it is one."""
    try:
        found = status(path)
    except DataError as error:
        return error.what
    return "" if found is not None and stat.S_ISREG(found.st_mode) else "no such file"


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
