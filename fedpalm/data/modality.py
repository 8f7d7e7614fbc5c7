"""What a method trains on: images of palms, or of signatures."""

from __future__ import annotations

from typing import Literal

Modality = Literal["palm", "signature"]


def modality_of(method: str) -> Modality | None:
    """What a plan's method needs of a site; None: nothing, it reads no image."""
    if method == "rehearsal":
        return None
    return "signature" if method == "fedmh" else "palm"
