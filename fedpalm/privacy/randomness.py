"""Where a private training takes its noise, its draws of people and its views from.

Every draw is ChaCha20's keystream under a key of its own. :class:`SecretRandom` asks the operating system
for that key and forgets it with the draw: there is nothing to store, to log, to fork or to draw again.

Gaussians are Box-Muller's, float64 throughout, from uniforms of 53 bits. Each is the sum of
:data:`TERMS` of them, so that nobody who knows all but one value of a sum can tell which floating-point
numbers the noise could have been. Source: Holohan and Braghin 2021, arXiv:2107.10138, section 5.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

from ..canonical import domain_hash

TERMS = 4
"""Gaussians in one; Opacus's secure mode and diffprivlib take as many."""

_BLOCK = 1 << 15
"""Values made at a time: what they need stays inside the cache."""

_KEY_BYTES, _NONCE_BYTES = 32, 16

Words = npt.NDArray[np.uint64]


class Randomness(Protocol):
    """What a private training draws from. The account says ``accounting.RNG``: the secret one's name."""

    name: str

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        """Gaussian noise, float64: it is added in float64 and rounded with the sum, not before."""

    def chosen(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        """(count,), each true with probability ``rate`` and independent of the others."""

    def subset(self, count: int, size: int) -> npt.NDArray[np.int64]:
        """min(size, count) of 0..count-1 in random order, none twice; all orders are alike likely."""

    def seed(self) -> int:
        """63 bits."""


class _Keystream(ABC):
    """What both sources share: everything but the keys."""

    name: str

    @abstractmethod
    def _key(self) -> bytes:
        """A key and a nonce that no draw has had before."""

    def _words(self) -> Callable[[int], Words]:
        """The keystream of a new key, as 64-bit words."""
        fresh = self._key()
        cipher = Cipher(ChaCha20(fresh[:_KEY_BYTES], fresh[_KEY_BYTES:]), mode=None).encryptor()
        return lambda count: np.frombuffer(cipher.update(bytes(8 * count)), dtype="<u8")

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        found = torch.empty(tuple(shape), dtype=torch.float64)
        words = self._words()
        for part in torch.split(found.view(-1), _BLOCK):
            half = (len(part) + 1) // 2
            total = torch.zeros(2, half, dtype=torch.float64)
            for _ in range(TERMS):
                for axis, one in zip(total, _box_muller(words(2 * half)), strict=True):
                    axis += one
            part.copy_(total.view(-1)[: len(part)])
            part *= std / math.sqrt(TERMS)
        return found

    def chosen(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        below = int(Fraction(rate) * 2**64)
        if below >= 2**64:
            return np.ones(count, dtype=np.bool_)
        drawn: npt.NDArray[np.bool_] = self._words()(count) < np.uint64(below)
        return drawn

    def subset(self, count: int, size: int) -> npt.NDArray[np.int64]:
        return np.argsort(self._words()(count))[:size].astype(np.int64)

    def seed(self) -> int:
        return int(self._words()(1)[0]) >> 1


class SecretRandom(_Keystream):
    """Private: a key of the operating system for every draw, kept nowhere."""

    name = "chacha20"

    def _key(self) -> bytes:
        return os.urandom(_KEY_BYTES + _NONCE_BYTES)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a source of secret randomness is not copied or stored: make another")


class SeededRandom(_Keystream):
    """Reproducible, and never private: for tests and the benchmark."""

    name = "seeded"

    def __init__(self, seed: int) -> None:
        self._seed, self._draws = seed, 0

    def _key(self) -> bytes:
        self._draws += 1
        parts = (self._seed.to_bytes(8, "big"), self._draws.to_bytes(8, "big"))
        return domain_hash("seeded-random/v1", *parts) + bytes(_NONCE_BYTES)


def _box_muller(words: Words) -> tuple[Tensor, Tensor]:
    """(2n,) words -> two independent (n,) float64 standard Gaussians."""
    uniform = torch.from_numpy((words >> np.uint64(11)).view(np.int64).astype(np.float64))
    uniform += 1  # in (0, 1] after scaling: the logarithm is finite
    uniform *= 2.0**-53
    first, second = uniform.chunk(2)
    radius = first.log_().mul_(-2).sqrt_()
    angle = second.mul_(2 * math.pi)
    return radius * torch.cos(angle), radius * torch.sin(angle)
