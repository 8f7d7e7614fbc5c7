"""The round that sites train against the plain loop of the paper, and what measuring them reports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from fedpalm.benchmark import training
from fedpalm.benchmark.training import (
    MODEL_LIMIT,
    OTHER,
    WAYS,
    Bench,
    Load,
    check,
    measure_training,
    part_of,
)
from fedpalm.cli.app import commands
from fedpalm.errors import IntegrityError, UnavailableError

SMALL = Load(images=4, experts=4)
"""Four other experts, of which the TEIM takes three."""


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(SMALL)


@pytest.fixture
def no_processes(monkeypatch):
    monkeypatch.setattr(training, "_peak_bytes", lambda load, way: 1_000_000)


def altered(bench: Bench, change: dict[str, Any]):
    """The plain loop under other settings."""

    def plain_round(settings, *arguments, **options):
        return real(settings.model_copy(update=change), *arguments, **options)

    real = bench.plain_round
    return plain_round


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_round_ends_where_the_plain_loop_ends(bench, way):
    here, _, _ = bench.train(WAYS[0])
    plain, _, _ = bench.train(way)
    differences = bench.differences(here, plain)
    check(differences)
    assert set(differences) == {"shared", "private", "losses"}
    assert set(here.shared) == set(plain.shared)
    assert any("embedding" in name for name in plain.private)


@pytest.mark.parametrize(
    "change",
    [{"teim_neighbours": 2}, {"dropout": 0.2}, {"arcface_margin": 0.45}, {"learning_rate": 9.7e-4}],
)
def test_a_loop_of_other_mathematics_is_told_apart(bench, change, monkeypatch):
    here, _, _ = bench.train(WAYS[0])
    monkeypatch.setattr(bench, "plain_round", altered(bench, change))
    plain, _, _ = bench.train(WAYS[1])
    differences = bench.differences(here, plain)
    assert max(differences["shared"], differences["private"]) > 2 * MODEL_LIMIT
    with pytest.raises(IntegrityError, match="differ"):
        check(differences)


def test_every_call_begins_at_the_same_state(bench):
    first, second = bench.train(WAYS[0])[0], bench.train(WAYS[0])[0]
    for name, tensor in first.private.items():
        assert tensor.tobytes() == second.private[name].tobytes()


def test_not_a_number_is_a_difference():
    with pytest.raises(IntegrityError):
        check({"shared": float("nan")})


def test_the_figures_fit_together(no_processes):
    figures = measure_training(SMALL, 1, silent)
    ways = figures["ways"]
    assert tuple(ways) == WAYS
    for way in WAYS[1:]:
        ratio = ways[way]["round_s"]["median"] / ways[WAYS[0]]["round_s"]["median"]
        assert figures["times_faster"][way]["median"] == pytest.approx(ratio)
    here = ways[WAYS[0]]
    passes = SMALL.images * figures["local_epochs"]
    assert here["images_per_s"] == pytest.approx(passes / here["round_s"]["median"])
    assert here["images_per_cpu_s"] == pytest.approx(passes / here["cpu_s"]["median"])
    parts = figures["profile_s"]
    assert all(seconds >= 0 for seconds in parts.values())
    for part in ("convolution, forward", "convolution, backward", "Adam", "augmentation"):
        assert parts[part] > 0


def test_a_round_holds_gradients_and_moments_of_two_embedding_layers():
    assert training._peak_bytes(Load(2, 2), WAYS[0]) > 4 * 512 * 9708 * 6


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("aten::mkldnn_convolution", "convolution, forward"),
        ("aten::convolution_backward", "convolution, backward"),
        ("aten::_fft_c2r", "Gabor filters in the frequency domain"),
        ("aten::bmm", "Gabor filters in the frequency domain"),
        ("aten::mm", "embedding layer (and other matrix products)"),
        ("aten::_fused_adam_", "Adam"),
        ("aten::copy_", "copies and zeros"),
        ("aten::exp", OTHER),
    ],
)
def test_an_operation_counts_in_its_part(operation, part):
    assert part_of(operation) == part


def test_the_command_prints_one_object_or_tables(no_processes):
    line = ["bench", "train", "--images", "4", "--experts", "2", "--repeats", "1"]
    value = json.loads(CliRunner().invoke(commands, [*line, "--json"]).stdout)
    assert value["images"] == 4 and value["experts"] == 2
    told = CliRunner().invoke(commands, line)
    assert told.exit_code == 0 and "images a second" in told.stdout


def test_a_loop_that_ends_elsewhere_ends_the_command_with_10(monkeypatch, no_processes):
    monkeypatch.setattr(training, "MODEL_LIMIT", 0.0)
    line = ["bench", "train", "--images", "4", "--experts", "2", "--repeats", "1"]
    assert CliRunner().invoke(commands, line).exit_code == IntegrityError.exit_code


def test_without_the_repository_the_command_says_what_to_do(monkeypatch):
    monkeypatch.setattr(training, "import_module", missing)
    done = CliRunner().invoke(commands, ["bench", "train"])
    assert done.exit_code == UnavailableError.exit_code
    assert "clone the repository" in done.stderr


def missing(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
