"""Under masking every plan trains on views, order and dropout of its own, from the same initial model."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.benchmark.simulate import simulate
from fedpalm.methods.base import RoundContext
from fedpalm.methods.site import build_site_method, training_seed
from fedpalm.plan import Plan

from .conftest import make_plan, tiny_images


def _masked(plan, **changes):
    draft = plan.draft.model_dump() | {"masking": "secagg", **changes}
    return Plan.model_validate(plan.model_dump() | {"draft": draft})


def _moved(plan):
    """The plan of the same model but for the last bit of one value."""
    return Plan.model_validate(plan.model_dump() | {"initial_model": "ab" * 32})


def _delta(plan, images, moved=False):
    method = build_site_method(plan, "a", images)
    shared = method.initial_vector()
    if moved:
        shared[:1] = np.nextafter(shared[:1], np.float32(np.inf))
    return method.train_round(RoundContext(1, 3), shared).delta


def _apart(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(one)


def test_a_plan_that_differs_in_anything_draws_otherwise_under_masking_alone():
    plan = make_plan("fedavg")
    assert training_seed(plan) == training_seed(_moved(plan)) == plan.draft.seed
    masked = _masked(plan)
    others = [_moved(masked), _masked(plan, seed=12), _masked(plan, name="tiny-2")]
    assert len({training_seed(one) for one in (masked, *others)}) == 4
    assert training_seed(masked) == training_seed(_masked(make_plan("fedavg")))


@pytest.mark.parametrize(
    "method",
    ["fedavg", "fedbn", "fedkd", "fednova", "fedpalm", "fedpalm-release", "fedper", "fedprox",
     "hyperfed", "moon"],
)  # fmt: skip
def test_a_second_masked_run_from_nearly_the_same_model_trains_another_update(method, images):
    plan = _masked(make_plan(method))
    first = _delta(plan, images)
    assert _delta(plan, images).tobytes() == first.tobytes()
    assert _apart(first, _delta(_moved(plan), images, moved=True)) > 0.2


@pytest.mark.parametrize("method", ["fedavg", "fedpalm"])
def test_the_initial_model_is_the_plans_whatever_the_rounds_draw_from(method, images):
    plan = make_plan(method)
    plain, masked = (build_site_method(one, "a", images) for one in (plan, _masked(plan)))
    assert plain.initial_vector().tobytes() == masked.initial_vector().tobytes()


def test_a_simulation_of_a_masked_plan_draws_as_its_sites_do(images):
    plan = _masked(make_plan("fedavg", rounds=1, sites=("a", "b", "c")), quorum=3)
    sites = {site: tiny_images(at) for at, site in enumerate(plan.roster)}
    seen = simulate(plan, "fedavg", sites)
    assert {site.seed for site in seen.sites.values()} == {training_seed(plan)}
