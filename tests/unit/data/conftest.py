"""Small generated sources: every image has its own pixels, so that a mix-up shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImage = Callable[..., Path]


@pytest.fixture
def make_image() -> MakeImage:
    def make(path: Path, size: tuple[int, int] = (96, 96), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, *path.name.encode(), *path.parent.name.encode()])
        width, height = size
        pixels = rng.integers(20, 230, (height, width), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def palm_folder(tmp_path: Path, make_image: MakeImage) -> Path:
    """Six identities of four images."""
    root = tmp_path / "palms"
    for identity in "abcdef":
        for number in range(4):
            make_image(root / identity / f"{number}.png")
    return root


@pytest.fixture
def signature_folder(tmp_path: Path, make_image: MakeImage) -> Path:
    """Five writers of forty signatures, laid out as cross-media signatures are."""
    root = tmp_path / "signatures"
    for writer in range(1, 6):
        for index in range(1, 41):
            make_image(root / "bin" / str(writer) / f"{index}.png", size=(64, 64))
    return root
