"""IITD, Tongji and PolyU palmprint images, cropped to the region of interest, as distributed.

================  ======================================================  =====================
kind              layout                                                  identity
================  ======================================================  =====================
``iitd``          ``Segmented/{Left,Right}/<person>_<n>.bmp``             ``left-001``
``tongji``        ``{session1,session2}/<00001..06000>.bmp``, ten         ``palm-001``
                  numbers in a row are one palm, alike in both sessions
``polyu``         ``PolyU_<palm>_{F,S}_<n>.bmp`` in one folder            ``palm-001``
``polyu``         ``<0001..0500>/{1,2}_<n>[_s].bmp``: one illumination    ``palm-0001``
                  of the multispectral set
================  ======================================================  =====================

A palm is an identity: the two hands of a person are two. ``iitd`` numbers people, so a record says whose
palm it is; the others number palms, and nothing in them says which two are of one person. Where a set has
two sessions, a record carries its session, and a split takes the first for the gallery. Any image type is
taken in place of bmp. The data cards (``docs/data``) say where each layout is known from and what is
assumed. None of the sets is part of this project, and no reader was run on the original files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..errors import DataError
from .listing import entries, is_image
from .records import UNTOUCHED, ImageRecord, by_identity, problems_error

PalmprintSet = Literal["iitd", "tongji", "polyu"]

EXPECTED: dict[PalmprintSet, str] = {
    "iitd": "Segmented/Left/ and Segmented/Right/ with <person>_<n>.bmp in each (001_1.bmp)",
    "tongji": "session1/ and session2/ with 00001.bmp to 06000.bmp, the cropped ROI images",
    "polyu": "PolyU_<palm>_F_<n>.bmp and PolyU_<palm>_S_<n>.bmp (cropped), or the folders 0001 to "
    "0500 of one illumination with 1_<n>.bmp and 2_<n>.bmp",
}

_HANDS = ("left", "right")
_SESSIONS = ("session1", "session2")
_SPECTRA = frozenset({"blue", "green", "red", "nir"})
_IITD_NAME = re.compile(r"([0-9]{1,3})_[0-9]{1,2}", re.ASCII)
_TONGJI_NAME = re.compile(r"[0-9]{5}", re.ASCII)
_TONGJI_IMAGES = 6000
_TONGJI_PER_PALM = 10
_POLYU_NAME = re.compile(r"PolyU_([0-9]{1,3})_([FS])_[0-9]{1,2}", re.ASCII | re.IGNORECASE)
_SPECTRAL_NAME = re.compile(r"([12])_[0-9]{1,2}(?:_s)?", re.ASCII | re.IGNORECASE)
_SPECTRAL_FOLDER = re.compile(r"[0-9]{4}", re.ASCII)

_Parse = Callable[[Path], tuple[str, int | None, str | None] | None]
"""From an image to (identity, session, person), or None if its name is not one of the set."""


def looks_like(path: Path) -> PalmprintSet | None:
    """Which set a folder is laid out as, or seems meant to be; None if none.

    A set with a part missing, and its uncropped form, are recognised too, so that :func:`read_set`
    can say what is wrong rather than another reader take its folders for people.
    """
    folders = _folders(path)
    root = folders.get("segmented", path)
    hands = _folders(root)
    if (
        folders.keys() & {"left hand", "right hand"}
        or any(_holds(hands.get(hand), _IITD_NAME) for hand in _HANDS)
        or (root != path and _holds(root, _IITD_NAME))
    ):
        return "iitd"
    sessions = _folders(folders["roi"]) if "roi" in folders else folders
    if any(_holds(sessions.get(session), _TONGJI_NAME) for session in _SESSIONS):
        return "tongji"
    if (
        len(_SPECTRA & folders.keys()) > 1
        or _holds(path, _POLYU_NAME)
        or any(
            _SPECTRAL_FOLDER.fullmatch(name) and _holds(folder, _SPECTRAL_NAME)
            for name, folder in folders.items()
        )
    ):
        return "polyu"
    return None


def read_set(path: Path, kind: PalmprintSet) -> list[ImageRecord]:
    """Records of a set, sorted by identity and path.

    Args:
        path: the set's folder (for ``iitd`` also ``Segmented`` itself, for ``tongji`` also a folder
            that holds ``ROI``).
    Raises:
        DataError: another layout, a hand or session missing, strange file names, or whole hands.
    """
    readers = {"iitd": _read_iitd, "tongji": _read_tongji, "polyu": _read_polyu}
    records = readers[kind](path)
    _require_cropped(path, records, kind)
    return [record for group in by_identity(records).values() for record in group]


def _read_iitd(path: Path) -> list[ImageRecord]:
    folders = _folders(path)
    root = folders.get("segmented", path)
    hands = _folders(root)
    if not hands.keys() & set(_HANDS):
        if {"left hand", "right hand"} & hands.keys():
            raise _wrong("iitd", path, "these are whole hands, not segmented palms")
        if _holds(root, _IITD_NAME):
            raise _wrong("iitd", path, "left and right hands are mixed in one folder")
    records: list[ImageRecord] = []
    for hand in _HANDS:
        folder = hands.get(hand)
        if folder is None:
            raise _wrong("iitd", path, f"no folder {hand.capitalize()}/ in {root.name}")

        def parse(image: Path, hand: str = hand) -> tuple[str, None, str] | None:
            name = _IITD_NAME.fullmatch(image.stem)
            if name is None:
                return None
            person = f"{int(name[1]):03d}"
            return f"{hand}-{person}", None, person

        records += _records("iitd", path, [folder], parse)
    return records


def _read_tongji(path: Path) -> list[ImageRecord]:
    root = _folders(path).get("roi", path)
    folders = _folders(root)
    for session in _SESSIONS:
        if session not in folders:
            raise _wrong("tongji", path, f"no folder {session}/ in {root.name}")

    def parse(image: Path) -> tuple[str, int, None] | None:
        number = int(image.stem) if _TONGJI_NAME.fullmatch(image.stem) else 0
        if not 1 <= number <= _TONGJI_IMAGES:
            return None
        palm = (number - 1) // _TONGJI_PER_PALM + 1
        return f"palm-{palm:03d}", _SESSIONS.index(image.parent.name.lower()) + 1, None

    records = _records("tongji", path, [folders[session] for session in _SESSIONS], parse)
    _require_both_sessions("tongji", path, records)
    return records


def _read_polyu(path: Path) -> list[ImageRecord]:
    folders = _folders(path)
    spectra = sorted(folder.name for name, folder in folders.items() if name in _SPECTRA)
    if spectra:
        raise DataError(
            f"{path}: holds the illuminations {', '.join(spectra)}; an image of each would count as "
            "one more of the same palm",
            safe=UNTOUCHED,
            next_step=f"point to one of them, such as {path / spectra[0]}",
        )
    if any(_SPECTRAL_FOLDER.fullmatch(name) for name in folders):
        strange = [
            f"{folder.name}/: not a palm's folder 0001 to 0500"
            for name, folder in folders.items()
            if not _SPECTRAL_FOLDER.fullmatch(name)
        ]
        if strange:
            raise _strange("polyu", path, strange)
        records = _records("polyu", path, list(folders.values()), _parse_spectral)
    else:
        records = _records("polyu", path, [path], _parse_polyu)
    _require_both_sessions("polyu", path, records)
    return records


def _parse_spectral(image: Path) -> tuple[str, int, None] | None:
    name = _SPECTRAL_NAME.fullmatch(image.stem)
    return (f"palm-{image.parent.name}", int(name[1]), None) if name else None


def _parse_polyu(image: Path) -> tuple[str, int, None] | None:
    name = _POLYU_NAME.fullmatch(image.stem)
    return (f"palm-{int(name[1]):03d}", "FS".index(name[2].upper()) + 1, None) if name else None


def _records(
    kind: PalmprintSet, path: Path, folders: list[Path], parse: _Parse
) -> list[ImageRecord]:
    """Every image of ``folders``; other files are left out, other images and folders refused."""
    records: list[ImageRecord] = []
    strange: list[str] = []
    seen: dict[tuple[Path, str], str] = {}
    for folder in folders:
        for entry in entries(folder):
            shown = entry.relative_to(path).as_posix()
            if entry.is_dir():
                strange.append(f"{shown}/: a folder where images are expected")
            elif is_image(entry):
                meaning = parse(entry)
                twin = seen.setdefault((folder, entry.stem.lower()), entry.name)
                if meaning is None:
                    strange.append(f"{shown}: not a name of this set")
                elif twin != entry.name:
                    strange.append(f"{shown}: the same image as {twin}")
                else:
                    records.append(ImageRecord(entry, *meaning))
    if strange:
        raise _strange(kind, path, strange)
    for folder in folders:
        if not any(record.path.parent == folder for record in records):
            raise _wrong(kind, path, f"no png, jpg, bmp or tif file in {folder.name}")
    return records


def _require_both_sessions(kind: PalmprintSet, path: Path, records: list[ImageRecord]) -> None:
    missing = [
        f"{identity}: no image of session {session}"
        for identity, group in by_identity(records).items()
        for session in (1, 2)
        if all(record.session != session for record in group)
    ]
    if missing:
        raise problems_error(
            f"{path}: palms without images of both sessions",
            missing,
            f"complete the {kind} set, take these palms out, or read it as kind `folder`; expected "
            f"{EXPECTED[kind]}",
        )


def _require_cropped(path: Path, records: list[ImageRecord], kind: PalmprintSet) -> None:
    """Look at the size of one image; ``preflight`` looks at them all."""
    # Here, because whoever lists files loads nothing that decodes images.
    from PIL import Image, UnidentifiedImageError

    from .roi import MAX_ASPECT

    first = records[0].path
    try:
        with Image.open(first) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return  # preflight names each file that cannot be read
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _wrong(
            kind,
            path,
            f"{first.relative_to(path).as_posix()} is {width}x{height} px: whole hands, not palms "
            "cropped to the region of interest",
        )


def _wrong(kind: PalmprintSet, path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what}",
        safe=UNTOUCHED,
        next_step=f"point to the folder that holds {EXPECTED[kind]} (see docs/data/{kind}.md)",
    )


def _strange(kind: PalmprintSet, path: Path, strange: list[str]) -> DataError:
    return problems_error(
        f"{path}: not laid out as the {kind} set",
        strange,
        f"take these out, or read it as kind `folder`; expected {EXPECTED[kind]} "
        f"(see docs/data/{kind}.md)",
    )


def _folders(path: Path) -> dict[str, Path]:
    """Sub-folders by lower-case name."""
    return {entry.name.lower(): entry for entry in entries(path) if entry.is_dir()}


def _holds(folder: Path | None, name: re.Pattern[str]) -> bool:
    return folder is not None and any(
        name.fullmatch(entry.stem) and is_image(entry) for entry in entries(folder)
    )
