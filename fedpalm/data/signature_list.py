"""``signature-list``: a UTF-8 text file that names signatures, one a line, its fields separated by tabs.

``path<TAB>writer<TAB>genuine|skilled[<TAB>text]``: a path is relative to the file's folder, or absolute;
``text`` says which of the writer's names it is, where several are known. Both are printable text, so that
whoever is read can be listed again and enrolled. Blank lines, and lines that begin with ``#``, are left
out. :func:`fedpalm.data.splits.write_signature_list` writes one.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from .listing import IMAGE_SUFFIXES, status, unusable_file
from .readers import list_text
from .records import problems_error
from .signatures import SignatureRecord

LIST_LINE = "`path<TAB>writer<TAB>genuine|skilled[<TAB>text]`"


def read_signature_list(path: Path) -> list[SignatureRecord]:
    """The signatures that a list names, in its order; each file once, whatever links lead to it.

    Raises:
        DataError: not such a list, or empty; one message for all lines that cannot be used.
    """
    base = path.resolve().parent
    records: list[SignatureRecord] = []
    problems: list[str] = []
    seen: dict[str | tuple[int, int], int] = {}
    for number, line in enumerate(list_text(path, LIST_LINE).split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        if not 3 <= len(fields) <= 4 or not all(fields):
            problems.append(f"line {number}: {line.strip()[:80]!r} is not {LIST_LINE}")
            continue
        name, writer, kind = fields[:3]
        text = fields[3] if len(fields) == 4 else None
        if "\0" in name or len(name.splitlines()) != 1:
            problems.append(f"line {number}: {name!r}: a path cannot hold this")
            continue
        if odd := [one for one in (writer, text or "") if not one.isprintable()]:
            problems.append(f"line {number}: {odd[0][:80]!r} is not printable text")
            continue
        # normpath, not resolve: a link keeps the name that the list gives it.
        image = Path(os.path.normpath(base / name))
        keys: list[str | tuple[int, int]] = [image.as_posix(), *_inode(image)]
        if before := [seen[key] for key in keys if key in seen]:
            problems.append(f"line {number}: {name!r} is listed already, on line {before[0]}")
        elif why := unusable_file(image):
            problems.append(f"line {number}: {name!r}: {why}")
        elif image.suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(f"line {number}: {name!r} is not a png, jpg, bmp or tif file")
        elif kind == "genuine":
            records.append(SignatureRecord(image, writer, text=text, author=writer))
        elif kind == "skilled":
            records.append(SignatureRecord(image, writer, kind="skilled", text=text))
        else:
            problems.append(f"line {number}: {kind[:80]!r} is neither genuine nor skilled")
        for key in keys:
            seen.setdefault(key, number)
    if problems:
        raise problems_error(
            f"{path}: the list cannot be used",
            problems,
            "correct these lines; paths are relative to the list file, fields are separated by tabs",
        )
    if not records:
        raise DataError(f"{path}: the list names no signature", next_step=f"add {LIST_LINE} lines")
    return records


def _inode(image: Path) -> list[tuple[int, int]]:
    """Which file it is, by whatever name; nothing if there is none, or the file system does not say."""
    try:
        found = status(image)
    except DataError:
        return []  # told as a problem of its line
    return [(found.st_dev, found.st_ino)] if found is not None and found.st_ino else []
