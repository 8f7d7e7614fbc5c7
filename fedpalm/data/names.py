"""Names that look alike are alike: file systems write an accent in one character, or in two."""

from __future__ import annotations

import unicodedata


def one_spelling(name: str) -> str:
    """The name in Unicode's composed form, NFC, without space around it."""
    return unicodedata.normalize("NFC", name).strip()
