"""From a folder or a list file to records. Structure is checked here, pixels by ``preflight``.

Layouts: ``folder`` (one sub-folder an identity), ``list`` (a text file of ``path label`` lines, as
palmprint experiments commonly keep; ``person=NAME`` behind a label says whose palm it is),
``cross-media-signatures`` (``bin/<writer>/<1..40>.png``) and the palmprint sets of ``palmprint_sets``.
Every reader returns records in sorted order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote

from ..errors import DataError
from .listing import IMAGE_SUFFIXES, entries, is_image, status, unusable_file
from .palmprint_sets import PalmprintSet, looks_like, read_set
from .records import (
    PERSON_FIELD,
    UNTOUCHED,
    ImageRecord,
    by_identity,
    order_key,
    problems_error,
    seeded_order,
)

SourceKind = Literal["auto", "folder", "list", "cross-media-signatures", PalmprintSet]

MAX_LIST_BYTES = 64 * 1024 * 1024
_KINDS: tuple[str, ...] = get_args(SourceKind)
_SIGNATURES_PER_MEDIUM = 10
_SIGNATURES = 40


def open_source(
    source: str | Path,
    kind: SourceKind = "auto",
    cap_per_identity: int | None = None,
    seed: int = 0,
) -> list[ImageRecord]:
    """List the images of a source.

    Args:
        source: folder or list file.
        kind: layout; ``auto`` takes a file for a list, a folder with ``bin/<writer>/<n>.png`` for
            cross-media signatures, one with the names of a palmprint set for that set, and any
            other folder for one sub-folder an identity.
        cap_per_identity: keep at most so many images of each identity (>= 2), chosen by a keyed hash
            of identity and file name under ``seed``; spread over media or sessions first.
    Raises:
        DataError: the source is missing, of another kind, empty or malformed; a listed file is
            missing; an identity has one image only. Says what to do next.
    """
    path = Path(source).expanduser()
    if cap_per_identity is not None and cap_per_identity < 2:
        raise DataError(
            f"at most {cap_per_identity} images of an identity leave nothing to compare",
            next_step="cap at 2 or more",
        )
    if status(path) is None:
        raise DataError(f"{path}: no such file or folder", next_step="check the path")
    chosen = _detect(path) if kind == "auto" else kind
    if chosen == "list":
        records = _read_list(path)
    elif chosen == "folder":
        records = _read_folder(path, "one sub-folder for each identity")
    elif chosen == "cross-media-signatures":
        records = _read_signatures(path)
    elif chosen == "auto" or chosen not in _KINDS:
        raise DataError(
            f"{chosen!r} is not a kind of source",
            next_step=f"use one of {', '.join(_KINDS)}",
        )
    else:
        records = read_set(path, chosen)
    _require_pairs(path, records)
    if cap_per_identity is None:
        return records
    occasion = _medium if chosen == "cross-media-signatures" else _session
    kept: list[ImageRecord] = []
    for group in by_identity(records).values():
        ordered = seeded_order("cap", seed, group)
        if len({occasion(record) for record in group}) > 1:
            ordered = _spread(ordered, occasion, seed)
        kept += by_identity(ordered[:cap_per_identity])[group[0].identity]
    return kept


def _detect(path: Path) -> SourceKind:
    if path.is_file():
        return "list"
    writers = path / "bin"
    if writers.is_dir():
        for writer in entries(writers):
            if writer.is_dir() and any(_signature_index(p) for p in entries(writer)):
                return "cross-media-signatures"
    return looks_like(path) or "folder"


def _read_folder(path: Path, expected: str) -> list[ImageRecord]:
    found = entries(path)
    if not found:
        raise DataError(f"{path}: the folder is empty", next_step=f"it must hold {expected}")
    folders = [entry for entry in found if entry.is_dir()]
    if not folders:
        loose = sum(is_image(entry) for entry in found)
        raise DataError(
            f"{path}: {loose} images lie directly in the folder"
            if loose
            else f"{path}: the folder holds neither sub-folders nor images",
            safe=UNTOUCHED,
            next_step=f"make {expected}, or name the identities in a `path label` list file",
        )
    records: list[ImageRecord] = []
    without: list[str] = []
    for folder in folders:
        images = [entry for entry in entries(folder) if is_image(entry)]
        if not images:
            without.append(f"{folder.name}: no png, jpg, bmp or tif file in it")
        records += [ImageRecord(image, folder.name) for image in images]
    if not records:
        raise DataError(
            f"{path}: none of its {len(folders)} sub-folders holds a png, jpg, bmp or tif file",
            safe=UNTOUCHED,
            next_step=f"point to the folder that holds {expected}",
        )
    if without:
        raise problems_error(
            f"{path}: identities without images", without, "remove these folders or fill them"
        )
    return records


def _signature_index(path: Path) -> int | None:
    """1..40 for ``<n>.png``, else None."""
    name = path.stem
    if path.suffix.lower() != ".png" or not (name.isascii() and name.isdigit()) or name[0] == "0":
        return None
    return int(name) if len(name) <= 2 and int(name) <= _SIGNATURES else None


def _read_signatures(path: Path) -> list[ImageRecord]:
    writers = path / "bin"
    if not writers.is_dir():
        raise DataError(
            f"{path}: no folder bin/ in it",
            safe=UNTOUCHED,
            next_step="point to the folder that holds bin/<writer>/<1..40>.png",
        )
    records = _read_folder(writers, "bin/<writer>/<1..40>.png")
    strange = [f"{r.path}: not <1..40>.png" for r in records if _signature_index(r.path) is None]
    if strange:
        raise problems_error(
            f"{path}: not laid out as cross-media signatures",
            strange,
            "read it as kind `folder`, or remove these files",
        )
    return sorted(records, key=lambda r: (r.identity, _signature_index(r.path) or 0))


def _medium(record: ImageRecord) -> int:
    """Writing medium 0..3 of a signature: indices 1-10, 11-20, 21-30, 31-40."""
    return ((_signature_index(record.path) or 1) - 1) // _SIGNATURES_PER_MEDIUM


def _session(record: ImageRecord) -> int:
    return record.session or 0


def _spread(
    ordered: list[ImageRecord], occasion: Callable[[ImageRecord], int], seed: int
) -> list[ImageRecord]:
    """Deal one identity's images occasion by occasion, keeping the seeded order within each."""
    dealt: dict[int, int] = {}
    ranked: list[tuple[int, bytes, ImageRecord]] = []
    for record in ordered:
        when = occasion(record)
        turn = dealt.get(when, 0)
        dealt[when] = turn + 1
        ranked.append((turn, order_key("cap-medium", seed, record.identity, str(when)), record))
    return [record for _, _, record in sorted(ranked, key=lambda item: item[:2])]


def list_text(path: Path, line: str) -> str:
    """The text of a list file. Raises DataError: it is none; ``line`` says what one holds."""
    if not path.is_file():
        raise DataError(f"{path}: not a file", next_step=f"name a text file of {line} lines")
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(
                f"{path}: a list of more than {MAX_LIST_BYTES} bytes",
                next_step="name the list, not an image or archive",
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({error})",
            safe=UNTOUCHED,
            next_step=f"a list file holds one {line} line for each image",
        ) from error


def _read_list(path: Path) -> list[ImageRecord]:
    text = list_text(path, "`path label`")
    base = path.resolve().parent
    records: list[ImageRecord] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    owners: dict[str, str | None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.strip().rsplit(None, 1)
        if not fields:
            continue
        if len(fields) == 1:
            problems.append(f"line {number}: {line.strip()[:80]!r} is not `path label`")
            continue
        name, label = fields
        person, before = None, name.rsplit(None, 1)
        if label.startswith(PERSON_FIELD) and len(before) == 2:
            person = unquote(label.removeprefix(PERSON_FIELD))
            name, label = before
        label = unquote(label)
        # normpath, not resolve: a link keeps the name that the list gives it.
        image = Path(os.path.normpath(base / name))
        key = image.as_posix()
        if "\0" in name:
            problems.append(f"line {number}: a path cannot hold a zero byte")
        elif key in seen:
            problems.append(f"line {number}: {name!r} is listed already, on line {seen[key]}")
        elif why := unusable_file(image):
            problems.append(f"line {number}: {name!r}: {why}")
        elif image.suffix.lower() not in IMAGE_SUFFIXES:
            problems.append(f"line {number}: {name!r} is not a png, jpg, bmp or tif file")
        else:
            records.append(ImageRecord(image, label, person=person))
        if person == "":
            problems.append(f"line {number}: {PERSON_FIELD} names nobody")
        elif owners.setdefault(label, person) != person:
            problems.append(f"line {number}: {label} is of another person than on an earlier line")
        seen.setdefault(key, number)
    if problems:
        raise problems_error(
            f"{path}: the list cannot be used",
            problems,
            "correct these lines; paths are relative to the list file, the label is the last field "
            "but for person=NAME",
        )
    if not records:
        raise DataError(f"{path}: the list names no image", next_step="add `path label` lines")
    return [record for group in by_identity(records).values() for record in group]


def _require_pairs(path: Path, records: list[ImageRecord]) -> None:
    lonely = [
        f"{identity}: {group[0].path.name} is its only image"
        for identity, group in by_identity(records).items()
        if len(group) < 2
    ]
    if lonely:
        raise problems_error(
            f"{path}: an identity needs two images or more, one to enrol and one to compare",
            lonely,
            "add images of these identities or remove them",
        )
