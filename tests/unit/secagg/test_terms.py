"""Thresholds and floors, and the rosters that masking cannot work with."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import ConfigError
from fedpalm.secagg.terms import MAX_MASKED_SITES, SecAggTerms


def names(count: int) -> tuple[str, ...]:
    return tuple(f"s{at:03}" for at in range(count))


@pytest.mark.parametrize(("sites", "threshold"), [(3, 3), (4, 3), (5, 4), (8, 5), (50, 26)])
def test_the_threshold_with_one_colluder(sites: int, threshold: int) -> None:
    assert SecAggTerms(names(sites)).threshold == threshold


@given(st.integers(3, MAX_MASKED_SITES), st.data())
def test_no_two_unmaskings_can_both_reach_the_threshold(sites: int, data: st.DataObject) -> None:
    terms = SecAggTerms(names(sites), data.draw(st.integers(0, sites - 2)))
    assert 2 * terms.threshold > sites + terms.colluders
    assert 2 * (terms.threshold - 1) <= sites + terms.colluders
    assert terms.colluders < terms.threshold <= terms.quorum <= sites
    # A sum hides at least two honest sites from the colluders.
    assert terms.quorum - terms.colluders >= 2 and terms.min_survivors >= 3


@pytest.mark.parametrize("sites", [0, 1, 2, 201, 1000])
def test_rosters_that_masking_does_not_work_with_are_refused(sites: int) -> None:
    with pytest.raises(ConfigError, match="masking works with 3 to 200 sites"):
        SecAggTerms(names(sites))


@pytest.mark.parametrize(("sites", "colluders"), [(3, -1), (3, 2), (10, 9), (10, 100)])
def test_at_least_two_sites_must_be_honest(sites: int, colluders: int) -> None:
    with pytest.raises(ConfigError, match="at least two must be honest"):
        SecAggTerms(names(sites), colluders)


@pytest.mark.parametrize("roster", [("b", "a", "c"), ("a", "a", "b", "c")], ids=str)
def test_a_roster_is_sorted_and_names_each_site_once(roster: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="sorted"):
        SecAggTerms(roster)


def test_the_plan_may_want_larger_sums_but_not_larger_than_the_roster() -> None:
    assert SecAggTerms(names(8), smallest_sum=7).quorum == 7
    assert SecAggTerms(names(8), smallest_sum=1).quorum == 5
    with pytest.raises(ConfigError):
        SecAggTerms(names(8), smallest_sum=9)
    with pytest.raises(ConfigError):
        SecAggTerms(names(8), smallest_sum=-1)


def test_a_sites_position_is_that_in_the_roster() -> None:
    terms = SecAggTerms(("north", "south", "west"))
    assert [terms.position(site) for site in terms.roster] == [1, 2, 3]


@pytest.mark.parametrize("count", [3, 4, 7, 50, 199, 200])
def test_every_site_chooses_about_half_of_its_pair_secrets(count: int) -> None:
    terms = SecAggTerms(names(count))
    chosen = Counter(terms.chooser(a, b) for a, b in combinations(terms.roster, 2))
    assert sum(chosen.values()) == count * (count - 1) // 2
    assert all(abs(chosen[site] - (count - 1) / 2) <= 0.5 for site in terms.roster)


def test_both_sites_of_a_pair_know_who_chooses_by_their_places_in_the_roster() -> None:
    terms = SecAggTerms(("north", "south", "west"))
    chosen = {pair: terms.chooser(*pair) for pair in permutations(terms.roster, 2)}
    assert chosen == {
        ("north", "south"): "north",
        ("south", "north"): "north",
        ("south", "west"): "south",
        ("west", "south"): "south",
        ("north", "west"): "west",
        ("west", "north"): "west",
    }


def test_what_is_lacking_is_said_in_words() -> None:
    terms = SecAggTerms(names(6), groups=(("left", names(3)), ("right", names(6)[2:])))
    assert terms.lacks(names(6)) == ""
    assert terms.lacks(names(3)) == "3 sites, masking needs 4"
    assert terms.lacks(names(6)[1:]) == "2 sites of group left, its sum needs 3"


@pytest.mark.parametrize(
    "changed",
    [
        SecAggTerms(names(6)),
        SecAggTerms(names(5), 0),
        SecAggTerms(names(5), smallest_sum=5),
        SecAggTerms(names(5), groups=(("left", names(3)),)),
        SecAggTerms(names(5), groups=(("right", names(3)),)),
        SecAggTerms(names(5), groups=(("left", names(4)),)),
    ],
    ids=str,
)
def test_the_hash_is_over_every_term(changed: SecAggTerms) -> None:
    assert len(changed.hash) == 32 and changed.hash != SecAggTerms(names(5)).hash


@pytest.mark.parametrize(
    "members", [("s000", "s001"), ("s001", "s000", "s002"), ("s000", "s001", "x")], ids=str
)
def test_a_group_is_of_enough_sites_of_the_roster(members: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="group left"):
        SecAggTerms(names(5), groups=(("left", members),))
