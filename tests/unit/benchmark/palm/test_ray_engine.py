"""Ray, on this machine, where it is installed: pip install 'fedpalm[ray]'."""

from __future__ import annotations

import importlib.util

import pytest

from fedpalm.benchmark.jobs.engine import run_jobs
from fedpalm.benchmark.jobs.results import Store
from fedpalm.benchmark.palm.config import Job
from fedpalm.benchmark.palm.ray_engine import RayRunner, remote_job
from fedpalm.errors import ChildFailedError, ConfigError
from tests.unit.benchmark.jobs.test_engine import Watched

from .conftest import canned_result, tiny, tiny_job
from .test_job import THE_SAME

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: a sweep over a cluster is not tried")
def test_a_local_ray_makes_the_results_that_a_process_makes(tmp_path):
    jobs = [tiny_job("fedavg"), tiny_job("local")]
    nowhere = tiny(data={"source": str(tmp_path / "none"), "identities": 4, "images": 4})
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    watch, runner = Watched(), RayRunner(there)
    assert runner.cores >= 1
    with pytest.raises(ChildFailedError, match="no such file"):
        runner(Job(nowhere, "fedavg", 0, "f"), watch)
    assert run_jobs(jobs, 2, watch, runner) == []
    for job in jobs:
        remote_job(job.to_json(), str(here.folder))
        one, other = here.read(job.hash), there.read(job.hash)
        assert {key: one[key] for key in THE_SAME} == {key: other[key] for key in THE_SAME}


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_engine_says_how_to_get_it(store):
    with pytest.raises(ConfigError) as error:
        RayRunner(store)
    assert "fedpalm[ray]" in error.value.next_step


def test_a_task_hands_back_its_files_or_one_line(store, tmp_path):
    job = tiny_job()
    canned_result(store, job, 0.5)
    answer = remote_job(job.to_json(), str(store.folder))
    assert answer["result"] == store.result_file(job.hash).read_bytes()
    assert answer["scores"] == store.scores_file(job.hash).read_bytes()
    nowhere = tiny(data={"source": str(tmp_path / "none"), "identities": 4, "images": 4})
    answer = remote_job(Job(nowhere, "fedavg", 0, "f").to_json(), str(store.folder))
    assert list(answer) == ["error"] and "no such file" in answer["error"]
