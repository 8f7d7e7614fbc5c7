"""A site's secrets: what follows from m, what does not, and how derivations are told apart."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.canonical import domain_hash
from fedpalm.errors import KeyFileError, ProtocolError
from fedpalm.secagg import secrets as module
from fedpalm.secagg.secrets import (
    AttemptSecrets,
    PairSecrets,
    derive,
    own_stream,
    seed_hash,
)

M = bytes(range(32))


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 by hand: extract, then expand."""
    key = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    block, out = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
    return out[:length]


def test_the_reference_is_that_of_rfc_5869() -> None:
    """Appendix A.1 and A.3."""
    out = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert out.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    assert hkdf(b"\x0b" * 22, b"", b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_our_derivation_without_a_label_is_that_of_rfc_5869(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Appendix A.3 through our function: no salt, and here no info either."""
    monkeypatch.setattr(module, "domain_hash", lambda *parts: b"")
    assert derive(b"\x0b" * 22, "", length=42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@given(
    st.binary(min_size=32, max_size=64),
    st.text(st.characters(codec="ascii"), max_size=20),
    st.lists(st.binary(max_size=40), max_size=4),
    st.sampled_from([32, 96]),
)
def test_a_derivation_is_hkdf_of_its_label_and_context(
    secret: bytes, label: str, context: list[bytes], length: int
) -> None:
    info = domain_hash(f"secagg/{label}/v1", *context)
    assert derive(secret, label, *context, length=length) == hkdf(secret, b"", info, length)


def test_every_purpose_has_its_own_secret() -> None:
    pairs = PairSecrets(M)
    found = [
        M,
        derive(M, "agreement"),
        derive(M, "pairs"),
        derive(M, "own-mask"),
        derive(M, "pair-mask"),
        seed_hash(M),
        own_stream(bytes(32)),
        pairs.pair_secret("a"),
        pairs.pair_secret("b"),
        pairs.pair_secret(""),
        derive(M, "pair", b"a", b"b"),
        derive(M, "pair", b"ab"),
        derive(M, "pair", b"b", b"a"),
        pairs.agreement.private_bytes_raw(),
        *[pairs.escrow.private_bytes()[at : at + 32] for at in (0, 32, 64)],
    ]
    assert len({*found}) == len(found) - 1  # Only the agreement key is there twice.


def test_what_follows_from_m_is_always_the_same_and_what_is_fresh_never() -> None:
    again = PairSecrets(M)
    assert again.escrow.public_bytes == PairSecrets(M).escrow.public_bytes
    assert again.agreement.private_bytes_raw() == PairSecrets(M).agreement.private_bytes_raw()
    one, other = AttemptSecrets.generate(), AttemptSecrets.generate()
    pieces = lambda made: {made.to_bytes()[at : at + 32] for at in range(0, 160, 32)}  # noqa: E731
    assert len(pieces(one) | pieces(other)) == 10


def test_the_transport_key_does_not_follow_from_m() -> None:
    one = AttemptSecrets.generate()
    copy = AttemptSecrets(PairSecrets(one.pairs.mask_secret), one.seed_secret, one.transport)
    fresh = AttemptSecrets.generate()
    assert copy.pairs.escrow.public_bytes == one.pairs.escrow.public_bytes
    assert one.transport.public_bytes not in (one.pairs.escrow.public_bytes, fresh.transport)


def test_both_ends_agree() -> None:
    one, other = PairSecrets(M), PairSecrets(bytes(32))
    mine = one.agreement.public_key().public_bytes_raw()
    theirs = other.agreement.public_key().public_bytes_raw()
    assert one.agree(theirs) == other.agree(mine) != one.agree(mine)


@pytest.mark.parametrize(
    "key", [b"", bytes(31), bytes(32), b"\x01" + bytes(31), bytes(33)], ids=str
)
def test_an_unusable_agreement_key_agrees_on_nothing(key: bytes) -> None:
    with pytest.raises(ProtocolError):
        PairSecrets(M).agree(key)


def test_secrets_survive_their_bytes() -> None:
    made = AttemptSecrets.generate()
    raw = made.to_bytes()
    assert len(raw) == 160
    again = AttemptSecrets.from_bytes(raw)
    assert again.to_bytes() == raw
    assert again.transport.public_bytes == made.transport.public_bytes


@pytest.mark.parametrize("length", [0, 32, 64, 159, 161])
def test_secrets_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(KeyFileError):
        AttemptSecrets.from_bytes(bytes(length))


def test_no_secret_is_shown() -> None:
    made = AttemptSecrets.generate()
    shown = repr(made) + repr(made.pairs) + str(made.transport)
    assert shown == "AttemptSecrets()PairSecrets()HybridKey()"


def test_an_agreement_is_that_of_rfc_7748(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 6.1: Alice's and Bob's keys, through our two ends."""
    private = {
        b"alice": "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        b"bob": "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
    }
    monkeypatch.setattr(module, "derive", lambda secret, label: bytes.fromhex(private[secret]))
    alice, bob = PairSecrets(b"alice"), PairSecrets(b"bob")
    assert alice.agreement.public_key().public_bytes_raw().hex() == (
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    agreed = alice.agree(bob.agreement.public_key().public_bytes_raw())
    assert agreed == bob.agree(alice.agreement.public_key().public_bytes_raw())
    assert agreed.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
