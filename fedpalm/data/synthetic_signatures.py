"""Synthetic signatures on disk: deterministic per seed, made once, kept in a cache.

Sites are non-IID: each has its own pen, paper and scanner. Every random choice has its own Philox stream,
keyed by seed, site, writer and sample, so an image is the same whatever else is generated with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..canonical import canonical_json, domain_hash
from ..errors import DataError
from .generated import generated_set, stream
from .signature_capture import capture, draw_desk
from .signature_motion import draw_plan, forge, move, sign
from .signatures import SignatureRecord

GENERATOR_VERSION = 1
"""Raised whenever the same parameters would draw other pixels; it is part of the cache key."""

_DESK, _PLAN, _GENUINE, _FORGED = 11, 12, 13, 14


def synthetic_signatures(
    cache: Path,
    sites: int,
    writers_per_site: int,
    genuine: int,
    forged: int,
    seed: int,
    difficulty: float = 1.0,
    site_spread: float = 1.0,
) -> list[list[SignatureRecord]]:
    """Records of every site's signatures, generated on the first call and reused afterwards.

    The folder of one site is laid out as the reader ``signature-folder`` expects it.

    Args:
        cache: folder for generated sets; each set lies in a sub-folder named by its parameters.
        genuine: signatures of each writer, 1 or more.
        forged: skilled forgeries of each writer, 0 or more.
        difficulty: 0..3, scales what differs between two genuine signatures of one writer, and with it
            how far a forger is from the plan; 1 is the default.
        site_spread: 0..3, scales what differs between the desks of two sites; 1 is the default.
    Returns:
        One list a site; images are 8-bit grey 320x160 PNG files.
    Raises:
        DataError: a parameter is out of range, or the cache cannot be written.
    """
    if min(sites, writers_per_site, genuine) < 1 or min(forged, seed) < 0:
        raise DataError(
            "sites, writers and genuine signatures must be 1 or more, forgeries and the seed 0 or more"
        )
    if max(sites, writers_per_site, genuine, forged) > 9999:
        raise DataError("at most 9999 sites, writers a site and signatures of a kind")
    if not 0.0 <= difficulty <= 3.0:
        raise DataError(f"difficulty {difficulty} is not between 0 and 3")
    if not 0.0 <= site_spread <= 3.0:
        raise DataError(f"site spread {site_spread} is not between 0 and 3")
    parameters = {
        "generator": GENERATOR_VERSION,
        "sites": sites,
        "writers_per_site": writers_per_site,
        "genuine": genuine,
        "forged": forged,
        "seed": str(seed),
        "difficulty": float(difficulty),
        "site_spread": float(site_spread),
    }
    key = domain_hash("synthetic-signatures/v1", canonical_json(parameters)).hex()[:20]
    target = cache / f"synthetic-signature-{key}"
    kinds = (("genuine", genuine), ("forged", forged))

    def draw() -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        for site in range(sites):
            desk = draw_desk(stream(_DESK, seed, site), site_spread)
            for writer in range(writers_per_site):
                plan = draw_plan(stream(_PLAN, seed, site, writer))
                for kind, count in kinds:
                    purpose, act = (_GENUINE, sign) if kind == "genuine" else (_FORGED, forge)
                    for sample in range(count):
                        rng = stream(purpose, seed, site, writer, sample)
                        path = move(act(plan, rng, difficulty), rng)
                        yield (
                            _file_name(site, writer, kind, sample),
                            capture(path, desk, rng, difficulty),
                        )

    names = [
        [
            (_writer_name(site, writer), kind, _file_name(site, writer, kind, sample))
            for writer in range(writers_per_site)
            for kind, count in kinds
            for sample in range(count)
        ]
        for site in range(sites)
    ]
    wanted = {file for row in names for _, _, file in row}
    generated_set(target, wanted, draw, "synthetic signatures")
    return [
        [
            SignatureRecord(target / file, writer, author=writer)
            if kind == "genuine"
            else SignatureRecord(target / file, writer, kind="skilled")
            for writer, kind, file in row
        ]
        for row in names
    ]


def _writer_name(site: int, writer: int) -> str:
    return f"s{site:04d}-w{writer:04d}"


def _file_name(site: int, writer: int, kind: str, sample: int) -> str:
    return f"s{site:04d}/{_writer_name(site, writer)}/{kind}/{sample:04d}.png"
