"""What the report and the terminal say follows from the figures, whichever way they went."""

from __future__ import annotations

import importlib.util
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedpalm.cli.demo.figures import Report
from fedpalm.cli.demo.page import page
from fedpalm.cli.demo.plots import drawings, write_plots
from fedpalm.cli.demo.terminal import summary
from fedpalm.cli.demo.wording import egress_labels, egress_rows, finding, size
from fedpalm.cli.demo.workspace import Workspace
from fedpalm.cli.narrator import duration


class _Reader(HTMLParser):
    """Text and the addresses a page would fetch; also checks that elements close."""

    VOID = frozenset({"meta", "img", "br", "path", "use"})

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def rendered(report: Report, folder: Path, sample: bytes | None = None) -> str:
    return page(report, write_plots(report, folder), sample)


def canned(eers: dict[str, float], method: str = "fedpalm") -> Report:
    path = Path(__file__).with_name("conftest.py")
    spec: Any = importlib.util.spec_from_file_location("canned", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report: Report = module.canned_report(eers, method)
    return report


def test_the_page_fetches_nothing(report: Report, tmp_path: Path):
    html = rendered(report, tmp_path, b"\x89PNG")
    reader = read(html)
    assert all(a.startswith(("data:", "#")) for a in reader.addresses)
    assert "<script" not in html
    assert "url(http" not in html and "@import" not in html


def test_the_page_shows_every_figure_of_the_report(report: Report, tmp_path: Path):
    text = "".join(read(rendered(report, tmp_path)).text).replace("\u00a0", " ")
    for estimate in report.open_set.estimates.values():
        assert f"{100 * estimate.eer:.2f} %" in text
        assert f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f} %" in text
    for site, row in egress_rows(report):
        assert site in text
        for item in row.values():
            assert size(item.bytes) in text
    assert report.run_id in text
    assert report.command in text


def test_the_report_says_who_could_read_an_update(report: Report, tmp_path: Path):
    plain = report.settings.model_copy(update={"masking": "none"})
    unmasked = report.model_copy(update={"settings": plain})
    for one, said, unsaid in (
        (report, "left masked", "can be read by the coordinator"),
        (unmasked, "can be read by the coordinator", "left masked"),
    ):
        html = "".join(read(rendered(one, tmp_path)).text)
        stream = io.StringIO()
        Console(file=stream, width=500).print(summary(one, Workspace(tmp_path)))
        for text in (html, stream.getvalue()):
            assert said in text and unsaid not in text
            assert 'masking = "required"' in text


def test_the_four_kinds_of_masking_messages_are_one_column(report: Report):
    assert egress_labels(report).count("Masking messages") == 1
    for _, row in egress_rows(report):
        assert row["Masking messages"].count == 4 * report.settings.rounds


def test_names_from_outside_cannot_become_markup(report: Report, tmp_path: Path):
    settings = report.settings.model_copy(update={"data": "/data/<script>alert(1)</script>"})
    html = rendered(report.model_copy(update={"settings": settings}), tmp_path)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_inline_plots_take_their_colours_from_the_page(report: Report, tmp_path: Path):
    for svg in write_plots(report, tmp_path).values():
        assert "var(--fedpalm)" in svg and "var(--local)" in svg
        assert not re.search(r"(fill|stroke): ?#0072b2", svg)
        assert not re.search(r' id="(figure|axes)_1"', svg)
        ET.fromstring(svg.replace("xlink:", ""))


def test_plots_are_written_as_files_too(report: Report, tmp_path: Path):
    write_plots(report, tmp_path)
    for name in drawings(report):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ET.parse(tmp_path / f"{name}.svg")


def test_the_finding_praises_only_what_the_figures_show():
    better = canned({"fedpalm": 0.10, "fedavg": 0.12, "local": 0.25})
    worse = canned({"fedpalm": 0.40, "fedavg": 0.12, "local": 0.25})
    assert better.federation_helps and not worse.federation_helps
    assert "did not pay" in finding(worse)
    assert "pay" not in finding(better)


def test_a_gain_within_the_intervals_is_not_claimed():
    unsure = canned({"fedpalm": 0.24, "fedavg": 0.12, "local": 0.25})
    assert unsure.federation_helps
    assert "does not show that training together pays" in finding(unsure)


def test_rates_near_chance_are_called_chance():
    assert "chance" in finding(canned({"fedpalm": 0.44, "fedavg": 0.46, "local": 0.47}))
    assert "chance" not in finding(canned({"fedpalm": 0.10, "fedavg": 0.12, "local": 0.25}))


def test_overlapping_intervals_are_said_to_overlap():
    close = canned({"fedpalm": 0.10, "fedavg": 0.11, "local": 0.25})
    apart = canned({"fedpalm": 0.05, "fedavg": 0.11, "local": 0.25})
    assert "cannot tell them apart" in finding(close)
    assert "cannot tell them apart" not in finding(apart)


def test_a_fedavg_demo_has_no_exchange_in_its_report(tmp_path: Path):
    report = canned({"fedavg": 0.12, "local": 0.25}, method="fedavg")
    html = rendered(report, tmp_path)
    assert "Sealed experts" not in html
    assert report.contenders == ("fedavg", "local")


def test_a_run_that_was_cut_off_says_so(report: Report, tmp_path: Path):
    assert "cut off" not in rendered(report, tmp_path)
    assert "cut off" in rendered(report.model_copy(update={"resumed": True}), tmp_path)


def test_rounds_without_a_sum_are_named(report: Report, tmp_path: Path):
    assert "Without a sum" not in rendered(report, tmp_path)
    lost = report.model_copy(update={"lost_rounds": (3, 7)})
    assert "Without a sum: round 3, 7." in rendered(lost, tmp_path)


def test_the_terminal_shows_rates_egress_and_files(report: Report, tmp_path: Path):
    stream = io.StringIO()
    Console(file=stream, width=120).print(summary(report, Workspace(tmp_path)))
    text = stream.getvalue()
    assert "12.10 % (9.68 to 14.52 %)" in text
    assert "Round updates" in text and "Sealed experts" in text
    assert "never left any site" in text and "images" in text
    assert str(tmp_path / "report.html")[:60] in text.replace("\n", "")


def test_two_claims_are_told_as_they_went_and_nothing_where_there_was_no_threshold(
    report: Report, tmp_path: Path
):
    said = (
        "Another image of them scores 0.712 and matches; an image of somebody else under that name"
    )
    stream = io.StringIO()
    Console(file=stream, width=2000).print(summary(report, Workspace(tmp_path)))
    html = rendered(report, tmp_path)
    for text in (stream.getvalue(), html):
        assert said in text and "scores 0.531 and does not match" in text
    without = report.model_copy(update={"in_use": None})
    stream = io.StringIO()
    Console(file=stream, width=2000).print(summary(without, Workspace(tmp_path)))
    assert "daily use" not in stream.getvalue() + rendered(without, tmp_path)
    assert "daily use" in html


def test_the_report_survives_json(report: Report):
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999 B"), (1000, "1.0 kB"), (239_707_680, "240 MB")]
)
def test_sizes_read_like_sizes(number: int, text: str):
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min")]
)
def test_durations_read_like_durations(seconds: float, text: str):
    assert duration(seconds) == text
