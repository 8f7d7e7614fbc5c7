"""From results to pictures."""

from __future__ import annotations

import pytest

from fedpalm.benchmark.palm.plots import style, write_plots
from fedpalm.benchmark.palm.scoring import mean_curve
from fedpalm.benchmark.palm.variants import VARIANTS

from .conftest import canned_result, tiny_job

NAMES = ("local", "fedavg", "fedpalm", "fedpalm-freeze")


@pytest.fixture
def filled(store):
    for spread, name in enumerate(NAMES, 1):
        canned_result(store, tiny_job(name), 0.3 * spread)
    return store


def test_every_plot_is_drawn_and_what_is_not_is_said(filled, tmp_path):
    written, left_out = write_plots(filled.everything(), filled, tmp_path / "plots")
    assert [path.name for path in written] == [
        "roc-closed.png", "roc-open.png", "det.png", "convergence.png", "teim.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert left_out == ["privacy and accuracy: no run with differential privacy"]


def test_without_scores_and_without_a_teim_less_is_drawn(filled, tmp_path):
    for path in filled.folder.glob("*.npz"):
        path.unlink()
    results = [one for one in filled.everything() if one["method"] != "fedpalm"]
    written, left_out = write_plots(results, filled, tmp_path / "plots")
    assert [path.name for path in written] == ["convergence.png"]
    assert len(left_out) == 3


def test_privacy_is_drawn_where_there_is_an_epsilon(filled, tmp_path):
    results = [one | {"epsilon": 2.0} for one in filled.everything()]
    written, left_out = write_plots(results, filled, tmp_path / "plots")
    assert written[-1].name == "privacy.png" and left_out == []


def test_no_two_variants_look_alike():
    looks = [(style(name)["color"], style(name)["linestyle"]) for name in VARIANTS]
    assert len(set(looks)) == len(VARIANTS)


def test_a_mean_curve_falls_and_ends_without_errors(filled):
    scores = filled.scores(tiny_job("local").hash)
    pairs = [
        (scores[f"open/{site}/genuine"], scores[f"open/{site}/impostor"])
        for site in ("site-1", "site-2")
    ]
    fmr, fnmr = mean_curve(pairs)
    assert (fnmr[1:] <= fnmr[:-1] + 1e-12).all() and fnmr[-1] == 0 and fmr[-1] == 1
