"""Direct tests on real sites: the product's pass, and what learns beside the mechanism does not."""

from __future__ import annotations

import pytest

from fedpalm.attack.bugs import faulty_paths
from fedpalm.attack.probe import TrainingPath
from fedpalm.attack.sites import SiteProbe, site_findings


def _refuted(findings):
    return {one.test.partition(" (")[0] for one in findings if one.p_value == 0.0}


@pytest.mark.parametrize("method", ["fedavg", "fedpalm"])
def test_the_sites_of_the_product_pass(method):
    found = site_findings(TrainingPath(), method)
    assert len(found) == 4
    assert _refuted(found) == set()


def test_a_contrast_between_people_changes_what_a_person_adds_beside_others():
    probe = SiteProbe(faulty_paths()["contrast between people"], "fedpalm", "compnet")
    assert _refuted(probe.influence()) == {"influence on others"}


def test_a_private_head_moves_beside_the_mechanism_and_differs_from_site_to_site():
    probe = SiteProbe(faulty_paths()["private head"], "fedpalm", "compnet")
    beside = probe.nothing_beside()
    assert beside.p_value == 0.0
    assert beside.figure.startswith("head.open.prototypes")
    assert _refuted([probe.public()]) == {"public head and weight"}


def test_an_expert_that_learns_beside_the_mechanism_is_named():
    probe = SiteProbe(faulty_paths()["expert beside the mechanism"], "fedpalm", "compnet")
    found = probe.nothing_beside()
    assert found.p_value == 0.0
    assert "expert" in found.figure
