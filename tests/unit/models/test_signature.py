from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedpalm.errors import ConfigError
from fedpalm.groups import groups_of
from fedpalm.methods.fedmh_template import fedmh_template
from fedpalm.methods.training import import_tensors, named_tensors
from fedpalm.models.backbones import initial_tensors
from fedpalm.models.signature import SignatureModel
from fedpalm.models.signature_spec import (
    COMMON,
    SIGNATURE_BACKBONES,
    TEMPLATE_LENGTH,
    initial_model,
    model_shapes,
)


def built(backbone, seed=1):
    model = SignatureModel(backbone)
    import_tensors(model, "", initial_model([backbone], seed))
    return model


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 128, 128, generator=generator)


@pytest.mark.parametrize("backbone", SIGNATURE_BACKBONES)
def test_a_network_has_the_tensors_of_its_spec(backbone):
    found = {
        name: tuple(one.shape) for name, one in named_tensors(SignatureModel(backbone)).items()
    }
    assert found == model_shapes([backbone])


@pytest.mark.parametrize("backbone", SIGNATURE_BACKBONES)
def test_embeddings_lie_in_the_common_space_and_every_trained_value_gets_a_gradient(backbone):
    model = built(backbone)
    embeddings = model(model.prepare(images(3)))
    assert embeddings.shape == (3, TEMPLATE_LENGTH)
    (embeddings.square().sum() + model.task(embeddings).sum()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.endswith("competition.shift"), name
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("backbone", SIGNATURE_BACKBONES)
def test_an_embedding_does_not_depend_on_who_else_is_in_the_batch(backbone):
    model = built(backbone).train()
    prepared = model.prepare(images(4))
    together = model(prepared)
    one = model(model.take(prepared, torch.tensor([2])))
    torch.testing.assert_close(one[0], together[2], rtol=1e-3, atol=1e-4)


def test_projection_and_task_are_one_shape_and_begin_alike_at_every_site():
    models = [initial_model([backbone], 7) for backbone in SIGNATURE_BACKBONES]
    union = initial_model(SIGNATURE_BACKBONES, 7)
    for model in models:
        for name, value in model.items():
            assert value.tobytes() == union[name].tobytes(), name
    common = set.intersection(*map(set, models))
    assert {name.split(".")[0] for name in common} == set(COMMON)
    other = initial_model(["signet"], 8)
    assert not np.array_equal(other["projection.weight"], union["projection.weight"])


def test_compnet_begins_with_the_gabor_scalars_of_a_palms_model():
    palm = initial_tensors("compnet", 1)
    ours = initial_model(["compnet"], 1)
    for name, value in palm.items():
        if name.startswith("expert.") and value.shape == ():
            assert ours[f"trunk.compnet.{name}"] == value


def test_the_union_is_one_layout_of_all_groups():
    layout = fedmh_template(["signet", "compnet", "signet", "resnet"], 3).layout
    groups = groups_of(layout, {"a": "signet", "b": "compnet", "c": "signet", "d": "resnet"})
    trunks = ["trunk.compnet", "trunk.resnet", "trunk.signet"]
    assert [group.name for group in groups] == [*trunks, *COMMON]
    assert [group.members for group in groups][:3] == [("b",), ("d",), ("a", "c")]
    assert groups[-1].end == layout.size


def test_the_models_are_small():
    sizes = {
        backbone: sum(math.prod(shape) for shape in model_shapes([backbone]).values())
        for backbone in SIGNATURE_BACKBONES
    }
    assert all(400_000 < size < 1_000_000 for size in sizes.values()), sizes


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ConfigError, match="ccnet"):
        model_shapes(["ccnet"])


def test_the_figures_need_no_torch():
    code = "import sys, fedpalm.models.signature_spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
