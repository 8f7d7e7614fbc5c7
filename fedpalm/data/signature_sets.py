"""Sets of signatures as distributed, and a folder of one's own, to records.

========================  ===================================================  ================
kind                      layout                                               writer
========================  ===================================================  ================
``cross-media-signatures``  ``bin/<writer>/<1..40>.png``; in each ten, the      the folder
                          k-th is the k-th of ten names
``cedar``                 ``full_org/original_<w>_<n>.png`` and                ``cedar-01``
                          ``full_forg/forgeries_<w>_<n>.png``
``bhsig260``              ``{Bengali,Hindi}/<w>/{B,H}-S-<w>-{G,F}-<n>.tif``,   ``bengali-001``
                          or one of the two folders
``signature-folder``      ``<writer>/genuine/*``, ``<writer>/forged/*``        the folder
``signature-list``        a text file (:mod:`.signature_list`)                 its second field
========================  ===================================================  ================

Any image type is taken in place of png and tif, other files are left out, other images and folders refused.
Forgeries are skilled ones; cross-media signatures have none (:mod:`.signature_splits` finds the simple ones
among them). Every reader returns records by writer, kind and path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, get_args

from ..errors import DataError
from .listing import entries, is_image, status
from .readers import open_source
from .records import UNTOUCHED, problems_error
from .signature_list import LIST_LINE, read_signature_list
from .signatures import SignatureRecord

SignatureSet = Literal[
    "cross-media-signatures", "cedar", "bhsig260", "signature-folder", "signature-list"
]

EXPECTED: dict[SignatureSet, str] = {
    "cross-media-signatures": "bin/<writer>/<1..40>.png",
    "cedar": "full_org/ with original_<w>_<n>.png and full_forg/ with forgeries_<w>_<n>.png",
    "bhsig260": "Bengali/<w>/ with B-S-<w>-G-<n>.tif and B-S-<w>-F-<n>.tif, or Hindi/<w>/ with H-S-...",
    "signature-folder": "<writer>/genuine/ and, if there are any, <writer>/forged/",
    "signature-list": f"{LIST_LINE} lines, in a text file",
}

NAMES = 10
"""Names in one medium of the cross-media signatures."""

_CEDAR = {
    "full_org": re.compile(r"(original)_([0-9]{1,3})_[0-9]{1,3}", re.ASCII | re.IGNORECASE),
    "full_forg": re.compile(r"(forgeries)_([0-9]{1,3})_[0-9]{1,3}", re.ASCII | re.IGNORECASE),
}
_BHSIG_NAME = re.compile(r"([BH])-S-([0-9]{1,3})-([GF])-[0-9]{1,3}", re.ASCII | re.IGNORECASE)
_BHSIG_FOLDER = re.compile(r"[0-9]{1,3}", re.ASCII)
_SCRIPTS = {"b": "bengali", "h": "hindi"}
_KIND_FOLDERS = ("genuine", "forged")

_Parse = Callable[[Path], SignatureRecord | None]
"""From an image to its record, or None if its name is not one of the set."""


def open_signatures(
    source: str | Path, kind: SignatureSet | Literal["auto"] = "auto"
) -> list[SignatureRecord]:
    """List the signatures of a source.

    Raises:
        DataError: the source is missing, of another layout or empty; a writer has fewer than two genuine
            signatures, or forgeries only. Says what to do next.
    """
    path = Path(source).expanduser()
    if status(path) is None:
        raise DataError(f"{path}: no such file or folder", next_step="check the path")
    chosen = signature_layout(path) if kind == "auto" else kind
    readers: dict[SignatureSet, Callable[[Path], list[SignatureRecord]]] = {
        "cross-media-signatures": _read_cross_media,
        "cedar": _read_cedar,
        "bhsig260": _read_bhsig,
        "signature-folder": _read_own,
        "signature-list": read_signature_list,
    }
    if chosen is None:
        layouts = "; ".join(EXPECTED.values())
        raise DataError(
            f"{path}: not laid out as a set of signatures",
            safe=UNTOUCHED,
            next_step=f"point to the folder (or list file) that holds one of: {layouts}",
        )
    if chosen not in readers:
        raise DataError(
            f"{chosen!r} is not a kind of signature set",
            next_step=f"use one of {', '.join(get_args(SignatureSet))}",
        )
    if path.is_file() and chosen != "signature-list":
        raise _wrong(chosen, path, "a file, not a folder")
    records = readers[chosen](path)
    _require_references(path, records)
    return sorted(records, key=lambda r: (r.writer, not r.genuine, r.path.as_posix()))


def signature_layout(path: Path) -> SignatureSet | None:
    """Which set a folder is laid out as, or seems meant to be; None if none. A file is a list."""
    if not path.is_dir():
        return "signature-list" if path.is_file() else None
    folders = _folders(path)
    if "bin" in folders:
        return "cross-media-signatures"
    if folders.keys() & _CEDAR.keys():
        return "cedar"
    if any(_script(name) for name in folders) or any(
        _BHSIG_NAME.fullmatch(image.stem)
        for folder in folders.values()
        for image in entries(folder)
    ):
        return "bhsig260"
    if any(_folders(folder).keys() & set(_KIND_FOLDERS) for folder in folders.values()):
        return "signature-folder"
    return None


def _read_cross_media(path: Path) -> list[SignatureRecord]:
    return [
        SignatureRecord(
            record.path,
            record.identity,
            text=f"name-{(int(record.path.stem) - 1) % NAMES + 1:02d}",
            author=record.identity,
        )
        for record in open_source(path, "cross-media-signatures")
    ]


def _read_cedar(path: Path) -> list[SignatureRecord]:
    folders = _folders(path)
    for name in _CEDAR:
        if name not in folders:
            raise _wrong("cedar", path, f"no folder {name}/ in it")

    def parse(image: Path) -> SignatureRecord | None:
        meaning = _CEDAR[image.parent.name.lower()].fullmatch(image.stem)
        if meaning is None:
            return None
        return _record(image, f"cedar-{int(meaning[2]):02d}", meaning[1].lower() == "original")

    return _records("cedar", path, [folders[name] for name in _CEDAR], parse)


def _read_bhsig(path: Path) -> list[SignatureRecord]:
    folders = _folders(path)
    scripts = [folder for name, folder in folders.items() if _script(name)]
    strange = [f"{f.name}/" for n, f in folders.items() if scripts and not _script(n)]
    writers = [w for script in scripts or [path] for w in _folders(script).values()]
    strange += [
        f"{writer.relative_to(path).as_posix()}/: not a writer's number"
        for writer in writers
        if not _BHSIG_FOLDER.fullmatch(writer.name)
    ]
    numbers = Counter(
        (writer.parent, int(writer.name)) for writer in writers if writer.name.isdecimal()
    )
    strange += [
        f"{script.name}/: writer {w} has several folders"
        for (script, w), n in numbers.items()
        if n > 1
    ]
    if strange:
        raise _strange("bhsig260", path, strange)
    if not writers:
        raise _wrong("bhsig260", path, "no folder of a writer in it")

    def parse(image: Path) -> SignatureRecord | None:
        meaning = _BHSIG_NAME.fullmatch(image.stem)
        if meaning is None or int(meaning[2]) != int(image.parent.name):
            return None
        script = _SCRIPTS[meaning[1].lower()]
        if scripts and _script(image.parent.parent.name) != script:
            return None
        return _record(image, f"{script}-{int(meaning[2]):03d}", meaning[3].upper() == "G")

    return _records("bhsig260", path, writers, parse)


def _read_own(path: Path) -> list[SignatureRecord]:
    writers = [entry for entry in entries(path) if entry.is_dir()]
    if not writers:
        raise _wrong("signature-folder", path, "no folder of a writer in it")
    loose = [e.name for e in entries(path) if is_image(e)]
    inside: list[Path] = []
    for writer in writers:
        kinds = _folders(writer)
        loose += [f"{writer.name}/{e.name}" for e in entries(writer) if is_image(e)]
        loose += [f"{writer.name}/{f.name}/" for n, f in kinds.items() if n not in _KIND_FOLDERS]
        if "genuine" not in kinds:
            loose.append(f"{writer.name}/: no folder genuine/ in it")
        inside += [kinds[name] for name in _KIND_FOLDERS if name in kinds]
    if loose:
        raise _strange("signature-folder", path, loose)
    return _records(
        "signature-folder",
        path,
        inside,
        lambda image: _record(
            image, image.parent.parent.name, image.parent.name.lower() == "genuine"
        ),
    )


def _record(image: Path, writer: str, genuine: bool) -> SignatureRecord:
    if genuine:
        return SignatureRecord(image, writer, author=writer)
    return SignatureRecord(image, writer, kind="skilled")


def _records(
    kind: SignatureSet, path: Path, folders: Iterable[Path], parse: _Parse
) -> list[SignatureRecord]:
    """Every image of ``folders``; other files are left out, other images and folders refused."""
    records: list[SignatureRecord] = []
    strange: list[str] = []
    seen: dict[tuple[Path, str], str] = {}
    for folder in folders:
        for entry in entries(folder):
            shown = entry.relative_to(path).as_posix()
            if entry.is_dir():
                strange.append(f"{shown}/: a folder where images are expected")
            elif is_image(entry):
                record = parse(entry)
                twin = seen.setdefault((folder, entry.stem.lower()), entry.name)
                if record is None:
                    strange.append(f"{shown}: not a name of this set")
                elif twin != entry.name:
                    strange.append(f"{shown}: the same image as {twin}")
                else:
                    records.append(record)
    if strange:
        raise _strange(kind, path, strange)
    if not records:
        raise _wrong(kind, path, "no png, jpg, bmp or tif file in its folders")
    return records


def _require_references(path: Path, records: list[SignatureRecord]) -> None:
    genuine = Counter(record.writer for record in records if record.genuine)
    few = [
        f"{writer}: {genuine[writer]} genuine"
        for writer in sorted({record.writer for record in records})
        if genuine[writer] < 2
    ]
    if few:
        raise problems_error(
            f"{path}: a writer needs two genuine signatures or more, one to enrol and one to compare",
            few,
            "add signatures of these writers or remove them",
        )


def _script(folder: str) -> str | None:
    """``bengali`` or ``hindi`` for the folder of a script, ``BHSig260-Hindi`` too; else None."""
    name = folder.lower().removeprefix("bhsig260-")
    return name if name in _SCRIPTS.values() else None


def _folders(path: Path) -> dict[str, Path]:
    """Sub-folders by lower-case name."""
    if not path.is_dir():
        return {}
    return {entry.name.lower(): entry for entry in entries(path) if entry.is_dir()}


def _wrong(kind: SignatureSet, path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what}",
        safe=UNTOUCHED,
        next_step=f"point to the folder that holds {EXPECTED[kind]} (see docs/data/signatures.md)",
    )


def _strange(kind: SignatureSet, path: Path, strange: list[str]) -> DataError:
    return problems_error(
        f"{path}: not laid out as {kind}",
        strange,
        f"take these out; expected {EXPECTED[kind]} (see docs/data/signatures.md)",
    )
