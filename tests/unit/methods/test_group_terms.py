"""What masking needs of a plan whose sites have backbones of their own."""

from __future__ import annotations

import pytest

from fedpalm.errors import ConfigError
from fedpalm.methods.base import RoundContext
from fedpalm.methods.contribution import (
    codec_for,
    masking_terms,
    shared_backbones,
)
from fedpalm.methods.rehearsal import RehearsalMethod
from fedpalm.plan import Plan

SITES = tuple("abcdefghi")


def make(letters: str, shared: str = "", masking: str = "secagg", colluders: int = 1) -> Plan:
    """A plan of a site for each letter, which is its backbone: s(ignet), r(esnet) or c(ompnet).

    Args:
        shared: backbones whose trunks are in the layout, by letter; all there are if left out.
    """
    names = {"s": "signet", "r": "resnet", "c": "compnet"}
    trunks = [f"trunk.{names[one]}" for one in sorted(set(shared or letters) - {"-"})]
    sites = SITES[: len(letters)]
    return Plan.model_validate(
        {
            "federation": "trial",
            "draft": {
                "name": "p",
                "method": "rehearsal",
                "rounds": 1,
                "masking": masking,
                "colluders": colluders,
                "quorum": (len(sites) + colluders) // 2 + 1,
                "backbones": dict(zip(sites, (names[one] for one in letters), strict=True)),
            },
            "roster": sites,
            "layout": [
                {"name": f"open_set.{name}.w", "shape": [5]} for name in (*trunks, "projection")
            ],
            "initial_model": "0" * 64,
        }
    )


def test_the_members_of_every_group_are_terms_that_each_site_checks() -> None:
    terms = masking_terms(make("sssrrr"))
    assert terms is not None
    assert terms.groups == (("trunk.resnet", tuple("def")), ("trunk.signet", tuple("abc")))
    assert terms.lacks("abcdef") == ""
    assert terms.lacks("abcde") == "2 sites of group trunk.resnet, its sum needs 3"


def test_the_quorum_of_the_whole_is_not_asked_of_each_group() -> None:
    terms = masking_terms(make("sssrrr"))
    assert terms is not None
    assert (terms.quorum, terms.group_survivors) == (4, 3)


def test_one_backbone_for_all_is_no_group_of_its_own() -> None:
    terms = masking_terms(make("ssss"))
    assert terms is not None and terms.groups == ()


@pytest.mark.parametrize("letters", ["ssssrr", "sssrrc"])
def test_a_trunk_of_too_few_sites_to_be_unmasked_makes_no_terms(letters: str) -> None:
    with pytest.raises(ConfigError, match=r"group trunk\..* could never be unmasked"):
        masking_terms(make(letters))
    assert masking_terms(make(letters, masking="none")) is None


def test_more_colluders_need_larger_groups() -> None:
    with pytest.raises(ConfigError, match="one among 4"):
        masking_terms(make("sssrrr", colluders=2))


def test_a_trunk_that_is_not_shared_needs_nobody_but_its_sites_hide_among_each_other() -> None:
    """Their weight is that of everybody less those of all trunks: of one site it would be its own."""
    terms = masking_terms(make("sssrrc", shared="s"))
    assert terms is not None
    assert terms.lacks("abcdef") == ""
    assert terms.lacks("abcde").startswith("2 sites of group of sites whose trunk is not shared")
    for letters in ("sssssc", "sssrcs", "ssssrr"):
        with pytest.raises(ConfigError, match="whose trunk is not shared"):
            masking_terms(make(letters, shared="s"))
    none = masking_terms(make("ssrrcc", shared="-"))
    assert none is not None and none.groups == ()


@pytest.mark.parametrize(
    ("letters", "shared", "spare"),
    [
        ("sssrrr", "", 0),
        ("ssssrrr", "", 0),
        ("ssssrrrr", "", 1),
        ("ssssssrrr", "", 0),
        ("ssssss", "", 2),
    ],
)
def test_a_round_can_do_without_as_many_sites_as_the_smallest_group(
    letters: str, shared: str, spare: int
) -> None:
    terms = masking_terms(make(letters, shared))
    assert terms is not None and terms.to_spare == spare


def test_a_model_shares_the_trunks_that_masking_can_unmask() -> None:
    assert shared_backbones(make("sssrrc", shared="s").draft) == ("signet",)
    assert shared_backbones(make("sssrrr").draft) == ("resnet", "signet")
    assert shared_backbones(make("sssrrc", masking="none").draft) == ("resnet", "signet")


def test_the_codec_has_the_groups_of_the_plan_and_a_weight_for_each() -> None:
    codec = codec_for(make("sssrrr"))
    assert codec.tail == ("weight.trunk.resnet", "weight.trunk.signet", "weight.projection")
    assert codec.length == 15 + 3


@pytest.mark.parametrize("site", ["a", "d"])
def test_a_rehearsal_contributes_zeros_where_its_site_is_not_in(site: str) -> None:
    plan = make("sssrrr")
    method = RehearsalMethod(plan, site)
    update = method.train_round(RoundContext(1, 1), method.initial_vector())
    for group in plan.parameter_groups:
        assert update.delta[group.span].any() == (site in group.members)
    codec_for(plan).encode(update.delta, update.weight, update.stats, bytes(32), site)
