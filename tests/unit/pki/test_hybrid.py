"""Hybrid encryption to a key of one purpose: what opens, what does not, and which keys are none."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import IntegrityError, KeyFileError, ProtocolError
from fedpalm.pki.hybrid import (
    PRIVATE_BYTES,
    PUBLIC_BYTES,
    SEAL_BYTES,
    HybridKey,
    hybrid_key_id,
    hybrid_public_key,
    seal,
    x25519_public_key,
)

KEY = HybridKey.from_private_bytes(bytes(range(PRIVATE_BYTES)))
SEALED = seal(b"thirty-two bytes of pair secret.", KEY.public_bytes, b"one purpose")

# The points of small order in their reduced encodings: RFC 7748, section 7, and the curve's own list.
SMALL_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    2**255 - 20,
]


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_what_is_sealed_opens_for_its_purpose(plaintext: bytes, info: bytes) -> None:
    sealed = seal(plaintext, KEY.public_bytes, info)
    assert len(sealed) == len(plaintext) + SEAL_BYTES
    assert KEY.open(sealed, info) == plaintext


def test_it_opens_for_no_other_purpose_and_with_no_other_key() -> None:
    for key, info in (
        (KEY, b"another purpose"),
        (KEY, b""),
        (HybridKey.generate(), b"one purpose"),
    ):
        with pytest.raises(IntegrityError):
            key.open(SEALED, info)


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_nothing_altered_opens(at: int, flip: int) -> None:
    altered = bytearray(SEALED)
    altered[at] ^= flip
    with pytest.raises(IntegrityError):
        KEY.open(bytes(altered), b"one purpose")


@pytest.mark.parametrize("length", [0, 1, 31, 1088, 1119, 1120, SEAL_BYTES - 1, len(SEALED) - 1])
def test_nothing_cut_short_opens(length: int) -> None:
    with pytest.raises(IntegrityError):
        KEY.open(SEALED[:length], b"one purpose")


@given(st.binary(max_size=2000))
def test_rubbish_does_not_open_and_raises_nothing_else(rubbish: bytes) -> None:
    with pytest.raises(IntegrityError):
        KEY.open(rubbish, b"one purpose")


@pytest.mark.parametrize("half", ["ML-KEM", "X25519"])
def test_both_halves_are_needed(half: str) -> None:
    """A recipient that has only one of the two private keys opens nothing."""
    other = HybridKey.generate()
    mixed = (
        HybridKey(other.mlkem, KEY.x25519)
        if half == "X25519"
        else HybridKey(KEY.mlkem, other.x25519)
    )
    with pytest.raises(IntegrityError):
        mixed.open(SEALED, b"one purpose")


def test_two_boxes_of_the_same_are_different() -> None:
    assert seal(b"same", KEY.public_bytes, b"") != seal(b"same", KEY.public_bytes, b"")


def test_a_key_survives_its_bytes_and_is_fresh_each_time() -> None:
    again = HybridKey.from_private_bytes(KEY.private_bytes())
    assert again.public_bytes == KEY.public_bytes != HybridKey.generate().public_bytes
    assert (len(KEY.public_bytes), len(KEY.private_bytes())) == (PUBLIC_BYTES, PRIVATE_BYTES)
    assert again.open(SEALED, b"one purpose") == b"thirty-two bytes of pair secret."


@pytest.mark.parametrize("length", [0, 32, PRIVATE_BYTES - 1, PRIVATE_BYTES + 1])
def test_a_private_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(KeyFileError):
        HybridKey.from_private_bytes(bytes(length))


@pytest.mark.parametrize(
    "public",
    [
        b"",
        bytes(32),
        KEY.public_bytes[:-1],
        KEY.public_bytes + b"\0",
        b"\xff" * PUBLIC_BYTES,
        *(KEY.public_bytes[:-32] + value.to_bytes(32, "little") for value in SMALL_ORDER),
    ],
    ids=lambda public: f"{len(public)} bytes, ends {public[-2:].hex()}",
)
def test_what_is_no_usable_public_key_is_refused_before_anything_is_sealed(public: bytes) -> None:
    with pytest.raises(ProtocolError):
        hybrid_public_key(public)
    with pytest.raises(ProtocolError):
        seal(b"", public, b"")


@pytest.mark.parametrize("value", SMALL_ORDER, ids=range(len(SMALL_ORDER)))
def test_a_key_that_gives_everybody_the_same_secret_is_refused(value: int) -> None:
    with pytest.raises(ProtocolError, match="small order"):
        x25519_public_key(value.to_bytes(32, "little"))
    # The library agrees: the shared secret would be all zero.
    point = X25519PublicKey.from_public_bytes(value.to_bytes(32, "little"))
    with pytest.raises(ValueError):
        KEY.x25519.exchange(point)


def test_a_key_has_one_encoding() -> None:
    usable = KEY.public_bytes[-32:]
    assert x25519_public_key(usable).public_bytes_raw() == usable
    value = int.from_bytes(usable, "little")
    for other in (value | 1 << 255, 9 + 2**255 - 19):
        with pytest.raises(ProtocolError, match="one encoding"):
            x25519_public_key(other.to_bytes(32, "little"))


def test_a_key_is_named_by_all_of_its_bytes() -> None:
    flipped = KEY.public_bytes[:-1] + bytes([KEY.public_bytes[-1] ^ 1])
    assert len(hybrid_key_id(KEY.public_bytes)) == 32
    assert hybrid_key_id(KEY.public_bytes) != hybrid_key_id(flipped)


def test_the_private_half_is_not_shown() -> None:
    assert repr(KEY) == "HybridKey()"
