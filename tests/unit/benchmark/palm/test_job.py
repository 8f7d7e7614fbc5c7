"""One job, whole and in pieces."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedpalm.benchmark.jobs.results import Store
from fedpalm.benchmark.palm.data import site_data
from fedpalm.benchmark.palm.job import means, run_job
from fedpalm.benchmark.simulate import simulate

from .conftest import tiny_job

THE_SAME = ("figures", "convergence", "rounds", "model", "bytes", "config")


def interrupted_after(job, store, rounds):
    def progress(done):
        if done == rounds:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, store, progress)
    assert store.checkpoint_file(job.hash).exists() and not store.is_done(job.hash)


@pytest.mark.parametrize("variant", ["local", "fedpalm-freeze", "fedpalm"])
def test_an_interrupted_job_ends_with_the_same_bits(tmp_path, variant):
    job = tiny_job(variant, rounds=3)
    once, pieces = Store(tmp_path / "once"), Store(tmp_path / "pieces")
    run_job(job, once, lambda done: None)
    interrupted_after(job, pieces, 1)
    interrupted_after(job, pieces, 3)
    seen = []
    run_job(job, pieces, seen.append)
    assert seen == [3]
    left, right = once.read(job.hash), pieces.read(job.hash)
    assert {key: left[key] for key in THE_SAME} == {key: right[key] for key in THE_SAME}
    assert len(right["seconds"]) == len(right["rounds"]) == 3
    for name, array in once.scores(job.hash).items():
        assert array.tobytes() == pieces.scores(job.hash)[name].tobytes()
    assert not pieces.checkpoint_file(job.hash).exists()


def test_experts_travel_at_the_end_of_the_warm_up_or_after_the_last_round(store):
    routed = {}
    for variant in ("fedpalm-freeze", "fedpalm"):
        job = tiny_job(variant, rounds=3)
        run_job(job, store, lambda done: None)
        routed[variant] = [one.get("routing.open.others") for one in store.read(job.hash)["rounds"]]
    assert routed["fedpalm"] == [None, None, None]
    assert routed["fedpalm-freeze"][0] is None
    assert min(routed["fedpalm-freeze"][1:]) > 0


def test_a_spoilt_or_foreign_checkpoint_counts_as_none(store):
    job, other = tiny_job(rounds=2), tiny_job(rounds=3)
    interrupted_after(other, store, 1)
    foreign = store.checkpoint_file(other.hash).read_bytes()
    for content in (foreign, foreign[: len(foreign) // 2], b"", b"\xff" * 100):
        store.checkpoint_file(job.hash).write_bytes(content)
        seen = []

        def stop(done, seen=seen):
            seen.append(done)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_job(job, store, stop)
        assert seen == [0]


def test_the_job_is_the_simulation_of_its_plan(store):
    job = tiny_job("fedpalm")
    run_job(job, store, lambda done: None)
    plan = job.plan()
    assert plan.draft.reproducible and plan.draft.expert_exchange == "deployment"
    sites = {name: one.train for name, one in site_data(job.config, job.seed).items()}
    shared = simulate(plan, "fedpalm", sites).shared
    model = hashlib.sha256(shared.astype("<f4").tobytes()).hexdigest()
    assert store.read(job.hash)["model"]["shared"] == model


def test_the_result_says_what_a_round_costs(store):
    job = tiny_job("fedpalm", sites=3, rounds=1)
    run_job(job, store, lambda done: None)
    cost = store.read(job.hash)["bytes"]
    parameters = cost["parameters"]
    assert cost["plain"] == {"up": 4 * (parameters + 1), "down": 4 * parameters}
    more = [cost["masked"][way] - cost["plain"][way] for way in ("up", "down")]
    assert all(0 < extra < 100_000 for extra in more)
    assert cost["exchange"]["up"] == 2 * 4 * 22_899


def test_metrics_are_means_over_sites_and_experts_are_own_global_or_others():
    found = means(
        {
            "a": {"loss": 1.0, "routing.open.a": 0.5, "routing.open.b": 0.3, "routing.open.c": 0.2},
            "b": {"loss": 3.0, "routing.open.b": 0.1, "routing.closed._global": 1.0},
        }
    )
    assert found == {
        "loss": 2.0,
        "routing.closed.global": 1.0,
        "routing.open.others": 0.5,
        "routing.open.own": pytest.approx(0.3),
    }
    assert np.isfinite(list(found.values())).all()
