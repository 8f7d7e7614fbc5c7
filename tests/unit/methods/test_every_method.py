"""What holds for every method: state, layout, two rounds in memory through codec and server rule."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import safetensors.numpy

from fedpalm.benchmark.simulate import simulate
from fedpalm.errors import LayoutMismatchError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.rules import server_rule
from fedpalm.methods.site import build_site
from fedpalm.methods.template import ANATOMIES, model_template
from fedpalm.plan import MethodName, TrainingSettings
from participant.private_content import refuse_private_content

from .conftest import TRAINING, make_plan, tiny_images

TRAINED = sorted(set(ANATOMIES) - {"rehearsal"})
SHARING = sorted(set(TRAINED) - {"local"})
WITHOUT_EXPERTS = sorted(set(TRAINED) - {"fedpalm"})


def build(method, site="a", images=None, training=TRAINING):
    return build_site(method, training, 11, site, images or tiny_images(0))


def test_a_plan_can_name_every_method_but_local():
    assert set(get_args(MethodName)) == set(ANATOMIES) - {"local"} | {"fedmh"}
    for method in get_args(MethodName):
        assert server_rule(method).stats[0] == "weight"


@pytest.mark.parametrize("method", SHARING)
def test_two_rounds_move_the_shared_model_and_give_unit_templates(method):
    sites = {"a": tiny_images(0), "b": tiny_images(1, people=3)}
    result = simulate(make_plan(method, rounds=2), method, sites)
    initial = model_template(method, TRAINING, 11).initial
    assert np.isfinite(result.shared).all()
    assert 1e-4 < np.abs(result.shared - initial).max() < 0.1
    for site, images in sites.items():
        for templates in (
            result.sites[site].closed_templates(images.images, result.shared),
            result.sites[site].open_templates(images.images, result.shared),
        ):
            assert templates.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(templates, axis=1), 1, atol=1e-5)
    assert all(np.isfinite(list(one.values())).all() for one in result.metrics[1].values())


NORMALISED = TRAINING.model_copy(
    update={"expert_norm": "site", "template_normaliser": "federation"}
)


@pytest.mark.parametrize("method", TRAINED)
def test_normalisations_of_a_site_stay_and_with_them_its_expert(method):
    template = model_template(method, NORMALISED, 11)
    assert not any(".norm." in one.name for one in template.layout.tensors)
    assert template.expert_layout.tensors == ()
    site = build(method, training=NORMALISED)
    assert site.expert() == {}
    site.train_round(RoundContext(1, 3), site.initial_vector())
    kept = {name for name in site.state() if name.endswith("norm.running_mean")}
    assert len(kept) in (3, 6)
    assert all(site.state()[name].any() for name in kept), "no batch was seen"


@pytest.mark.parametrize("training", [TRAINING, NORMALISED], ids=["plain", "normalised"])
@pytest.mark.parametrize("method", TRAINED)
def test_a_stored_state_gives_the_same_next_round_bit_for_bit(method, training):
    first = build(method, training=training)
    shared = first.initial_vector()
    first.train_round(RoundContext(1, 3), shared)
    stored = safetensors.numpy.save(first.state())
    shared = shared + np.float32(1e-3)
    update = first.train_round(RoundContext(2, 3), shared)
    second = build(method, training=training)
    second.load_state(safetensors.numpy.load(stored))
    again = second.train_round(RoundContext(2, 3), shared)
    assert update.delta.tobytes() == again.delta.tobytes()
    assert (update.weight, update.stats) == (again.weight, again.stats)
    assert update.metrics == again.metrics
    states = first.state(), second.state()
    assert list(states[0]) == list(states[1])
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])
    images = tiny_images(2).images
    for templates in ("closed_templates", "open_templates"):
        one, other = (getattr(site, templates)(images, shared) for site in (first, second))
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("method", TRAINED)
def test_a_state_is_a_copy_and_takes_no_foreign_or_missing_tensor(method):
    site = build(method)
    state = site.state()
    site.train_round(RoundContext(1, 3), site.initial_vector())
    after = site.state()
    assert not np.array_equal(state["head.open.prototypes"], after["head.open.prototypes"])
    last = sorted(after)[-1]
    for wrong in (
        after | {"foreign.tensor": np.zeros(1, np.float32)},
        after | {last: np.zeros(3, np.float32)},
        {name: one for name, one in after.items() if name != "head.open.prototypes"},
    ):
        with pytest.raises(LayoutMismatchError):
            site.load_state(wrong)


@pytest.mark.parametrize("method", SHARING)
def test_the_egress_gate_finds_nothing_private_in_what_a_method_gives(method):
    site = build(method)
    shared = site.initial_vector()
    for number in (1, 2):
        update = site.train_round(RoundContext(number, 2), shared)
        refuse_private_content(site.layout, update.delta, shared, site.state())


@pytest.mark.parametrize("method", TRAINED)
def test_no_layout_names_a_head_or_a_tensor_that_stays(method):
    template = model_template(method, TrainingSettings(), 0)
    names = {spec.name for spec in (*template.layout.tensors, *template.expert_layout.tensors)}
    assert not [name for name in names if "head" in name or "prototypes" in name]
    assert not names & {"open_set." + name for name in template.private}
    kept = {name for name in build(method).state() if name.startswith("private.")}
    assert not names & {name.replace("private.", "open_set.") for name in kept}


def test_what_each_method_shares():
    def parts(method):
        template = model_template(method, TrainingSettings(), 0)
        return {spec.name.split(".")[1] for spec in template.layout.tensors}, template

    assert parts("local")[0] == set()
    assert parts("fedper")[0] == {"expert"}
    for method in ("fedavg", "fedbn", "fedkd", "fednova", "fedprox", "hyperfed", "moon"):
        assert parts(method)[0] == {"expert", "embedding"}
    assert sorted(parts("fedper")[1].private) == ["embedding.bias", "embedding.weight"]
    normalisation = parts("fedbn")[1].private
    assert len(normalisation) == 6
    assert all(".norm." in name for name in normalisation)
    kept = {name for name in build("fedbn").state() if ".norm." in name}
    assert {name.rsplit(".", 1)[1] for name in kept} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
    }


@pytest.mark.parametrize("method", WITHOUT_EXPERTS)
def test_methods_without_experts_take_none(method):
    site = build(method)
    expert = build("fedpalm", "b", tiny_images(1)).expert()
    assert site.expert() == {}
    assert site.expert_layout.size == 0
    with pytest.raises(LayoutMismatchError):
        site.receive_expert("b", expert)


@pytest.mark.parametrize("method", ["fedbn", "fedkd", "fedper", "hyperfed", "moon"])
def test_what_stays_at_a_site_learns_there(method):
    site = build(method)
    before = site.state()
    site.train_round(RoundContext(1, 3), site.initial_vector())
    after = site.state()
    own = [name for name in after if not name.startswith("head.") and "shift" not in name]
    assert own
    same = [n for n in own if n in before and np.array_equal(before[n], after[n])]
    assert not same
