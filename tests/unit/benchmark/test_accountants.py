"""The grid of the accountants: what it counts, what it says, and that a wrong figure ends the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from fedpalm.benchmark import accountants
from fedpalm.benchmark.accountants import (
    DELTAS,
    as_json,
    compare,
    compare_accountants,
    grid,
    report,
)
from fedpalm.cli.app import commands
from fedpalm.errors import IntegrityError
from fedpalm.privacy.accounting import Charge, epsilon_pld, epsilon_prv

SMALL = [
    ((Charge(4.0, 1.0, 2),), 1e-5),
    ((Charge(2.0, 1.0, 1), Charge(4.0, 1.0, 2)), 1e-6),
    ((Charge(0.5, 1.0, 14),), 1e-5),  # epsilon above 50
    ((Charge(0.01, 0.5, 1000),), 1e-5),  # no accountant says
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountants, "grid", lambda: iter(SMALL))
    monkeypatch.setattr(accountants, "EDGES", SMALL[3:])


def test_the_grid_has_many_settings_and_every_delta():
    every = list(grid())
    assert len(every) == len(set(every)) > 250
    assert {delta for _, delta in every} == set(DELTAS)


def test_every_setting_is_counted_once_and_the_page_tells_what_was_found(small):
    figures = compare_accountants(lambda what, done, total: None)
    assert [one.charges for one in figures["settings"]] == [SMALL[0][0], SMALL[1][0]]
    assert (figures["beyond"], figures["refused"]) == (1, 1)
    for one in figures["settings"]:
        assert (one.pld, one.prv) == (
            epsilon_pld(one.charges, one.delta),
            epsilon_prv(one.charges, one.delta),
        )
        assert one.apart <= 0.02
    page = report(figures)
    assert f"{figures['largest'].apart:.4f}" in page
    assert "2 settings with epsilon up to 50" in page
    assert "sigma 0.01, q 0.5, 1,000 steps, delta 1e-05 | no figure | no figure |" in page
    assert json.loads(json.dumps(as_json(figures)))["settings"][0]["delta"] == 1e-5


def test_accountants_that_differ_end_the_command(small, monkeypatch, tmp_path):
    def bent(charges, delta):
        found = compare(charges, delta)
        return replace(found, prv=1.7) if charges == SMALL[0][0] else found

    monkeypatch.setattr(accountants, "compare", bent)
    ended = CliRunner().invoke(commands, ["bench", "dp-accounting", "--out", str(tmp_path)])
    assert ended.exit_code == IntegrityError.exit_code
    assert (tmp_path / "dp-accounting.md").exists()


def test_the_command_writes_the_page_and_every_figure(small, tmp_path):
    ended = CliRunner().invoke(commands, ["bench", "dp-accounting", "--out", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "dp-accounting.md").read_text().startswith("# Two accountants\n")
    assert len(json.loads((tmp_path / "dp-accounting.json").read_text())["settings"]) == 2
