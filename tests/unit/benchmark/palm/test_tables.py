"""From results to the paper's tables."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fedpalm.benchmark.palm.tables import experiments, markdown, paper_order, summarise

SITES = ("site-1", "site-2")


def result(variant, seed=0, eer=0.1, data="synthetic-palm", **more):
    """A result whose sites have ``eer`` -/+ 1 %, and whose draws lie around it."""
    ends = (eer - 0.01, eer + 0.01)
    one = {
        "mean": {"eer": eer, "auc": 0.9, "rank1": 0.75, "genuine_pairs": 100},
        "sites": {site: {"eer": value} for site, value in zip(SITES, ends, strict=True)},
        "draws": [eer - 0.02, eer, eer + 0.02],
    }
    way = {"up": 2_000_000, "down": 1_000_000}
    return {
        "experiment": "e" * 16,
        "variant": variant,
        "seed": seed,
        "config": {"data": data, "sites": 2, "rounds": 3, "training": {}},
        "figures": {"closed": one, "open": copy.deepcopy(one)},
        "bytes": {
            "parameters": 5,
            "plain": way,
            "masked": None,
            "exchange": {"up": 0, "down": 0},
            "factors_up": None,
        },
        "seconds": [2.0, 4.0, 8.0],
        "cpu_seconds": [2.0, 2.0, 2.0],
        "epsilon": None,
    } | more


EXPECTED = """\
## synthetic-palm: 2 sites, 3 rounds, seeds 0

Experiment `eeeeeeeeeeeeeeee`. Equal error rates in percent; in brackets 95 % intervals over identities.

### As tables I, IV, VII: closed set: people that the site trained on

| method  | site-1 | site-2 |                  mean |       against FedAvg | order |
| ------- | -----: | -----: | --------------------: | -------------------: | ----: |
| w/o FL  |  14.00 |  16.00 |  15.00 [13.10, 16.90] | +5.00 [+5.00, +5.00] |     - |
| FedAvg  |   9.00 |  11.00 |   10.00 [8.10, 11.90] |                      |       |
| FedPalm |   7.00 |   9.00 | **8.00 [6.10, 9.90]** | -2.00 [-2.00, -2.00] |     + |
"""


def test_the_closed_set_stands_as_expected():
    text = markdown(
        summarise([result("local", eer=0.15), result("fedavg"), result("fedpalm", eer=0.08)])
    )
    assert text.startswith(EXPECTED)
    assert text.endswith("\n- FedPalm: experts travel after the last round\n")


def test_the_open_set_tells_personal_models_from_shared_ones():
    text = markdown(summarise([result(name) for name in ("local", "fedavg", "fedper", "fedpalm")]))
    personal, generic = (
        text.split(title)[1].split("###")[0] for title in ("II, V, VIII", "III, VI, IX")
    )
    assert "FedPer" in personal and "| FedAvg" not in personal and "site-1" in personal
    assert "FedPer" not in generic and "FedPalm" in generic and "site-1" not in generic
    assert "w/o FL" in personal and "w/o FL" in generic


def test_beside_the_papers_data_stand_the_papers_figures():
    text = markdown(
        summarise([result(n, data="iitd") for n in ("fedavg", "fedpalm", "fedpalm-k1")])
    )
    for known in (
        "Table IV",
        "Table VI",
        "*2.53*",
        "*1.39*",
        "*6.18*",
        "94.57",
        "0.9809",
        "Table XI",
        "6.71",
    ):
        assert known in text
    assert "in the paper" not in markdown(summarise([result("fedavg"), result("fedpalm-k1")]))


@pytest.mark.parametrize(
    "name, which, data, order",
    [
        ("fedpalm", "closed", "synthetic-palm", "better"),
        ("fedpalm", "open", "synthetic-palm", "better"),
        ("local", "open", "synthetic-palm", "worse"),
        ("fednova", "closed", "synthetic-palm", "worse"),
        ("moon", "closed", "synthetic-palm", None),  # better in two of three
        ("moon", "closed", "polyu", "worse"),
        ("fedkd", "closed", "polyu", None),  # the same figure
        ("fedpalm-k1", "open", "iitd", None),
    ],
)
def test_the_papers_order_is_that_of_its_data_set_or_of_all(name, which, data, order):
    assert paper_order(name, which, data) == order


def test_seeds_are_averaged_and_paired_where_both_have_them():
    found = summarise(
        [
            result("fedavg", 0, 0.10),
            result("fedavg", 1, 0.20),
            result("fedpalm", 1, 0.17),
            result("fedpalm", 2, 0.29),
        ]
    )["variants"]
    assert found["fedavg"]["open"]["eer"] == pytest.approx(0.15)
    assert found["fedpalm"]["open"]["eer"] == pytest.approx(0.23)
    against = found["fedpalm"]["against"]["open"]
    assert against["eer"] == pytest.approx(-0.03)
    assert against["paper"] == "better" and against["holds"] is True
    assert found["fedavg"]["against"]["open"] is None


def test_a_difference_that_may_be_chance_is_marked():
    one, other = result("fedavg"), result("fedpalm", eer=0.099)
    other["figures"]["open"]["draws"] = list(np.array([0.12, 0.099, 0.08]))
    text = markdown(summarise([one, other]))
    row = next(line for line in text.split("III, VI, IX")[1].splitlines() if "FedPalm" in line)
    assert row.endswith("+ ~ |")


def test_no_error_in_any_draw_is_no_certainty():
    one = result("fedavg", eer=0.0)
    one["figures"]["open"]["draws"] = [0.0, 0.0, 0.0]
    assert summarise([one])["variants"]["fedavg"]["open"]["interval"] == [0.0, 0.03]


def test_the_cost_of_a_site_is_the_median_round_over_the_sites():
    cost = summarise([result("fedavg")])["variants"]["fedavg"]["cost"]
    assert cost["seconds"] == 2.0 and cost["cpu_seconds"] == 1.0
    text = markdown(summarise([result("fedavg", epsilon=1.5)]))
    row = next(line for line in text.split("Cost of one site")[1].splitlines() if "FedAvg" in line)
    assert [cell.strip() for cell in row.strip("| ").split("|")] == [
        "FedAvg", "2.00", "1.00", "", "", "0", "2.00", "1.00", "1.50",
    ]  # fmt: skip


def test_what_factors_would_cost_stands_beside_what_is_sent():
    one = result("fedkd")
    one["bytes"] |= {"factors_up": 300_000}
    assert "2.00 (as factors 0.30)" in markdown(summarise([one]))


def test_experiments_are_not_mixed():
    found = experiments([result("fedavg"), result("local", experiment="f" * 16)])
    assert {name: len(many) for name, many in found.items()} == {"e" * 16: 1, "f" * 16: 1}
