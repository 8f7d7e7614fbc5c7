from __future__ import annotations

import subprocess
import sys

import pytest

from fedpalm.errors import ConfigError
from fedpalm.methods.template import model_template
from fedpalm.plan import TrainingSettings


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
