"""The fixed-point codec: bounds, headroom, unbiased rounding, order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import (
    CodecOverflowError,
    LayoutMismatchError,
    NonFiniteUpdateError,
    ProtocolError,
)
from fedpalm.secagg.codec import FixedPointCodec, add_into

KEY = bytes(range(32))

sites = st.integers(1, 200)
clips = st.floats(1e-6, 1024, allow_nan=False)
max_weights = st.integers(1, 1_000_000)


def _codec(**changes: object) -> FixedPointCodec:
    values = {"sites": 4, "parameters": 5, "clip_abs": 0.5, "max_weight": 100, **changes}
    return FixedPointCodec(**values)  # type: ignore[arg-type]


def _vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _decode(codec: FixedPointCodec, encoded: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    return (
        codec.decode_deltas(encoded[: codec.parameters]),
        codec.decode_stats(encoded[codec.parameters :]),
    )


@given(n=sites, clip=clips, max_weight=max_weights)
def test_every_codec_that_exists_has_headroom_for_the_sum_of_the_whole_roster(
    n: int, clip: float, max_weight: int
) -> None:
    try:
        codec = _codec(sites=n, clip_abs=clip, max_weight=max_weight)
    except CodecOverflowError:
        return
    for scale, bound in ((codec.delta_scale, max_weight * clip), (codec.stat_scale, max_weight)):
        assert math.log2(scale).is_integer()
        # Stochastic rounding may go to the next integer above the scaled bound.
        assert n * (math.ceil(bound * scale) + 1) < 2**31


@given(n=sites, clip=clips, max_weight=max_weights, sign=st.sampled_from([-1.0, 1.0]))
def test_the_largest_contributions_of_all_sites_add_up_without_wrapping(
    n: int, clip: float, max_weight: int, sign: float
) -> None:
    try:
        codec = _codec(sites=n, clip_abs=clip, max_weight=max_weight)
    except CodecOverflowError:
        return
    delta = np.full(5, sign * np.float32(3e38), dtype=np.float32)
    one = codec.encode(delta, max_weight, {}, KEY)
    total = np.zeros_like(one)
    for _ in range(n):
        add_into(total, one)
    deltas, stats = _decode(codec, total)
    np.testing.assert_allclose(
        deltas, sign * n * max_weight * clip, rtol=0, atol=1.01 * n / codec.delta_scale
    )
    assert stats["weight"] == pytest.approx(n * max_weight, abs=1.01 * n / codec.stat_scale)


@given(
    st.lists(st.floats(-0.5, 0.5, width=32), min_size=5, max_size=5),
    st.floats(0, 100),
    st.binary(min_size=32, max_size=32),
)
def test_one_contribution_comes_back_within_one_unit_of_its_scale(
    values: list[float], weight: float, key: bytes
) -> None:
    codec = _codec()
    delta = _vector(*values)
    deltas, stats = _decode(codec, codec.encode(delta, weight, {}, key))
    wanted = weight * delta.astype(np.float64)
    assert (np.abs(deltas - wanted) < 1.0001 / codec.delta_scale).all()
    assert abs(stats["weight"] - weight) < 1.0001 / codec.stat_scale


def test_rounding_is_unbiased() -> None:
    codec = _codec(parameters=200_000)
    value = np.float32(0.37)
    delta = np.full(codec.parameters, value, dtype=np.float32)
    weight = 1.25 / codec.delta_scale / float(value)  # every product is 1.25 units
    encoded = codec.encode(delta, weight, {}, KEY)[: codec.parameters].view(np.int32)
    assert set(np.unique(encoded).tolist()) == {1, 2}
    # Binomial: standard deviation of the mean is sqrt(0.25 * 0.75 / 200000) = 0.00097.
    assert abs(encoded.mean() - 1.25) < 5 * 0.00097


def test_rounding_of_negative_values_is_unbiased_too() -> None:
    codec = _codec(parameters=200_000)
    delta = np.full(codec.parameters, np.float32(-0.37), dtype=np.float32)
    weight = 1.25 / codec.delta_scale / float(np.float32(0.37))
    encoded = codec.encode(delta, weight, {}, KEY)[: codec.parameters].view(np.int32)
    assert abs(encoded.mean() + 1.25) < 5 * 0.00097


@given(st.integers(0, 2**32 - 1), st.permutations(range(6)))
def test_the_sum_does_not_depend_on_the_order(seed: int, order: list[int]) -> None:
    codec = _codec(sites=6, parameters=300)
    rng = np.random.default_rng(seed)
    parts = [
        codec.encode(
            rng.normal(0, 1, 300).astype(np.float32), float(rng.uniform(0, 100)), {}, rng.bytes(32)
        )
        for _ in range(6)
    ]
    forward, shuffled = np.zeros_like(parts[0]), np.zeros_like(parts[0])
    for part in parts:
        add_into(forward, part)
    for index in order:
        add_into(shuffled, parts[index])
    np.testing.assert_array_equal(forward, shuffled)


def test_the_same_key_gives_the_same_integers_and_another_key_others() -> None:
    codec = _codec(parameters=1000)
    delta = np.random.default_rng(1).normal(0, 0.1, 1000).astype(np.float32)
    first = codec.encode(delta, 3, {}, KEY)
    np.testing.assert_array_equal(first, codec.encode(delta, 3, {}, KEY))
    assert (first != codec.encode(delta, 3, {}, bytes(32))).any()


def test_blocks_leave_no_seam() -> None:
    """Longer than a block: each value is encoded as if it were alone with its share of keystream."""
    codec = _codec(parameters=(1 << 16) + 3)
    delta = np.linspace(-0.5, 0.5, codec.parameters, dtype=np.float32)
    deltas, _ = _decode(codec, codec.encode(delta, 100, {}, KEY))
    assert (np.abs(deltas - 100 * delta.astype(np.float64)) < 1.0001 / codec.delta_scale).all()


def test_statistics_ride_behind_the_weight_and_may_be_negative() -> None:
    codec = _codec(stats=("weight", "loss", "gain"))
    encoded = codec.encode(_vector(0, 0, 0, 0, 0), 10, {"loss": -7.5, "gain": 2.25}, KEY)
    assert encoded.nbytes == codec.payload_bytes == 4 * 8
    _, stats = _decode(codec, encoded)
    unit = 1.0001 / codec.stat_scale
    wanted = {"weight": 10.0, "loss": -7.5, "gain": 2.25}
    assert {n: stats[n] == pytest.approx(v, abs=unit) for n, v in wanted.items()} == dict.fromkeys(
        wanted, True
    )


@pytest.mark.parametrize("weight", [-0.1, 100.1, math.nan, math.inf])
def test_a_weight_outside_the_plans_bound_is_refused(weight: float) -> None:
    with pytest.raises(CodecOverflowError):
        _codec().encode(_vector(0, 0, 0, 0, 0), weight, {}, KEY)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_delta_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(NonFiniteUpdateError):
        _codec().encode(_vector(0, 0, value, 0, 0), 1, {}, KEY)


@pytest.mark.parametrize("delta", [np.zeros(4, np.float32), np.zeros(5, np.float64)])
def test_a_delta_of_another_shape_or_type_is_refused(delta: np.ndarray) -> None:
    with pytest.raises(LayoutMismatchError):
        _codec().encode(delta, 1, {}, KEY)


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": 0},
        {"clip_abs": 0.0},
        {"clip_abs": math.inf},
        {"stats": ()},
        {"sites": 2**25},
        {"clip_abs": 1e-12, "max_weight": 1},
    ],
)
def test_parameters_without_headroom_or_meaning_make_no_codec(changes: dict[str, object]) -> None:
    with pytest.raises(CodecOverflowError):
        _codec(**changes)


# --- what a receiver accepts ------------------------------------------------------------------------


@given(
    st.integers(1, 200),
    st.integers(1, 300),
    st.floats(1e-3, 4.0),
    st.integers(1, 10_000),
    st.floats(0, 1),
    st.binary(min_size=32, max_size=32),
)
def test_what_encode_makes_is_within_the_bounds_that_a_receiver_checks(
    sites: int, parameters: int, clip_abs: float, max_weight: int, share: float, key: bytes
) -> None:
    codec = FixedPointCodec(sites, parameters, clip_abs, max_weight)
    delta = np.resize(np.array([1e9, -1e9, 0.0, clip_abs], np.float32), parameters)
    encoded = codec.encode(delta, share * max_weight, {}, key)
    codec.check_encoded(encoded, 0)
    middle = codec.length // 2
    codec.check_encoded(encoded[:middle], 0)
    codec.check_encoded(encoded[middle:], middle)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, 0x8000_0000),
        (2, 0x7FFF_FFFF),
        (1, "delta bound + 1"),
        (3, -1 % 2**32),
        (3, "weight bound + 1"),
        (3, 0x8000_0000),
    ],
)
@pytest.mark.parametrize("begin", [0, 1])
def test_a_value_that_encode_cannot_have_made_is_refused(
    at: int, value: int | str, begin: int
) -> None:
    codec = FixedPointCodec(4, 3, 0.5, 100)
    beyond = {
        "delta bound + 1": math.ceil(0.5 * 100 * codec.delta_scale) + 1,
        "weight bound + 1": math.ceil(100 * codec.stat_scale) + 1,
    }
    encoded = codec.encode(np.zeros(3, np.float32), 50, {}, bytes(32))
    codec.check_encoded(encoded[begin:], begin)
    encoded[at] = beyond[value] if isinstance(value, str) else value
    if at >= begin:
        with pytest.raises(ProtocolError):
            codec.check_encoded(encoded[begin:], begin)


# --- accuracy -------------------------------------------------------------------------------------


@given(
    st.integers(3, 40),
    st.floats(0.01, 8.0),
    st.integers(1, 10_000),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_the_weighted_mean_is_within_n_steps_over_the_weights_of_float64(
    n: int, clip: float, max_weight: int, seed: int, data: st.DataObject
) -> None:
    """|mean - float64 mean| <= n * step / sum(w), the weights as they were decoded or as they were."""
    codec = FixedPointCodec(n, 20, clip, max_weight)
    rng = np.random.default_rng(seed)
    least = data.draw(st.sampled_from([1e-3, 0.5, 1.0]))
    weights = rng.uniform(least, 1, n) * max_weight
    deltas = rng.uniform(-clip, clip, (n, 20)).astype(np.float32)
    deltas = np.clip(deltas, -np.float32(clip * 0.999), np.float32(clip * 0.999))
    total = np.zeros(codec.length, dtype=np.uint32)
    for delta, weight in zip(deltas, weights, strict=True):
        add_into(total, codec.encode(delta, float(weight), {}, rng.bytes(32)))
    sums, stats = _decode(codec, total)
    exact = (weights[:, None] * deltas.astype(np.float64)).sum(axis=0)
    step, weight_step = 1 / codec.delta_scale, 1 / codec.stat_scale
    room = 1 + 1e-9
    assert (
        np.abs(sums / weights.sum() - exact / weights.sum()) <= room * n * step / weights.sum()
    ).all()
    # The weight has its own scale and its own share of the error.
    assert abs(stats["weight"] - weights.sum()) <= room * n * weight_step
    mean = sums / stats["weight"]
    shifted = np.abs(exact / weights.sum()) * n * weight_step / stats["weight"]
    assert (
        np.abs(mean - exact / weights.sum()) <= room * n * step / stats["weight"] + shifted
    ).all()


@pytest.mark.parametrize("value", [0.37, -0.37, 0.4999, -1e-4, 3e-7])
def test_the_bias_is_below_three_standard_errors_over_ten_thousand_repetitions(
    value: float,
) -> None:
    """Each repetition rounds once under a key of its own; their mean has no bias to see."""
    repetitions = 10_000
    codec = _codec(sites=50, parameters=1, clip_abs=0.5, max_weight=1000)
    delta, weight = _vector(value), 612.7
    wanted = weight * float(delta[0]) * codec.delta_scale
    rng = np.random.default_rng(20260101)
    encoded = np.array(
        [codec.encode(delta, weight, {}, rng.bytes(32)).view(np.int32) for _ in range(repetitions)]
    )
    for values, expected in (
        (encoded[:, 0], wanted),
        (encoded[:, 1], weight * codec.stat_scale),
    ):
        fraction = expected - math.floor(expected)
        assert set(np.unique(values)) <= {math.floor(expected), math.floor(expected) + 1}
        error = math.sqrt(fraction * (1 - fraction) / repetitions)
        assert abs(values.mean() - expected) <= 3 * error + 1e-9


@given(
    st.integers(1, 200),
    st.floats(1e-30, 1e30),
    st.integers(1, 2**53),
    st.sampled_from([1, -1]),
    st.floats(0, 1),
    st.binary(min_size=32, max_size=32),
)
def test_no_parameters_at_all_let_a_sum_wrap(
    n: int, clip: float, max_weight: int, sign: int, share: float, key: bytes
) -> None:
    """Whatever the plan says: either there is no codec, or the largest contributions of all sites fit."""
    try:
        codec = FixedPointCodec(n, 3, clip, max_weight)
    except CodecOverflowError:
        return
    largest = sign * np.finfo(np.float32).max
    one = codec.encode(np.full(3, largest, np.float32), share * max_weight, {}, key)
    assert n * int(np.abs(one.view(np.int32).astype(np.int64)).max()) < 2**31
    codec.check_encoded(one, 0)
    # Products are exact integers of float64 far beyond what is rounded.
    assert max_weight * clip * codec.delta_scale <= 2**53
    assert max_weight * codec.stat_scale <= 2**53


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(-5, 5))
def test_a_clip_bound_that_is_no_positive_number_makes_no_codec(clip: float, n: int) -> None:
    if n >= 1 and 0 < clip < math.inf:
        return
    with pytest.raises(CodecOverflowError):
        FixedPointCodec(n, 3, clip, 10)


@given(st.lists(st.floats(width=32), min_size=5, max_size=5), st.floats())
def test_an_update_is_encoded_within_its_bounds_or_refused(
    values: list[float], weight: float
) -> None:
    codec = _codec()
    delta = _vector(*values)
    try:
        encoded = codec.encode(delta, weight, {}, KEY)
    except NonFiniteUpdateError:
        assert not np.isfinite(delta).all()
    except CodecOverflowError:
        assert not 0 <= weight <= 100
    else:
        assert np.isfinite(delta).all() and 0 <= weight <= 100
        codec.check_encoded(encoded, 0)
