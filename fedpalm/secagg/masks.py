"""Mask streams: AES-256-CTR keystream, read as little-endian integers, added modulo 2**32.

One key, one stream, one payload, ever: a key is derived for exactly one purpose and the counter starts
at zero. The work is bound by memory, so a vector is walked once in pieces that stay in a core's cache,
and every stream is added to a piece before the next piece is touched; threads share the pieces.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from .codec import Encoded

PIECE_VALUES = 1 << 15
"""128 KiB of vector and as much of keystream."""
_BLOCK_BYTES = 16
_BLOCK_VALUES = _BLOCK_BYTES // 4
_ZEROS = bytes(4 * PIECE_VALUES)


def apply_masks(
    vector: Encoded, add: Sequence[bytes], subtract: Sequence[bytes], *, threads: int | None = None
) -> None:
    """vector += sum of the streams of ``add`` - sum of those of ``subtract``, modulo 2**32, in place.

    Args:
        vector: (L,) uint32, C-contiguous.
        add, subtract: 32-byte keys, each for this vector and no other.
        threads: at most so many; left out, one for each core.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError("a mask is added to a contiguous vector of uint32")
    workers = threads or len(os.sched_getaffinity(0))
    pieces = -(-vector.size // PIECE_VALUES)
    parts = min(workers, pieces)
    if parts <= 1:
        _mask_range(vector, 0, add, subtract)
        return
    step = -(-pieces // parts) * PIECE_VALUES
    with ThreadPoolExecutor(parts) as pool:
        done = [
            pool.submit(_mask_range, vector[begin : begin + step], begin, add, subtract)
            for begin in range(0, vector.size, step)
        ]
        for future in done:
            future.result()


def mask_block(block: Encoded, begin: int, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
    """What :func:`apply_masks` does to a part of a vector, in place, for whoever never holds all of it.

    Args:
        block: (B,) uint32, values ``begin`` to ``begin + B`` of the vector; any begin.
    """
    skipped = begin % _BLOCK_VALUES
    if not skipped:
        _mask_range(block, begin, add, subtract)
        return
    aligned = np.concatenate((np.zeros(skipped, dtype=np.uint32), block))
    _mask_range(aligned, begin - skipped, add, subtract)
    block[:] = aligned[skipped:]


def _mask_range(part: Encoded, begin: int, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
    """The same for a part of the vector that begins at value ``begin`` (a multiple of four)."""
    counter = (4 * begin // _BLOCK_BYTES).to_bytes(_BLOCK_BYTES, "big")
    streams = [
        (Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor(), operation)
        for keys, operation in ((add, np.add), (subtract, np.subtract))
        for key in keys
    ]
    buffer = bytearray(4 * PIECE_VALUES)
    keystream = np.frombuffer(buffer, dtype="<u4")
    for at in range(0, part.size, PIECE_VALUES):
        piece = part[at : at + PIECE_VALUES]
        size = 4 * piece.size
        zeros = _ZEROS if size == len(_ZEROS) else _ZEROS[:size]
        for stream, operation in streams:
            stream.update_into(zeros, memoryview(buffer)[:size])
            operation(piece, keystream[: piece.size], out=piece)
