"""A ciphertext of AES-256-GCM that two keys open: what a cipher that binds no key allows.

Source: Dodis, Grubbs, Ristenpart, Woodage 2018, Fast Message Franking, arXiv / ePrint 2019/016, section 3.
"""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_POLYNOMIAL = 0xE1 << 120


def opens_with_two_keys(one: bytes, other: bytes, associated: bytes, length: int) -> bytes:
    """A ciphertext (with its tag) of ``length`` bytes that both keys open under a nonce of zero.

    One block of it is chosen such that both keys give the same tag, which is linear in that block; the
    others are random.
    """
    blocks = _blocks(secrets.token_bytes(length - 16))
    blocks[0] = 0
    head = _blocks(associated)
    sizes = (8 * len(associated) << 64) | 8 * (length - 16)
    tags, slopes = [], []
    for key in (one, other):
        encrypt = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update
        subkey = int.from_bytes(encrypt(bytes(16)), "big")
        tag = 0
        for block in (*head, *blocks, sizes):
            tag = _times(tag ^ block, subkey)
        slope = _power(subkey, len(blocks) + 1)
        tags.append(tag ^ int.from_bytes(encrypt(bytes(15) + b"\1"), "big"))
        slopes.append(slope)
    blocks[0] = _times(tags[0] ^ tags[1], _power(slopes[0] ^ slopes[1], 2**128 - 2))
    tag = tags[0] ^ _times(blocks[0], slopes[0])
    body = b"".join(block.to_bytes(16, "big") for block in blocks)[: length - 16]
    return body + tag.to_bytes(16, "big")


def _blocks(data: bytes) -> list[int]:
    """Of 16 bytes each, the last one filled up with zeros."""
    padded = data + bytes(-len(data) % 16)
    return [int.from_bytes(padded[at : at + 16], "big") for at in range(0, len(padded), 16)]


def _times(x: int, y: int) -> int:
    """In GF(2^128), in the bit order of NIST SP 800-38D, section 6.3."""
    z = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            z ^= y
        y = y >> 1 ^ (_POLYNOMIAL if y & 1 else 0)
    return z


def _power(x: int, exponent: int) -> int:
    found = 1 << 127
    while exponent:
        if exponent & 1:
            found = _times(found, x)
        x = _times(x, x)
        exponent >>= 1
    return found
