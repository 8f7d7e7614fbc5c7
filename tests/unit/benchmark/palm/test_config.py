"""Jobs and their hashes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpalm.benchmark.jobs.engine import parse_shard
from fedpalm.benchmark.palm import config as config_module
from fedpalm.benchmark.palm.config import (
    BenchConfig,
    DataSettings,
    Job,
    jobs_of,
    preset,
)
from fedpalm.benchmark.palm.data import fingerprint, site_data
from fedpalm.benchmark.palm.variants import METHODS, VARIANTS
from fedpalm.errors import ConfigError

from .conftest import tiny, tiny_job


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": 3},
        {"rounds": 3},
        {"evaluate_every": 2},
        {"resamples": 21},
        {"training": {"local_epochs": 2}},
        {"training": {"local_epochs": 1, "learning_rate": 0.002}},
        {"data": {"identities": 6, "images": 4}},
        {"data": {"identities": 4, "images": 6}},
        {"data": {"identities": 4, "images": 4, "difficulty": 1.5}},
    ],
)
def test_what_changes_the_result_changes_the_hash_and_the_experiment(changes):
    one, other = tiny_job(), tiny_job(**changes)
    assert one.hash != other.hash
    assert one.experiment != other.experiment


def test_variants_and_seeds_have_hashes_of_their_own_inside_one_experiment():
    jobs = [Job(tiny(), name, seed, "f") for name in VARIANTS for seed in (0, 1)]
    assert len({job.hash for job in jobs}) == len(jobs)
    assert len({job.experiment for job in jobs}) == 1


def test_a_new_version_of_the_benchmark_does_everything_again(monkeypatch):
    before = tiny_job().hash
    monkeypatch.setattr(config_module, "BENCHMARK_VERSION", 2)
    assert tiny_job().hash != before


def test_what_else_is_run_changes_nothing():
    alone = tiny_job().hash
    assert tiny_job(seeds=(0, 5), variants=("local", "fedavg")).hash == alone


def folder_of_images(root: Path, level: int = 100) -> Path:
    rng = np.random.default_rng(0)
    for person in range(8):
        folder = root / f"person-{person}"
        folder.mkdir(parents=True)
        for image in range(4):
            pixels = rng.integers(0, level, (128, 128)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.png")
    return root


def test_where_images_lie_does_not_matter_and_what_they_show_does(tmp_path):
    first = folder_of_images(tmp_path / "here")
    moved = Path(shutil.copytree(first, tmp_path / "elsewhere" / "deeper"))
    other = folder_of_images(tmp_path / "other", level=101)
    found = [fingerprint(DataSettings(source=str(one))) for one in (first, moved, other)]
    assert found[0] == found[1] != found[2]
    config = tiny(data={"source": str(first), "identities": None, "images": None})
    data = site_data(config, seed=0)
    assert [one.train.classes for one in data.values()] == [2, 2]


def test_a_site_trains_on_its_gallery_and_on_nobody_of_its_open_set():
    for one in site_data(tiny(), seed=0).values():
        assert one.train.images is one.closed.gallery
        seen = {image.tobytes() for image in one.train.images}
        others = (one.closed.probe, one.open.gallery, one.open.probe)
        assert not any(image.tobytes() in seen for images in others for image in images)


def test_every_job_is_in_exactly_one_shard():
    config = tiny(seeds=(0, 1, 2))
    whole = [job.hash for job in jobs_of(config, "f")]
    parts = [[job.hash for job in jobs_of(config, "f", (k, 4))] for k in (1, 2, 3, 4)]
    assert sorted(one for part in parts for one in part) == sorted(whole)
    assert len(whole) == len(set(whole)) == 3 * len(METHODS)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/4/2", "-1/4"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="shard"):
        parse_shard(text)


def test_a_job_survives_its_json():
    job = tiny_job("fedpalm-k8", 3)
    again = Job.from_json(job.to_json())
    assert again == job and again.hash == job.hash
    assert again.training.teim_neighbours == 8


def test_a_job_of_another_version_is_refused(monkeypatch):
    text = tiny_job().to_json()
    monkeypatch.setattr(config_module, "BENCHMARK_VERSION", 2)
    with pytest.raises(ConfigError, match="another version"):
        Job.from_json(text)


@pytest.mark.parametrize("name", ["smoke", "quick", "paper"])
def test_presets_are_settings(name):
    assert preset(name).variants == METHODS


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="fedsomething"):
        BenchConfig(variants=("fedavg", "fedsomething"))
