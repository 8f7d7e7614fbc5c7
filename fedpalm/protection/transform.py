"""Index-of-Max hashing under a secret key.

A template's direction is rotated at random by its subject's key, again and again; of every ``choices``
coordinates only the place of the greatest is kept. Two templates under one key agree in more places the
smaller the angle between them is; under two independent keys they agree by chance, 1 / ``choices``.

Sources: Jin et al. 2018, IEEE TIFS 13(2), doi 10.1109/TIFS.2017.2753172 (Index-of-Max with Gaussian
projections); Andoni et al. 2015, arXiv:1509.02897 (a rotation as three rounds of random signs and
Hadamard: n log n steps and n bits of key a round, in place of n^2 Gaussians).
"""

from __future__ import annotations

import math
import struct
from typing import Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ..errors import TemplateError

KEY_BYTES = 32
GROUPS = 512
"""m: symbols of a protected template, a byte each."""
CHOICES = 16
"""q: coordinates that a symbol names the greatest of. Both were measured (docs/results/templates.md)."""
MAX_LENGTH = 1 << 16
"""Features of an unprotected template; ours have 512."""

_ROUNDS = 3
_ROWS = 32
"""Templates transformed at a time: what they need stays inside the cache."""

Templates = npt.NDArray[np.float32]
Symbols = npt.NDArray[np.uint8]


class Transform:
    """What one key does to templates of one length. It holds the key's expansion: as secret as the key.

    Additions and comparisons of float32 in a fixed order: the same symbols on every machine.
    """

    def __init__(self, signs: Templates, length: int, groups: int, choices: int) -> None:
        self._signs, self._length = signs, length
        self._groups, self._choices = groups, choices

    @classmethod
    def of(cls, key: bytes, length: int, *, groups: int = GROUPS, choices: int = CHOICES) -> Self:
        """The transform of a key; other lengths and parameters give unrelated ones.

        Args:
            key: 32 secret bytes, for one subject in one system and never again after a renewal.
            length: D, features of an unprotected template.
            groups: m; choices: q, a power of two up to 256. Left out, those that were measured.
        Raises:
            TemplateError: the key is not 32 bytes, or a number is out of range.
        """
        if len(key) != KEY_BYTES:
            raise TemplateError(
                f"the key of a cancelable template has {len(key)} bytes, not {KEY_BYTES}",
                safe="nothing was transformed",
                next_step="give the subject a new key and enrol again from images",
            )
        if not 1 <= length <= MAX_LENGTH or not 1 <= groups <= MAX_LENGTH:
            raise TemplateError(
                f"templates of {length} features into {groups} symbols: both must be 1 to {MAX_LENGTH}"
            )
        if choices not in (2, 4, 8, 16, 32, 64, 128, 256):
            raise TemplateError(
                f"a symbol of {choices} choices: a power of two, 2 to 256, is needed"
            )
        size = max(choices, 1 << (length - 1).bit_length())
        blocks = math.ceil(groups * choices / size)
        bits = _expand(key, (length, groups, choices), _ROUNDS * size * blocks)
        signs = (1 - 2 * bits.view(np.int8)).astype(np.float32)
        return cls(signs.reshape(_ROUNDS, size, 1, blocks), length, groups, choices)

    def apply(self, templates: Templates) -> Symbols:
        """(N, D) templates of any length but zero -> (N, m) symbols, each 0 to q - 1.

        Raises:
            TemplateError: not (N, D), or a template is zero or not finite.
        """
        if templates.ndim != 2 or templates.shape[1] != self._length:
            raise TemplateError(
                f"templates of shape {templates.shape}: this transform takes (N, {self._length})",
                next_step="use the model that the subject was enrolled with, or enrol again",
            )
        peak = np.abs(templates).max(axis=1, keepdims=True, initial=0.0)
        if not (np.isfinite(peak) & (peak > 0)).all():
            raise TemplateError(
                "a template is zero or not finite: it has no direction",
                safe="nothing was transformed",
                next_step="the model that made it has diverged: use another checkpoint",
            )
        # A power of two is exact, and keeps sums from overflowing; the symbols do not depend on it.
        rows = np.ldexp(templates, -np.frexp(peak)[1]).astype(np.float32)
        found = np.empty((len(rows), self._groups), dtype=np.uint8)
        for at in range(0, len(rows), _ROWS):
            found[at : at + _ROWS] = self._symbols(rows[at : at + _ROWS])
        return found

    def _symbols(self, rows: Templates) -> Symbols:
        """(n, D) -> (n, m). Coordinates lead, blocks come last: a butterfly runs along memory."""
        _, size, _, blocks = self._signs.shape
        turned = np.zeros((size, len(rows), blocks), dtype=np.float32)
        turned[: self._length] = rows.T[:, :, None]
        for signs in self._signs:
            turned *= signs
            turned = _hadamard(turned)
        flat = turned.transpose(1, 2, 0).reshape(len(rows), blocks * size)
        grouped = flat[:, : self._groups * self._choices].reshape(len(rows), self._groups, -1)
        found: Symbols = grouped.argmax(axis=2).astype(np.uint8)
        return found


def score(probe: Symbols, reference: Symbols) -> float:
    """Part of the symbols that are equal, 0..1: higher is more alike, 1 / q is chance (not taken off).

    Args:
        probe, reference: (m,) of one transform.
    Raises:
        TemplateError: shapes or types are not that.
    """
    if probe.ndim != 1 or reference.ndim != 1:
        raise _not_comparable(probe, reference)
    return float(scores(probe, reference))


def scores(probes: Symbols, references: Symbols) -> npt.NDArray[np.float64]:
    """:func:`score` of every row with its row.

    Args:
        probes, references: (..., m), numpy's broadcasting over all but the last: (m,) against (N, m)
            is one probe against N references, (M, 1, m) against (N, m) all pairs.
    Returns:
        (...) float64.
    Raises:
        TemplateError: not uint8, or not of one m > 0.
    """
    for one in (probes, references):
        if one.dtype != np.uint8 or one.ndim < 1 or one.shape[-1] == 0:
            raise _not_comparable(probes, references)
    if probes.shape[-1] != references.shape[-1]:
        raise _not_comparable(probes, references)
    equal = np.count_nonzero(probes == references, axis=-1)
    return np.asarray(equal / probes.shape[-1], dtype=np.float64)


def _hadamard(values: Templates) -> Templates:
    """Walsh-Hadamard along the first axis (a power of two), unscaled, in natural order."""
    size = len(values)
    half, out = 1, np.empty_like(values)
    while half < size:
        pairs = values.reshape(size // (2 * half), 2, half, *values.shape[1:])
        sums = out.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        values, out = out, values
        half *= 2
    return values


def _expand(key: bytes, parameters: tuple[int, ...], count: int) -> npt.NDArray[np.uint8]:
    """(count,) bits: ChaCha20's keystream under a key that HKDF-Expand makes for these parameters."""
    info = b"fedpalm/cancelable-template/v1" + struct.pack(f">{len(parameters)}I", *parameters)
    own = HKDFExpand(SHA256(), KEY_BYTES, info).derive(key)
    cipher = Cipher(ChaCha20(own, bytes(16)), mode=None).encryptor()
    stream = np.frombuffer(cipher.update(bytes(-(-count // 8))), dtype=np.uint8)
    return np.unpackbits(stream, bitorder="little", count=count)


def _not_comparable(probe: Symbols, reference: Symbols) -> TemplateError:
    return TemplateError(
        f"protected templates {probe.dtype} {probe.shape} and {reference.dtype} {reference.shape}: "
        "bytes of one number of symbols are needed",
        next_step="compare templates of one transform; enrol again if its parameters have changed",
    )
