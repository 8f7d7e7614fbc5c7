from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedpalm.data.palms import synthetic_palms
from fedpalm.data.splits import write_list

from .harness import RealFederation, run_cli

PLAN = """
name = "trial"
method = "{method}"
rounds = {rounds}
seed = 7
reproducible = true
quorum = {quorum}
round_deadline_s = 120

[training]
local_epochs = 1
batch_size = 8
"""


@pytest.fixture
def plan_and_model(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a plan and its initial model, as an operator and a researcher would."""

    def make(method: str, rounds: int, quorum: int = 2) -> tuple[Path, Path]:
        plan, model = tmp_path / "plan.toml", tmp_path / "initial.safetensors"
        plan.write_text(PLAN.format(method=method, rounds=rounds, quorum=quorum))
        run_cli("fedpalm", "model", "init", plan, "--out", model)
        return plan, model

    return make


@pytest.fixture
def palm_lists(tmp_path: Path) -> list[Path]:
    """Two sites' image lists: four identities each, four images an identity."""
    sites = synthetic_palms(
        tmp_path / "palms", sites=2, identities_per_site=4, images_per_identity=4, seed=3
    )
    lists = []
    for number, records in enumerate(sites, 1):
        lists.append(tmp_path / f"site-{number}.txt")
        write_list(records, lists[-1])
    return lists


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Callable[..., RealFederation]]:
    """Federations of real processes; whatever a test leaves running is stopped."""
    made: list[RealFederation] = []

    def make(name: str, *sites: str) -> RealFederation:
        (tmp_path / name).mkdir()
        made.append(RealFederation(tmp_path / name, sites))
        return made[-1]

    yield make
    for one in made:
        one.stop()
