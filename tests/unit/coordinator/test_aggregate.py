"""The sum: exact, in any order, in little memory, and never half written."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregate import BLOCK_VALUES, aggregate, change
from coordinator.spool import Spool
from fedpalm.errors import (
    IntegrityError,
    MaskingError,
    NonFiniteUpdateError,
    ResourceError,
    UnavailableError,
)
from fedpalm.methods.rules import WeightedMean
from fedpalm.secagg.codec import FixedPointCodec
from fedpalm.secagg.masks import apply_masks


def named(updates: list[Path]) -> dict[str, Path]:
    """By site; what a site is called plays no part here."""
    return {path.name: path for path in updates}


class Bench:
    """Files of a round: a global model and updates of ``sites`` sites."""

    def __init__(self, root: Path, sites: int, parameters: int, weights: list[float] | None = None):
        self.spool = Spool(root / "models", root / "spool")
        self.codec = FixedPointCodec(sites, parameters, clip_abs=0.5, max_weight=100)
        rng = np.random.default_rng(4)
        self.params = rng.normal(0, 1, parameters).astype("<f4")
        name = hashlib.sha256(self.params.tobytes()).hexdigest()
        self.model = self.spool.model(name)
        self.model.write_bytes(self.params.tobytes())
        self.updates = []
        self.encoded = []
        for number in range(sites):
            delta = rng.normal(0, 0.1, parameters).astype(np.float32)
            weight = weights[number] if weights else float(rng.integers(1, 100))
            self.encoded.append(self.codec.encode(delta, weight, {}, rng.bytes(32)))
            self.updates.append(root / f"update-{number}")
            self.updates[-1].write_bytes(self.encoded[-1].astype("<u4").tobytes())

    def run(self, updates: list[Path] | None = None) -> str:
        return aggregate(
            self.codec,
            WeightedMean(),
            self.model,
            named(self.updates if updates is None else updates),
            self.spool.model,
        )

    def read(self, model_hash: str) -> np.ndarray:
        return np.fromfile(self.spool.model(model_hash), dtype="<f4")


@pytest.fixture
def make(tmp_path: Path):  # type: ignore[no-untyped-def]
    return lambda **kw: Bench(tmp_path, **kw)


@pytest.mark.parametrize("parameters", [1, BLOCK_VALUES - 1, BLOCK_VALUES, 2 * BLOCK_VALUES + 3])
def test_the_sum_is_what_plain_64_bit_integers_give(make, parameters: int) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=5, parameters=parameters)
    total = sum(one.view(np.int32).astype(np.int64) for one in bench.encoded)
    weight = total[-1] / bench.codec.stat_scale
    wanted = bench.params + total[:-1] / bench.codec.delta_scale / weight
    np.testing.assert_array_equal(bench.read(bench.run()), wanted.astype(np.float32))


def test_the_result_is_named_by_its_hash(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=3, parameters=1000)
    model_hash = bench.run()
    data = bench.spool.model(model_hash).read_bytes()
    assert hashlib.sha256(data).hexdigest() == model_hash


def test_any_order_gives_the_same_bytes(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=9, parameters=3000)
    orders = [random.Random(seed).sample(bench.updates, 9) for seed in range(5)]
    assert len({bench.run(order) for order in orders}) == 1


def test_a_total_weight_of_zero_is_no_update(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=2, parameters=50, weights=[0.0, 0.0])
    assert bench.run() == bench.model.name.removesuffix(".f32")


def test_memory_grows_neither_with_the_model_nor_with_the_sites(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=24, parameters=20 * BLOCK_VALUES)
    bench.run(bench.updates[:1])
    tracemalloc.start()
    bench.run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    block = 8 * BLOCK_VALUES
    assert peak < 8 * block < bench.model.stat().st_size


@pytest.mark.parametrize("length", [0, 100, -4, +4])
def test_a_file_of_another_size_stops_the_sum(make, length: int) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=3, parameters=1000)
    whole = bench.updates[1].read_bytes()
    changed = whole + b"abcd" if length > 0 and length < 10 else whole[: length or 0]
    bench.updates[1].write_bytes(changed)
    with pytest.raises(IntegrityError):
        bench.run()
    assert [path.name for path in bench.spool.models.iterdir()] == [bench.model.name]


def test_a_step_out_of_the_range_of_float32_commits_nothing(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=2, parameters=10)
    bench.model.write_bytes(np.full(10, 3.4e38, dtype="<f4").tobytes())

    class Doubling(WeightedMean):
        def step(self, params, total, stats):  # type: ignore[no-untyped-def]
            with np.errstate(over="ignore"):
                return (params.astype(np.float64) * 2).astype(np.float32)

    with pytest.raises(NonFiniteUpdateError):
        aggregate(bench.codec, Doubling(), bench.model, named(bench.updates), bench.spool.model)
    assert [path.name for path in bench.spool.models.iterdir()] == [bench.model.name]


def test_an_update_that_is_gone_is_named_by_its_site(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=2, parameters=10)
    bench.updates[1].unlink()
    with pytest.raises(IntegrityError, match="site update-1 is gone"):
        bench.run()


def test_a_missing_model_is_named_a_matter_of_the_disk(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=2, parameters=10)
    bench.model.unlink()
    with pytest.raises(ResourceError, match="could not be formed"):
        bench.run()


def test_too_many_open_files_are_a_matter_of_the_moment(  # type: ignore[no-untyped-def]
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(sites=2, parameters=10)

    def refused(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(UnavailableError, match="Too many"):
        patch.setattr(os, "open", refused)
        bench.run()
    bench.run()


# --- masked updates -------------------------------------------------------------------------------


def mask_files(bench: Bench, kept: list[int]) -> tuple[list[bytes], list[bytes]]:
    """Mask every update with all others and with a stream of its own, in whole, as sites do.

    Returns:
        what takes the masks off the sum of ``kept``: stream keys to add, and to subtract.
    """
    count = len(bench.updates)
    own = [bytes([number]) * 32 for number in range(count)]
    pair = {(i, j): bytes([64 + i, j]) * 16 for i in range(count) for j in range(i + 1, count)}
    for number, path in enumerate(bench.updates):
        vector = bench.encoded[number].copy()
        adds = [own[number]] + [key for (i, _), key in pair.items() if i == number]
        apply_masks(vector, adds, [key for (_, j), key in pair.items() if j == number])
        path.write_bytes(vector.astype("<u4").tobytes())
    left = [(i, j) for i, j in pair if (i in kept) != (j in kept)]
    add = [pair[i, j] for i, j in left if j in kept]
    return add, [own[number] for number in kept] + [pair[i, j] for i, j in left if i in kept]


@pytest.mark.parametrize("parameters", [1, 2, 3, BLOCK_VALUES - 1, 2 * BLOCK_VALUES + 3])
@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4], [1, 2, 3, 4], [0, 2, 3], [0, 1, 2]])
def test_a_masked_sum_is_the_plain_sum_of_exactly_the_survivors(
    make,  # type: ignore[no-untyped-def]
    parameters: int,
    kept: list[int],
) -> None:
    bench = make(sites=5, parameters=parameters)
    plain = bench.run([bench.updates[number] for number in kept])
    corrections = mask_files(bench, kept)
    masked = aggregate(
        bench.codec,
        WeightedMean(),
        bench.model,
        named([bench.updates[number] for number in kept]),
        bench.spool.model,
        corrections,
    )
    assert masked == plain


def masked_sum(bench: Bench) -> str:
    corrections = mask_files(bench, list(range(len(bench.updates))))
    return aggregate(
        bench.codec,
        WeightedMean(),
        bench.model,
        named(bench.updates),
        bench.spool.model,
        corrections,
    )


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_masked_sum_at_its_bounds_is_a_model(make, sign: int) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=4, parameters=50)
    for number, weight in enumerate([100.0, 0.3, 100.0, 0.0]):
        delta = np.full(50, sign * 9, np.float32)
        bench.encoded[number] = bench.codec.encode(delta, weight, {}, bytes([number]) * 32)
    moved = bench.read(masked_sum(bench)) - bench.params
    np.testing.assert_allclose(moved, sign * 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("at", "units", "told"),
    [
        (-1, -200_000_000, "weight -"),
        (-1, 1_600_000_000, "weight 2"),
        (0, 10_000_000, "a value beyond 10"),
        (BLOCK_VALUES + 3, -10_000_000, "a value beyond 10"),
        (0, 5, "a value beyond 10"),
        (0, 4, ""),
    ],
    ids=["negative weight", "weight", "first block", "second block", "a unit", "rounding"],
)
def test_a_masked_sum_that_no_updates_within_the_bounds_add_up_to_is_no_model(  # type: ignore[no-untyped-def]
    make, at: int, units: int, told: str
) -> None:
    bench = make(sites=2, parameters=BLOCK_VALUES + 5, weights=[10.0, 10.0])
    delta = np.full(BLOCK_VALUES + 5, np.sign(units) * 0.5, np.float32)
    for number in range(2):
        bench.encoded[number] = bench.codec.encode(delta, 10.0, {}, bytes([number]) * 32)
    bench.encoded[1][at:][:1] += np.uint32(units % 2**32)
    if not told:
        assert masked_sum(bench)
        return
    with pytest.raises(MaskingError, match="which one cannot be told") as refused:
        masked_sum(bench)
    assert told in refused.value.what
    assert [path.name for path in bench.spool.models.iterdir()] == [bench.model.name]


def test_a_masked_sum_without_its_corrections_is_another_one(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=3, parameters=100)
    plain = bench.run()
    mask_files(bench, [0, 1, 2])
    assert bench.run() != plain


def test_a_masked_sum_needs_no_more_memory(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=6, parameters=20 * BLOCK_VALUES)
    corrections = mask_files(bench, [0, 1, 2, 3, 4])

    def summed() -> str:
        return aggregate(
            bench.codec,
            WeightedMean(),
            bench.model,
            named(bench.updates[:5]),
            bench.spool.model,
            corrections,
        )

    summed()
    tracemalloc.start()
    summed()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    block = 8 * BLOCK_VALUES
    assert peak < 8 * block < bench.model.stat().st_size


# --- lost rounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [1, 97, 2 * BLOCK_VALUES + 5])
def test_a_lost_round_moves_one_value_of_its_model_to_the_next_one_up(make, parameters) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=2, parameters=parameters)
    hashes = {
        change(bench.codec, bench.model, bytes([n] * 32), bench.spool.model) for n in range(4)
    }
    assert len(hashes) == min(4, parameters)
    for new_hash in hashes:
        changed = bench.read(new_hash)
        assert hashlib.sha256(changed.tobytes()).hexdigest() == new_hash
        (at,) = np.flatnonzero(changed != bench.params)
        assert changed[at] == np.nextafter(bench.params[at], np.float32(np.inf))
    again = change(bench.codec, bench.model, bytes(32), bench.spool.model)
    assert again in hashes
    assert not [path for path in bench.spool.models.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize("value", [0.0, -0.0, np.finfo("f4").max, -np.finfo("f4").max, -1e-45])
def test_a_changed_model_is_finite_and_another_one(make, value: float) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=2, parameters=2)
    bench.model.write_bytes(np.array([value, 1], "<f4").tobytes())
    changed = bench.read(change(bench.codec, bench.model, bytes(32), bench.spool.model))
    assert np.isfinite(changed).all()
    assert changed.tobytes() != bench.model.read_bytes()


def test_changes_never_lead_back_to_a_model_that_was_there(make) -> None:  # type: ignore[no-untyped-def]
    """Where all is the largest float32, nothing can grow, and a value must not swing to and fro."""
    bench = make(sites=2, parameters=2)
    largest = np.finfo(np.float32).max
    below = np.nextafter(largest, np.float32(0))
    bench.model.write_bytes(np.array([largest, below], "<f4").tobytes())
    new_hash = change(bench.codec, bench.model, bytes(32), bench.spool.model)
    np.testing.assert_array_equal(bench.read(new_hash), [largest, largest])
    with pytest.raises(IntegrityError, match="no value"):
        change(bench.codec, bench.spool.model(new_hash), bytes(32), bench.spool.model)


def test_a_changed_model_is_none_of_those_that_are_spent(make) -> None:  # type: ignore[no-untyped-def]
    bench = make(sites=2, parameters=3)
    spent: list[str] = []
    for _ in range(3):
        spent.append(change(bench.codec, bench.model, bytes(32), bench.spool.model, spent))
    assert len(set(spent)) == 3
    with pytest.raises(IntegrityError, match="no value"):
        change(bench.codec, bench.model, bytes(32), bench.spool.model, spent)
    assert len(list(bench.spool.models.iterdir())) == 4
