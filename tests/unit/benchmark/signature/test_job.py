"""Jobs: what names them, what is in a result, and that an interrupted one ends with the same bits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedpalm.benchmark.jobs.results import Store
from fedpalm.benchmark.signature import config as config_module
from fedpalm.benchmark.signature.config import BenchConfig, Job, jobs_of, preset
from fedpalm.benchmark.signature.data import (
    everybody,
    fingerprints,
    job_data,
    references_of,
    site_splits,
)
from fedpalm.benchmark.signature.job import run_job
from fedpalm.data.signature_image import load_signatures
from fedpalm.data.signature_splits import SignatureTrial
from fedpalm.data.signatures import SignatureRecord
from fedpalm.errors import ConfigError


def tiny(**changes):
    values = {
        "synthetic": {"writers": 4, "genuine": 4, "forged": 3},
        "sites": 3,
        "rounds": 2,
        "references": (1, 2),
        "resamples": 20,
        "training": {"local_epochs": 1},
    }
    return BenchConfig.model_validate(values | changes)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPALM_CACHE", str(tmp_path_factory.mktemp("signatures")))
        yield


def one_job(variant):
    config = tiny(variants=(variant,))
    (job,) = jobs_of(config, fingerprints(config))
    return job


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    job, store = one_job("fedmh"), Store(tmp_path_factory.mktemp("results"))
    run_job(job, store, lambda rounds: None)
    return job, store.read(job.hash)


def test_an_interrupted_job_ends_with_the_same_scores(tmp_path):
    job = one_job("fml")
    once, pieces = Store(tmp_path / "once"), Store(tmp_path / "pieces")
    run_job(job, once, lambda rounds: None)

    def impatient(rounds):
        if rounds == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, pieces, impatient)
    assert pieces.checkpoint_file(job.hash).exists() and not pieces.is_done(job.hash)
    run_job(job, pieces, lambda rounds: None)
    left, right = once.read(job.hash), pieces.read(job.hash)
    for key in ("figures", "rounds"):
        assert left[key] == right[key]
    for name, array in once.scores(job.hash).items():
        assert array.tobytes() == pieces.scores(job.hash)[name].tobytes()
    assert not pieces.checkpoint_file(job.hash).exists()


def test_a_poisoned_aggregate_is_refused_and_costs_a_searching_site_nothing(done):
    poison = done[1]["poison"]
    for kind in ("random", "negated", "x100"):
        searched, taken = (poison["aggregates"][kind][way] for way in ("searched", "taken"))
        assert searched["refused_sites"] == searched["refused_groups"] == 1
        assert searched["after"] == poison["before"]
        assert searched["probe"]["after"] == searched["probe"]["before"]
        assert taken["refused_groups"] == 0
        assert taken["probe"]["after"] != taken["probe"]["before"]


def test_what_guidance_and_receipt_did_is_in_every_round(done):
    rounds = done[1]["rounds"]
    assert len(rounds) == 2
    for one in rounds:
        assert {"guidance.cosine", "probe.user_before", "eta.projection", "loss.user"} <= one.keys()


def test_kinds_of_forgery_stand_apart_for_every_set_and_number_of_references(done):
    job, result = done
    figures = result["figures"]
    assert figures.keys() == {"closed", "open"}
    for by_count in figures.values():
        assert by_count.keys() == {"1", "2"}
        for by_kind in by_count.values():
            assert by_kind.keys() == {"random", "skilled"}
            assert len(by_kind["random"]["eer"]["draws"]) == 20
            assert by_kind["random"]["eer"]["sites"].keys() == job.config.backbones.keys()


def test_a_hash_changes_with_what_changes_a_result_and_with_nothing_else(monkeypatch, tmp_path):
    base = Job(tiny(), "fedmh", "synthetic", 0, {"synthetic": "f"})
    moved = tiny(real={"source": str(tmp_path)})
    assert Job(moved, "fedmh", "synthetic", 0, {"synthetic": "f"}).hash == base.hash
    others = [
        Job(tiny(rounds=3), "fedmh", "synthetic", 0, {"synthetic": "f"}),
        Job(tiny(), "local", "synthetic", 0, {"synthetic": "f"}),
        Job(tiny(), "fedmh", "real", 0, {"synthetic": "f"}),
        Job(tiny(), "fedmh", "synthetic", 1, {"synthetic": "f"}),
        Job(tiny(), "fedmh", "synthetic", 0, {"synthetic": "f", "real": "g"}),
    ]
    assert len({one.hash for one in [base, *others]}) == 6
    assert {one.experiment for one in others[1:4]} == {base.experiment}
    again = json.loads(json.dumps(base.to_json()))
    assert Job.from_json(again).hash == base.hash
    monkeypatch.setattr(config_module, "BENCHMARK_VERSION", 999)
    with pytest.raises(ConfigError, match="another version"):
        Job.from_json(again)


@pytest.mark.parametrize("name", ["smoke", "quick", "full"])
def test_every_preset_gives_each_contender_a_job_on_each_set(name):
    config = preset(name)
    jobs = jobs_of(config, {"synthetic": "f", "real": "g"})
    assert len(jobs) == len({j.hash for j in jobs})
    assert len(jobs) == 2 * len(config.variants) * len(config.seeds)
    parts = [jobs_of(config, {"synthetic": "f", "real": "g"}, (k, 3)) for k in (1, 2, 3)]
    assert sorted(j.hash for part in parts for j in part) == sorted(j.hash for j in jobs)


def test_two_sites_of_each_backbone_stand_in_the_plan():
    members = [sorted(preset("quick").backbones.values()).count(b) for b in config_module.BACKBONES]
    assert members == [2, 2, 2]


def test_everybody_is_claimed_across_sites_and_nobody_twice():
    config = tiny()
    splits = site_splits(config, "synthetic", 0)
    trial = everybody(splits.values(), 0)
    writers = {one.writer for one in trial.references}
    assert writers == {w for s in splits.values() for w in (*s.writers, *s.open_writers)}
    assert len(trial.genuine) == 2 * len(writers)
    sites = [(claim.writer[:5], claim.author[:5]) for claim in trial.random]
    assert any(claimed != author for claimed, author in sites)


def test_a_site_trains_on_what_its_split_says():
    job = Job(tiny(), "fedmh", "synthetic", 0, {"synthetic": "f"})
    split = site_splits(job.config, "synthetic", 0)["site-1"]
    found, expected = (
        job_data(job).sites["site-1"].train,
        load_signatures(split.train),
    )
    for key in ("images", "writers", "genuine", "classes"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))


def test_nothing_is_scored_with_more_references_than_there_are_of_every_signature(tmp_path):
    records = tuple(
        SignatureRecord(tmp_path / f"{text}-{n}.png", "a", text=text, author="a")
        for text, count in (("x", 4), ("y", 2))
        for n in range(count)
    )
    trial = SignatureTrial(records, (), (), (), ())
    assert references_of(tiny(references=(1, 5, 10)), [trial]) == (1, 2)
    of_x = SignatureTrial(records[:4], (), (), (), ())
    assert references_of(tiny(references=(1, 3, 10)), [of_x]) == (1, 3, 4)
