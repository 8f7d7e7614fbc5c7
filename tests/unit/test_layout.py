from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import LayoutMismatchError, NonFiniteUpdateError
from fedpalm.layout import Layout, TensorSpec

PART = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=12)
NAME = st.builds(
    lambda head, tail: ".".join([head, *tail]),
    st.sampled_from(["open_set", "closed_set.expert"]),
    st.lists(PART, min_size=1, max_size=4),
)
SHAPE = st.lists(st.integers(0, 5), max_size=3).map(tuple)
LAYOUTS = st.lists(st.builds(TensorSpec, NAME, SHAPE), unique_by=lambda s: s.name, max_size=6).map(
    lambda specs: Layout(tuple(specs))
)


@given(LAYOUTS, st.integers(0, 2**32 - 1))
def test_flatten_and_unflatten_are_inverse(layout: Layout, seed: int) -> None:
    vector = np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32)
    assert layout.flatten(layout.unflatten(vector)).tobytes() == vector.tobytes()


@given(LAYOUTS)
def test_a_layout_survives_json_with_its_hash(layout: Layout) -> None:
    again = Layout.from_json(layout.to_json())
    assert again == layout and again.hash == layout.hash


@pytest.mark.parametrize(
    "name",
    [
        "head.weight",
        "closed_set.embedding.weight",
        "closed_set.head.weight",
        "open_set",
        "open_set.",
        "open_set.A",
        "open_set.x/y",
        "open_set.x\n",
        "xopen_set.weight",
        "closed_set.expert",
        "open_set." + "a" * 65,
    ],
)
def test_a_name_outside_the_two_families_is_not_a_layout(name: str) -> None:
    with pytest.raises(LayoutMismatchError):
        Layout((TensorSpec(name, (2,)),))


def test_a_reordered_renamed_or_reshaped_layout_has_another_hash() -> None:
    a, b = TensorSpec("open_set.a", (2, 3)), TensorSpec("open_set.b", (6,))
    hashes = {
        Layout((a, b)).hash,
        Layout((b, a)).hash,
        Layout((TensorSpec("open_set.a", (3, 2)), b)).hash,
        Layout((TensorSpec("open_set.c", (2, 3)), b)).hash,
    }
    assert len(hashes) == 4


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"open_set.a": np.zeros(3, np.float32)},
        {"open_set.a": np.zeros(2, np.float64)},
        {"open_set.a": np.zeros(2, np.float32), "open_set.b": np.zeros(1, np.float32)},
        {"open_set.b": np.zeros(2, np.float32)},
    ],
)
def test_tensors_that_are_not_the_layout_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(LayoutMismatchError):
        Layout((TensorSpec("open_set.a", (2,)),)).flatten(tensors)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_both_ways(poison: float) -> None:
    layout = Layout((TensorSpec("open_set.a", (2,)),))
    bad = np.array([0, poison], np.float32)
    with pytest.raises(NonFiniteUpdateError):
        layout.flatten({"open_set.a": bad})
    with pytest.raises(NonFiniteUpdateError):
        layout.unflatten(bad)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_malformed_json_never_becomes_a_layout(value: object) -> None:
    try:
        layout = Layout.from_json(value)  # type: ignore[arg-type]
    except LayoutMismatchError:
        return
    assert layout.tensors == ()
