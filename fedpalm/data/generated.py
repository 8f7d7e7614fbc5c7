"""Drawn images on disk: made once, whole or not there, used again only if every file is what was made."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import DataError

_MANIFEST = "manifest.json"

Draw = Callable[[], Iterator[tuple[str, npt.NDArray[np.uint8]]]]
"""Gives (file name within the set, (H, W) grey pixels)."""


def stream(purpose: int, *key: int) -> np.random.Generator:
    """Randomness of its own for every drawn thing: Philox keyed by what it is, whatever else is drawn."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([purpose, *key])))


def generated_set(target: Path, wanted: set[str], draw: Draw, what: str) -> None:
    """Have the files ``wanted`` in the folder ``target``, drawn now if they are not there already.

    Args:
        draw: yields exactly the wanted files, as PNG.
        what: for the message, "synthetic palms".
    Raises:
        DataError: the folder cannot be written.
    """
    try:
        if not _intact(target, wanted):
            _generate(target, draw)
    except OSError as error:
        raise DataError(
            f"{target.parent}: {what} cannot be written ({error})",
            safe="no half-made set is ever read",
            next_step="free some space or set FEDPALM_CACHE to a folder you can write",
        ) from error


def _generate(target: Path, draw: Draw) -> None:
    """Write a whole set beside the target, then rename: a reader sees all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        hashes: dict[str, str] = {}
        for name, pixels in draw():
            file = scratch / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
            hashes[name] = _digest(file)
        (scratch / _MANIFEST).write_text(json.dumps(hashes), encoding="utf-8")
        scratch.chmod(0o755)
        if target.exists() and not _intact(target, set(hashes)):
            shutil.rmtree(target)
        try:
            scratch.rename(target)
        except OSError:
            # Another process finished the same set first; its files are the same as ours.
            if not _intact(target, set(hashes)):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _intact(target: Path, wanted: set[str]) -> bool:
    """True if exactly the wanted files are there and hash to their manifest.

    Nothing is fsynced when a set is made: what a crash spoils is found here and made again.
    """
    try:
        hashes = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
        return set(hashes) == wanted and all(
            _digest(target / name) == digest for name, digest in hashes.items()
        )
    except (OSError, ValueError):
        return False
