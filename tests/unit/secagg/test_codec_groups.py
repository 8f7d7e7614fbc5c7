"""Groups of parameters in the codec: zeros of those who are not in, a weight and a scale of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import LayoutMismatchError, MaskingError, NonFiniteUpdateError, ProtocolError
from fedpalm.groups import Group
from fedpalm.methods.rules import WeightedMean, stepped
from fedpalm.secagg.codec import FixedPointCodec, add_into

KEY = bytes(range(32))
SITES = tuple("abcdef")
GROUPS = (
    Group("left", 0, 3, ("a", "b", "c")),
    Group("right", 3, 5, ("d", "e")),
    Group("all", 5, 9, SITES),
)


def _codec(clip: float = 0.5, max_weight: int = 100) -> FixedPointCodec:
    return FixedPointCodec(6, 9, clip, max_weight, groups=GROUPS)


def _delta(site: str, value: float = 0.25) -> np.ndarray:
    delta = np.full(9, value, np.float32)
    for group in GROUPS:
        if site not in group.members:
            delta[group.span] = 0
    return delta


@pytest.mark.parametrize("site", SITES)
def test_a_site_is_zero_where_it_is_no_member_and_its_weight_is_in_its_groups(site: str) -> None:
    codec = _codec()
    encoded = codec.encode(_delta(site), 7, {}, KEY, site)
    weights = codec.decode_stats(encoded[9:])
    for group in GROUPS:
        member = site in group.members
        assert encoded[group.span].any() == member
        assert weights[f"weight.{group.name}"] == (7 if member else 0)
        deltas = codec.decode_deltas(encoded[group.span], group)
        np.testing.assert_allclose(deltas, 7 * 0.25 if member else 0)


@pytest.mark.parametrize("value", [1e-30, -1.0, math.nan, math.inf])
def test_any_value_outside_a_sites_groups_is_refused(value: float) -> None:
    delta = _delta("a")
    delta[4] = value
    with pytest.raises(LayoutMismatchError, match="a is not of group right"):
        _codec().encode(delta, 1, {}, KEY, "a")


def test_a_value_that_is_not_finite_in_a_sites_own_group_is_refused() -> None:
    delta = _delta("a")
    delta[8] = math.nan
    with pytest.raises(NonFiniteUpdateError):
        _codec().encode(delta, 1, {}, KEY, "a")


@pytest.mark.parametrize("site", ["", "stranger"])
def test_nobody_encodes_without_a_group(site: str) -> None:
    with pytest.raises(LayoutMismatchError, match="in no group"):
        _codec().encode(np.zeros(9, np.float32), 1, {}, KEY, site)


@pytest.mark.parametrize("groups", [GROUPS[:2], GROUPS[1:], (GROUPS[0], GROUPS[2]), GROUPS[::-1]])
def test_groups_that_are_not_the_whole_vector_make_no_codec(groups: tuple[Group, ...]) -> None:
    with pytest.raises(LayoutMismatchError):
        FixedPointCodec(6, 9, 0.5, 100, groups=groups)
    with pytest.raises(LayoutMismatchError):
        FixedPointCodec(6, 9, 0.5, 100, stats=("weight", "steps"), groups=GROUPS)


@given(st.floats(1e-3, 64), st.integers(1, 10_000))
def test_each_group_has_headroom_for_all_of_its_members_and_no_less_scale_than_everybody(
    clip: float, max_weight: int
) -> None:
    codec = _codec(clip, max_weight)
    for group in GROUPS:
        scale = codec.scale_of(group)
        assert math.log2(scale).is_integer() and scale >= codec.delta_scale
        assert len(group.members) * (math.ceil(max_weight * clip * scale) + 1) < 2**31
    largest = {site: _delta(site, 3e38) for site in SITES}
    total = np.zeros(codec.length, np.uint32)
    for site in SITES:
        add_into(total, codec.encode(largest[site], max_weight, {}, KEY, site))
    codec.check_sum_stats(total[9:], SITES)
    for group in GROUPS:
        deltas = codec.decode_deltas(total[group.span], group)
        count = len(group.members)
        step = 1.01 * count / codec.scale_of(group)
        np.testing.assert_allclose(deltas, count * max_weight * clip, rtol=0, atol=step)


@given(
    st.integers(0, 2**32 - 1),
    st.sets(st.sampled_from(SITES), min_size=1),
    st.integers(1, 1000),
    st.integers(0, 9),
)
def test_each_groups_mean_is_that_of_float64_over_the_survivors_that_are_in_it(
    seed: int, survivors: set[str], max_weight: int, cut: int
) -> None:
    codec, rng = _codec(max_weight=max_weight), np.random.default_rng(seed)
    params = rng.normal(size=9).astype(np.float32)
    deltas = {s: _delta(s, 1.0) * rng.uniform(-0.5, 0.5, 9).astype(np.float32) for s in survivors}
    weights = {site: rng.uniform(1e-2, 1) * max_weight for site in survivors}
    total = np.zeros(codec.length, np.uint32)
    for site in survivors:
        add_into(total, codec.encode(deltas[site], weights[site], {}, rng.bytes(32), site))
    stats = codec.decode_stats(total[9:])
    parts = ((0, cut), (cut, 9))
    new = np.concatenate(
        [stepped(codec, WeightedMean(), params[b:e], total[b:e], b, stats) for b, e in parts]
    )
    for group in GROUPS:
        there = [site for site in group.members if site in survivors]
        if not there:
            np.testing.assert_array_equal(new[group.span], params[group.span])
            continue
        weight = sum(weights[site] for site in there)
        mean = sum(weights[site] * deltas[site].astype(np.float64) for site in there) / weight
        near = len(there) * (1 / codec.scale_of(group) + 0.5 / codec.stat_scale) / weight + 5e-7
        np.testing.assert_allclose(new[group.span], (params + mean)[group.span], rtol=0, atol=near)


@pytest.mark.parametrize("begin", [0, 1, 4])
@pytest.mark.parametrize(
    ("at", "value"),
    [(4, 1), (4, -1 % 2**32), (10, 1), (9, -1 % 2**32), (0, 0x7FFF_FFFF), (11, 2**31 - 1)],
)
def test_a_receiver_holds_a_plain_update_to_its_sites_groups(
    at: int, value: int, begin: int
) -> None:
    codec = _codec()
    encoded = codec.encode(_delta("a"), 7, {}, KEY, "a")
    codec.check_encoded(encoded[begin:], begin, "a")
    codec.check_encoded(encoded[10:], 10, "a")
    encoded[at] = value
    if at >= begin:
        with pytest.raises(ProtocolError, match="groups"):
            codec.check_encoded(encoded[begin:], begin, "a")
    with pytest.raises(ProtocolError):
        codec.check_encoded(codec.encode(_delta("a"), 7, {}, KEY, "a"), 0, "d")


def test_a_sum_is_held_to_what_the_survivors_of_each_group_can_add_up_to() -> None:
    codec, survivors = _codec(), ("a", "b", "c")
    total = np.zeros(codec.length, np.uint32)
    for site in survivors:
        add_into(total, codec.encode(_delta(site, 9), 10, {}, KEY, site))
    stats = codec.decode_stats(total[9:])
    codec.check_sum_stats(total[9:], survivors)
    for group in GROUPS:
        weight = codec.stats_of(stats, group)["weight"]
        codec.check_sum_deltas(total[group.span], group, survivors, weight)
    total[3] += 1
    with pytest.raises(MaskingError, match="of 0 sites"):
        codec.check_sum_deltas(total[3:5], GROUPS[1], survivors, 0.0)
    for at, told in ((10, "of 0 sites"), (9, "of 3 sites")):
        wrong = total[9:].copy()
        wrong[at - 9] = np.uint32(1) if at == 10 else np.uint32(0)
        with pytest.raises(MaskingError, match=told):
            codec.check_sum_stats(wrong, survivors)
