"""Scores of claims as JSON, for whoever may pool those of several sites. Writers are numbers in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.signatures import FORGERY_KINDS
from ..errors import DataError
from .signatures import ClaimScores, Forged


def claims_to_json(claims: ClaimScores) -> dict[str, Any]:
    """As :func:`claims_from_json` reads them."""
    return {
        "writers": claims.writers,
        "genuine": _to_json(Forged(claims.genuine, claims.genuine_writer)),
        "forged": {kind: _to_json(one) for kind, one in claims.forged.items()},
    }


def claims_from_json(values: Mapping[str, Any]) -> ClaimScores:
    """Raises DataError: not what :func:`claims_to_json` wrote."""
    try:
        writers = int(values["writers"])
        genuine = _from_json(values["genuine"], writers)
        forged = {
            kind: _from_json(values["forged"][kind], writers)
            for kind in FORGERY_KINDS
            if kind in values["forged"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not scores of claims: {error!r}") from error
    return ClaimScores(genuine.scores, genuine.writer, forged, writers)


def write_claims(path: Path, claims: Mapping[str, ClaimScores]) -> None:
    """By mode, ``closed`` and ``open``. Raises DataError: the file cannot be written."""
    values = {mode: claims_to_json(one) for mode, one in claims.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: scores cannot be written: {error}",
            safe="the evaluation is not affected",
            next_step="name another file",
        ) from error


def read_claims(path: Path) -> dict[str, ClaimScores]:
    """By mode, ``closed`` and ``open``. Raises DataError: the file is none that a site wrote."""
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return {mode: claims_from_json(values) for mode, values in found.items()}


def _to_json(claims: Forged) -> dict[str, Any]:
    return {"scores": claims.scores.tolist(), "writer": claims.writer.tolist()}


def _from_json(values: Mapping[str, Any], writers: int) -> Forged:
    scores = np.asarray(values["scores"], dtype=np.float64)
    writer = np.asarray(values["writer"], dtype=np.int32)
    if scores.ndim != 1 or scores.shape != writer.shape or not np.isfinite(scores).all():
        raise ValueError("scores and writers do not belong together")
    if writer.size and not 0 <= writer.min() <= writer.max() < writers:
        raise ValueError("a writer has no number")
    return Forged(scores, writer)
