"""Figures of cancelable templates: who holds which key, and that the figures follow from the scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from fedpalm.benchmark.template_scores import (
    Keyring,
    claimed_keys,
    invert,
    issued_again,
    own_keys,
    unprotected,
)
from fedpalm.benchmark.templates import QUICK, _Split, score_all
from fedpalm.cli.app import commands
from fedpalm.cli.bench_templates import CASES
from fedpalm.data.loading import Trial
from fedpalm.data.palms import PRESETS, cache_root, synthetic_palms
from fedpalm.evaluation.metrics import eer
from fedpalm.protection import score

PEOPLE, IMAGES, LENGTH = 12, 2, 128
CHANCE = 0.5


def trial(seed: int = 0, people: int = PEOPLE) -> Trial:
    """Templates of one site, two images a person in gallery and probes each."""
    rng = np.random.Generator(np.random.Philox(seed))
    centres = rng.standard_normal((people, 1, LENGTH))
    both = (centres + 0.5 * rng.standard_normal((people, 2 * IMAGES, LENGTH))).astype(np.float32)
    labels = np.repeat(np.arange(people), IMAGES)
    gallery, probe = (one.reshape(-1, LENGTH) for one in (both[:, :IMAGES], both[:, IMAGES:]))
    return Trial(gallery, labels, probe, labels)


KEYS = Keyring(0, "amber", LENGTH)


def test_impostors_with_keys_of_their_own_score_by_chance():
    found = own_keys(trial(), KEYS, 0, 0)
    assert np.abs(found.impostor - CHANCE).max() < 0.06 and found.genuine.min() > 0.65


def test_under_the_claimed_key_impostors_score_as_their_palms_do():
    """Each pair one by one: the probe, too, goes through the key of the gallery's person."""
    one = trial()
    found = claimed_keys(one, KEYS, 3)
    at = 0
    for probe, person in zip(one.probe, one.probe_labels, strict=True):
        for gallery, claimed in zip(one.gallery, one.gallery_labels, strict=True):
            if person == claimed:
                continue
            transform = KEYS.transform(int(claimed), 3)
            made = transform.apply(np.stack([probe, gallery]))
            assert found.impostor[at] == score(made[0], made[1])
            at += 1
        if at > 100:
            break


def test_in_two_systems_with_fresh_keys_a_person_scores_like_anybody():
    found = own_keys(trial(), KEYS, 0, 1)
    assert np.abs(np.concatenate([found.genuine, found.impostor]) - CHANCE).max() < 0.06


def test_keys_issued_again_are_no_new_people():
    sets = [own_keys(trial(), KEYS, 2 * n, 2 * n + 1) for n in range(3)]
    joined = issued_again(sets)
    assert joined.identities == PEOPLE and joined.genuine.size == 3 * sets[0].genuine.size
    assert not np.array_equal(sets[0].genuine, sets[1].genuine)
    assert np.array_equal(joined.genuine_identity, np.tile(sets[0].genuine_identity, 3))


def test_whoever_has_key_and_template_nearly_has_the_unprotected_one():
    """What is not promised. A transform that this fails for should say so in its decision."""
    one = trial()
    found = invert(one, KEYS, PEOPLE)
    assert found.itself.shape == (PEOPLE,) and found.itself.min() > 0.9
    assert found.others.mean() > 0.9 * unprotected(one).genuine.mean()


def test_scores_come_from_the_seed():
    trials = {"site-01": trial(0, people=3), "site-02": trial(1, people=3)}
    first, again = score_all(QUICK, trials), score_all(QUICK, trials)
    other = score_all(QUICK.model_copy(update={"seed": 1}), trials)
    for name in CASES:
        assert np.array_equal(first[name].impostor, again[name].impostor)
        if name != "unprotected":
            assert not np.array_equal(first[name].impostor, other[name].impostor)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPALM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.usefixtures("cache")
def test_the_command_prints_what_it_writes(tmp_path):
    out = tmp_path / "out"
    ran = CliRunner().invoke(
        commands, ["bench", "templates", "--quick", "--out", str(out), "--json"]
    )
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    written = json.loads((out / "templates.json").read_text())
    assert found == written
    assert (out / "templates.png").stat().st_size > 10_000
    assert set(found["cases"]) == set(CASES)
    base = found["cases"]["unprotected"]
    assert base["above"] == 0.0 and base["above_interval"] == [0.0, 0.0]
    for name, case in found["cases"].items():
        assert case["above"] == pytest.approx(case["eer"] - base["eer"])
        assert 0 <= case["d_sys"] <= 1 and case["d_sys_interval"][0] <= case["d_sys_interval"][1]
        pairs = QUICK.sites * QUICK.strangers
        issues = 1 if name == "unprotected" else QUICK.issues
        assert case["genuine_pairs"] == pairs * issues
    tried = [one["size_bytes"] for one in found["tuning"]["protected"]]
    assert tried == list(QUICK.sizes) and found["size_bytes"] in tried
    assert found["keys"] == "seeded: they protect nobody"
    assert "training, round 1 of 1" in ran.stderr


@pytest.mark.usefixtures("cache")
def test_who_trains_who_chooses_the_size_and_who_is_measured_are_different_people():
    drawn = synthetic_palms(
        cache_root(), QUICK.sites, QUICK.people + QUICK.tuning + QUICK.strangers, QUICK.images,
        QUICK.seed, *PRESETS["default"],
    )  # fmt: skip
    for records in drawn:
        split = _Split.of(QUICK, records)
        trials = (split.tuning, split.strangers)
        images = [split.training.images] + [
            np.concatenate([one.gallery, one.probe]) for one in trials
        ]
        seen = [{image.tobytes() for image in part} for part in images]
        assert [len(part) for part in seen] == [
            QUICK.images * count for count in (QUICK.people, QUICK.tuning, QUICK.strangers)
        ]
        assert len(set.union(*seen)) == sum(len(part) for part in seen)


def test_unprotected_scores_are_cosines():
    one = trial()
    found = unprotected(one)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one.gallery, one.probe)]
    assert eer(found.genuine, found.impostor) == 0.0
    assert found.genuine[0] == pytest.approx(float(unit[0][0] @ unit[1][0]), abs=1e-6)
