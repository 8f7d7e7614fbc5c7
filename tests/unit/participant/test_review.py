"""A plan in words: what the one who has to say yes or no needs to read."""

from __future__ import annotations

import hashlib
import json
from typing import get_args

import pytest
from click.testing import CliRunner

from fedpalm.errors import NotFoundError, PolicyError
from fedpalm.methods.contribution import codec_for
from fedpalm.methods.plan_template import plan_template
from fedpalm.plan import Continues, MethodName, Plan, PlanDraft, TrainingSettings
from participant.cli import main
from participant.peers import PeerBook
from participant.plan_words import METHODS
from participant.policy import Policy, violations
from participant.review import review_plan
from tests.support.masked_rounds import masked_plan
from tests.support.participant import EXPERT, FEDERATION, LAYOUT, World, make_plan

RUN = "toy-1"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, policy="")


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    yield made
    made.store.close()


def _review(world, site, plan, run_id=RUN):
    desk = site.desk.plans
    return review_plan(desk, desk.propose(run_id, plan, world.offer(plan, run_id)))


def _text(review):
    return "\n".join(
        line for section in review.sections for line in (section.title, *section.lines)
    )


def _real_plan(method: str, **changes) -> Plan:
    backbones = {"east": "signet", "north": "signet"} if method == "fedmh" else {}
    draft = PlanDraft(name="real", method=method, rounds=2, seed=3, backbones=backbones)
    template = plan_template(draft)
    values = {
        "federation": FEDERATION,
        "draft": draft,
        "roster": ("east", "north"),
        "layout": tuple(template.layout.to_json()),
        "expert_layout": tuple(template.expert_layout.to_json()),
        "initial_model": hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
    }
    return Plan(**{**values, **changes})


def test_it_says_who_takes_part_and_how_many_make_a_round(world, site):
    review = _review(world, site, make_plan())
    assert "this site (north), east, west; and the coordinator" in _text(review)
    assert "A round counts with 2 or more of them" in _text(review)
    assert review.data["roster"] == ["east", "north", "west"]
    assert review.data["minimum_cohort"] == 2


def test_it_says_exactly_what_would_leave_and_that_the_coordinator_sees_it_unmasked(world, site):
    plan = make_plan()
    review = _review(world, site, plan)
    text, leaves = _text(review), review.data["leaves"]
    size = codec_for(plan).payload_bytes
    assert leaves == {
        "tensors": len(LAYOUT.tensors),
        "parameters": LAYOUT.size,
        "bytes": size,
        "layout": LAYOUT.to_json(),
    }
    assert f"{LAYOUT.size:,} parameters, {size:,} bytes" in text
    assert "open_set.embedding.weight (32 x 128)" in text
    assert "Masking is none: the coordinator sees this site's own update and the number" in text
    assert "Never: images, labels" in text
    assert "None: no noise is added" in text
    assert review.data["privacy"]["epsilon"] is None


def test_it_describes_the_exchange_if_the_plan_has_one(world, site):
    review = _review(world, site, make_plan())
    assert review.data["exchange"]["sealed_to"] == ["east", "west"]
    assert review.data["exchange"]["parameters"] == EXPERT.size
    assert "Approving this plan is not that yes" in _text(review)
    without = make_plan(
        expert_layout=(), draft=make_plan().draft.model_copy(update={"expert_exchange": "never"})
    )
    review = _review(world, site, without, "toy-2")
    assert review.data["exchange"] is None
    assert "no expert of this site leaves" in _text(review)


def test_the_first_plan_is_compared_with_nothing(world, site):
    review = _review(world, site, make_plan())
    assert review.data["changes"] is None
    assert "approved no other plan before" in _text(review)


def test_every_change_since_the_last_approved_plan_is_shown_with_both_values(world, site):
    before = make_plan(rounds=3)
    site.desk.plans.propose("toy-0", before, world.offer(before, "toy-0"))
    site.desk.plans.approve("toy-0")
    site.desk.plans.refuse("toy-0")
    draft = before.draft.model_copy(
        update={
            "rounds": 5,
            "training": before.draft.training.model_copy(update={"local_epochs": 9}),
        }
    )
    review = _review(world, site, make_plan(sites=("north", "south", "west"), draft=draft))
    changes = review.data["changes"]
    assert (changes["since_run"], changes["since_plan_hash"]) == ("toy-0", before.hash.hex())
    assert (changes["joined"], changes["left"]) == (["south"], ["east"])
    assert changes["changed"] == [
        {"key": "rounds", "old": 3, "new": 5},
        {"key": "training.local_epochs", "old": 2, "new": 9},
    ]
    text = _text(review)
    assert "New on the roster: south." in text
    assert "No longer on the roster: east." in text
    assert "training.local_epochs: 2 -> 9" in text


def test_a_plan_that_was_never_approved_is_not_what_is_compared_with(world, site):
    for run_id, plan in (("toy-0", make_plan(4)), ("toy-00", make_plan(7))):
        site.desk.plans.propose(run_id, plan, world.offer(plan, run_id))
    site.desk.plans.approve("toy-0")
    site.desk.plans.refuse("toy-00")
    assert _review(world, site, make_plan()).data["changes"]["since_run"] == "toy-0"


def test_the_same_plan_again_has_no_changes(world, site):
    site.desk.plans.propose("toy-0", make_plan(), world.offer(make_plan(), "toy-0"))
    site.desk.plans.approve("toy-0")
    review = _review(world, site, make_plan())
    assert review.data["changes"]["changed"] == []
    assert "nothing." in _text(review)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_a_plan_of_any_method_says_what_is_trained_and_what_rides_behind(world, site, method):
    plan = _real_plan(method)
    assert not violations(Policy(), plan)
    text = _text(_review(world, site, plan))
    assert METHODS[method] in text
    numbers = {1: "one number more", 2: "two numbers more"}[len(codec_for(plan).stats)]
    if method == "fedmh":
        numbers = "3 numbers more, one for each group"
    assert f"bytes with {numbers}" in text
    assert ("training images are behind it" in text) == (
        method not in ("rehearsal", "fedpalm-release")
    )


@pytest.mark.parametrize("kind", ["none", "site", "federation"])
def test_a_statistic_that_leaves_with_the_model_is_named(world, site, kind):
    training = TrainingSettings(template_normaliser=kind)
    plan = make_plan(draft=make_plan().draft.model_copy(update={"training": training}))
    said = "a statistic of this site's images" in _text(_review(world, site, plan))
    assert said == (kind == "federation")


@pytest.mark.parametrize("method", ["fedavg", "fedmh", "fedpalm", "rehearsal"])
def test_the_model_that_follows_from_the_seed_is_known_and_any_other_is_not(world, site, method):
    known = _review(world, site, _real_plan(method)).data["initial_model"]
    assert known["known"]
    assert "follows from the plan's seed, 3" in known["what"]
    other = _review(world, site, _real_plan(method, initial_model="0" * 64), "toy-2")
    assert not other.data["initial_model"]["known"]
    assert "a model that this site does not know" in _text(other)


def test_a_model_of_an_earlier_run_of_this_site_is_known(world, site):
    world.agreed(site, make_plan(), "toy-0")
    site.store.add_model("toy-0", 2, b"\x07" * 32, keep=3)
    site.store.end_run("toy-0", "aborted", b"\x08" * 32, "amended")
    for digest, words in ((7, "of run toy-0 after round 2"), (8, "last global model of run toy-0")):
        plan = make_plan(initial_model=bytes([digest]).hex() * 32)
        known = _review(world, site, plan, f"toy-{digest}").data["initial_model"]
        assert words in known["what"]


def test_an_amended_plan_names_the_run_that_it_continues(world, site):
    plan = make_plan(
        continues=Continues(
            run="toy-0", plan_hash="0" * 64, rounds_done=2, model=make_plan().initial_model
        )
    )
    review = _review(world, site, plan)
    assert "It goes on from run toy-0 after 2 rounds" in _text(review)
    assert review.data["total_rounds"] == 5


def test_the_policys_verdict_lists_each_violation(world, site):
    site.home.policy.write_text("min_cohort = 3\nprivacy = 'required'")
    review = _review(world, site, make_plan())
    assert review.data["policy"]["verdict"] == "forbidden"
    assert [v.split(":")[0] for v in review.data["policy"]["violations"]] == [
        "privacy",
        "min_cohort",
    ]
    assert all(violation in _text(review) for violation in review.data["policy"]["violations"])
    site.home.policy.write_text("min_cohort = 'three'")
    review = _review(world, site, make_plan())
    assert review.data["policy"]["verdict"] == "unreadable"
    assert "nothing is approved, trained or sent" in _text(review)


def test_the_hash_to_compare_is_whole_and_in_groups(world, site):
    review = _review(world, site, make_plan())
    (groups,) = review.sections[-1].lines
    assert groups.replace(" ", "") == make_plan().hash.hex() == review.data["plan_hash"]
    assert {len(group) for group in groups.split()} == {4}


# --- the commands ---------------------------------------------------------------------------------


def _run(site, *arguments):
    return CliRunner().invoke(main, [*arguments, "--home", str(site.home.path)])


def _json(site, *arguments):
    result = _run(site, *arguments, "--json")
    return result.exit_code, json.loads(result.output)


def test_review_shows_the_plan_that_waits_and_what_to_type_next(world, site):
    _review(world, site, make_plan())
    shown = _run(site, "review")
    assert shown.exit_code == 0, shown.output
    assert "fedpalm-participant approve toy-1" in shown.output
    code, data = _json(site, "review", RUN)
    assert code == 0
    assert (data["run_id"], data["state"]) == (RUN, "proposed")
    assert data["plan"] == json.loads(make_plan().to_bytes())


def test_review_of_a_long_reason_or_name_cannot_style_the_terminal(world, site):
    _review(world, site, make_plan())
    site.desk.plans.refuse(RUN, "[bold]no[/]")
    assert "Reason: [bold]no[/]" in _run(site, "review").output


def test_approve_and_refuse_answer_the_plan_that_waits(world, site):
    _review(world, site, make_plan())
    code, approved = _json(site, "approve")
    assert code == 0
    assert (approved["state"], approved["answer"], approved["decided_by"]) == (
        "approved",
        1,
        "person",
    )
    assert approved["plan_hash"] == make_plan().hash.hex()
    assert "when the agent runs" in approved["sent"]
    code, refused = _json(site, "refuse", RUN, "--reason", "changed our mind")
    assert (code, refused["state"], refused["answer"]) == (0, "refused", 2)
    assert site.desk.plans.plan(RUN).reason == "changed our mind"
    assert _json(site, "review")[1]["state"] == "refused"


def test_approving_what_the_policy_forbids_fails_with_its_own_code(world, site):
    _review(world, site, make_plan())
    site.home.policy.write_text("min_cohort = 3")
    code, data = _json(site, "approve")
    assert code == PolicyError.exit_code
    assert data["error"]["code"] == "policy"
    assert "min_cohort" in data["error"]["what"]


def test_without_any_plan_the_commands_say_where_plans_come_from(site):
    for command in ("review", "approve", "refuse"):
        code, data = _json(site, command)
        assert code == NotFoundError.exit_code
        assert "fedpalm-participant run" in data["error"]["next_step"]


def test_under_masking_it_says_how_many_peers_are_confirmed_and_warns_of_the_others(world, site):
    plan, book = masked_plan(), PeerBook(site.store)
    book.pin({name: world.absent(name).signing_key.public_key() for name in ("east", "west")})
    book.confirm(site.log, "east", book.get("east").key_id)
    review = _review(world, site, plan)
    assert "the signing keys of 1 of 2 other sites" in _text(review)
    assert "WARNING: not those of west." in _text(review)
    assert "fedpalm-participant peers --run toy-1, then peers confirm --all CODE" in _text(review)
    assert review.data["peers"] == {"others": 2, "unconfirmed": ["west"]}
    book.confirm(site.log, "west", book.get("west").key_id)
    after = _review(world, site, plan)
    assert "the signing keys of 2 of 2 other sites" in _text(after)
    assert "WARNING: not those" not in _text(after)
    assert "peers" not in _review(world, site, make_plan(), "toy-2").data
