"""The page that somebody signs: whole in itself, and honest about what was found."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedpalm.audit.findings import Exit
from fedpalm.audit.plots import MAX_BARS, Bar, Step, bytes_plot, epsilon_plot
from fedpalm.audit.report import Attack, read_attack, report_page
from fedpalm.audit.verify import NO_PRIVACY
from fedpalm.errors import ConfigError
from fedpalm.ledger.bodies import EntryKind
from tests.support.audit import World, written

ATTACK = {
    "result": "passed",
    "findings": [
        {"detector": "direct", "test": "noise", "figure": "1.00", "expected": "1", "refuted": False}
    ],
    "membership": [
        {
            "unit": "subject",
            "epsilon": 1.5,
            "attacks": {"likeness": {"auc": 0.512, "auc_error": 0.04, "tpr": 0.06, "fpr": 0.05}},
        }
    ],
}


def page_of(audited, tmp_path: Path, world: World, attack: Attack | None = None) -> str:
    audit = audited(world)
    return report_page(audit, written(tmp_path, world.bundle()), attack)


class _Resources(HTMLParser):
    """Everything that would be fetched or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed", "form", "base"):
            self.found.append(tag)
        self.found += [name for name, _ in attrs if name in ("src", "href") or name[:2] == "on"]


def test_the_page_fetches_nothing_and_runs_nothing(audited, tmp_path: Path, masked: World):
    page = page_of(audited, tmp_path, masked)
    resources = _Resources()
    resources.feed(page)
    assert resources.found == []
    assert "url(" not in page and "@import" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    "field",
    [
        *("unit of privacy", "parameters", "neighbouring relation", "mechanism", "sampling"),
        *("trust model", "covered", "not covered", "randomness"),
    ],
)
def test_the_page_has_the_fields_of_a_claim(audited, tmp_path: Path, masked: World, field: str):
    assert f"<th>{field}</th>" in page_of(audited, tmp_path, masked)


def test_the_page_of_a_good_bundle_says_what_holds(audited, tmp_path: Path, masked: World):
    path = written(tmp_path, masked.bundle())
    page = report_page(audited(masked), path)
    assert "The bundle holds" in page and "What is wrong" not in page
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page
    assert page.count("<svg") == 2 and page.count("4 / 3") == 3


def test_a_figure_bounds_nothing_where_something_left_uncharged(audited, tmp_path: Path):
    world = World()
    world.join()
    world.round(1)
    world.round(2, charge=False)
    page = page_of(audited, tmp_path, world)
    assert "Uncharged release" in page and "this figure bounds nothing" in page
    assert "times as likely" not in page


def test_a_run_without_privacy_is_not_made_to_look_private(audited, tmp_path, open_run: World):
    page = page_of(audited, tmp_path, open_run)
    assert NO_PRIVACY in page and "times as likely" not in page


def test_a_malformed_bundle_has_a_page_too(audited, tmp_path: Path, world: World):
    audit = audited(world, b"{}\n", alone=True)
    assert audit.exit is Exit.MALFORMED
    assert "Malformed" in report_page(audit, written(tmp_path, b"{}\n"))


def test_what_others_wrote_is_text_and_nothing_else(audited, tmp_path: Path, world: World):
    said = {**ATTACK, "result": "<script>alert(1)</script>"}
    page = page_of(audited, tmp_path, world, Attack(said, None))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_membership_figure_stands_in_the_report(audited, tmp_path: Path, world: World):
    path = written(tmp_path, json.dumps(ATTACK).encode(), "attack.json")
    attack = read_attack(path, audited(world))
    assert attack.entry is None
    page = page_of(audited, tmp_path, world, attack)
    assert "0.512 ± 0.040" in page and "does not name this report" in page


def test_a_report_that_the_log_names_is_known_by_its_hash(audited, tmp_path: Path):
    world = World()
    world.join()
    path = written(tmp_path, json.dumps(ATTACK).encode(), "attack.json")
    entry = world.log(
        EntryKind.AUDIT,
        {
            "audit": "attack",
            "result": "passed",
            "report_hash": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
    )
    assert read_attack(path, audited(world)).entry == entry.seq


@pytest.mark.parametrize("content", [b"", b"[]", b'{"result": "passed"}', b"\xff"])
def test_another_file_is_no_attack_report(audited, tmp_path: Path, world: World, content: bytes):
    with pytest.raises(ConfigError):
        read_attack(written(tmp_path, content), audited(world))


def test_a_budget_far_above_is_said_and_not_drawn():
    steps = [Step("1", 0.5, 0.5), Step("2", 0.8, None)]
    assert "is above this plot" in epsilon_plot(steps, 50)
    assert "stroke-dasharray" in epsilon_plot(steps, 1)
    assert epsilon_plot(steps, 1).count("<circle") == 1


def test_many_rounds_share_bars_and_lose_no_bytes():
    svg = bytes_plot([Bar(str(at), (1e6, 0, 0, 10.0)) for at in range(500)])
    assert svg.count("<rect") <= 2 * MAX_BARS
    assert "MB" in svg
