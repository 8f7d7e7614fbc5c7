"""A demo that was cut off goes on where it stood, and only where it stood."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpalm.cli.demo.command import default_folder, resolve
from fedpalm.cli.demo.plans import bound_plan
from fedpalm.cli.demo.settings import SYNTHETIC, DemoSettings, plan_toml
from fedpalm.cli.demo.tail import Tail
from fedpalm.cli.demo.workspace import Workspace
from fedpalm.errors import ConfigError, IntegrityError
from fedpalm.methods.contribution import masking_terms
from fedpalm.plan import PlanDraft
from fedpalm.settings import load_toml

SETTINGS = DemoSettings(sites=3, rounds=3)


def test_a_finished_step_is_not_taken_again(tmp_path: Path):
    first = Workspace(tmp_path / "run")
    assert first.open(SETTINGS) is False
    assert first.once("run_id", lambda: "run-1") == "run-1"
    second = Workspace(tmp_path / "run")
    assert second.open(SETTINGS) is True
    assert second.once("run_id", lambda: pytest.fail("taken twice")) == "run-1"


def test_a_step_that_failed_is_taken_again(tmp_path: Path):
    def fail() -> str:
        raise OSError("cut off")

    workspace = Workspace(tmp_path)
    workspace.open(SETTINGS)
    with pytest.raises(OSError, match="cut off"):
        workspace.once("found", fail)
    again = Workspace(tmp_path)
    again.open(SETTINGS)
    assert again.once("found", lambda: "done") == "done"


def test_a_folder_with_another_demo_is_not_touched(tmp_path: Path):
    Workspace(tmp_path).open(SETTINGS)
    with pytest.raises(ConfigError, match="rounds 3, now 4"):
        Workspace(tmp_path).open(DemoSettings(sites=3, rounds=4))


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no demo"):
        Workspace(tmp_path).open(SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_journal_is_an_error_that_names_it(tmp_path: Path):
    Workspace(tmp_path).open(SETTINGS)
    (tmp_path / "demo.json").write_text('{"settings": {}')
    with pytest.raises(IntegrityError, match=r"demo\.json"):
        Workspace(tmp_path).open(SETTINGS)


def test_a_demo_masks_unless_it_is_told_not_to():
    plan = bound_plan(DemoSettings())
    assert plan.draft.masking == "secagg"
    assert masking_terms(plan).to_spare == 0  # a sum is over every site
    assert DemoSettings(masking="none").draft().masking == "none"


def test_two_sites_are_too_few_to_mask_and_the_way_out_is_said():
    with pytest.raises(ConfigError, match="--masking none"):
        resolve(SYNTHETIC, 2, None, 4, 3, "fedpalm", 0, "secagg")
    assert resolve(SYNTHETIC, 2, None, 4, 3, "fedpalm", 0, "none").masking == "none"


def test_a_demo_without_masking_has_a_folder_of_its_own():
    assert default_folder(DemoSettings()) != default_folder(DemoSettings(masking="none"))


@pytest.mark.parametrize("method", ["fedpalm", "fedavg"])
def test_the_written_plan_reads_back_as_the_same_draft(tmp_path: Path, method: str):
    draft = DemoSettings.model_validate({"method": method}).draft()
    path = tmp_path / "plan.toml"
    path.write_text(plan_toml(draft))
    assert load_toml(PlanDraft, path) == draft


def test_a_tail_gives_whole_json_lines_once_and_skips_what_is_for_people(tmp_path: Path):
    log = tmp_path / "watch.log"
    log.write_text('{"round": 0}\n')
    tail = Tail(log)
    with log.open("a") as stream:
        stream.write('Traceback\n{"round": 1}\n{"rou')
        stream.flush()
        assert tail.objects() == [{"round": 1}]
        stream.write('nd": 2}\n')
        stream.flush()
        assert tail.objects() == [{"round": 2}]
    assert tail.objects() == []
