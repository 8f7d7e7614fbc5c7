"""Synthetic palms on disk: deterministic per seed, made once, kept in a cache.

Sites are non-IID: each has its own sensor. Every random choice has its own Philox stream, keyed by
seed, site, identity and sample, so an image is the same whatever else is generated with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..canonical import canonical_json, domain_hash
from ..errors import DataError
from .generated import generated_set, stream
from .palm_anatomy import grow_palm
from .palm_capture import capture, draw_sensor
from .records import ImageRecord

GENERATOR_VERSION = 2
"""Raised whenever the same parameters would draw other pixels; it is part of the cache key."""

DEFAULT_DIFFICULTY = 1.0
DEFAULT_SITE_SPREAD = 1.0


class PalmPreset(NamedTuple):
    """How hard synthetic palms are, as :func:`synthetic_palms` takes it."""

    difficulty: float
    site_spread: float


PRESETS: Mapping[str, PalmPreset] = MappingProxyType(
    {
        "default": PalmPreset(DEFAULT_DIFFICULTY, DEFAULT_SITE_SPREAD),
        "benchmark": PalmPreset(1.4, 2.0),
    }
)
"""``benchmark`` leaves errors in the closed set too and sets sites apart (docs/data/synthetic.md)."""

_STRIPE_PX = 8
_SENSOR, _ANATOMY, _SAMPLE = 1, 2, 3


def cache_root() -> Path:
    """``$FEDPALM_CACHE``, else ``$XDG_CACHE_HOME/fedpalm``, else ``~/.cache/fedpalm``."""
    if own := os.environ.get("FEDPALM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "fedpalm"
    return Path.home() / ".cache" / "fedpalm"


def synthetic_palms(
    cache: Path,
    sites: int,
    identities_per_site: int,
    images_per_identity: int,
    seed: int,
    difficulty: float = DEFAULT_DIFFICULTY,
    site_spread: float = DEFAULT_SITE_SPREAD,
) -> list[list[ImageRecord]]:
    """Records of every site's palms, generated on the first call and reused afterwards.

    Args:
        cache: folder for generated sets; each set lies in a sub-folder named by its parameters.
        difficulty: 0..3, scales what differs between two images of one palm (pose, crease shift,
            light, blur, noise); 1 is the default.
        site_spread: 0..3, scales what differs between the sensors of two sites; 1 is the default.
    Returns:
        One list a site; images are 8-bit grey 128x128 PNG files.
    Raises:
        DataError: a parameter is out of range, or the cache cannot be written.
    """
    if min(sites, identities_per_site, images_per_identity) < 1 or seed < 0:
        raise DataError("sites, identities and images must be 1 or more, the seed 0 or more")
    if max(sites, identities_per_site, images_per_identity) > 9999:
        raise DataError("at most 9999 sites, identities a site and images an identity")
    if not 0.0 <= difficulty <= 3.0:
        raise DataError(f"difficulty {difficulty} is not between 0 and 3")
    if not 0.0 <= site_spread <= 3.0:
        raise DataError(f"site spread {site_spread} is not between 0 and 3")
    parameters = {
        "generator": GENERATOR_VERSION,
        "sites": sites,
        "identities_per_site": identities_per_site,
        "images_per_identity": images_per_identity,
        "seed": str(seed),
        "difficulty": float(difficulty),
        "site_spread": float(site_spread),
    }
    key = domain_hash("synthetic-palms/v1", canonical_json(parameters)).hex()[:20]
    names = [
        [
            (_identity_name(site, identity), f"{sample:04d}.png")
            for identity in range(identities_per_site)
            for sample in range(images_per_identity)
        ]
        for site in range(sites)
    ]
    target = cache / f"synthetic-palm-{key}"
    wanted = {f"{identity}/{file}" for site in names for identity, file in site}

    def draw() -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        for site, row in enumerate(names):
            sensor = draw_sensor(stream(_SENSOR, seed, site), site_spread)
            for at, (name, file) in enumerate(row):
                identity, sample = divmod(at, images_per_identity)
                if sample == 0:
                    palm = grow_palm(stream(_ANATOMY, seed, site, identity))
                rng = stream(_SAMPLE, seed, site, identity, sample)
                yield f"{name}/{file}", capture(palm, sensor, rng, difficulty)

    generated_set(target, wanted, draw, "synthetic palms")
    return [
        [ImageRecord(target / identity / file, identity) for identity, file in site]
        for site in names
    ]


def contact_sheet(
    records: Sequence[ImageRecord],
    path: Path,
    columns: int,
    side_px: int = 128,
    group: int | None = None,
) -> None:
    """Write the images, in order and ``columns`` a row, as one grey PNG.

    ``group`` sets every so many columns apart by a white stripe.
    """
    if not records or columns < 1:
        raise DataError("a contact sheet needs an image and a column")
    rows = -(-len(records) // columns)
    group = group or columns
    width = columns * side_px + (columns - 1) // group * _STRIPE_PX
    sheet = Image.new("L", (width, rows * side_px), 255)
    for at, record in enumerate(records):
        with Image.open(record.path) as image:
            tile = image.convert("L").resize((side_px, side_px), Image.Resampling.LANCZOS)
        row, column = divmod(at, columns)
        sheet.paste(tile, (column * side_px + column // group * _STRIPE_PX, row * side_px))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)


def _identity_name(site: int, identity: int) -> str:
    return f"s{site:04d}-p{identity:04d}"
