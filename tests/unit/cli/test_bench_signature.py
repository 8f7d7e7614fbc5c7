"""``fedpalm bench signature`` as it is typed."""

from __future__ import annotations

import importlib
import json

import pytest
from click.testing import CliRunner

from fedpalm.benchmark.jobs import engine
from fedpalm.benchmark.signature.page import BEGIN, END
from fedpalm.cli.app import commands
from fedpalm.cli.bench_signature import real_signatures
from fedpalm.errors import DataError

TINY = ("bench", "signature", "--preset", "smoke", "--sites", "3", "--rounds", "1")


def run(*arguments):
    return CliRunner().invoke(commands, [str(one) for one in arguments])


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory, monkeypatch):
    monkeypatch.delenv("FEDPALM_DATA", raising=False)
    monkeypatch.setenv("FEDPALM_CACHE", str(tmp_path_factory.getbasetemp() / "bench-signatures"))


class Here:
    """Does jobs in this process: another one would load torch again."""

    def __init__(self, store, module):
        self.store, self.run = store, importlib.import_module(module).run_job

    def __call__(self, job, watch):
        self.run(job, self.store, lambda rounds: watch.advanced(job, rounds))

    def stop(self):
        pass


def test_tables_figures_and_plot_are_written_the_page_is_filled_and_nothing_is_done_twice(
    tmp_path, monkeypatch
):
    page = tmp_path / "page.md"
    page.write_text(f"# Signatures\n\n{BEGIN}\n{END}\n\nBy hand.\n")
    out = tmp_path / "out"
    alone = run(*TINY, "--methods", "fedproto", "--out", out)
    assert alone.exit_code == 0 and "| FedProto" in alone.stdout
    monkeypatch.setattr(engine, "LocalRunner", Here)
    line = (*TINY, "--methods", "fedmh,fedproto", "--out", out, "--page", page, "--json")
    first = run(*line)
    assert first.exit_code == 0, first.output
    value = json.loads(first.stdout)
    assert value["results"] == 2 and value["failed"] == []
    assert "1 of 2 jobs are done already" in first.stderr
    assert "FEDPALM_DATA is not set" in value["left_out"][0] and "left out: " in first.stderr
    text = page.read_text()
    assert text.startswith("# Signatures") and text.endswith("By hand.\n")
    assert "| FedProto" in text and "**Not measured:** handwritten" in text
    assert "FedMH has" in text and "x100, taken" in text
    summary = json.loads(page.with_suffix(".json").read_text())
    found = summary["trained_on"]["synthetic"]["contenders"]["fedproto"]["sets"]["open"]["2"]
    kinds = [found[kind]["eer"] for kind in ("random", "skilled")]
    mean = sum(one["mean"] for one in kinds) / 2
    assert found["mean"]["eer"]["mean"] == pytest.approx(mean, abs=2e-6)
    low, high = found["mean"]["eer"]["against"]["interval"]
    assert low <= high
    for plot in (out / "table.png", page.with_suffix(".png")):
        assert plot.stat().st_size > 5000
    again = run(*line)
    assert "2 of 2 jobs are done already" in again.stderr
    assert json.loads(again.stdout)["table"] == value["table"]


@pytest.mark.parametrize(
    "wrong, code, text",
    [
        (("--methods", "fedmh,fedsomething"), 3, "fedsomething"),
        (("--seeds", "0,x"), 3, "not numbers"),
        (("--shard", "3/2"), 3, "K/N"),
        (("--set", "learning_rate=fast"), 3, "KEY=VALUE"),
        (("--set", "learning_rat=0.1"), 3, "learning_rat"),
        (("--data", "no-such-folder"), 4, "no such folder"),
        (("--page", "no-such-page.md"), 4, "cannot be read"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path, wrong, code, text):
    done = run(*TINY, *wrong, "--out", tmp_path / "out")
    assert done.exit_code == code and text in done.stderr
    assert not (tmp_path / "out").exists()


def test_signatures_are_taken_from_data_then_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "cross-media-signatures").mkdir()
    monkeypatch.setenv("FEDPALM_DATA", str(tmp_path))
    assert real_signatures(None) == (str(tmp_path / "cross-media-signatures"), [])
    assert real_signatures(tmp_path) == (str(tmp_path), [])
    monkeypatch.setenv("FEDPALM_DATA", str(tmp_path / "elsewhere"))
    source, left_out = real_signatures(None)
    assert source is None and "holds no cross-media-signatures" in left_out[0]
    with pytest.raises(DataError):
        real_signatures(tmp_path / "none")
