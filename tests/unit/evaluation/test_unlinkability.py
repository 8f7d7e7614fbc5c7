"""How well pairs under different keys tell whose they are: Gomez-Barrero et al. 2018."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import DataError
from fedpalm.evaluation.pairs import ScoreSet, pool_scores, score_pairs, score_set
from fedpalm.evaluation.unlinkability import chance_level, d_sys, d_sys_interval, linkability
from fedpalm.protection import Transform, scores


def normal(count: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).normal(mean, 1.0, count)


# --- the measure ----------------------------------------------------------------------------------


def test_scores_of_one_distribution_do_not_link():
    assert d_sys(normal(20_000), normal(20_000)) == 0.0
    assert d_sys(normal(20_000), normal(20_000, seed=1)) < 0.03


def test_scores_that_do_not_overlap_link_fully():
    assert d_sys(normal(500, mean=100), normal(500)) == pytest.approx(1.0)
    assert d_sys(normal(500), normal(500, mean=100)) == pytest.approx(1.0)


def test_a_worked_example():
    """Two bins. Low: 1/4 of the mated, 3/4 of the others: LR = 1/3, D = 0. High: LR = 3, D = 6/4 - 1."""
    mated, others = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0, 1.0])
    found = linkability(mated, others, bins=2)
    assert found.edges.tolist() == [0.0, 0.5, 1.0]
    assert found.local.tolist() == [0.0, 0.5]
    assert found.d_sys == pytest.approx(0.75 * 0.5)
    # Mated pairs nine times as likely: low 9/3 = 3, D = 0.5; high 27, D = 54/28 - 1.
    assert d_sys(mated, others, bins=2, omega=9.0) == pytest.approx(0.25 * 0.5 + 0.75 * 26 / 28)
    # A third as likely: high 3/3 = 1, which decides nothing.
    assert d_sys(mated, others, bins=2, omega=1 / 3) == pytest.approx(0.0)


def test_two_gaussians_a_distance_apart_give_the_integral():
    """Mated N(2, 1), others N(0, 1): LR = exp(2 s - 2), D = tanh(s - 1) above 1."""
    s = np.linspace(1, 12, 200_001)
    density = np.exp(-((s - 2) ** 2) / 2) / np.sqrt(2 * np.pi)
    expected = np.trapezoid(density * np.tanh(s - 1), s)
    found = d_sys(normal(200_000, mean=2.0), normal(200_000, seed=1))
    assert found == pytest.approx(expected, abs=0.01)


@settings(max_examples=60)
@given(
    mated=st.lists(st.floats(-1, 1), min_size=1, max_size=40),
    others=st.lists(st.floats(-1, 1), min_size=1, max_size=40),
    omega=st.floats(0.01, 100),
    bins=st.integers(1, 30),
)
def test_it_is_a_rate_whatever_the_scores(mated, others, omega, bins):
    found = linkability(np.array(mated), np.array(others), omega=omega, bins=bins)
    assert 0.0 <= found.d_sys <= 1.0
    assert found.mated.sum() == pytest.approx(1) and found.non_mated.sum() == pytest.approx(1)
    assert ((found.local >= 0) & (found.local <= 1)).all()
    assert (found.local[(found.non_mated == 0) & (found.mated > 0)] == 1).all()


def test_more_mated_scores_make_more_bins_within_bounds():
    for mated, bins in ((5, 10), (250, 25), (5000, 100)):
        assert len(linkability(normal(mated), normal(30)).local) == bins


@pytest.mark.parametrize(
    ("mated", "others", "given"),
    [
        ([], [1.0], {}),
        ([1.0], [], {}),
        ([np.nan], [1.0], {}),
        ([0.0], [np.inf], {}),
        ([0.0], [1.0], {"omega": 0.0}),
        ([0.0], [1.0], {"omega": np.nan}),
        ([0.0], [1.0], {"bins": 0}),
    ],
)
def test_what_has_no_answer_is_refused(mated, others, given):
    with pytest.raises(DataError):
        d_sys(np.array(mated), np.array(others), **given)


# --- with the people behind the scores ------------------------------------------------------------


PEOPLE, IMAGES, LENGTH = 40, 2, 128


def key(person: int, system: int) -> bytes:
    return hashlib.sha256(b"person %d, system %d" % (person, system)).digest()


def site(seed: int, system: int | None) -> ScoreSet:
    """Gallery and probes of one site; of ``system`` None unprotected, of 0 under the gallery's keys."""
    rng = np.random.Generator(np.random.Philox(seed))
    centres = rng.standard_normal((PEOPLE, 1, LENGTH))
    both = (centres + 0.5 * rng.standard_normal((PEOPLE, 2 * IMAGES, LENGTH))).astype(np.float32)
    labels = np.repeat(np.arange(PEOPLE), IMAGES)
    gallery, probe = both[:, :IMAGES], both[:, IMAGES:]
    if system is None:
        return score_pairs(gallery.reshape(-1, LENGTH), labels, probe.reshape(-1, LENGTH), labels)
    rows, columns = (
        np.concatenate(
            [
                Transform.of(key(1000 * seed + person, which), LENGTH).apply(one)
                for person, one in enumerate(of_people)
            ]
        )
        for which, of_people in ((0, gallery), (system, probe))
    )
    return score_set(scores(columns[:, None], rows), labels, labels)


@pytest.fixture(scope="module")
def unprotected() -> ScoreSet:
    return pool_scores([site(0, None), site(1, None)])


@pytest.fixture(scope="module")
def fresh_keys() -> ScoreSet:
    return pool_scores([site(0, 1), site(1, 1)])


def test_without_a_key_and_with_one_key_used_twice_people_are_linked(unprotected):
    reused = pool_scores([site(0, 0), site(1, 0)])
    for one in (unprotected, reused):
        low, high = d_sys_interval(one, seed=0, resamples=50)
        assert 0.9 < low <= high <= 1.0 and d_sys(one.genuine, one.impostor) > 0.9


def test_with_a_fresh_key_people_are_linked_no_better_than_by_chance(fresh_keys):
    mean, greatest = chance_level(fresh_keys)
    assert 0.0 < mean <= greatest < 0.2
    assert d_sys(fresh_keys.genuine, fresh_keys.impostor) < greatest + 0.02


def test_the_chance_level_takes_no_mated_pair(unprotected):
    """Pairs of other people score alike, however far from them the mated ones are."""
    assert chance_level(unprotected)[1] < 0.2 < d_sys(unprotected.genuine, unprotected.impostor)


def test_an_interval_is_drawn_from_its_seed_and_grows_with_confidence(fresh_keys):
    wide, again, narrow = (
        d_sys_interval(fresh_keys, seed=3, resamples=60, confidence=part)
        for part in (0.95, 0.95, 0.5)
    )
    assert wide == again and wide[0] < narrow[0] < narrow[1] < wide[1]


def test_drawing_everybody_once_gives_the_value_itself(fresh_keys, monkeypatch):
    monkeypatch.setattr(
        "fedpalm.evaluation.unlinkability.draw_identities",
        lambda scores, rng: np.ones(scores.identities),
    )
    value = d_sys(fresh_keys.genuine, fresh_keys.impostor)
    assert d_sys_interval(fresh_keys, seed=0, resamples=3) == pytest.approx((value, value))


def test_intervals_and_chance_levels_need_people(fresh_keys):
    with pytest.raises(DataError, match="confidence"):
        d_sys_interval(fresh_keys, seed=0, confidence=1.0)
    two = score_set(np.eye(2), np.arange(2), np.arange(2))
    with pytest.raises(DataError, match="three people"):
        chance_level(two)
