"""Means over the sites, their paired draws, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.benchmark.signature.scoring import figures, pack
from fedpalm.benchmark.signature.summary import summarise
from fedpalm.benchmark.signature.tables import markdown
from fedpalm.evaluation.signatures import ClaimScores, Forged, error_rates


def claims(seed, gap, kinds=("random", "skilled"), writers=4):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(writers, dtype=np.int32), 6)
    forged = {kind: Forged(rng.normal(0, 1, who.size), who) for kind in kinds}
    return ClaimScores(rng.normal(gap, 1, who.size), who, forged, writers)


def test_a_mean_is_over_the_sites_and_a_kind_that_a_site_has_not_is_left_out():
    by_site = {"a": claims(0, 1.0), "b": claims(1, 2.0, kinds=("random",))}
    found = figures(by_site, ["0", "open"], 20)
    assert found.keys() == {"random"}
    rates = [error_rates(one, "random") for one in by_site.values()]
    assert found["random"]["eer"]["mean"] == pytest.approx(np.mean([one[0] for one in rates]))
    assert found["random"]["user_eer"]["mean"] == pytest.approx(np.mean([one[1] for one in rates]))
    assert found["random"]["writers"] == 8 and found["random"]["genuine"] == 48


def test_two_models_are_drawn_alike_sites_apart_and_everybodys_set_at_all_sites_alike():
    one = claims(0, 1.0)
    apart = figures({"a": one, "b": one}, ["0", "open"], 20)["random"]["eer"]["draws"]
    alike = figures({"a": one, "b": one}, ["0", "open"], 20, same_writers=True)["random"]
    alone = figures({"a": one}, ["0", "open"], 20, same_writers=True)["random"]
    assert alike["eer"]["draws"] == alone["eer"]["draws"] != apart
    assert alike["writers"] == 4


def test_scores_are_kept_by_set_number_of_references_site_and_kind():
    packed = pack({"open": {5: {"a": claims(0, 1.0)}}})
    assert packed["open/5/a/skilled"].dtype == np.float16
    assert packed["open/5/a/genuine/writer"].tolist() == np.repeat(np.arange(4), 6).tolist()


def result(variant, gap, seed=0):
    by_site = {"site-1": claims(0, gap), "site-2": claims(1, gap)}
    return {
        "experiment": "e", "variant": variant, "data": "synthetic", "seed": seed,
        "data_names": {"synthetic": "synthetic"},
        "config": {
            "sites": 2, "rounds": 3, "training": {"local_epochs": 1},
            "backbones": {"site-1": "signet", "site-2": "resnet"},
        },
        "versions": {}, "trained_on": {"site-1": {"classes": 4, "genuine": 9, "forged": 3}},
        "figures": {"open": {"5": figures(by_site, [str(seed), "open"], 40)}},
        "poison": None, "rounds": [], "values": 10.0,
        "seconds": [1.0], "cpu_seconds": [1.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    "gaps, said",
    [
        ({"fedmh": 3.0, "local": 1.0}, "FedMH has the lowest mean error of 2 methods"),
        (
            {"fedmh": 1.0, "local": 3.0},
            "FedMH has **not** the lowest mean error, it is number 2 of 2",
        ),
        ({"fedmh": 2.0, "local": 2.0}, "(shared) of 2 methods"),
    ],
)
def test_who_is_lowest_is_what_the_figures_say(gaps, said):
    results = [result(name, gap) for name, gap in gaps.items()]
    # An ablation that beats everybody is no method of its own.
    results.append(result("fedmh-receipt-keep", 9.0))
    summary = summarise(results, ["handwriting: not there"])
    text = markdown(summary)
    assert said in text and "**Not measured:** handwriting" in text
    against = summary["trained_on"]["synthetic"]["contenders"]["local"]["sets"]["open"]["5"]
    gap = against["random"]["eer"]["against"]
    assert np.sign(gap["mean"]) == np.sign(gaps["fedmh"] - gaps["local"])
    assert gap["interval"][0] <= gap["mean"] <= gap["interval"][1]


def test_a_method_that_lacks_a_seed_is_not_ranked_and_breaks_no_table():
    results = [result("fedmh", 1.0), result("fedmh", 1.0, 1), result("local", 3.0, 1)]
    results += [result("fml", 9.0), result("fedproto", 2.0), result("fedproto", 2.0, 1)]
    summary = summarise(results, [])
    said = markdown(summary)
    assert "number 2 of 2 methods" in said and "Not ranked, having other seeds: local, FML." in said
    assert summary["trained_on"]["synthetic"]["lowest"]["open"]["rival"] == "fedproto"
    assert (
        summarise([result("fedmh", 1.0), result("fml", 9.0, 1)], [])["trained_on"]["synthetic"][
            "lowest"
        ]
        == {}
    )
