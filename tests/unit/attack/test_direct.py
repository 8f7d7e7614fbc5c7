"""The direct tests: the product's path passes, and each fault fails where it should."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.attack.bugs import faulty_paths
from fedpalm.attack.direct import direct
from fedpalm.attack.findings import accused
from fedpalm.attack.probe import TrainingPath
from fedpalm.plan import PrivacySettings
from fedpalm.privacy.randomness import SeededRandom

LEVEL = 1e-6
CAUGHT_BY = {
    "no noise": {"noise variance", "noise distribution"},
    "half sigma": {"noise variance", "noise distribution"},
    "no clipping": {"influence of a person", "declared divisor"},
    "noise before clipping": {"noise variance", "noise distribution"},
    "person split across batches": {"influence of a person"},
    "noise reused after a restart": {"noise reuse"},
    "noise reused in every step": {"noise reuse"},
    "batches of fixed size": {"sizes of draws"},
    "shuffled epochs": {"sizes of draws", "draws of a person"},
    "drawn at twice q": {"sampling rate"},
    "divided by the people drawn": {"declared divisor", "influence on others"},
}
ON_A_SITE = {"contrast between people", "private head", "expert beside the mechanism"}


def test_the_path_of_the_product_passes():
    assert accused(direct(TrainingPath()), LEVEL) == []


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_fault_is_refuted_by_the_tests_that_are_about_it(name):
    found = {one.test for one in accused(direct(faulty_paths()[name]), LEVEL)}
    assert found >= CAUGHT_BY[name]


def test_every_fault_has_its_test_here_or_on_a_site():
    assert set(faulty_paths()) == set(CAUGHT_BY) | ON_A_SITE


def test_what_the_probe_releases_is_the_clipped_sum_of_the_mean_gradients():
    """By hand: three people at C = 2, of whom one is below it."""
    privacy = PrivacySettings(
        unit="subject",
        noise_multiplier=1e-9,
        clip_norm=2.0,
        sampling_rate=1.0,
        population=50,
        steps=2,
    )
    people = [[(0, 30.0)], [(1, 3.0), (2, 1.0)], [(0, -3.0), (1, -4.0)]]
    expected = np.array([2.0, 1.5, 0.5]) + np.array([-1.5, -2.0, 0.0]) * 2 / 2.5
    released = TrainingPath().released(people, 3, privacy)
    assert released.shape == (2, 3)
    np.testing.assert_allclose(released, [expected, expected], atol=1e-5)


def test_the_probe_takes_the_randomness_that_it_is_given():
    privacy = PrivacySettings(unit="subject", sampling_rate=0.5, population=4, steps=3)
    path = TrainingPath(randomness=lambda: SeededRandom(3))
    once, again = (path.released([[(0, 1.0)]] * 4, 5, privacy) for _ in range(2))
    np.testing.assert_array_equal(once, again)
