from __future__ import annotations

import subprocess
import sys

import pytest

from fedpalm.errors import ConfigError
from fedpalm.methods.plan_template import plan_template
from fedpalm.methods.template import model_template
from fedpalm.plan import PlanDraft, TrainingSettings


def test_a_fedpalm_round_shares_expert_embedding_and_teim_of_the_open_set_model():
    template = model_template("fedpalm", TrainingSettings(), 0)
    assert template.layout.only("open_set.")
    assert template.layout.size == 22_899 + 4_971_008 + 2
    parts = {spec.name.split(".")[1] for spec in template.layout.tensors}
    assert parts == {"expert", "embedding", "teim"}


def test_the_exchange_releases_the_closed_set_expert_and_nothing_else():
    expert_layout = model_template("fedpalm", TrainingSettings(), 0).expert_layout
    assert expert_layout.only("closed_set.expert.")
    assert expert_layout.size == 22_899


@pytest.mark.parametrize("method", ["fedavg", "rehearsal"])
def test_other_methods_share_no_teim_and_release_nothing(method):
    training = TrainingSettings()
    template = model_template(method, training, 0)
    assert template.layout.size == 22_899 + 4_971_008
    assert template.expert_layout.tensors == ()
    assert template.initial.shape == (template.layout.size,)


def test_no_layout_names_a_head():
    for method in ("fedavg", "fedpalm"):
        template = model_template(method, TrainingSettings(), 0)
        for spec in (*template.layout.tensors, *template.expert_layout.tensors):
            assert "head" not in spec.name
            assert "prototypes" not in spec.name


def test_local_shares_nothing():
    template = model_template("local", TrainingSettings(), 0)
    assert template.layout.size == template.initial.size == template.expert_layout.size == 0
    assert sum(tensor.size for tensor in template.private.values()) == 22_899 + 4_971_008


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ConfigError, match="'fedmystery'"):
        model_template("fedmystery", TrainingSettings(), 0)


def test_writing_a_plan_needs_no_torch():
    program = (
        "import sys; from fedpalm.methods.template import model_template as t; "
        "from fedpalm.plan import TrainingSettings as S; t('fedpalm', S(), 0); "
        "import fedpalm.methods.site; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_draft_of_fedmh_shares_the_trunks_that_enough_sites_have_and_needs_no_torch():
    code = """
import sys
from fedpalm.methods.plan_template import plan_template
from fedpalm.plan import PlanDraft
names = dict(zip("abcdef", ["signet"] * 3 + ["resnet"] * 2 + ["compnet"], strict=True))
for masking in ("none", "secagg"):
    draft = PlanDraft(name="x", method="fedmh", rounds=1, backbones=names, masking=masking)
    layout = plan_template(draft).layout
    print(*dict.fromkeys(one.name.split(".")[2] for one in layout.tensors if "trunk" in one.name))
assert "torch" not in sys.modules
"""
    run = [sys.executable, "-P", "-c", code]
    found = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert found.split("\n")[:2] == ["resnet signet", "signet"]


def test_any_other_draft_has_the_template_of_its_method():
    draft = PlanDraft(name="x", method="fedper", rounds=1, seed=4)
    assert plan_template(draft).layout == model_template("fedper", draft.training, 4).layout


def test_fedmh_settings_go_with_fedmh_alone_and_with_no_differential_privacy():
    draft = {"name": "x", "method": "fedmh", "rounds": 1, "backbones": {"a": "signet"}}
    assert PlanDraft(**draft).model_dump()["fedmh"]["receipt"] == "pareto"
    assert "fedmh" not in PlanDraft(name="x", method="fedavg", rounds=1).model_dump()
    with pytest.raises(ValueError, match="no other"):
        PlanDraft(name="x", method="fedavg", rounds=1, fedmh={})
    with pytest.raises(ValueError, match="not noised"):
        PlanDraft(**draft, training={"privacy": {"unit": "subject"}})
