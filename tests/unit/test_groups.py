from __future__ import annotations

import json
from typing import Any

import pytest

from fedpalm.errors import ConfigError
from fedpalm.groups import Group, foreign_to
from fedpalm.plan import Plan
from fedpalm.settings import parse_settings

BACKBONES = {"amber": "signet", "birch": "resnet", "cedar": "signet"}
NAMES = (
    "open_set.trunk.resnet.conv.weight",
    "open_set.trunk.resnet.conv.bias",
    "open_set.trunk.signet.conv.weight",
    "open_set.projection.weight",
    "open_set.task.weight",
)


def parse(
    names: tuple[str, ...] = NAMES, backbones: dict[str, str] | None = None, **draft: Any
) -> Plan:
    """A plan whose tensors have 2, 3, 4, ... values."""
    values = {
        "federation": "trial",
        "draft": {
            "name": "p",
            "method": "rehearsal",
            "rounds": 3,
            "backbones": BACKBONES if backbones is None else backbones,
            **draft,
        },
        "roster": ("amber", "birch", "cedar"),
        "layout": [{"name": name, "shape": [2 + at]} for at, name in enumerate(names)],
        "initial_model": "0" * 64,
    }
    return parse_settings(Plan, values, "plan")


def test_a_trunk_is_of_the_sites_with_that_backbone_and_all_else_of_everybody() -> None:
    everybody = ("amber", "birch", "cedar")
    assert parse().parameter_groups == (
        Group("trunk.resnet", 0, 5, ("birch",)),
        Group("trunk.signet", 5, 9, ("amber", "cedar")),
        Group("projection", 9, 14, everybody),
        Group("task", 14, 20, everybody),
    )
    assert list(parse().groups) == ["trunk.resnet", "trunk.signet", "projection", "task"]
    assert [group.name for group in foreign_to("amber", parse().parameter_groups)] == [
        "trunk.resnet"
    ]


def test_a_backbone_whose_trunk_is_not_in_the_layout_shares_the_other_groups() -> None:
    plan = parse(NAMES[2:])
    assert list(plan.groups) == ["trunk.signet", "projection", "task"]
    assert "birch" in plan.groups["task"]


def test_a_plan_without_backbones_is_one_group_of_everybody_and_says_nothing_of_groups() -> None:
    plan = parse(backbones={})
    assert plan.groups == {"all": ("amber", "birch", "cedar")}
    assert plan.parameter_groups[0].span == slice(0, 20)
    assert "backbones" not in json.loads(plan.to_bytes())["draft"]
    assert Plan.from_bytes(plan.to_bytes()).hash == plan.hash


def test_who_has_which_backbone_is_in_the_hash_and_survives_the_bytes() -> None:
    plan = parse()
    assert Plan.from_bytes(plan.to_bytes()).groups == plan.groups
    assert plan.hash != parse(backbones={**BACKBONES, "cedar": "resnet"}).hash


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"backbones": {"amber": "signet", "birch": "resnet"}}, "differ in cedar"),
        ({"backbones": {**BACKBONES, "dogwood": "signet"}}, "differ in dogwood"),
        ({"backbones": {**BACKBONES, "amber": "other"}}, "backbones.amber"),
        ({"backbones": dict.fromkeys(BACKBONES, "signet")}, "trunk.resnet: no site"),
        ({"names": ("open_set.trunk.signet", *NAMES[3:])}, "not of the form"),
        ({"names": ("open_set.task", *NAMES[2:4])}, "not of the form"),
        ({"names": (NAMES[0], NAMES[2], NAMES[1], NAMES[3])}, "side by side"),
        ({"names": NAMES[:2]}, "no group is of amber, cedar"),
        ({"method": "fedavg"}, "one model for all"),
    ],
    ids=str,
)
def test_groups_that_do_not_fit_sites_or_layout_are_refused(
    change: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(**change)


@pytest.mark.parametrize(
    ("begin", "end", "part"), [(0, 20, (5, 9)), (6, 8, (0, 2)), (0, 5, (5, 5)), (9, 12, (0, 0))]
)
def test_a_groups_part_of_a_block_is_counted_from_the_block(
    begin: int, end: int, part: tuple[int, int]
) -> None:
    within = Group("trunk.signet", 5, 9, ("amber",)).within(begin, end)
    assert (within.start, within.stop) == part
