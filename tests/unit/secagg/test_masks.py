"""Mask streams: the plain cipher over the whole vector, whatever the pieces and threads."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.secagg import masks
from fedpalm.secagg.codec import Encoded
from fedpalm.secagg.masks import PIECE_VALUES, apply_masks


def stream(key: bytes, length: int) -> Encoded:
    """The reference: AES-256-CTR from zero over the whole vector at once."""
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * length)), dtype="<u4").astype(np.uint32)


def reference(vector: Encoded, add: list[bytes], subtract: list[bytes]) -> Encoded:
    total = vector.copy()
    for key in add:
        total += stream(key, len(vector))
    for key in subtract:
        total -= stream(key, len(vector))
    return total


def vector_of(length: int, seed: int = 1) -> Encoded:
    return np.random.default_rng(seed).integers(0, 2**32, length, dtype=np.uint32)


modes_ctr = modes.CTR
keys = st.lists(st.binary(min_size=32, max_size=32), max_size=4)


@given(st.integers(0, 300), keys, keys)
def test_masks_are_the_plain_streams(length: int, add: list[bytes], subtract: list[bytes]) -> None:
    vector = vector_of(length)
    expected = reference(vector, add, subtract)
    apply_masks(vector, add, subtract)
    np.testing.assert_array_equal(vector, expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, None])
@pytest.mark.parametrize(
    "length",
    [
        1,
        PIECE_VALUES - 1,
        PIECE_VALUES,
        PIECE_VALUES + 1,
        3 * PIECE_VALUES + 5,
        7 * PIECE_VALUES - 3,
    ],
)
def test_threads_and_odd_lengths_change_nothing(length: int, threads: int | None) -> None:
    vector = vector_of(length)
    add, subtract = [b"a" * 32, b"b" * 32], [b"c" * 32]
    expected = reference(vector, add, subtract)
    apply_masks(vector, add, subtract, threads=threads)
    np.testing.assert_array_equal(vector, expected)


@pytest.mark.parametrize("piece", [4, 12, 64, 1024])
def test_the_size_of_the_pieces_changes_nothing(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "PIECE_VALUES", piece)
    monkeypatch.setattr(masks, "_ZEROS", bytes(4 * piece))
    vector = vector_of(1027)
    expected = reference(vector, [b"a" * 32], [b"b" * 32])
    apply_masks(vector, [b"a" * 32], [b"b" * 32], threads=3)
    np.testing.assert_array_equal(vector, expected)


@given(st.integers(2, 6), st.integers(1, 50), st.binary(min_size=32, max_size=32))
def test_the_masks_of_all_pairs_cancel_in_the_sum(sites: int, length: int, seed: bytes) -> None:
    pair = {
        (i, j): bytes((b ^ (7 * i + j)) & 0xFF for b in seed)
        for i in range(sites) for j in range(i + 1, sites)
    }  # fmt: skip
    vectors = [vector_of(length, at) for at in range(sites)]
    expected = np.sum(vectors, axis=0, dtype=np.uint32)
    for at, vector in enumerate(vectors):
        apply_masks(
            vector,
            [pair[at, j] for j in range(at + 1, sites)],
            [pair[i, at] for i in range(at)],
        )
    np.testing.assert_array_equal(np.sum(vectors, axis=0, dtype=np.uint32), expected)


def test_the_stream_is_that_of_nist() -> None:
    """SP 800-38A has its counter from f0f1..ff; ours begins at zero, so its first block is AES(0)."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    vector = np.zeros(8, dtype=np.uint32)
    apply_masks(vector, [key], [])
    ecb = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    blocks = ecb.update(bytes(16) + bytes(15) + b"\x01")
    assert vector.astype("<u4").tobytes() == blocks


def test_the_counter_block_of_nist_lies_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """SP 800-38A, F.5.5 (CTR-AES256.Encrypt), through our function from the standard's counter."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    initial = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    monkeypatch.setattr(masks.modes, "CTR", lambda counter: modes_ctr(initial))
    vector = np.zeros(16, dtype=np.uint32)
    apply_masks(vector, [key], [], threads=1)
    stream_bytes = vector.astype("<u4").tobytes()
    assert bytes(a ^ b for a, b in zip(stream_bytes, plain, strict=True)) == cipher


@pytest.mark.parametrize(
    "vector",
    [np.zeros(4, np.int32), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]],
    ids=["signed", "two axes", "not contiguous"],
)
def test_what_is_no_plain_vector_is_refused(vector: np.ndarray) -> None:
    before = vector.copy()
    with pytest.raises(ValueError, match="contiguous"):
        apply_masks(vector, [bytes(32)], [])
    np.testing.assert_array_equal(vector, before)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError):
        apply_masks(vector_of(4), [bytes(length)], [])
