"""A warm start is a plan's own model, trained on palms that no plan can have."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors
from click.testing import CliRunner
from pydantic import ValidationError

from coordinator.cli.plans import read_model
from fedpalm.cli.app import commands
from fedpalm.errors import ConfigError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.pretrain import PUBLIC_SEED, PublicPalms, pretrain, provenance
from fedpalm.methods.site import build_site
from fedpalm.methods.template import model_template
from fedpalm.plan import PlanDraft, TrainingSettings

from .conftest import make_plan, tiny_images

FEW = PublicPalms(sensors=2, people=2, images=2, rounds=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPALM_CACHE", str(tmp_path / "cache"))


def draft(method="fedpalm", **values):
    return PlanDraft(name="p", method=method, rounds=3, seed=5, **values)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPALM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return pretrain(draft(), FEW)


def test_expert_and_embedding_are_trained_and_nothing_else(warm):
    cold = model_template("fedpalm", TrainingSettings(), 5)
    assert (warm.layout, warm.expert_layout) == (cold.layout, cold.expert_layout)
    before = cold.layout.unflatten(cold.initial)
    after = warm.layout.unflatten(warm.initial)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert {"open_set.teim.alpha", "open_set.teim.beta"} <= same
    assert all("teim" in name or name.endswith("competition.shift") for name in same)


def test_what_sites_are_told_to_do_has_no_part_in_it(warm):
    private = {"unit": "subject", "noise_multiplier": 2.0, "steps": 3}
    told = draft(training=TrainingSettings(learning_rate=0.5, privacy=private))
    assert np.array_equal(pretrain(told, FEW).initial, warm.initial)


def test_the_same_command_writes_the_same_bytes_and_a_plan_can_be_submitted_with_them(
    tmp_path, warm
):
    plan = tmp_path / "plan.toml"
    plan.write_text('name = "p"\nmethod = "fedpalm"\nrounds = 3\nseed = 5\n')
    sizes = ["--sensors", "2", "--people", "2", "--images", "2", "--rounds", "1"]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        done = CliRunner().invoke(
            commands, ["model", "pretrain", str(plan), "--out", str(file), *sizes, "--json"]
        )
        assert done.exit_code == 0, done.output
    assert files[0].read_bytes() == files[1].read_bytes()
    layout, expert_layout, vector = read_model(files[0])
    assert (layout, expert_layout) == (warm.layout, warm.expert_layout)
    assert np.array_equal(vector, warm.initial)
    with safetensors.safe_open(str(files[0]), framework="numpy") as file:
        metadata = file.metadata()
    assert metadata.items() >= provenance(FEW).items() and "public" in metadata["trained_on"]
    assert json.loads(done.stdout)["parameters"] == vector.size


def test_public_palms_have_seeds_that_no_plan_can_have():
    with pytest.raises(ValidationError, match="seed"):
        PublicPalms(seed=PUBLIC_SEED - 1)
    with pytest.raises(ValidationError, match="seed"):
        PlanDraft(name="p", method="fedavg", rounds=1, seed=PUBLIC_SEED)


def test_a_rehearsal_has_nothing_to_warm():
    with pytest.raises(ConfigError, match="trains nothing"):
        pretrain(draft("rehearsal"), FEW)


@pytest.mark.parametrize("method", ["fedpalm", "fedkd", "fedpalm-release"])
def test_a_sites_own_model_begins_where_the_shared_one_does(method, warm):
    training = TrainingSettings(local_epochs=1, learning_rate=1e-12, fusion_learning_rate=1e-12)
    plan = make_plan(method, training=training)
    start = {
        name.removeprefix("open_set."): one
        for name, one in warm.layout.unflatten(warm.initial).items()
    }
    shared = plan.model_layout.flatten(
        {one.name: start[one.name.removeprefix("open_set.")] for one in plan.model_layout.tensors}
    )
    site = build_site(method, training, 5, "a", tiny_images(0))
    site.train_round(RoundContext(1, 3), shared)
    own = {name: one for name, one in site.state().items() if name.startswith("closed_set.")}
    assert own
    for name, tensor in own.items():
        np.testing.assert_allclose(tensor, start[name.removeprefix("closed_set.")], atol=1e-6)
