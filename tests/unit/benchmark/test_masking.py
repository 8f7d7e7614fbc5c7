from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedpalm.benchmark import masking
from fedpalm.benchmark.masking import Load, measure_round, message_bytes
from fedpalm.benchmark.masking_client import measure_client
from fedpalm.benchmark.peers import secagg as peers_secagg
from fedpalm.benchmark.peers.environment import ensure_environment
from fedpalm.benchmark.peers.secagg import Comparison
from fedpalm.cli.app import commands
from fedpalm.cli.bench_secagg import cores
from fedpalm.errors import ChildFailedError, TooFewSurvivorsError, UnavailableError
from fedpalm.secagg.messages import Box, MaskedInput

SMALL = Load(sites=6, parameters=1_000, drop=0.2, seed=3)


def silent(what: str, done: int, total: int) -> None:
    pass


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(commands, ["bench", "secagg", *arguments])


def one_value_is_lost(real: Callable[..., None]) -> Callable[..., None]:
    def unmask(vector: Any, add: Any, subtract: Any, **options: Any) -> None:
        real(vector, add, subtract, **options)
        vector[7] += np.uint32(1)

    return unmask


def test_a_round_is_measured_to_its_exact_sum() -> None:
    figures = measure_round(SMALL, silent)
    assert figures["exact"] and figures["dropped"] == 1 and figures["threshold"] == 4
    assert set(figures["steps"]) == {"keys", "boxes", "inputs", "agreements", "reveals", "unmask"}
    assert figures["round_s"] == pytest.approx(
        sum(step["all_s"] for step in figures["steps"].values())
    )
    assert figures["elapsed_s"] > figures["round_s"] > figures["coordinator_s"] > 0


def test_what_a_site_sends_is_its_vector_and_little_else() -> None:
    figures = measure_round(SMALL, silent)
    upload = figures["steps"]["inputs"]["site_sends_bytes"]["max"]
    vector = 4 * (SMALL.parameters + 1)
    assert vector < upload < vector + 1_000
    assert figures["input_over_4d"] == upload / (4 * SMALL.parameters)
    sent = sum(
        step["site_sends_bytes"]["mean"]
        for step in figures["steps"].values()
        if step["site_sends_bytes"]
    )
    assert figures["all_steps_over_4d"]["mean"] == pytest.approx(sent / (4 * SMALL.parameters))


def test_a_message_counts_as_it_travels() -> None:
    box = Box("a", "bb", b"x" * 10, b"", b"h" * 32, b"k" * 32, b"s" * 64)
    fields = 1 + 2 + 10 + 32 + 32 + 64
    assert fields < message_bytes(box) < fields + 6 * 2 + 20
    assert message_bytes((box, box)) == 2 * message_bytes(box)
    named = MaskedInput("a", ("a", "b"), b"h" * 32, b"s" * 64)
    assert message_bytes(named) > 1 + 2 + 32 + 64


def test_the_same_seed_gives_the_same_updates_and_the_same_dropouts() -> None:
    again = Load(6, 1_000, 0.2, seed=3)
    other = Load(6, 1_000, 0.2, seed=4)
    assert np.array_equal(SMALL.update(2)[0], again.update(2)[0])
    assert not np.array_equal(SMALL.update(2)[0], SMALL.update(3)[0])
    assert not np.array_equal(SMALL.update(2)[0], other.update(2)[0])
    assert SMALL.leavers(SMALL.terms) == again.leavers(again.terms)


def test_more_dropouts_than_are_tolerated_are_an_error_and_not_a_figure() -> None:
    with pytest.raises(TooFewSurvivorsError):
        measure_round(Load(6, 10, 0.5, seed=1), silent)


def test_a_sum_that_is_off_by_one_ends_the_command_with_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masking, "apply_masks", one_value_is_lost(masking.apply_masks))
    done = bench("--sites", "5", "--params", "20", "--json")
    assert done.exit_code == 10
    assert json.loads(done.stdout)["error"]["code"] == "integrity"


def test_one_site_is_measured_with_real_boxes_of_its_peers() -> None:
    figures = measure_client(parameters=2_000, peers=4, seed=1, repeats=2, tick=silent)
    assert figures["encode_and_mask_s"]["min"] >= figures["mask_s"]["min"] > 0
    assert figures["mask_s"]["min"] <= figures["mask_s"]["median"] <= figures["mask_s"]["max"]


WASTEFUL = """
from fedpalm.benchmark import masking
from fedpalm.benchmark.masking_client import measure_client

def over(size):
    figures = measure_client(size, peers=2, seed=1, repeats=1, tick=lambda *_: None)
    return figures["peak_over_vectors_bytes"]

def wasteful(state, boxes, encoded, key):
    copy = encoded.copy()
    made = real(state, boxes, encoded, key)
    assert copy.size == encoded.size  # It lives until here.
    return made

lean, real = over(12_000_000), masking.site.mask
masking.site.mask = wasteful
print(over(12_000_000) - lean)
"""


def test_memory_over_the_vectors_sees_a_copy_of_the_vector() -> None:
    # In a process of its own: what other tests left behind is given back at any moment.
    done = subprocess.run(
        [sys.executable, "-c", WASTEFUL], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 0.8 * 4 * 12_000_000


def test_the_command_prints_one_object_for_programs_and_targets_for_people() -> None:
    figures = json.loads(bench("--sites", "5", "--params", "50", "--json").stdout)
    assert figures["exact"] is True and figures["sites"] == 5 and figures["cores"] >= 1
    table = bench("--sites", "5", "--params", "50").stdout
    assert "target" in table and "all steps over 4d" in table and "10 s" in table


def test_growth_is_drawn_and_kept_as_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpalm.cli.bench_secagg.GROWTH", (4, 5))
    done = bench("--grow", "--params", "50", "--drop", "0", "--out", str(tmp_path / "new"))
    assert done.exit_code == 0
    rounds = json.loads((tmp_path / "new" / "secagg-growth.json").read_text())
    assert [one["sites"] for one in rounds] == [4, 5]
    assert (tmp_path / "new" / "secagg-growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments", [("--grow", "--client"), ("--sites", "2"), ("--sites", "201"), ("--drop", "1")]
)
def test_a_measurement_that_makes_no_sense_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert bench(*arguments).exit_code == 2


def test_threads_are_bounded_while_it_measures_and_free_again_after() -> None:
    before = os.sched_getaffinity(0)
    with cores(1) as used:
        assert used == 1 and len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


# --- against another framework ----------------------------------------------------------------------

OTHER_SIDE = """
import sys
for _ in sys.stdin:
    print('{"encode_s": 100.0, "mask_s": 300.0, "cpu_s": 500.0}', flush=True)
"""


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """The other framework's side of the comparison, without its environment."""
    script = tmp_path / "other.py"
    script.write_text(text, encoding="utf-8")
    monkeypatch.setattr(peers_secagg, "_SCRIPT", script)
    monkeypatch.setattr(peers_secagg, "ensure_environment", lambda *_: Path(sys.executable))


def test_a_ratio_is_their_seconds_over_ours_with_its_spread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, tmp_path, OTHER_SIDE)
    figures = Comparison(1_000, 3, repeats=3, seed=1).measure(tmp_path, print, silent)
    assert figures["flower"]["encode_and_mask_s"] == {"median": 400.0, "min": 400.0, "max": 400.0}
    for which in ("core", "core_one_thread", "step"):
        ours, ratio = figures[which]["encode_and_mask_s"], figures[which]["times_faster"]
        assert ratio["max"] == pytest.approx(400.0 / ours["min"])
        assert ratio["min"] == pytest.approx(400.0 / ours["max"])
        least = 500.0 / figures[which]["cpu_s"]["max"]
        assert figures[which]["times_less_cpu"]["min"] == pytest.approx(least)


def test_a_side_that_fails_is_an_error_and_not_a_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, tmp_path, "raise SystemExit(3)")
    with pytest.raises(ChildFailedError, match="ended with 3"):
        Comparison(1_000, 3, repeats=1, seed=1).measure(tmp_path, print, silent)


def test_a_framework_that_pip_cannot_install_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        code = int("pip" in command)
        return subprocess.CompletedProcess(command, code, "ERROR: no matching distribution\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(UnavailableError, match=r"cannot install flwr==0.*no matching distribution"):
        ensure_environment(tmp_path / "new", ("flwr==0",), lambda text: None)


def test_an_environment_that_is_there_is_not_installed_again(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nshift 2\necho "$1==1.2"\n', encoding="utf-8")
    python.chmod(0o755)
    said: list[str] = []
    assert ensure_environment(tmp_path, ("flwr==1.2",), said.append) == python
    assert said == []
