"""What lies in a folder: visible entries by name, and which of them are images."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .records import UNTOUCHED

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})


def entries(folder: Path) -> list[Path]:
    """Visible entries of a folder by name. Raises DataError if it cannot be listed."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror})",
            safe=UNTOUCHED,
            next_step="check that it is a folder and that you may read it",
        ) from error


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
