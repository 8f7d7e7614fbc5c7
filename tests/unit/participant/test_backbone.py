"""A site with a backbone of its own: what it agrees to, what it is told, and what it lets out."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.errors import EgressRefusedError, PolicyError
from fedpalm.layout import Layout, TensorSpec
from fedpalm.methods.base import SiteUpdate
from fedpalm.methods.contribution import codec_for
from fedpalm.plan import Plan
from participant.plan_book import PlanState
from participant.plan_words import group_words, kept_words
from participant.policy import Policy, violations
from participant.review import review_plan
from participant.trainer import Trainer
from tests.support.participant import FEDERATION, make_plan
from tests.support.plans import RUN
from tests.support.rounds import Chain
from tests.unit.methods.signature_sites import fedmh_plan

NAMES = ("trunk.resnet", "trunk.signet", "projection")
GROUPED = Layout(tuple(TensorSpec(f"open_set.{name}.weight", (80,)) for name in NAMES))
BACKBONES = {"east": "resnet", "north": "signet", "south": "resnet", "west": "signet"}


def grouped_plan(backbones: dict[str, str] | None = None, **draft) -> Plan:
    values = make_plan().draft.model_dump()
    values |= {"method": "rehearsal", "expert_exchange": "never", **draft}
    values["backbones"] = BACKBONES if backbones is None else backbones
    changes = {"draft": values, "expert_layout": (), "layout": tuple(GROUPED.to_json())}
    return make_plan(sites=tuple(BACKBONES), **changes)


@pytest.fixture
def site(world):
    made, home = world.site("north")
    home.save(home.load().model_copy(update={"backbone": "signet"}))
    yield made
    made.store.close()


def own_backbone(site, name: str | None) -> None:
    site.home.save(site.home.load().model_copy(update={"backbone": name}))


def propose(world, site, plan: Plan):
    return site.desk.plans.propose(RUN, plan, world.offer(plan, RUN))


def verdict(site, stored) -> dict:
    return review_plan(site.desk.plans, stored).data["policy"]


def test_a_plan_with_this_sites_backbone_can_be_approved(world, site):
    stored = propose(world, site, grouped_plan())
    assert verdict(site, stored)["verdict"] == "allowed"
    assert site.desk.plans.approve(RUN).state is PlanState.APPROVED


@pytest.mark.parametrize(("own", "says"), [("resnet", "says resnet"), (None, "names none")])
def test_a_plan_with_another_backbone_for_this_site_is_refused_and_review_says_why(
    world, site, own, says
):
    own_backbone(site, own)
    stored = propose(world, site, grouped_plan())
    told = f"backbone: the plan has signet for this site, participant.toml {says}"
    assert verdict(site, stored)["violations"] == [told]
    with pytest.raises(PolicyError) as refused:
        site.desk.plans.approve(RUN)
    assert refused.value.what == told
    considered = site.desk.plans.consider(RUN)
    assert (considered.state, considered.reason) == (PlanState.REFUSED, told)


def test_settings_that_cannot_be_read_approve_no_plan_with_backbones(world, site):
    propose(world, site, grouped_plan())
    site.home.config.write_text("site = ")
    with pytest.raises(PolicyError, match="fits this site is not known"):
        site.desk.plans.approve(RUN)


def test_a_backbone_that_was_changed_after_the_approval_trains_nothing(world, site):
    config = site.home.load().model_copy(update={"backbone": "resnet"})
    with pytest.raises(PolicyError, match="the plan has signet"):
        Trainer(config, site.store).prepare(RUN, grouped_plan())


def test_a_plan_with_one_model_for_all_asks_for_no_backbone(world, site):
    propose(world, site, make_plan())
    assert site.desk.plans.approve(RUN).state is PlanState.APPROVED


def test_review_says_who_contributes_to_what_and_how_many_weights_travel(world, site):
    review = review_plan(site.desk.plans, propose(world, site, grouped_plan()))
    assert review.data["backbone"] == "signet"
    assert review.data["groups"] == {
        "trunk.resnet": ["east", "south"],
        "trunk.signet": ["north", "west"],
        "projection": ["east", "north", "south", "west"],
    }
    assert review.data["shared_with"] == {
        "trunk.signet": ["west"],
        "projection": ["east", "south", "west"],
    }
    text = "\n".join(line for section in review.sections for line in section.lines)
    assert (
        "trunk.resnet: 80 parameters, averaged over east, south. This site sends zeros there."
        in text
    )
    assert "trunk.signet: 80 parameters, averaged over north, west.\n" in text
    assert "3 numbers more, one for each group: the weight of the update: a random one" in text
    assert review.data["leaves"]["bytes"] == codec_for(grouped_plan()).payload_bytes == 4 * 243


def test_review_says_what_of_a_plan_for_signatures_stays_and_which_images_it_needs(world):
    home = world.home("north")
    home.save(home.load().model_copy(update={"backbone": "resnet"}))
    made, _ = world.site("north")
    three, others = ["amber", "birch", "cedar"], ["north", "south", "west"]
    backbones = dict.fromkeys(three, "signet") | dict.fromkeys(others, "resnet")
    values = fedmh_plan(backbones=backbones, shared=["signet"]).model_dump()
    values["draft"] |= {"masking": "secagg", "quorum": 5}
    plan = Plan.model_validate(values | {"federation": FEDERATION})
    review = review_plan(made.desk.plans, propose(world, made, plan))
    made.store.close()
    data, text = review.data, "\n".join(line for one in review.sections for line in one.lines)
    assert (data["modality"], data["backbone"]) == ("signature", "resnet")
    assert data["images_missing"] == "this plan trains, and participant.toml has no [data]"
    assert f"WARNING: {data['images_missing']}. Approved or not, it joins no run" in text
    everybody = [*three, "south", "west"]
    assert data["shared_with"] == {"projection": everybody, "task": everybody}
    assert "averaged over amber, birch, cedar. This site sends zeros there." in text
    for kept in (
        "The trunk of resnet, which the plan does not share, stays here.",
        "The head that tells this site's writers apart stays here.",
    ):
        assert kept in text
    assert "weighs in each of its groups is inside the mask" in text
    assert "by itself, but it is in the update, of which the coordinator sees sums" in text


@pytest.mark.parametrize(
    ("masking", "receipt", "said"),
    [
        ("none", "pareto", "the coordinator can work some of it out from this site's own."),
        ("secagg", "pareto", "the coordinator sees sums over several sites only."),
        ("none", "replace", None),
    ],
)
def test_what_a_receipt_tells_is_said_as_it_is_with_and_without_masking(masking, receipt, said):
    values = fedmh_plan(receipt=receipt, shared=[]).model_dump()
    values["draft"] |= {"masking": masking}
    plan = Plan.model_validate(values)
    told = [line for line in group_words(plan, "birch") if line.startswith("How far")]
    assert [line.endswith(said or "") for line in told] == [True] * (said is not None)
    assert not any("How far" in one for one in kept_words(plan, "birch"))


def test_review_says_of_a_masked_plan_with_a_group_too_small_that_it_cannot_work(world, site):
    stored = propose(world, site, grouped_plan(masking="secagg", quorum=4))
    assert any("could never be unmasked" in one for one in verdict(site, stored)["violations"])
    with pytest.raises(PolicyError, match="resnet has 2 sites"):
        site.desk.plans.approve(RUN)


def test_the_smallest_cohort_of_the_policy_holds_for_every_group(site):
    assert not violations(Policy(), grouped_plan())
    lone = grouped_plan({**BACKBONES, "south": "signet"})
    assert violations(Policy(), lone) == [
        "min_cohort: group trunk.resnet may be averaged over 1 sites; this policy asks for 2"
    ]


# --- what leaves ----------------------------------------------------------------------------------


@pytest.fixture
def chain(world, site):
    site.home.policy.write_text("auto_approve = true\n")
    plan = grouped_plan()
    world.agreed(site, plan)
    made = Chain(world, plan)
    made.ask(site)
    return made


def encode(site, chain, delta):
    model = bytes.fromhex(chain.plan.initial_model)
    return site.gate.encode_update(
        RUN, 1, model, GROUPED, SiteUpdate(delta, 3.0),
        shared=np.zeros(240, np.float32), private={},
    )  # fmt: skip


@pytest.mark.parametrize(("at", "value"), [(0, 1e-30), (79, -1.0), (40, np.nan)])
def test_a_value_in_a_group_that_the_site_is_not_of_does_not_leave(site, chain, at, value):
    delta = np.full(240, 0.01, np.float32)
    delta[:80] = 0
    delta[at] = value
    with pytest.raises(EgressRefusedError, match="resnet, which this site is not of"):
        encode(site, chain, delta)


def test_an_update_of_the_sites_groups_leaves_with_zeros_in_the_others(site, chain):
    delta = np.full(240, 0.01, np.float32)
    delta[:80] = 0
    values = np.frombuffer(bytes(encode(site, chain, delta).payload), "<u4")
    assert not values[:80].any() and values[80:240].all()
    assert [bool(weight) for weight in values[240:]] == [False, True, True]
