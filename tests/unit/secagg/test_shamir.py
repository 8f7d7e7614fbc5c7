"""Shamir's sharing: any t open, fewer fit every secret, and malformed shares open nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import ProtocolError
from fedpalm.secagg.shamir import (
    PRIME,
    SECRET_BYTES,
    SHARE_BYTES,
    Interpolation,
    is_share,
    split,
)

secrets_ = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def is_prime(number: int) -> bool:
    """Miller-Rabin with 40 bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):
        value = pow(random.randrange(2, number - 1), odd, number)
        if value in (1, number - 1):
            continue
        for _ in range(twos - 1):
            value = value * value % number
            if value == number - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_smallest_prime_field_that_holds_every_secret() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range(2**256, PRIME))


@given(secrets_, st.data())
def test_any_threshold_of_shares_opens_the_secret(secret: bytes, data: st.DataObject) -> None:
    sites = data.draw(st.integers(1, 20))
    threshold = data.draw(st.integers(1, sites))
    shares = split(secret, threshold, sites)
    assert all(is_share(share) for share in shares)
    positions = data.draw(st.permutations(range(1, sites + 1)))[:threshold]
    given = {at: shares[at - 1] for at in positions}
    assert Interpolation(positions).open(given) == secret


@given(secrets_, secrets_, st.data())
def test_one_share_less_fits_every_other_secret_just_as_well(
    secret: bytes, other: bytes, data: st.DataObject
) -> None:
    """For any t - 1 shares and any secret there is exactly one missing share that makes it the answer."""
    sites = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(2, sites))
    shares = split(secret, threshold, sites)
    positions = data.draw(st.permutations(range(1, sites + 1)))[:threshold]
    known, missing = positions[:-1], positions[-1]
    opening = Interpolation(positions)
    # The opened value is linear in each share: solve for the missing one.
    rest = sum(opening._weights[at] * int.from_bytes(shares[at - 1], "big") for at in known)
    weight = opening._weights[missing]
    wanted = (int.from_bytes(other, "big") - rest) * pow(weight, -1, PRIME) % PRIME
    forged = {at: shares[at - 1] for at in known} | {missing: wanted.to_bytes(SHARE_BYTES, "big")}
    assert opening.open(forged) == other


def test_shares_below_the_threshold_are_uniform_whatever_the_secret_is() -> None:
    """With t = 2 a share is secret + a * position for a uniform a: every value once, for each secret."""
    for secret in (bytes(32), b"\xff" * 32):
        for drawn in (0, 1, PRIME - 1, 5):
            second = split(secret, 2, 3, below=lambda bound, drawn=drawn: drawn)[1]
            base = int.from_bytes(secret, "big")
            assert int.from_bytes(second, "big") == (base + 2 * drawn) % PRIME


def test_every_sharing_is_fresh() -> None:
    assert not set(split(bytes(32), 3, 5)) & set(split(bytes(32), 3, 5))


def test_the_coefficients_are_drawn_from_the_whole_field_one_for_each_share_that_is_needed() -> (
    None
):
    bounds: list[int] = []
    split(bytes(32), 4, 6, below=lambda bound: bounds.append(bound) or 7)  # type: ignore[func-returns-value]
    assert bounds == [PRIME] * 3


@pytest.mark.parametrize(
    "share",
    [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33],
    ids=["none", "short", "long", "the prime", "above the field"],
)
def test_a_malformed_share_opens_nothing(share: bytes) -> None:
    shares = dict(enumerate(split(bytes(32), 3, 3), start=1))
    assert not is_share(share)
    with pytest.raises(ProtocolError, match="position 2"):
        Interpolation([1, 2, 3]).open({**shares, 2: share})


def test_a_missing_share_opens_nothing() -> None:
    with pytest.raises(ProtocolError, match="position 3"):
        Interpolation([1, 3]).open({1: bytes(33)})


def test_shares_of_a_value_above_the_secrets_are_told() -> None:
    high = (2**256).to_bytes(33, "big")
    with pytest.raises(ProtocolError, match="one secret"):
        Interpolation([1]).open({1: high})


def test_shares_of_different_sharings_give_another_secret() -> None:
    first, second = split(b"a" * 32, 2, 3), split(b"b" * 32, 2, 3)
    try:
        opened = Interpolation([1, 2]).open({1: first[0], 2: second[1]})
    except ProtocolError:
        return
    assert opened not in (b"a" * 32, b"b" * 32)


@pytest.mark.parametrize("positions", [[], [0, 1], [1, 1], [-1, 2]], ids=str)
def test_positions_are_distinct_and_begin_at_one(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="distinct"):
        Interpolation(positions)


@pytest.mark.parametrize(("secret", "threshold", "sites"), [
    (bytes(31), 2, 3), (bytes(33), 2, 3), (bytes(32), 0, 3), (bytes(32), 4, 3),
])  # fmt: skip
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, sites: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        split(secret, threshold, sites)
