"""Many jobs: some are done, some fail, and somebody presses Ctrl-C."""

from __future__ import annotations

import threading

import pytest

from fedpalm.benchmark.jobs.engine import LocalRunner, run_jobs, undone
from fedpalm.benchmark.palm.config import Job
from fedpalm.benchmark.palm.job import MODULE
from fedpalm.errors import ChildFailedError, ConfigError
from tests.unit.benchmark.palm.conftest import canned_result, tiny, tiny_job


class Watched:
    def __init__(self) -> None:
        self.rounds, self.done, self.failures = [], [], []

    def advanced(self, job, rounds):
        self.rounds.append((job.variant_name, rounds))

    def ended(self, job, seconds):
        self.done.append(job.variant_name)

    def failed(self, failure):
        self.failures.append((failure.job.variant_name, failure.what))


class Canned:
    """Makes results up; ``bad`` variants fail, ``asked`` counts."""

    def __init__(self, store, bad=()) -> None:
        self.store, self.bad, self.asked, self.stopped = store, bad, [], False

    def __call__(self, job, watch):
        self.asked.append(job.variant_name)
        if job.variant_name in self.bad:
            raise ConfigError("cannot be\nbuilt")
        canned_result(self.store, job, 0.5)

    def stop(self):
        self.stopped = True


def test_a_job_that_fails_is_one_line_and_the_others_go_on(store):
    jobs = [tiny_job(name) for name in ("local", "fedavg", "fedpalm")]
    watch, runner = Watched(), Canned(store, bad=("fedavg",))
    failures = run_jobs(jobs, 2, watch, runner)
    assert [(f.job, f.what) for f in failures] == [(jobs[1], "cannot be built")]
    assert sorted(watch.done) == ["fedpalm", "local"] and len(watch.failures) == 1
    assert undone(jobs, store) == [jobs[1]] and runner.stopped


def test_what_is_done_is_not_done_again(store):
    jobs = [tiny_job(name) for name in ("local", "fedavg")]
    canned_result(store, jobs[0], 0.5)
    runner = Canned(store)
    run_jobs(undone(jobs, store), 1, Watched(), runner)
    assert runner.asked == ["fedavg"]
    run_jobs(undone(jobs, store), 1, Watched(), runner)
    assert runner.asked == ["fedavg"]


def test_ctrl_c_stops_the_runner_and_begins_nothing_more(store):
    released = threading.Event()

    class Waiting(Canned):
        def __call__(self, job, watch):
            if job.variant_name == "local":
                raise KeyboardInterrupt
            self.asked.append(job.variant_name)
            released.wait(30)
            raise ChildFailedError("ended")

        def stop(self):
            super().stop()
            released.set()

    names = ("fedavg", "local", "fedpalm", "fedpalm-k1", "fedpalm-k8", "fedpalm-start")
    watch, runner = Watched(), Waiting(store)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([tiny_job(name) for name in names], 2, watch, runner)
    assert runner.stopped and len(runner.asked) <= 2 and watch.failures == []


def test_a_process_that_is_ended_leaves_a_job_that_goes_on(store):
    job = tiny_job(rounds=50)
    runner = LocalRunner(store, MODULE)

    class Impatient(Watched):
        def advanced(self, job, rounds):
            super().advanced(job, rounds)
            if rounds == 2:
                runner.stop()

    with pytest.raises(ChildFailedError):
        runner(job, Impatient())
    assert store.checkpoint_file(job.hash).exists()
    again, watch = LocalRunner(store, MODULE), Watched()

    class Curious(Watched):
        def advanced(self, job, rounds):
            watch.advanced(job, rounds)
            again.stop()

    with pytest.raises(ChildFailedError):
        again(job, Curious())
    assert watch.rounds[0][1] >= 2


def test_why_a_process_failed_is_said_in_a_line(store):
    config = tiny(data={"source": "nowhere", "identities": 4, "images": 4})
    job = Job(config, "fedavg", 0, "f")
    with pytest.raises(ChildFailedError, match="nowhere: no such file or folder"):
        LocalRunner(store, MODULE)(job, Watched())
