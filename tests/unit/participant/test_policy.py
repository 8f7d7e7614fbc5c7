"""A site's own limits: what they forbid, and that nothing happens when they cannot be read."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from fedpalm.errors import ConfigError, PolicyError
from fedpalm.plan import Continues
from participant.cli import main
from participant.config import Home
from participant.policy import (
    Policy,
    PolicyFile,
    in_words,
    load_policy,
    payload_sizes,
    require_allowed,
    violations,
)
from tests.support.participant import make_plan, make_private_plan


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "site")
    made.make()
    return made


def _continued(rounds: int, done: int):
    plan = make_plan()
    continues = Continues(
        run="toy-0", plan_hash="0" * 64, rounds_done=done, model=plan.initial_model
    )
    return make_plan(rounds, continues=continues)


def test_without_a_file_the_defaults_hold_and_nothing_is_approved_by_itself(home):
    policy = load_policy(home)
    assert policy == Policy()
    assert not policy.auto_approve
    assert (policy.min_cohort, policy.max_epsilon, policy.max_rounds) == (2, 8.0, 10_000)
    assert (policy.max_payload_bytes, policy.max_bytes_per_day) == (1024 * 10**6, 102_400 * 10**6)
    assert not violations(policy, make_plan())


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        ({"methods": ("fedavg",)}, "methods"),
        ({"methods": ()}, "methods"),
        ({"masking": "required"}, "masking"),
        ({"privacy": "required"}, "privacy"),
        ({"min_cohort": 3}, "min_cohort"),
        ({"max_rounds": 2}, "max_rounds"),
        ({"expert_exchange": False}, "expert_exchange"),
        ({"max_payload_mb": 0.001}, "max_payload_mb"),
        ({"max_mb_per_day": 0.001}, "max_mb_per_day"),
    ],
)
def test_each_limit_forbids_a_plan_beyond_it_and_says_which_one_it_is(limits, key):
    (found,) = violations(Policy(**limits), make_plan(rounds=3))
    assert found.startswith(f"{key}: ")


@pytest.mark.parametrize(
    "limits",
    [
        {"methods": ("fedpalm",)},
        {"min_cohort": 2},
        {"max_rounds": 3},
        {"max_payload_mb": max(payload_sizes(make_plan()).values()) / 10**6},
        {"max_epsilon": 0.001},
    ],
)
def test_a_plan_exactly_at_a_limit_is_within_it(limits):
    assert not violations(Policy(**limits), make_plan(rounds=3))


def test_an_exchange_is_only_forbidden_to_a_plan_that_has_one():
    plan = make_plan()
    without = make_plan(
        expert_layout=(), draft=plan.draft.model_copy(update={"expert_exchange": "never"})
    )
    assert not violations(Policy(expert_exchange=False), without)


def test_rounds_are_counted_with_those_of_the_run_that_is_continued():
    policy = Policy(max_rounds=10)
    assert not violations(policy, _continued(rounds=4, done=6))
    (found,) = violations(policy, _continued(rounds=5, done=6))
    assert "11 rounds with those of the run that it continues" in found


def test_everything_that_is_forbidden_is_named_at_once():
    policy = Policy(masking="required", privacy="required", min_cohort=3)
    with pytest.raises(PolicyError) as error:
        require_allowed(policy, make_plan())
    assert [line.split(":")[0] for line in error.value.what.splitlines()[1:]] == [
        "masking",
        "privacy",
        "min_cohort",
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("min_cohort = 1", ["min_cohort"]),
        ("masking = 'sometimes'", ["masking"]),
        ("max_epsilon = -1\nmax_rounds = 0", ["max_epsilon", "max_rounds"]),
        ("methods = ['fedavg', 'magic']", ["methods.1"]),
        ("min_kohort = 3", ["min_kohort"]),
        ("min_cohort = ", ["Invalid value"]),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_file_and_every_key(home, text, named):
    home.policy.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_policy(home)
    assert str(home.policy) in error.value.what
    for key in named:
        assert key in error.value.what


def test_the_file_is_followed_while_it_changes(home):
    file = PolicyFile(home)
    assert file.current == Policy()
    home.policy.write_text("min_cohort = 3")
    assert file.current.min_cohort == 3
    home.policy.write_text("min_cohort = 44")
    assert file.current.min_cohort == 44
    replaced = home.policy.with_name("new.toml")
    replaced.write_text("min_cohort = 55")
    replaced.rename(home.policy)
    assert file.current.min_cohort == 55


def test_there_is_no_policy_while_the_file_is_wrong_and_one_again_when_it_is_right(home):
    home.policy.write_text("min_cohort = 3")
    file = PolicyFile(home)
    assert file.current.min_cohort == 3
    home.policy.write_text("min_cohort = 'three'")
    for _ in range(2):
        with pytest.raises(PolicyError, match=r"policy\.toml: min_cohort") as error:
            _ = file.current
        assert error.value.safe == "nothing is approved, trained or sent"
    home.policy.write_text("min_cohort = 4")
    assert file.current.min_cohort == 4


PRIVATE = {"delta": 1e-5, "people": 1000}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            {"delta": None},
            "delta: the plan has differential privacy, and this policy names no delta",
        ),
        ({"people": None}, "people: the plan has differential privacy"),
        ({"delta": 1e-3}, "delta: 0.001 is not below 1 / people = 0.001"),
        ({"people": 10**6}, "delta: 1e-05 is not below 1 / people = 1e-06"),
    ],
)
def test_a_private_plan_needs_a_delta_below_one_over_people(limits, said):
    (found,) = violations(Policy(**{**PRIVATE, **limits}), make_private_plan())
    assert found.startswith(said)
    assert "set" in found, "it says what to do"
    assert not violations(Policy(**{**PRIVATE, **limits}), make_plan())


def test_delta_is_below_one_over_the_people_that_the_plan_declares():
    plan = make_private_plan(privacy={"population": 10**6})
    (found,) = violations(Policy(**PRIVATE), plan)
    assert found.startswith("delta: 1e-05 is not below 1 / 1,000,000")
    assert not violations(Policy(**{**PRIVATE, "delta": 1e-7}), plan)


def test_a_plan_that_protects_single_images_needs_the_sites_word():
    record, subject = make_private_plan(privacy={"unit": "record"}), make_private_plan()
    (found,) = violations(Policy(**PRIVATE), record)
    assert found.startswith("privacy_unit: the plan protects one image")
    for plan in (record, subject):
        assert not violations(Policy(**PRIVATE, privacy_unit="record"), plan)
    assert not violations(Policy(**PRIVATE), subject)


def test_the_words_tell_the_budget_and_what_is_missing_of_it():
    said = " ".join(in_words(Policy(**PRIVATE, max_epsilon=4)))
    assert "at most epsilon 4 at delta 1e-05, for 1,000 people" in said
    assert "protects whole people" in said
    assert "none is allowed before delta and people are set" in " ".join(in_words(Policy()))


def test_a_file_that_disappears_does_not_mean_the_defaults(home):
    home.policy.write_text("masking = 'required'")
    file = PolicyFile(home)
    assert file.current.masking == "required"
    home.policy.unlink()
    for _ in range(2):
        with pytest.raises(PolicyError, match="is gone"):
            _ = file.current
    home.policy.write_text("masking = 'required'")
    assert file.current.masking == "required"


def test_a_file_that_is_replaced_while_it_is_read_is_never_the_defaults(home, monkeypatch):
    """An editor renames the file away, and writes the new one a moment later."""
    home.policy.write_text("masking = 'required'")
    file = PolicyFile(home)
    assert file.current.masking == "required"
    home.policy.write_text("masking = 'required' # edited")
    for call in ("fstat", "stat"):
        real = getattr(os, call)

        def look(target, *rest, real=real, **how):
            found = real(target, *rest, **how)
            home.policy.unlink(missing_ok=True)
            return found

        monkeypatch.setattr(f"participant.policy.os.{call}", look)
    assert file.current.masking == "required"
    monkeypatch.undo()
    assert _refused(file)


def test_a_file_that_is_emptied_or_cannot_be_read_does_not_mean_the_defaults(home):
    home.policy.write_text("")
    file = PolicyFile(home)
    assert file.current == Policy(), "empty from the start: the owner wants the defaults"
    home.policy.write_text("masking = 'required'")
    assert file.current.masking == "required"
    home.policy.write_text("\n")
    assert _refused(file)
    home.policy.unlink()
    home.policy.mkdir()
    assert _refused(file)
    home.policy.rmdir()
    home.policy.symlink_to(home.policy)
    assert file.stamp is None
    assert _refused(file)
    home.policy.unlink()
    home.policy.write_text("#" * 70_000)
    assert _refused(file)
    home.policy.write_text("masking = 'required'")
    assert file.current.masking == "required"


def _refused(file: PolicyFile) -> bool:
    with pytest.raises(PolicyError) as error:
        _ = file.current
    return error.value.safe == "nothing is approved, trained or sent"


def test_the_command_shows_the_limits_in_words(world):
    world.policy = "max_rounds = 5\nmasking = 'required'\n"
    home = world.home("north")
    shown = CliRunner().invoke(main, ["policy", "--home", str(home.path)])
    assert shown.exit_code == 0, shown.output
    assert "Every plan waits for a person" in shown.output
    assert "Masking is required" in shown.output
    assert "at most 5 rounds" in shown.output
    data = json.loads(
        CliRunner().invoke(main, ["policy", "--json", "--home", str(home.path)]).output
    )
    assert data["limits"]["max_rounds"] == 5
    assert data["words"] == in_words(load_policy(home))
    home.policy.write_text("max_rounds = 'many'")
    wrong = CliRunner().invoke(main, ["policy", "--json", "--home", str(home.path)])
    assert wrong.exit_code == ConfigError.exit_code
    assert "max_rounds" in json.loads(wrong.output)["error"]["what"]


def test_words_tell_whether_anybody_is_asked():
    assert in_words(Policy(auto_approve=True))[0].startswith(
        "A plan within these limits is approved"
    )
    assert "exchange of experts is forbidden" in " ".join(in_words(Policy(expert_exchange=False)))


def test_the_words_say_whose_keys_are_masked_with():
    assert "as they were seen first" in " ".join(in_words(Policy()))
    assert "nobody here has confirmed" in " ".join(in_words(Policy(peers="confirmed")))
