"""Signs of randomly rotated templates, under a secret key: BioHashing with rotations that expand fast.

A template's direction is rotated at random by its subject's key, several times, and the signs of all
coordinates are kept. Of two templates at an angle t under one key a part 1 - t / pi of the signs is equal;
under two independent keys it is one half, whatever the templates are.

Sources: Jin, Ling and Goh 2004, doi 10.1016/j.patcog.2004.04.011 (BioHashing); Charikar 2002,
doi 10.1145/509907.509965 (the angle in the signs); Andoni et al. 2015, arXiv:1509.02897 (a rotation as
three rounds of random signs and Hadamard: n log n steps and n bits of key a round, not n^2 Gaussians).
"""

from __future__ import annotations

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
SIZE_BYTES = 512
"""m of a protected template, eight signs each; chosen by measurement (docs/results/templates.md)."""
MAX_LENGTH = 1 << 16
"""Features of an unprotected template (palms have 512, fused ones 1,024, signatures 256), and bytes of a
protected one."""

_ROUNDS = 3
_MIN_SIZE = 512
"""Shorter templates are padded: short vectors have few such rotations, and coordinates that are 0."""
_ROWS = 32
"""Templates transformed at a time: what they need stays inside the cache."""

Templates = npt.NDArray[np.float32]
Protected = npt.NDArray[np.uint8]


class Transform:
    """What one key does to templates of one length. It holds the key's expansion: as secret as the key.

    Additions and comparisons of float32 in a fixed order: the same signs on every machine.
    """

    def __init__(self, flips: Templates, length: int, size_bytes: int) -> None:
        self._flips, self._length, self._size_bytes = flips, length, size_bytes

    @classmethod
    def of(cls, key: bytes, length: int, *, size_bytes: int = SIZE_BYTES) -> Self:
        """The transform of a key; another length or size gives an unrelated one.

        Args:
            key: 32 secret bytes, for one subject in one system and never again after a renewal.
            length: D, features of an unprotected template.
            size_bytes: m; left out, the one that was measured.
        Raises:
            TemplateError: the key is not 32 bytes, or a number is out of range.
        """
        if len(key) != KEY_BYTES:
            raise TemplateError(
                f"the key of a cancelable template has {len(key)} bytes, not {KEY_BYTES}",
                safe="nothing was transformed",
                next_step="give the subject a new key and enrol again from images",
            )
        if not 1 <= length <= MAX_LENGTH or not 1 <= size_bytes <= MAX_LENGTH:
            raise TemplateError(
                f"templates of {length} features into {size_bytes} bytes: both must be 1 to {MAX_LENGTH}"
            )
        size = max(_MIN_SIZE, 1 << (length - 1).bit_length())
        blocks = -(-8 * size_bytes // size)
        bits = _expand(key, (length, size_bytes), _ROUNDS * size * blocks)
        flips = (1 - 2 * bits.view(np.int8)).astype(np.float32)
        return cls(flips.reshape(_ROUNDS, size, 1, blocks), length, size_bytes)

    def apply(self, templates: Templates) -> Protected:
        """(N, D) templates of any norm but zero -> (N, m) bytes, the first sign in the lowest bit.

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
        # A power of two is exact, and keeps sums from overflowing; no sign depends on it.
        rows = np.ldexp(templates, -np.frexp(peak)[1]).astype(np.float32)
        found = np.empty((len(rows), self._size_bytes), dtype=np.uint8)
        for at in range(0, len(rows), _ROWS):
            positive = self.coordinates(rows[at : at + _ROWS]) > 0
            found[at : at + _ROWS] = np.packbits(positive, axis=1, bitorder="little")
        return found

    def coordinates(self, rows: Templates) -> Templates:
        """(N, D) float32 -> (N, 8 m), what the signs are of. Linear in ``rows``."""
        _, size, _, blocks = self._flips.shape
        # Coordinates lead and blocks come last, so that a butterfly runs along memory.
        turned = np.zeros((size, len(rows), blocks), dtype=np.float32)
        turned[: self._length] = rows.T[:, :, None]
        for flips in self._flips:
            turned *= flips
            turned = _hadamard(turned)
        flat = turned.transpose(1, 2, 0).reshape(len(rows), blocks * size)
        return flat[:, : 8 * self._size_bytes]


def score(probe: Protected, reference: Protected) -> float:
    """Part of the signs that are equal, 0..1: higher is more alike, 0.5 is chance (not taken off).

    Args:
        probe, reference: (m,) of one transform.
    Raises:
        TemplateError: shapes or types are not that.
    """
    if probe.ndim != 1 or reference.ndim != 1:
        raise _not_comparable(probe, reference)
    return float(scores(probe, reference))


def scores(probes: Protected, references: Protected) -> npt.NDArray[np.float64]:
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
    unequal = np.bitwise_count(probes ^ references).sum(axis=-1)
    return np.asarray(1.0 - unequal / (8 * probes.shape[-1]), dtype=np.float64)


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


def _not_comparable(probe: Protected, reference: Protected) -> TemplateError:
    return TemplateError(
        f"protected templates {probe.dtype} {probe.shape} and {reference.dtype} {reference.shape}: "
        "bytes of one number are needed",
        next_step="compare templates of one transform; enrol again if its size has changed",
    )
