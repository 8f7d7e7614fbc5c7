"""FedMH at six sites with three backbones, in one process, through the codec and the server's rule."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import torch

from fedpalm.benchmark.simulate import simulate
from fedpalm.errors import ConfigError, DataError, EgressRefusedError, LayoutMismatchError
from fedpalm.evaluation.metrics import eer
from fedpalm.losses.guidance import guide
from fedpalm.methods.base import RoundContext
from fedpalm.methods.guided import GuidedSteps
from fedpalm.methods.linear_probe import LinearProbe
from fedpalm.methods.site import build_site_method
from fedpalm.methods.two_tasks import Signatures, held_out, outputs_of
from fedpalm.plan import Plan
from participant.private_content import refuse_private_content

from .conftest import make_plan, tiny_images
from .signature_sites import BACKBONES, fedmh_plan, tiny_signatures

EPS = 0.01


@pytest.fixture(scope="module")
def run():
    """Two rounds of sites with 10 to 14 signatures; every receipt is in the metrics."""
    plan = fedmh_plan(rounds=2, probe_tolerance=EPS)
    sites = {
        site: tiny_signatures(at, writers=2, genuine=3, forged=2 + at // 2)
        for at, site in enumerate(BACKBONES)
    }
    return plan, sites, simulate(plan, "fedmh", sites)


def build(site="amber", plan=None, images=None):
    return build_site_method(plan or fedmh_plan(), site, images or tiny_signatures(0, writers=2))


def test_no_receipt_of_a_run_makes_a_probe_loss_worse_than_the_tolerance(run):
    _, _, result = run
    accepted = 0
    for metrics in (site for a_round in result.metrics for site in a_round.values()):
        for task in ("user", "forged"):
            before, after = metrics[f"probe.{task}_before"], metrics[f"probe.{task}_after"]
            assert after <= before + EPS
        accepted += any(value for name, value in metrics.items() if name.startswith("eta."))
    assert accepted >= 3, "nothing was ever taken: the test would say nothing"


def test_cosine_and_weight_of_the_tasks_are_logged(run):
    _, _, result = run
    for metrics in result.metrics[-1].values():
        assert -1 <= metrics["guidance.cosine_min"] <= metrics["guidance.cosine"] <= 1
        assert 0 < metrics["guidance.user_weight"] < 1
        assert 0 <= metrics["guidance.opposed"] <= 1
    assert any(m["guidance.opposed"] for one in result.metrics for m in one.values())


def test_every_group_is_the_mean_of_the_models_of_its_members_alone(run):
    plan, sites, result = run
    own = {site: method.state()["own.model"] for site, method in result.sites.items()}
    for group in plan.parameter_groups:
        begins, total, weights = group.begin, 0.0, 0.0
        for site in group.members:
            mine = [one for one in plan.parameter_groups if site in one.members]
            before = sum(one.end - one.begin for one in mine if one.end <= begins)
            weight = len(sites[site].writers)
            total = total + weight * own[site][before : before + group.end - begins]
            weights += weight
        np.testing.assert_allclose(
            result.shared[begins : group.end], total / weights, atol=2e-6, err_msg=group.name
        )


def test_a_site_gives_zeros_where_it_is_no_member_and_moves_every_group_that_it_has():
    plan = fedmh_plan()
    method = build("birch", plan)
    delta = method.train_round(RoundContext(1, 2), method.initial_vector()).delta
    for group in plan.parameter_groups:
        assert delta[group.begin : group.end].any() == ("birch" in group.members), group.name


def far_off(shared, kind):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(shared.shape).astype(np.float32)
    return {
        "random": noise * np.linalg.norm(shared) / np.linalg.norm(noise),
        "negated": -shared,
        "scaled": 100 * shared,
    }[kind]


@pytest.mark.parametrize("kind", ["random", "negated", "scaled"])
def test_a_poisoned_aggregate_is_refused_and_templates_stay_bit_for_bit(run, kind):
    _, sites, result = run
    poisoned = far_off(result.shared, kind)
    for site, method in result.sites.items():
        receipt = method.receipt(poisoned)
        assert set(receipt.etas.values()) == {0.0}, site
        assert receipt.model.tobytes() == method.state()["own.model"].tobytes()
        images = sites[site].images[:4]
        again = method.closed_templates(images, 100 * poisoned)
        assert method.closed_templates(images, poisoned).tobytes() == again.tobytes()


@pytest.fixture(scope="module")
def trained():
    """A site that has learnt to tell its writers apart, its images, and the model that it shared."""
    plan = fedmh_plan(training={"local_epochs": 5, "batch_size": 8}, augmentation="off")
    images = tiny_signatures(0, writers=4, genuine=8, forged=2)
    site = build("ebony", plan, images)
    shared = site.initial_vector()
    for number in (1, 2, 3):
        shared = shared + site.train_round(RoundContext(number, 3), shared).delta
    return plan, site, images, shared


def error_rate(site, images, shared):
    """Equal error rate of a writer's genuine signatures against those of the other writers."""
    genuine = images.of(images.genuine)
    templates = site.open_templates(genuine.images, shared)
    scores = templates @ templates.T
    same = genuine.writers[:, None] == genuine.writers
    pairs = np.triu(np.ones_like(same), 1)
    return eer(scores[same & pairs], scores[~same & pairs])


@pytest.mark.parametrize("kind", ["random", "negated", "scaled"])
def test_a_poisoned_aggregate_costs_nothing_with_the_search_and_a_task_without(trained, kind):
    plan, site, images, shared = trained
    draft = plan.draft.model_dump() | {"fedmh": {"receipt": "replace"}}
    trusting = build("ebony", Plan.model_validate(plan.model_dump() | {"draft": draft}), images)
    trusting.load_state(site.state())
    unseen = tiny_signatures(0, writers=4, genuine=20, forged=0)
    before = error_rate(site, unseen, shared)
    poisoned = far_off(shared, kind)
    assert error_rate(site, unseen, poisoned) == before
    probed = trusting.receipt(poisoned)
    assert probed.after.scalarised(0.5) > probed.before.scalarised(0.5) + 0.3
    if kind == "random":
        # Negated or scaled, a network that normalises tells nearly the same signatures apart.
        assert error_rate(trusting, unseen, poisoned) > before + 0.05


def test_a_stored_state_gives_the_same_next_round_bit_for_bit():
    first = build("birch")
    shared = first.initial_vector()
    first.train_round(RoundContext(1, 3), shared)
    stored = safetensors.numpy.save(first.state())
    shared = shared + np.float32(1e-4)
    update = first.train_round(RoundContext(2, 3), shared)
    second = build("birch")
    second.load_state(safetensors.numpy.load(stored))
    again = second.train_round(RoundContext(2, 3), shared)
    assert update.delta.tobytes() == again.delta.tobytes()
    assert (update.weight, update.metrics) == (again.weight, again.metrics)
    states = first.state(), second.state()
    assert list(states[0]) == list(states[1]) == ["head.user.prototypes", "own.model"]
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])
    images = tiny_signatures(5).images[:3]
    one, other = (site.open_templates(images, shared) for site in (first, second))
    assert one.tobytes() == other.tobytes()
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert one.shape == (3, 256)
    assert first.open_templates(images[:0], shared).shape == (0, 256)


def test_a_state_takes_no_foreign_missing_or_misshapen_tensor():
    site = build()
    site.train_round(RoundContext(1, 2), site.initial_vector())
    state = site.state()
    for wrong in (
        state | {"foreign.tensor": np.zeros(1, np.float32)},
        state | {"own.model": np.zeros(3, np.float32)},
        {"own.model": state["own.model"]},
    ):
        with pytest.raises(LayoutMismatchError):
            site.load_state(wrong)


def test_the_egress_gate_finds_nothing_private_and_no_layout_names_a_writer():
    site = build()
    shared = site.initial_vector()
    for number in (1, 2):
        update = site.train_round(RoundContext(number, 2), shared)
        refuse_private_content(site.layout, update.delta, shared, site.state())
        shared = shared + update.delta
    assert not [one.name for one in site.layout.tensors if "prototypes" in one.name]


@pytest.mark.parametrize("as_model", [True, False], ids=["as the model", "as the delta"])
@pytest.mark.parametrize("writer", [0, 2])
def test_the_egress_gate_finds_one_writer_of_the_head(writer, as_model):
    site = build("birch", images=tiny_signatures(0))
    shared = site.initial_vector()
    delta = site.train_round(RoundContext(1, 2), shared).delta
    direction = site.state()["head.user.prototypes"][writer]
    ends = np.cumsum([one.size for one in site.layout.tensors])
    names = [one.name for one in site.layout.tensors]
    # In the midst of a row of another tensor, so at no place where a row would begin.
    begin = ends[names.index("open_set.projection.weight") - 1] + 1000
    part = slice(begin, begin + direction.size)
    delta[part] = direction - shared[part] if as_model else direction
    with pytest.raises(EgressRefusedError, match=r"projection\.weight .* head\.user\.prototypes"):
        refuse_private_content(site.layout, delta, shared, site.state())


def test_a_trunk_that_is_not_shared_stays_and_learns_at_its_site():
    plan = fedmh_plan(shared=["signet", "resnet"])
    site = build("cedar", plan)
    assert not [one.name for one in site.layout.tensors if "compnet" in one.name]
    before = site.state()
    update = site.train_round(RoundContext(1, 2), site.initial_vector())
    after = site.state()
    name = "private.trunk.compnet.feature.weight"
    assert not np.array_equal(before[name], after[name])
    refuse_private_content(site.layout, update.delta, site.initial_vector(), after)
    assert {n for n in update.metrics if n.startswith("eta.")} == {"eta.projection", "eta.task"}


def test_kept_to_itself_a_site_goes_its_own_way_whatever_it_receives():
    plan = fedmh_plan(receipt="keep")
    one, other = build("ebony", plan), build("ebony", plan)
    shared = one.initial_vector()
    for method in (one, other):
        method.train_round(RoundContext(1, 2), shared)
    one.train_round(RoundContext(2, 2), shared)
    other.train_round(RoundContext(2, 2), -shared)
    assert one.state()["own.model"].tobytes() == other.state()["own.model"].tobytes()


def test_augmentation_fills_what_is_trained_on_and_never_what_is_kept_aside():
    images = tiny_signatures(0, writers=2, genuine=8, forged=2)
    copies = {}
    for mode in ("off", "uniform", "adaptive"):
        site = build("ebony", fedmh_plan(augmentation=mode), images)
        metrics = site.train_round(RoundContext(1, 2), site.initial_vector()).metrics
        copies[mode] = metrics["augmentation.copies"]
    assert copies == {"off": 0, "uniform": 34, "adaptive": 34}  # 6 and 1 of each writer, up to 12


def test_what_is_kept_aside_is_a_share_of_each_writers_own():
    images = tiny_signatures(0, writers=2, genuine=8, forged=3)
    fit, aside = held_out(images, 0.25, 1)
    assert sorted([*fit, *aside]) == list(range(22))
    for writer in range(2):
        mine = images.writers[aside] == writer
        assert (images.genuine[aside][mine].sum(), mine.sum()) == (2, 3)
    with pytest.raises(DataError, match="two genuine"):
        held_out(tiny_signatures(0, genuine=1), 0.25, 1)


def test_without_forgeries_a_site_trains_writers_alone_and_leaves_the_detection_head():
    plan = fedmh_plan()
    site = build("amber", plan, tiny_signatures(0, forged=0))
    update = site.train_round(RoundContext(1, 2), site.initial_vector())
    assert "loss.forged" not in update.metrics
    task = next(group for group in plan.parameter_groups if group.name == "task")
    assert not update.delta[task.begin : task.end].any()
    assert update.delta.any()


def test_a_site_without_forgeries_takes_the_detection_head_as_it_comes_and_gives_zeros():
    plan = fedmh_plan(probe_tolerance=EPS)
    images = tiny_signatures(0, forged=0)
    blind, seeing = build("amber", plan, images), build("delta", plan, tiny_signatures(3))
    spans = {group.name: slice(group.begin, group.end) for group in plan.parameter_groups}
    shared = blind.initial_vector()
    for number in (1, 2, 3):
        context = RoundContext(number, 3)
        own, other = (site.train_round(context, shared) for site in (blind, seeing))
        assert not own.delta[spans["task"]].any()
        assert own.delta[spans["projection"]].any()
        assert other.delta[spans["task"]].any()
        metrics = own.metrics
        assert metrics["eta.task"] == 1
        assert metrics["probe.user_after"] <= metrics["probe.user_before"] + EPS
        shared = shared + (own.delta + other.delta) / 2
    assert metrics["distance.task"] > 0, "the head never moved: the test would say nothing"
    # What it can judge is still refused, and what it cannot is what was sent.
    before = blind.state()["own.model"]
    receipt = blind.receipt(-shared)
    assert receipt.etas == {"trunk.signet": 0, "projection": 0, "task": 1}
    task = slice(-(spans["task"].stop - spans["task"].start), None)
    assert receipt.model[: task.start].tobytes() == before[: task.start].tobytes()
    assert receipt.model[task].tobytes() == (-shared[spans["task"]]).tobytes()


def test_who_trains_on_forgeries_and_keeps_none_aside_judges_no_detection_head():
    """Of one forgery a writer none is kept: a probe loss of 0 would call every head perfect."""
    site = build("ebony", images=tiny_signatures(0, writers=2, genuine=8, forged=1))
    shared = site.initial_vector()
    metrics = site.train_round(RoundContext(1, 2), shared).metrics
    again = site.train_round(RoundContext(2, 2), shared)
    for found in (metrics, again.metrics):
        assert found["eta.task"] == 1 and "probe.user_after" in found
        assert not [name for name in found if name.startswith("probe.forged")]
    assert again.metrics["distance.task"] > 0 and again.metrics["loss.forged"] > 0


def test_the_two_probe_losses_are_those_of_a_plain_loop_with_the_head_that_was_fitted():
    site = build("ebony", images=tiny_signatures(3, writers=2, genuine=5, forged=3))
    images = tiny_signatures(4, writers=2, genuine=3, forged=1)
    site._load(site.receipt(site.initial_vector()).model)
    model, head = site.model, site.head
    aside = Signatures(images, model)
    found = LinearProbe(model, head, Signatures(site.images, model), aside).losses()
    user, forged = [], []
    for image, writer, genuine in zip(images.images, images.writers, images.genuine, strict=True):
        with torch.no_grad():
            z = model(torch.from_numpy(image[None]))
            logit = model.task(z)[0].item()
            forged.append((np.logaddexp(0, -logit if genuine else logit), genuine))
            if genuine:
                own = torch.tensor([writer])
                user.append(-torch.log_softmax(head(z, own), dim=1)[0, writer].item())
    assert found.user == pytest.approx(np.mean(user), rel=1e-4)
    halves = [np.mean([loss for loss, real in forged if real == kind]) for kind in (True, False)]
    assert found.forged == pytest.approx(np.mean(halves), rel=1e-4)
    rows = torch.arange(aside.size)
    together = outputs_of(model, head, aside, rows).losses
    assert [one.item() for one in together] == pytest.approx(list(found), rel=1e-4)


def test_a_judged_model_gets_the_head_that_suits_it_whatever_was_judged_before(trained):
    _, site, _, shared = trained
    own = site.receipt(shared).model
    model = site._own_layout.unflatten(own)
    turned, rows = dict(model), np.random.default_rng(0).permutation(256)
    for name in ("open_set.projection.weight", "open_set.projection.bias"):
        turned[name] = model[name][rows]
    same = site._own_layout.flatten(turned | {
        "open_set.task.hidden.weight": model["open_set.task.hidden.weight"][:, rows]
    })  # fmt: skip
    before = site._judge(own)
    head = site.head.prototypes.detach().clone()
    # Templates in another order of their values: to a head that stays it would be noise.
    assert list(site._judge(same)) == pytest.approx(list(before), rel=1e-3)
    torch.testing.assert_close(site.head.prototypes.detach(), head[:, rows], atol=1e-3, rtol=0)
    random = np.random.default_rng(1).standard_normal(own.shape).astype(np.float32)
    assert site._judge(random).user > before.user
    assert site._judge(own) == before
    assert torch.equal(site.head.prototypes, head)


@pytest.mark.parametrize("guided", ["off", "minimum-norm"])
def test_a_step_gives_the_optimiser_the_guided_gradient(guided):
    plan = fedmh_plan(guidance=guided, detection_weight=0.3)
    site = build("ebony", plan)
    site._load(site.receipt(site.initial_vector()).model)
    model, head = site.model, site.head
    signatures = Signatures(tiny_signatures(2, writers=2), model)
    shared, detection = model.representation(), list(model.task.parameters())
    # The same head, upside down for one writer: whoever is told apart is told wrong.
    rows = torch.arange(signatures.size)
    steps = GuidedSteps(model, head, 1e-3, plan.draft.fedmh)
    losses = outputs_of(model, head, signatures, rows).losses
    opposed = losses._replace(forged=losses.forged - 0.2 * losses.user)
    u = torch.autograd.grad(opposed.user, shared, retain_graph=True)
    f = torch.autograd.grad(opposed.forged, shared, retain_graph=True)
    t = torch.autograd.grad(opposed.forged, detection, retain_graph=True)
    expected = guide(u, f, 0.3, opposed=guided == "minimum-norm")
    assert expected.cosine < 0
    steps.take(opposed)
    for parameter, gradient in zip(shared, expected.combined(u, f), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    for parameter, gradient in zip(detection, t, strict=True):
        torch.testing.assert_close(parameter.grad, 0.3 * gradient)
    assert steps.metrics()["guidance.cosine"] == pytest.approx(expected.cosine)
    assert steps.metrics()["guidance.opposed"] == 1


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(ConfigError, match="signatures"):
        build_site_method(fedmh_plan(), "amber", tiny_images(0))
    with pytest.raises(ConfigError, match="palms"):
        build_site_method(make_plan("fedavg"), "a", tiny_signatures(0))
    with pytest.raises(ConfigError, match="keep"):
        simulate(fedmh_plan(), "local", dict.fromkeys(BACKBONES, tiny_signatures(0)))
