"""The commands that need no running coordinator, and how a run is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result

from coordinator.cli import main
from coordinator.cli.plans import read_model
from coordinator.cli.view import run_json, run_line, run_text, when
from coordinator.config import Home
from fedpalm.cli.console import out
from fedpalm.errors import ConfigError, FedPalmError, LayoutMismatchError
from fedpalm.layout import Layout, TensorSpec
from fedpalm.wire.v1 import operator_pb2 as pb

LAYOUT = Layout((TensorSpec("open_set.b.weight", (2, 3)), TensorSpec("open_set.a.bias", (2,))))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def write_model(path: Path, **changes: object) -> Path:
    tensors = {
        "open_set.a.bias": np.array([7, 8], dtype=np.float32),
        "open_set.b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    metadata = {"layout": json.dumps(LAYOUT.to_json()), "expert_layout": "[]"}
    tensors |= changes.get("tensors", {})  # type: ignore[arg-type]
    metadata |= changes.get("metadata", {})  # type: ignore[arg-type]
    safetensors.numpy.save_file(tensors, path, metadata)
    return path


def test_a_model_file_is_read_in_the_order_of_its_layout(tmp_path: Path) -> None:
    layout, expert_layout, vector = read_model(write_model(tmp_path / "m"))
    assert layout == LAYOUT and expert_layout.tensors == ()
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert vector.dtype.str == "<f4"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"metadata": {"layout": "not json"}}, ConfigError),
        ({"metadata": {"layout": '[{"name": "closed_set.head.w", "shape": [1]}]'}}, FedPalmError),
        ({"tensors": {"open_set.a.bias": np.zeros(3, np.float32)}}, LayoutMismatchError),
        ({"tensors": {"open_set.c.bias": np.zeros(3, np.float32)}}, LayoutMismatchError),
        ({"tensors": {"open_set.a.bias": np.full(2, np.nan, np.float32)}}, FedPalmError),
    ],
)
def test_a_model_file_that_is_not_what_it_declares_is_refused(
    tmp_path: Path, changes: dict[str, object], error: type[FedPalmError]
) -> None:
    with pytest.raises(error):
        read_model(write_model(tmp_path / "m", **changes))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x00" * 100])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_model(path)


def test_plan_show_names_every_wrong_key(tmp_path: Path) -> None:
    draft = tmp_path / "plan.toml"
    draft.write_text('name = "x"\nmethod = "fedavg"\nrounds = 0\ncolour = "red"\n')
    done = invoke("plan", "show", draft, "--json")
    assert done.exit_code == ConfigError.exit_code
    what = json.loads(done.stdout)["error"]["what"]
    assert "rounds" in what and "colour" in what
    draft.write_text('name = "x"\nmethod = "fedavg"\nrounds = 3\nexpert_exchange = "never"\n')
    shown = json.loads(invoke("plan", "show", draft, "--json").stdout)
    assert (shown["rounds"], shown["quorum"]) == (3, 2)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    assert invoke("init", "--home", tmp_path / "home", "--federation", "trial").exit_code == 0
    return Home(tmp_path / "home")


def test_an_init_that_was_interrupted_is_told_from_a_home(home: Home) -> None:
    home.config.unlink()
    key = (home.authority / "root.key").read_bytes()
    again = invoke("init", "--home", home.config.parent, "--federation", "trial", "--json")
    error = json.loads(again.stdout)["error"]
    assert "did not come to its end" in error["what"] and "move" in error["next_step"]
    assert not home.config.exists() and (home.authority / "root.key").read_bytes() == key


def test_a_run_is_shown_with_what_matters_now() -> None:
    status = pb.RunStatus(
        run_id="trial-1",
        method="fedpalm",
        state="paused",
        reason="disk full",
        round=3,
        rounds=12,
        attempt=2,
        round_state="cohort_sealed",
        joined=["amber", "birch"],
        cohort=["amber", "birch"],
        delivered=["amber"],
        plan_hash=bytes(32),
        model_hash=bytes(32),
        exchange=pb.ExchangeStatus(state="sealing", consented=["amber"], refused=["birch"]),
    )
    console = out()
    with console.capture() as captured:
        console.print(run_text(status))
    text = captured.get()
    for shown in (
        "paused: disk full",
        "3 of 12, attempt 2, cohort sealed",
        "1 of 2",
        "sealing, yes from amber, no from birch",
    ):
        assert shown in text
    assert run_line(status) == (
        "trial-1 paused, round 3/12.2 cohort_sealed, delivered 1/2, exchange sealing"
    )
    assert json.loads(json.dumps(run_json(status)))["exchange"]["consented"] == ["amber"]
    assert when(0) == "never"
