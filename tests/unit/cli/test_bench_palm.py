"""``fedpalm bench palm``, ``table`` and ``plot`` as they are typed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedpalm.benchmark.jobs.results import Store
from fedpalm.cli.app import commands
from fedpalm.cli.bench_palm import configured, names, numbers
from fedpalm.errors import ConfigError
from tests.unit.benchmark.palm.conftest import canned_result, tiny_job

TINY = (
    "bench", "palm", "--preset", "smoke", "--identities", "4", "--images", "4", "--seeds", "0",
)  # fmt: skip


@pytest.fixture(scope="module")
def palms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("palms")


@pytest.fixture(autouse=True)
def cache(palms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPALM_CACHE", str(palms))


def run(*arguments: str | Path):
    return CliRunner().invoke(commands, [str(one) for one in arguments])


def test_a_benchmark_writes_tables_and_plots_and_does_nothing_twice(tmp_path):
    line = (*TINY, "--methods", "local,fedavg", "--rounds", "1", "--out", tmp_path, "--json")
    first = run(*line)
    assert first.exit_code == 0, first.output
    value = json.loads(first.stdout)
    assert value["results"] == 2 and value["failed"] == []
    assert "FedAvg" in (tmp_path / "table.md").read_text()
    assert all(Path(plot).stat().st_size > 5000 for plot in value["plots"])
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    again = run(*line)
    assert "2 of 2 jobs are done already" in again.stderr
    assert json.loads(again.stdout)["table"] == value["table"]
    damaged, whole = results
    damaged.write_bytes(b"spoilt")
    mended = run(*line)
    assert "1 of 2 jobs are done already" in mended.stderr
    assert (
        json.loads(mended.stdout)["table"].split("### Cost")[0]
        == value["table"].split("### Cost")[0]
    )
    assert whole.stat().st_mtime_ns == results[whole] and damaged.read_bytes() != b"spoilt"


def test_a_method_that_cannot_be_built_is_one_line_and_the_others_have_results(
    tmp_path, monkeypatch
):
    from fedpalm.benchmark.palm import variants

    missing = variants.Variant("not-built", "Missing", "a method without a site")
    monkeypatch.setitem(variants.VARIANTS, "missing", missing)
    # The job's process knows no such variant.
    done = run(*TINY, "--methods", "missing,local", "--rounds", "1", "--out", tmp_path)
    assert done.exit_code == 15
    assert "1 of 2 jobs failed" in done.stderr and "missing, seed 0: " in done.stderr
    assert "w/o FL" in done.stdout
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_a_benchmark_that_goes_on(tmp_path):
    line = [sys.executable, "-m", "fedpalm", *TINY, "--methods", "fedavg", "--out", str(tmp_path)]
    process = subprocess.Popen([*line, "--rounds", "40"], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not list(tmp_path.glob("*.checkpoint")):
        assert process.poll() is None and time.monotonic() < until, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "interrupted" in process.stderr.read()
    (checkpoint,) = tmp_path.glob("*.checkpoint")
    size = checkpoint.stat()
    time.sleep(1.0)
    assert checkpoint.stat().st_mtime_ns == size.st_mtime_ns, "a process outlived its benchmark"
    assert not (tmp_path / "table.md").exists()


def test_cuda_is_refused_where_there_is_none(tmp_path, monkeypatch):
    import torch

    for there, text in ((False, "no CUDA device"), (True, "on the CPU only")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        done = run(*TINY, "--device", "cuda", "--out", tmp_path)
        assert done.exit_code == ConfigError.exit_code and text in done.stderr


@pytest.mark.parametrize(
    "wrong, text",
    [
        (("--methods", "fedavg,fedsomething"), "fedsomething"),
        (("--seeds", "0,x"), "not numbers"),
        (("--shard", "3/2"), "K/N"),
        (("--set", "learning_rate=fast"), "KEY=VALUE"),
        (("--set", "learning_rat=0.1"), "learning_rat"),
        (("--data", "no-such-folder"), "no such file or folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path, wrong, text):
    done = run(*TINY, *wrong, "--out", tmp_path / "out")
    assert done.exit_code in (3, 4) and text in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_said_replaces_what_the_preset_says():
    config = configured(
        "quick",
        {"identities": 12, "source": None},
        {"rounds": 3, "sites": None, "variants": names("local, fedavg"), "seeds": numbers("1,2")},
        ["local_epochs=5", "teim_from_start=true"],
    )
    assert (config.rounds, config.sites, config.seeds) == (3, 8, (1, 2))
    assert config.variants == ("local", "fedavg")
    assert (config.data.identities, config.data.images) == (12, 10)
    assert config.training.local_epochs == 5 and config.training.teim_from_start


@pytest.fixture
def canned(tmp_path):
    store = Store(tmp_path / "canned")
    for spread, name in enumerate(("local", "fedavg", "fedpalm"), 1):
        canned_result(store, tiny_job(name), 0.3 * spread)
    return store.folder


def test_table_prints_markdown_or_json(canned):
    text = run("bench", "table", canned)
    assert text.exit_code == 0 and "| FedPalm" in text.stdout
    value = json.loads(run("bench", "table", canned, "--json").stdout)
    assert list(value["experiments"][0]["variants"]) == ["local", "fedavg", "fedpalm"]


def test_plot_draws_and_says_what_it_leaves_out(canned, tmp_path):
    done = run("bench", "plot", canned, "--out", tmp_path / "plots", "--json")
    value = json.loads(done.stdout)
    assert sorted(map(str, (tmp_path / "plots").iterdir())) == sorted(value["plots"])
    assert len(value["plots"]) == 5 and "differential privacy" in value["left_out"][0]


def test_several_experiments_are_told_apart(canned, tmp_path):
    canned_result(Store(canned), tiny_job("fedavg", rounds=7), 0.3)
    assert run("bench", "table", canned).stdout.count("## synthetic-palm") == 2
    done = run("bench", "plot", canned, "--out", tmp_path / "plots", "--json")
    assert done.exit_code == 0, done.output
    assert len([one for one in (tmp_path / "plots").iterdir() if one.is_dir()]) == 2


def test_a_folder_without_results_and_a_damaged_result_are_errors(canned, tmp_path):
    assert run("bench", "table", tmp_path).exit_code == 4
    path = next(canned.glob("*.json"))
    path.write_text(path.read_text().replace("0.7", "0.8").replace("1.0", "1.5"))
    done = run("bench", "table", canned)
    assert done.exit_code == 10 and "damaged" in done.stderr


def test_results_of_another_benchmark_are_no_tables_of_this_one(tmp_path):
    Store(tmp_path).write("0" * 24, {"experiment": "e", "variant": "fedmh"}, {})
    for command in ("table", "plot"):
        done = run("bench", command, tmp_path)
        assert done.exit_code == 4 and "another benchmark" in done.stderr
